"""Weights from files into models and back: locate, read, match names, load; and write."""
