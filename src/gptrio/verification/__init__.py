"""Whether every way of computing logits agrees with a plain forward in float64, on a given model."""
