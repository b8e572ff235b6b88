"""Text to ids and back: byte-level BPE, the fast tokenizers, batching, padding and files. Nothing here needs torch."""
