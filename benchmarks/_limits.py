"""The least time that a machine allows: bytes over the rate of reading, operations over the rate of matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

READING, ARITHMETIC = "reading weights", "arithmetic"
SIXTEEN_BIT = ("bfloat16", "float16")
NOT_MEASURED = "not measured"  # stands where a figure that cannot be would stand


class Weights(NamedTuple):
    """How many weights a model has in the linear layers of its blocks, and in its head."""

    blocks: int
    head: int


class Limit(NamedTuple):
    """Seconds that the machine needs at least, and for what."""

    seconds: float
    by: str


def is_possible(seconds: float) -> bool:
    """Whether something can have taken so long: a difference of two times that were disturbed need not be."""
    return math.isfinite(seconds) and seconds > 0


def share_of(limit: Limit, seconds: float) -> str:
    """Share of the limit that a time reaches, as text; nothing is faster than its limit, so more was not measured."""
    share = limit.seconds / seconds if is_possible(seconds) else math.inf
    return f"{share:.0%}" if share <= 1 else NOT_MEASURED


def weight_bytes(weights: Weights, dtype: str) -> int:
    """Bytes that one decoding step must read: every weight of the blocks and the head, in `dtype`."""
    if dtype == "int4":  # the head has 8 bits where it is tied; a scale of 2 bytes for 32 weights
        return weights.blocks // 2 + weights.blocks // 16 + weights.head
    return (weights.blocks + weights.head) * {"float32": 4, "int8": 1}.get(dtype, 2)


def product_rate(dtype: str, machine: Mapping[str, float]) -> float:
    """Operations a second of matrix products, in GFLOP/s: what `machine.limits` measured for `dtype`.

    "16bit" is the better of its two types; int4 weights are multiplied in int8 at best.
    """
    if dtype == "16bit":
        return max(machine[name] for name in SIXTEEN_BIT)
    return machine["int8" if dtype == "int4" else dtype]


def step_limit(weights: Weights, dtype: str, batch: int, machine: Mapping[str, float]) -> Limit:
    """Least time of a decoding step; keys and values, which grow with the text, are not counted."""
    reading = weight_bytes(weights, dtype) / machine["read"] / 1e9
    products = 2 * batch * sum(weights) / product_rate(dtype, machine) / 1e9
    return Limit(reading, READING) if reading >= products else Limit(products, ARITHMETIC)


def prompt_limit(weights: Weights, dtype: str, batch: int, prompt: int, machine: Mapping[str, float]) -> Limit:
    """Least time of reading prompts, the head at the last position only; attention is not counted."""
    reading = weight_bytes(weights, dtype) / machine["read"] / 1e9
    operations = 2 * batch * (prompt * weights.blocks + weights.head)
    products = operations / product_rate(dtype, machine) / 1e9
    return Limit(reading, READING) if reading >= products else Limit(products, ARITHMETIC)
