"""What the families share: backbone, heads, inputs, loading, saving."""
