"""The families as Flax modules, and the choice among them."""
