"""The language models of all families are what generation asks of a model."""

from __future__ import annotations

from gptrio import GPT2DoubleHeadsModel, GPT2LMHeadModel, GPTNeoForCausalLM, GPTNeoXForCausalLM
from gptrio.generation.protocol import CausalLM


def families(
    gpt2: GPT2LMHeadModel, heads: GPT2DoubleHeadsModel, neo: GPTNeoForCausalLM, neox: GPTNeoXForCausalLM
) -> list[CausalLM]:
    return [gpt2, heads, neo, neox]
