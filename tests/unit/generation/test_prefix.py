"""A prompt computed once: the same logits, stored once for all rows, on disk and back, and for no other model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio.cache import DynamicCache
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, InputError
from gptrio.generation.prefix import METADATA_KEY, PrefixLayer, PromptPrefix
from gptrio.models.auto import AutoModelForCausalLM
from gptrio.testing.tiny import tiny_config
from tests.unit.cache.kinds import FAMILIES, in_chunks, random_ids, tiny_model


def prompts(prefix: PromptPrefix, rows: int, length: int = 12) -> torch.Tensor:
    return torch.cat([prefix.input_ids.expand(rows, -1), random_ids(rows, length)], dim=1)


@pytest.mark.parametrize("rows", (1, 3))
@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_have_the_logits_of_the_whole(family: str, rows: int):
    model = tiny_model(family)
    prefix = PromptPrefix.compute(model, random_ids(1, 40))
    for _ in range(2):  # the first use must leave the prefix as it was
        ids = prompts(prefix, rows)
        with torch.no_grad():
            whole = model(ids).logits[:, len(prefix) :]
        logits = in_chunks(model, ids, prefix.new_cache(rows), [5, 1, 1, 5])
        torch.testing.assert_close(logits, whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_can_be_repeated_and_reordered_like_beams(family: str):
    model = tiny_model(family)
    prefix = PromptPrefix.compute(model, random_ids(1, 30))
    ids = prompts(prefix, 4)
    cache = prefix.new_cache()
    cache.batch_repeat_interleave(4)
    in_chunks(model, ids, cache, [6])
    order = torch.tensor([2, 2, 0, 1])
    cache.reorder_cache(order)
    with torch.no_grad():
        whole = model(ids[order]).logits[:, 36:]
    torch.testing.assert_close(in_chunks(model, ids[order], cache, [6]), whole, atol=2e-5, rtol=1e-5)


def test_a_crop_can_reach_into_the_prefix():
    model = tiny_model("gpt2")
    prefix = PromptPrefix.compute(model, random_ids(1, 30))
    cache = prefix.new_cache(2)
    in_chunks(model, prompts(prefix, 2), cache, [5])
    cache.crop(20)
    ids = torch.cat([prefix.input_ids[:, :20].expand(2, -1), random_ids(2, 9)], dim=1)
    with torch.no_grad():
        whole = model(ids).logits[:, 20:]
    torch.testing.assert_close(in_chunks(model, ids, cache, [9]), whole, atol=2e-5, rtol=1e-5)
    assert [x.shape[2] for x in prefix.layers[0]] == [30, 30]


def test_rows_share_one_copy_of_the_prefix():
    model = tiny_model("gpt2")
    prefix = PromptPrefix.compute(model, random_ids(1, 40))
    cache = prefix.new_cache(5)
    in_chunks(model, prompts(prefix, 5), cache, [5])
    cache.reorder_cache(torch.tensor([4, 3, 2, 1, 0]))
    for layer, (keys, values) in zip(cache.layers, prefix.layers, strict=True):
        assert isinstance(layer, PrefixLayer)
        assert layer._shared is not None
        assert [x.data_ptr() for x in layer._shared] == [keys.data_ptr(), values.data_ptr()]
        assert layer._own.get_seq_length() == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_prefix_comes_back(family: str, tmp_path: Path):
    model = tiny_model(family)
    prefix = PromptPrefix.compute(model, random_ids(1, 100))
    prefix.save(tmp_path / "prompt.safetensors")
    loaded = PromptPrefix.load(tmp_path / "prompt.safetensors", model)
    assert torch.equal(loaded.input_ids, prefix.input_ids)
    torch.testing.assert_close(loaded.layers, prefix.layers, atol=0, rtol=0)
    ids = prompts(prefix, 2)
    torch.testing.assert_close(
        in_chunks(model, ids, loaded.new_cache(2), [12]), in_chunks(model, ids, prefix.new_cache(2), [12])
    )


def another(change: str) -> Any:
    model = AutoModelForCausalLM.from_config(tiny_config("gpt2", max_position_embeddings=200)).eval()
    if change == "configuration":
        return AutoModelForCausalLM.from_config(tiny_config("gpt2", layer_norm_epsilon=1e-3)).eval()
    model.load_state_dict(tiny_model("gpt2").state_dict())
    if change == "weight sample":
        with torch.no_grad():
            model.base_model.h[1].mlp.c_fc.bias += 0.5
    return model.half() if change == "dtype" else model


@pytest.mark.parametrize("change", ("configuration", "weight sample", "dtype"))
def test_another_model_is_refused(change: str, tmp_path: Path):
    PromptPrefix.compute(tiny_model("gpt2"), random_ids(1, 4)).save(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=f"computed by another model: its {change} is"):
        PromptPrefix.load(tmp_path / "p.safetensors", another(change))


def test_the_same_model_loaded_again_is_accepted(tmp_path: Path):
    PromptPrefix.compute(tiny_model("gpt2"), random_ids(1, 4)).save(tmp_path / "p.safetensors")
    assert len(PromptPrefix.load(tmp_path / "p.safetensors", another("nothing").base_model)) == 4


def test_files_that_are_none_are_refused(tmp_path: Path):
    from safetensors.torch import save_file

    model, path = tiny_model("gpt2"), tmp_path / "p.safetensors"
    with pytest.raises(CheckpointNotFoundError, match="there is no file"):
        PromptPrefix.load(path, model)
    PromptPrefix.compute(model, random_ids(1, 4)).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointFormatError, match="is not a file of a prefix"):
        PromptPrefix.load(path, model)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CheckpointFormatError, match="is not a file of a prefix"):
        PromptPrefix.load(path, model)
    prefix = PromptPrefix.compute(model, random_ids(1, 4))
    prefix.layers.pop()
    prefix.save(path)
    with pytest.raises(CheckpointFormatError, match=r"layers\.1\.keys is missing"):
        PromptPrefix.load(path, model)
    assert METADATA_KEY.encode() in path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize("shape", ((2, 3), (1, 0), (3,)))
def test_a_prefix_is_one_row_of_tokens(shape: tuple[int, ...]):
    with pytest.raises(InputError, match="a prefix is one row"):
        PromptPrefix.compute(tiny_model("gpt2"), torch.zeros(shape, dtype=torch.long))


def test_generate_continues_many_prompts_from_one_prefix():
    model = tiny_model("gpt2")
    prefix = PromptPrefix.compute(model, random_ids(1, 30))
    ids = prompts(prefix, 3)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, past_key_values=DynamicCache(), **options)
    assert torch.equal(model.generate(ids, past_key_values=prefix.new_cache(3), **options), plain)
    beams = {**options, "num_beams": 4}
    cache = prefix.new_cache(3)
    assert torch.equal(model.generate(ids, past_key_values=cache, **beams), model.generate(ids, **beams))
