"""The least time that a machine allows is bytes over bandwidth or operations over rate, whichever is more."""

from __future__ import annotations

import pytest

from _checkpoints import checkpoint, weights
from _limits import ARITHMETIC, READING, Limit, Weights, product_rate, prompt_limit, step_limit, weight_bytes
from gptrio import GPT2Config, GPT2LMHeadModel

MACHINE = {"read": 10.0, "float32": 100.0, "bfloat16": 400.0, "float16": 200.0, "int8": 800.0}
SMALL = Weights(blocks=320, head=100)


@pytest.mark.parametrize(
    ("dtype", "count"), [("float32", 1680), ("bfloat16", 840), ("16bit", 840), ("int8", 420), ("int4", 160 + 20 + 100)]
)
def test_a_step_reads_every_weight_once(dtype, count):
    assert weight_bytes(SMALL, dtype) == count


def test_gpt2_reads_half_a_gigabyte_in_float32(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=24, n_head=2, vocab_size=50)).save_pretrained(tmp_path)
    assert weights(checkpoint(str(tmp_path))) == Weights(12 * 24 * 24, 50 * 24)


@pytest.mark.parametrize(("dtype", "rate"), [("float32", 100.0), ("16bit", 400.0), ("int8", 800.0), ("int4", 800.0)])
def test_products_run_at_the_best_rate_of_their_type(dtype, rate):
    assert product_rate(dtype, MACHINE) == rate


def test_one_row_is_limited_by_reading():
    assert step_limit(Weights(10**9, 10**9), "int8", 1, MACHINE) == Limit(0.2, READING)


def test_many_rows_are_limited_by_arithmetic():
    assert step_limit(Weights(10**9, 10**9), "float32", 50, MACHINE) == Limit(2.0, ARITHMETIC)


def test_a_prompt_passes_the_head_once():
    limit = prompt_limit(Weights(10**8, 10**9), "16bit", 1, 1000, MACHINE)
    assert limit == Limit(pytest.approx(2 * (1000 * 10**8 + 10**9) / 400e9), ARITHMETIC)
