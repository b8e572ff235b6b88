"""Changing the number of tokens of quantized models: rows that stay, rows that come, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, BitsAndBytesConfig
from gptrio.errors import UnsupportedError
from gptrio.testing import tiny_config
from tests.cases import where

SIZES = {
    "gpt2": {"hidden_size": 64},
    "gpt_neo": {"hidden_size": 64, "intermediate_size": 128},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 128},
}
FORMS = ("int8", "int4", "nf4", "llm_int8")
IDS = torch.arange(1, 9)[None]
V = 257


def quantized(family: str, form: str, folder: Path, **config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **SIZES[family], **config))
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table.normal_(0.3, 1.0)  # whose mean is worth being kept
    model.save_pretrained(folder / "full")
    bits = form in ("nf4", "llm_int8")
    if bits:
        pytest.importorskip("bitsandbytes")
    options = {"dtype": torch.float32} if bits else {}
    return AutoModelForCausalLM.from_pretrained(folder / "full", load_in=form, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def rows_of(part: Any) -> torch.Tensor:
    found: torch.Tensor = part.dequantized() if hasattr(part, "dequantized") else part.weight.detach()
    return found


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("family", "wanted"),
    where(
        lambda family, wanted: family == "gpt2" or wanted == (300, 64),
        SIZES,
        [(290, None), (200, None), (None, 64), (300, 64)],
    ),
    ids=str,
)
def test_resized_and_saved(
    family: str, form: str, tied: bool, wanted: tuple[int | None, int | None], tmp_path: Path
) -> None:
    model = quantized(family, form, tmp_path, tie_word_embeddings=tied)
    before, old = logits(model), [rows_of(model.get_input_embeddings()), rows_of(model.get_output_embeddings())]
    table = model.resize_token_embeddings(*wanted)
    rows = {(290, None): 290, (200, None): 200, (None, 64): 320, (300, 64): 320}[wanted]
    kept = min(rows, V)
    assert table is model.get_input_embeddings()
    assert table.num_embeddings == model.config.vocab_size == model.get_output_embeddings().out_features == rows
    for part, was in zip((model.get_input_embeddings(), model.get_output_embeddings()), old, strict=True):
        now = rows_of(part)
        assert now.shape == (rows, 64)
        assert torch.equal(now[:kept], was[:kept])
        steps = was.abs().amax() / (7 if form == "int4" else 127)  # a code's width
        if rows > V:
            assert (now[V:] - was.float().mean(0)).abs().amax() <= steps
    after = logits(model)
    assert after.shape == (1, 8, rows)
    torch.testing.assert_close(after[..., :kept], before[..., :kept], atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    assert again.config.vocab_size == rows
    assert torch.equal(logits(again), after)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) == tied
    assert again.generate(IDS, max_new_tokens=2, pad_token_id=0).shape[1] > 8


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rows_drawn_as_new_weights_are(form: str, tmp_path: Path) -> None:
    model = quantized("gpt_neox", form, tmp_path, tie_word_embeddings=False, initializer_range=0.5)
    model.resize_token_embeddings(1257, mean_resizing=False)
    new = rows_of(model.get_output_embeddings())[V:]
    assert abs(float(new.std()) - 0.5) < 0.02
    assert abs(float(new.mean())) < 0.01


@pytest.mark.parametrize("form", ["load_in_8bit", "load_in_4bit"])
def test_heads_that_bitsandbytes_holds_are_refused_before_anything_changes(form: str, tmp_path: Path) -> None:
    quantized("gpt_neox", "nf4", tmp_path, tie_word_embeddings=False)
    options = BitsAndBytesConfig(**{form: True}, llm_int8_skip_modules=[])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=options, dtype=torch.float32)
    before, table = logits(model), model.get_input_embeddings()
    with pytest.raises(UnsupportedError, match=r"the rows of a Linear(4bit|8bitLt); resize the model"):
        model.resize_token_embeddings(300)
    assert model.get_input_embeddings() is table
    assert model.config.vocab_size == V
    assert torch.equal(logits(model), before)


def test_weights_that_are_kept_elsewhere_are_refused(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = AutoModelForCausalLM.from_config(tiny_config("gpt2")).eval()
    before = logits(model)
    model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="weights accelerate keeps elsewhere"):
        model.resize_token_embeddings(300)
    assert torch.equal(logits(model), before)
    accelerate.hooks.remove_hook_from_submodules(model)
    model.resize_token_embeddings(300)
    assert logits(model).shape[-1] == 300


def test_the_bias_of_a_head_gets_the_mean() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("gpt_neox", tie_word_embeddings=False)).eval()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((V,), 2.5))
    model.resize_token_embeddings(300)
    assert torch.equal(head.bias.detach(), torch.full((300,), 2.5))
    model.resize_token_embeddings(310, mean_resizing=False)
    assert torch.equal(head.bias.detach()[300:], torch.zeros(10))
