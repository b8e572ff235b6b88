"""What quantization costs: perplexity of the shipped model on modules of Python that it has not seen."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptrio import AutoModelForCausalLM, AutoTokenizer, Int4Config, Int8Config
from gptrio.kernels.linear import packed_inference
from tests.cases import first

NAME = "gptrio/stdlib-gpt2"
HELD_OUT = ("tempfile.py", "traceback.py")  # see the model's card


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """Ids (4, 512) of the held-out text."""
    folder, tokenizer = Path(sysconfig.get_path("stdlib")), AutoTokenizer.from_pretrained(NAME)
    text = "".join((folder / name).read_text(encoding="utf-8") for name in HELD_OUT)
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    return ids[: len(ids) // 512 * 512].view(-1, 512)[:4]


def perplexity(windows: Tensor, **options: Any) -> float:
    model = AutoModelForCausalLM.from_pretrained(NAME, **options)
    with torch.inference_mode(), packed_inference(model):
        losses = [model(rows, labels=rows).loss.item() for rows in windows.split(2)]
    return math.exp(sum(losses) / len(losses))


@pytest.fixture(scope="module")
def full_precision(windows: Tensor) -> float:
    return perplexity(windows)


@pytest.mark.parametrize(
    ("config", "bound"),
    first([(Int8Config(), 0.005), *((Int4Config(group_size=size), 0.06) for size in (32, 64, 128))], 2, names=2),
    ids=str,
)
def test_quantized_perplexity_is_near_that_of_float32(
    windows: Tensor, full_precision: float, config: Int8Config | Int4Config, bound: float
) -> None:
    found = perplexity(windows, quantization_config=config)
    assert found != full_precision
    assert abs(found / full_precision - 1) < bound
