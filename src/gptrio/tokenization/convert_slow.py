"""A tokenizer in Python as one of the `tokenizers` library."""

from __future__ import annotations

from typing import Any, cast

from tokenizers import Tokenizer

from gptrio.errors import TokenizationError
from gptrio.tokenization.backend import byte_level_backend, put_before_texts, set_prefix_space
from gptrio.tokenization.gpt2 import GPT2Tokenizer


def convert_slow_tokenizer(transformer_tokenizer: Any, from_tiktoken: bool = False) -> Tokenizer:
    """Build the backend of a fast tokenizer with the vocabulary of one in Python, without its added tokens.

    Args:
        transformer_tokenizer: a `GPT2Tokenizer`.
        from_tiktoken: False; there are no vocabularies of tiktoken here.

    Raises:
        TokenizationError: another tokenizer, or `from_tiktoken`.
    """
    slow = transformer_tokenizer
    if from_tiktoken or not isinstance(slow, GPT2Tokenizer):
        raise TokenizationError(f"a {type(slow).__name__} cannot be converted; expected a GPT2Tokenizer")
    backend = byte_level_backend(slow.encoder, list(slow.bpe_ranks))
    set_prefix_space(backend, slow.add_prefix_space)
    if slow.add_bos_token:
        put_before_texts(backend, str(slow.bos_token), cast(int, slow.bos_token_id))
    return backend
