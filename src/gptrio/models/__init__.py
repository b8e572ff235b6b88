"""One file per family, over blocks, backbone and heads that are written once."""
