"""How it is asked for: the HTTP front end."""
