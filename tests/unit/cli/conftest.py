"""A saved model small enough for a command line in a test."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from gptrio import GPT2LMHeadModel
from gptrio.testing import byte_tokenizer, tiny_config


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random two-layer model over bytes."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def stdin(monkeypatch):
    """Set what standard input holds, as a pipe would."""

    def fill(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return fill
