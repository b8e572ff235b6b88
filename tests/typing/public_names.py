"""Read by the type checker only: the lazy names of `gptrio` have their real types for those who use them."""

from __future__ import annotations

from typing_extensions import assert_type

import gptrio
from gptrio import GenerationConfig, GPT2Config, GPT2TokenizerFast, GptrioError
from gptrio.outputs import CausalLMOutputWithPast

assert_type(gptrio.__version__, str)
assert_type(GPT2Config(n_layer=2), GPT2Config)
assert_type(GPT2Config().n_embd, int)
assert_type(GPT2Config.from_pretrained("folder"), GPT2Config)
assert_type(GenerationConfig(top_k=3), GenerationConfig)
assert_type(gptrio.CausalLMOutputWithPast, type[CausalLMOutputWithPast])


def text_of(tokenizer: GPT2TokenizerFast) -> str:
    return tokenizer.decode([0])


def mistake(error: GptrioError) -> Exception:
    return error
