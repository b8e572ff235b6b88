"""Checkpoints as they are published for GPT-Neo and GPT-NeoX, and whole models handed back and forth."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

import gptrio
from gptrio.testing import assert_close
from tests.reference import model_pair, token_ids

HEADS = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [family + head for family in ("GPTNeo", "GPTNeoX") for head in HEADS]
State = dict[str, Tensor]


def neo_masks(state: State, prefix: str = "transformer.") -> State:
    """The mask buffers that released GPT-Neo files hold."""
    triangle = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
    buffers = {f"{prefix}h.{i}.attn.attention.bias": triangle.clone() for i in range(3)}
    return state | buffers | {f"{prefix}h.{i}.attn.attention.masked_bias": torch.tensor(-1e9) for i in range(3)}


def neox_masks(state: State, prefix: str = "gpt_neox.") -> State:
    """The mask buffers and rotary tables that released Pythia files hold."""
    triangle = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
    buffers: State = {}
    for i in range(3):
        layer = f"{prefix}layers.{i}.attention"
        buffers[f"{layer}.bias"] = triangle.clone()
        buffers[f"{layer}.masked_bias"] = torch.tensor(-1e9)
        buffers[f"{layer}.rotary_emb.inv_freq"] = torch.rand(1)
    return state | buffers


def of_version_5(state: State) -> State:
    """Transformers 5 names the head of GPT-NeoX like all others."""
    return {name.replace("embed_out.", "lm_head."): tensor for name, tensor in state.items()}


def without_head(state: State) -> State:
    """Files in which the tied head is only the token table."""
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}


def without_prefix(state: State) -> State:
    return {name.removeprefix("transformer."): tensor for name, tensor in without_head(state).items()}


NEO_LAYOUTS: dict[str, Callable[[State], State]] = {
    "as it is": dict,
    "mask buffers": neo_masks,
    "no head": without_head,
    "no head, mask buffers": lambda state: neo_masks(without_head(state)),
    "no prefix": without_prefix,
    "no prefix, mask buffers": lambda state: neo_masks(without_prefix(state), prefix=""),
}
NEOX_LAYOUTS: dict[str, Callable[[State], State]] = {
    "as it is": dict,
    "buffers": neox_masks,
    "lm_head": of_version_5,
    "lm_head, buffers": lambda state: neox_masks(of_version_5(state)),
    "a table for all layers": lambda state: state | {"gpt_neox.rotary_emb.inv_freq": torch.rand(1)},
}
LAYOUTS = [("GPTNeo", name, change) for name, change in NEO_LAYOUTS.items()]
LAYOUTS += [("GPTNeoX", name, change) for name, change in NEOX_LAYOUTS.items()]


def write(state: State, folder: Path, file_format: str) -> None:
    state = {name: tensor.clone() for name, tensor in state.items()}
    if file_format == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    elif file_format == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-{i:05}-of-00003.bin" for i in (1, 2, 3)]
        place = {name: names[i % 3] for i, name in enumerate(state)}
        for file in names:
            torch.save({name: tensor for name, tensor in state.items() if place[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


@torch.no_grad()
@pytest.mark.parametrize("file_format", ["safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize(
    ("family", "layout", "change"), LAYOUTS, ids=lambda part: part if isinstance(part, str) else ""
)
def test_published_layouts(
    family: str, layout: str, change: Callable[[State], State], file_format: str, tmp_path: Path
) -> None:
    oracle, _ = model_pair(f"{family}ForCausalLM")
    oracle.config.save_pretrained(tmp_path)
    write(change(oracle.state_dict()), tmp_path, file_format)
    ids = token_ids(2, 29)
    expected = oracle(ids, output_hidden_states=True)
    for auto, name in ((gptrio.AutoModelForCausalLM, "ForCausalLM"), (gptrio.AutoModel, "Model")):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(embed_out|lm_head)" if name == "Model" else "nothing is ignored")
            ours, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(ours).__name__ == family + name
        assert info["missing_keys"] == []
        if name == "Model":
            assert_close(ours(ids).last_hidden_state, expected.hidden_states[-1])
        else:
            assert info["unexpected_keys"] == []
            assert_close(ours(ids).logits, expected.logits)


@torch.no_grad()
@pytest.mark.parametrize("class_name", CLASSES)
def test_round_trips_with_the_reference(class_name: str, tmp_path: Path) -> None:
    oracle, ours = model_pair(class_name, num_labels=3, pad_token_id=60)
    ids = token_ids(2, 29)
    expected = oracle(ids).to_tuple()[0]
    ours.save_pretrained(tmp_path / "ours")
    oracle.save_pretrained(tmp_path / "theirs")
    read_here, info = getattr(gptrio, class_name).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    read_there, info = getattr(transformers, class_name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    for model in (read_here, read_there):
        assert_close(model(ids).to_tuple()[0], expected)
    assert (tmp_path / "ours" / "model.safetensors").is_file()
    assert read_here.config.architectures == [class_name]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, "auto", torch.bfloat16])
def test_half_precision_files(dtype: Any, tmp_path: Path) -> None:
    """Pythia is float16 on disk: float32 unless asked for otherwise."""
    oracle, _ = model_pair("GPTNeoXForCausalLM", dtype=torch.float16)
    oracle.save_pretrained(tmp_path)
    ours = gptrio.GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert ours.dtype == {None: torch.float32, "auto": torch.float16}.get(dtype, torch.bfloat16)
    assert_close(ours.embed_out.weight.float(), oracle.embed_out.weight.float(), 1e-2)


@torch.no_grad()
def test_more_rows_than_tokens_stay(tmp_path: Path) -> None:
    """Pythia's tables are rounded up; the rows that no token has are kept, and can be told not to come up."""
    oracle, _ = model_pair("GPTNeoXForCausalLM", vocab_size=64)
    oracle.save_pretrained(tmp_path)
    ours = gptrio.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    ids = token_ids(2, 12)
    assert ours(ids).logits.shape[-1] == ours.config.vocab_size == 64
    assert_close(ours(ids).logits, oracle(ids).logits)
    options = {"max_new_tokens": 20, "do_sample": True, "eos_token_id": None}
    assert int(ours.generate(ids, **options)[:, 12:].max()) >= 50
    assert int(ours.generate(ids, **options, suppress_tokens=list(range(50, 64)))[:, 12:].max()) < 50
    assert ours.resize_token_embeddings(50).num_embeddings == 50


@pytest.mark.parametrize("family", ["GPTNeo", "GPTNeoX"])
def test_tied_and_untied_heads(family: str, tmp_path: Path) -> None:
    for tied in (True, False):
        _, ours = model_pair(f"{family}ForCausalLM", tie_word_embeddings=tied)
        ours.save_pretrained(tmp_path / str(tied))
        again = getattr(gptrio, f"{family}ForCausalLM").from_pretrained(tmp_path / str(tied))
        assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
        assert torch.equal(again.get_output_embeddings().weight, ours.get_output_embeddings().weight)
