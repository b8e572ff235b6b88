"""How one matrix product is really run on this machine."""

GROUP_SIZES = (32, 64, 128)  # inputs that share a scale in the int4 format
