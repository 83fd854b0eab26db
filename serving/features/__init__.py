"""Reading a user's features from the online store."""
