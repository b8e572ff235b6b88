"""How one decoding step is run."""
