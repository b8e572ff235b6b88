"""The options of `generate`: declared, read, merged, checked."""
