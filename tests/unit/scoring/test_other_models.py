"""Models that are quantized, or spread over devices and files, are scored like others."""

from __future__ import annotations

import copy

import pytest
import torch

import gptrio
from gptrio.scoring.pack_contexts import pack_contexts
from gptrio.scoring.packing import Row, pack_rows
from gptrio.testing import tiny_config
from gptrio.testing.tiny import byte_tokenizer
from tests.unit.scoring.test_score import TEXTS, chosen, slow

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
BYTES = byte_tokenizer()


def saved(family: str, folder) -> str:
    torch.manual_seed(0)
    gptrio.AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("places", ("all on disk", "a block on disk", "the head on disk"))
@pytest.mark.parametrize("family", FAMILIES)
def test_models_with_weights_in_files_are_scored(family, places, tmp_path):
    pytest.importorskip("accelerate")
    folder = saved(family, tmp_path / "model")
    plain = gptrio.AutoModelForCausalLM.from_pretrained(folder)
    block = "gpt_neox.layers.1" if family == "gpt_neox" else "transformer.h.1"
    table = "gpt_neox.embed_in" if family == "gpt_neox" else "transformer.wte"
    device_map = {
        "all on disk": {"": "disk"},
        "a block on disk": {"": "cpu", block: "disk"},
        "the head on disk": {"": "cpu", plain.head_name: "disk", table: "disk"},
    }[places]
    spread = gptrio.AutoModelForCausalLM.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "files"
    )
    assert any(parameter.is_meta for parameter in spread.parameters())
    found, expected = (gptrio.score(model, BYTES, TEXTS, top=2, boundaries=True) for model in (spread, plain))
    for one, other in zip(found, expected, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert one.ranks == other.ranks
        assert one.boundary_log_probs == pytest.approx(other.boundary_log_probs, abs=1e-5)
    text = TEXTS[0] * 9
    assert gptrio.perplexity(spread, BYTES, text).log_prob == pytest.approx(
        gptrio.perplexity(plain, BYTES, text).log_prob, abs=1e-4
    )


def test_what_packed_rows_attend_to_follows_a_layer_to_its_device():
    (pack,) = pack_rows([Row([1, 2, 3, 4], 1), Row([1, 2, 3, 5, 6], 1)], 64)
    rotary = (torch.zeros(1), torch.zeros(1))
    for context in pack_contexts(pack, torch.tensor([2, 3]), 64, "sdpa", rotary):
        assert context.to("cpu") is context
        moved = context.to("meta", non_blocking=True)
        assert moved is context.to(torch.device("meta"))
        tensors = [moved.order, *moved.rotary, *(table for part in moved.parts for table in part)]
        assert all(x.is_meta for x in tensors) and moved.implementation == "sdpa"
        assert (moved.selected is None) == (context.selected is None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_models_on_two_devices_are_scored(family, tmp_path):
    folder = saved(family, tmp_path)
    plain = gptrio.AutoModelForCausalLM.from_pretrained(folder)
    blocks = "gpt_neox.layers" if family == "gpt_neox" else "transformer.h"
    for own in ({"": "cpu", f"{blocks}.1": 0}, {"": 0, f"{blocks}.0": "cpu"}):
        spread = gptrio.AutoModelForCausalLM.from_pretrained(folder, device_map=own)
        found, expected = (gptrio.score(model, BYTES, TEXTS, top=2, boundaries=True) for model in (spread, plain))
        for one, other in zip(found, expected, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
            assert one.boundary_log_probs == pytest.approx(other.boundary_log_probs, abs=1e-4)


@pytest.mark.parametrize("bits", ("int8", "int4"))
def test_scores_of_rounded_weights_are_as_near_to_these_as_the_forward(bits):
    """Products of such weights round their inputs, each number of rows in another way."""
    tokenizer = gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    model = gptrio.AutoModelForCausalLM.from_pretrained("gptrio/stdlib-gpt2", load_in=bits, dtype=torch.float32)
    texts = ["def main():\n    import sys\n    for name in sys.argv[1:]:\n        print(name)\n" * n for n in (1, 2, 4)]
    results = gptrio.score(model, tokenizer, texts)
    exact = copy.deepcopy(model).dequantize().double()
    errors: dict[str, list[torch.Tensor]] = {"score": [], "forward": []}
    for result in results:
        ids = [tokenizer.eos_token_id, *result.ids]
        logits = exact(torch.tensor([ids])).logits[0, :-1].detach()
        expected = chosen(logits.log_softmax(-1), result.ids)
        errors["score"].append((torch.tensor(result.log_probs) - expected).abs())
        errors["forward"].append((chosen(slow(model, ids), result.ids) - expected).abs())
    mean = {name: torch.cat(parts).mean().item() for name, parts in errors.items()}
    assert mean["score"] < max(1.5 * mean["forward"], 0.005) and mean["score"] < 0.05
    assert torch.cat(errors["score"]).max() < 0.3
    dequantized = gptrio.score(model.dequantize(), tokenizer, texts[0])
    logits = exact(torch.tensor([[tokenizer.eos_token_id, *dequantized.ids]])).logits[0, :-1].detach()
    torch.testing.assert_close(
        torch.tensor(dequantized.log_probs, dtype=torch.float64),
        chosen(logits.log_softmax(-1), dequantized.ids),
        atol=3e-5,
        rtol=0,
    )
