"""For tests of code that builds on gptrio: models and a tokenizer that need no download, and comparison of tensors."""

from gptrio.testing.parity import assert_close, relative_difference
from gptrio.testing.tiny import VOCABULARY_SIZE, byte_tokenizer, tiny_config

__all__ = ["VOCABULARY_SIZE", "assert_close", "byte_tokenizer", "relative_difference", "tiny_config"]
