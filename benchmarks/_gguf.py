"""GPT-2 and GPT-NeoX checkpoints as GGUF files, for llama.cpp: names and layouts come from the `gguf` package.

The vocabulary is left out: benchmarks hand over token ids.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

ARCHITECTURES = {"gpt2": gguf.MODEL_ARCH.GPT2, "gpt_neox": gguf.MODEL_ARCH.GPTNEOX}
NOT_WEIGHTS = re.compile(r"\.(masked_bias|inv_freq|attn\.bias|attention\.bias)$")


def write_gguf(folder: Path, target: Path) -> None:
    """Write the float32 GGUF file of a checkpoint folder with one `model.safetensors`."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = load_file(folder / "model.safetensors")
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]])
    add_facts(writer, config)
    for name, weight in tensors(config, weights).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def add_facts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The sizes that llama.cpp asks for."""
    neox = config["model_type"] == "gpt_neox"
    hidden = config["hidden_size" if neox else "n_embd"]
    heads = config["num_attention_heads" if neox else "n_head"]
    inner = config["intermediate_size"] if neox else config.get("n_inner") or 4 * hidden
    writer.add_context_length(config["max_position_embeddings" if neox else "n_positions"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers" if neox else "n_layer"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(config["layer_norm_eps" if neox else "layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    if neox:
        writer.add_rope_dimension_count(int(hidden // heads * config.get("rotary_pct", 0.25)))
        writer.add_rope_freq_base(config.get("rotary_emb_base", 10000))
        writer.add_parallel_residual(config.get("use_parallel_residual", True))


def tensors(config: dict[str, Any], weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Weights in float32 under GGUF's names, each matrix as (out, in), q before k before v."""
    neox = config["model_type"] == "gpt_neox"
    layers = config["num_hidden_layers" if neox else "n_layer"]
    names = gguf.get_tensor_name_map(ARCHITECTURES[config["model_type"]], layers)
    found = {}
    for key, weight in weights.items():
        if NOT_WEIGHTS.search(key) or (key == "lm_head.weight" and not neox):  # GPT-2's head is its embedding
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ValueError(f"GGUF has no name for {key!r} of {config['model_type']}")
        if neox and ".query_key_value." in key:
            weight = heads_last(weight, config["num_attention_heads"])
        elif not neox and re.search(r"\.c_(attn|proj|fc)\.weight$", key):
            weight = weight.T
        found[name] = np.ascontiguousarray(weight, dtype=np.float32)
    return found


def heads_last(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows ordered (head, qkv, width) in GPT-NeoX to the order (qkv, head, width)."""
    rows = weight.reshape(heads, 3, -1, *weight.shape[1:])  # (H, 3, D) or (H, 3, D, C)
    return rows.swapaxes(0, 1).reshape(weight.shape)
