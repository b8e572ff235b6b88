"""Configurations of models of some 20,000 parameters, and a tokenizer of bytes, made without files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from gptrio.config import PretrainedConfig
from gptrio.config.auto import config_class_of
from gptrio.tokenization.bpe import byte_alphabet
from gptrio.tokenization.gpt2 import GPT2TokenizerFast

VOCABULARY_SIZE = 257  # the bytes, and <|endoftext|>

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": VOCABULARY_SIZE - 1,
    "eos_token_id": VOCABULARY_SIZE - 1,
}
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "gpt2": {"num_hidden_layers": 2},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {"num_hidden_layers": 2, "intermediate_size": 128},
}


def tiny_config(model_type: str = "gpt2", **overrides: Any) -> PretrainedConfig:
    """Configuration of a two-layer model with 4 heads, 32 hidden units and 64 positions, for `byte_tokenizer`.

    Args:
        model_type: "gpt2", "gpt_neo" (its second layer local, with a window of 8) or "gpt_neox".
        overrides: fields with other values.

    Raises:
        UnsupportedError: another family.
        ConfigError: a field has an impossible value.
    """
    cls = config_class_of(model_type)
    return cls(**{**_SHARED, **_OF_FAMILY.get(model_type, {}), **overrides})


def byte_tokenizer(**kwargs: Any) -> GPT2TokenizerFast:
    """Build a tokenizer whose tokens 0 to 255 are the bytes and whose last one is `<|endoftext|>`.

    Args:
        kwargs: as for `GPT2TokenizerFast`.
    """
    tokens = [*dict(sorted(byte_alphabet().items())).values(), "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
        merges.write_text("#version: 0.2\n", encoding="utf-8")
        return GPT2TokenizerFast(str(vocabulary), str(merges), **kwargs)
