"""How one matrix product is really run on this machine."""
