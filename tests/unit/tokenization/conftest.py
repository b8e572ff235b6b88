"""The three tokenizer classes on small vocabularies."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptrio import GPT2Tokenizer, GPT2TokenizerFast, GPTNeoXTokenizerFast
from tests.tiny_tokenizers import write_gpt2, write_gpt_neox


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def neox_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt_neox(tmp_path_factory.mktemp("gpt_neox"))


@pytest.fixture
def slow(gpt2_folder: Path) -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(gpt2_folder)


@pytest.fixture
def fast(gpt2_folder: Path) -> GPT2TokenizerFast:
    return GPT2TokenizerFast.from_pretrained(gpt2_folder)


@pytest.fixture
def neox(neox_folder: Path) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast.from_pretrained(neox_folder)


@pytest.fixture(params=["slow", "fast"])
def gpt2(request: pytest.FixtureRequest, slow: GPT2Tokenizer, fast: GPT2TokenizerFast) -> GPT2Tokenizer:
    return slow if request.param == "slow" else fast


@pytest.fixture(params=["slow", "fast", "neox"])
def tokenizer(request: pytest.FixtureRequest) -> GPT2Tokenizer:
    return request.getfixturevalue(request.param)
