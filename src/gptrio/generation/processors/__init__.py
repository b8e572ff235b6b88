"""Score processors: callables from ids (B, T) and scores (B, V) to new scores (B, V)."""
