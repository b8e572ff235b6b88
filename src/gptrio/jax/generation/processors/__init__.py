"""Score processors of the Flax models."""
