"""Sizes of the tiny models that tests compare with the reference's."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "GPTNeoX": {
        "vocab_size": 61,
        "max_position_embeddings": 32,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "GPTNeo": {
        "vocab_size": 61,
        "max_position_embeddings": 32,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["local", "global"], 1], [["local"], 1]],
        "window_size": 5,
    },
}
SPECIAL_TOKENS = {"bos_token_id": 59, "eos_token_id": 59}
