"""A byte-level tokenizer small enough to build in a test."""

import json

import pytest

from gptrio import GPT2Tokenizer, GPT2TokenizerFast
from gptrio.tokenization.bpe import byte_alphabet

MERGES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "Ġw o",
    "r l",
    "Ġwo rl",
    "Ġworl d",
    "Ġ n",
    "' t",
    "n 't",
    "Ġ .",
    "s t",
    "o p",
]


@pytest.fixture(scope="session")
def vocabulary_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    tokens = [*byte_alphabet().values(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return str(folder / "vocab.json"), str(folder / "merges.txt")


@pytest.fixture(scope="session")
def byte_ids():
    """Byte -> id of the token that is this byte alone."""
    return {byte: index for index, byte in enumerate(byte_alphabet())}


@pytest.fixture(scope="session", params=[GPT2Tokenizer, GPT2TokenizerFast], ids=["slow", "fast"])
def tokenizer(request, vocabulary_files):
    return request.param(*vocabulary_files)
