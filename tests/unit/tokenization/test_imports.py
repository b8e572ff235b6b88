"""Tokenizers start quickly: no array library and no hub client is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "jax", "numpy", "huggingface_hub", "jinja2", "transformers"}


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast", "AutoTokenizer"])
def test_a_tokenizer_loads_no_heavy_package(gpt2_folder, name):
    code = (
        f"import sys, gptrio; tokenizer = gptrio.{name}.from_pretrained({str(gpt2_folder)!r}, **{EXTRA[name]})\n"
        "assert tokenizer.decode(tokenizer('Hello world')['input_ids']) == 'Hello world'\n"
        f"print(*({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


EXTRA: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": {},
    "GPT2TokenizerFast": {},
    "GPTNeoXTokenizerFast": {},
    "AutoTokenizer": {"tokenizer_type": "gpt2"},
}
