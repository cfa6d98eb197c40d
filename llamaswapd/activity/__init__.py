"""What has been answered: one row for each request, its tokens, and, while there is room, what was said."""
