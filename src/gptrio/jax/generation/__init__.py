"""Generation with the Flax models, in files and functions of the same names as for PyTorch; every loop is compiled."""
