"""Each family's forward against its formula in plain numpy and float64, written from the papers.

A mistake that these models shared with the oracle of the parity tests would show here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import gptrio

Array = NDArray[np.float64]
Weights = dict[str, Array]
POSITIONS = 40
SHARED = {"vocab_size": 61, "bos_token_id": 60, "eos_token_id": 60}
erf = np.vectorize(math.erf)


def layer_norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def tanh_gelu(x: Array) -> Array:
    """Hendrycks and Gimpel, 2016, the approximation."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def attend(q: Array, k: Array, v: Array, scale: float, window: int | None = None) -> Array:
    """Causal attention of (H, T, D), one query at a time."""
    out = np.zeros_like(q)
    for head in range(q.shape[0]):
        for place in range(q.shape[1]):
            seen = slice(0 if window is None else max(0, place - window + 1), place + 1)
            scores = k[head, seen] @ q[head, place] * scale
            weights = np.exp(scores - scores.max())
            out[head, place] = weights / weights.sum() @ v[head, seen]
    return out


def heads_of(x: Array, heads: int) -> Array:
    """(T, C) to (H, T, D)."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def joined(x: Array) -> Array:
    """(H, T, D) to (T, C)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def gpt2(weights: Weights, ids: Array, config: Any) -> Array:
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: len(ids)]
    for i in range(config.n_layer):
        w = {name.removeprefix(f"transformer.h.{i}."): value for name, value in weights.items()}
        mixed = layer_norm(x, w, "ln_1", config.layer_norm_epsilon) @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]
        q, k, v = (heads_of(part, config.n_head) for part in np.split(mixed, 3, axis=1))
        scale = 1 / math.sqrt(q.shape[2]) if config.scale_attn_weights else 1.0
        scale /= i + 1 if config.scale_attn_by_inverse_layer_idx else 1
        x = x + joined(attend(q, k, v, scale)) @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        inner = layer_norm(x, w, "ln_2", config.layer_norm_epsilon) @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
        x = x + tanh_gelu(inner) @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
    return layer_norm(x, weights, "transformer.ln_f", config.layer_norm_epsilon) @ weights["lm_head.weight"].T


def gpt_neo(weights: Weights, ids: Array, config: Any) -> Array:
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: len(ids)]
    for i, kind in enumerate(["global", "local", "local"]):
        w = {name.removeprefix(f"transformer.h.{i}."): value for name, value in weights.items()}
        normed = layer_norm(x, w, "ln_1", config.layer_norm_epsilon)
        q, k, v = (heads_of(normed @ w[f"attn.attention.{p}_proj.weight"].T, config.num_heads) for p in "qkv")
        mixed = joined(attend(q, k, v, 1.0, config.window_size if kind == "local" else None))
        x = x + mixed @ w["attn.attention.out_proj.weight"].T + w["attn.attention.out_proj.bias"]
        inner = layer_norm(x, w, "ln_2", config.layer_norm_epsilon) @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
        x = x + tanh_gelu(inner) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
    return layer_norm(x, weights, "transformer.ln_f", config.layer_norm_epsilon) @ weights["lm_head.weight"].T


def turned(x: Array, config: Any) -> Array:
    """Rotary positions on (H, T, D): pair (i, i + R / 2) of position p turns by p * base ** (-2i / R)."""
    out, rotated = x.copy(), int(x.shape[2] * config.rotary_pct)
    for pair in range(rotated // 2):
        angle = np.arange(x.shape[1]) * config.rotary_emb_base ** (-2 * pair / rotated)
        point = (x[:, :, pair] + 1j * x[:, :, pair + rotated // 2]) * np.exp(1j * angle)
        out[:, :, pair], out[:, :, pair + rotated // 2] = point.real, point.imag
    return out


def gpt_neox(weights: Weights, ids: Array, config: Any) -> Array:
    x = weights["gpt_neox.embed_in.weight"][ids]
    for i in range(config.num_hidden_layers):
        w = {name.removeprefix(f"gpt_neox.layers.{i}."): value for name, value in weights.items()}
        normed = layer_norm(x, w, "input_layernorm", config.layer_norm_eps)
        mixed = normed @ w["attention.query_key_value.weight"].T + w["attention.query_key_value.bias"]
        per_head = heads_of(mixed, config.num_attention_heads)  # (H, T, 3 D)
        q, k, v = np.split(per_head, 3, axis=2)
        out = joined(attend(turned(q, config), turned(k, config), v, 1 / math.sqrt(q.shape[2])))
        attended = out @ w["attention.dense.weight"].T + w["attention.dense.bias"]
        before_mlp = x if config.use_parallel_residual else x + attended
        normed = layer_norm(before_mlp, w, "post_attention_layernorm", config.layer_norm_eps)
        inner = erf_gelu(normed @ w["mlp.dense_h_to_4h.weight"].T + w["mlp.dense_h_to_4h.bias"])
        x = x + attended + inner @ w["mlp.dense_4h_to_h.weight"].T + w["mlp.dense_4h_to_h.bias"]
    return layer_norm(x, weights, "gpt_neox.final_layer_norm", config.layer_norm_eps) @ weights["embed_out.weight"].T


GPT2 = {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 3, "n_head": 4}
NEO = {
    "max_position_embeddings": POSITIONS,
    "hidden_size": 32,
    "num_layers": 3,
    "num_heads": 4,
    "attention_types": [[["global"], 1], [["local"], 2]],
    "window_size": 8,
}
NEOX = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
FORMULAS: dict[str, Callable[[Weights, Array, Any], Array]] = {
    "GPT2LMHeadModel": gpt2,
    "GPTNeoForCausalLM": gpt_neo,
    "GPTNeoXForCausalLM": gpt_neox,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("GPT2LMHeadModel", GPT2),
    ("GPT2LMHeadModel", GPT2 | {"scale_attn_weights": False}),
    ("GPT2LMHeadModel", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    ("GPTNeoForCausalLM", NEO),
    ("GPTNeoForCausalLM", NEO | {"window_size": 3}),
    ("GPTNeoForCausalLM", NEO | {"window_size": 30}),
    ("GPTNeoXForCausalLM", NEOX),
    ("GPTNeoXForCausalLM", NEOX | {"rotary_pct": 1.0, "rotary_emb_base": 500}),
    ("GPTNeoXForCausalLM", NEOX | {"rotary_pct": 0.5, "use_parallel_residual": False}),
]


@torch.no_grad()
@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
@pytest.mark.parametrize(("class_name", "fields"), CASES, ids=str)
def test_forward_is_the_formula(class_name: str, fields: dict[str, Any], back_end: str) -> None:
    cls = getattr(gptrio, class_name)
    model = cls(cls.config_class(**SHARED, **fields, attn_implementation=back_end)).double().eval()
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.3)
    ids = torch.randint(0, 61, (2, 35))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    actual = model(ids).logits
    for row, row_ids in enumerate(ids.numpy()):
        expected = FORMULAS[class_name](weights, row_ids, model.config)
        # float64 all the way but for what the papers leave to float32: scores of GPT-Neo, softmax, rotary angles
        assert np.abs(actual[row].numpy() - expected).max() < 2e-5 * np.abs(expected).max()
