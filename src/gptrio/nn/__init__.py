"""Torch blocks that the families share; no family name appears inside."""
