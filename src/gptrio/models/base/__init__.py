"""What the three families share: everything of a model but its equation."""
