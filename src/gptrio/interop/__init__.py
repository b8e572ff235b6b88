"""The bridge to Transformers: its classes over the storage of ours, and back. Transformers is imported when called."""
