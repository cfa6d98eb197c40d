"""The machine below the models: what it is made of, and how busy it is."""
