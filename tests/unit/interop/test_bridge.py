"""The bridge between tokenizers: the same ids and texts, settings handed over, one backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import gptrio
from gptrio import from_transformers, to_transformers
from tests.tiny_tokenizers import TEXTS, write_gpt2, write_gpt_neox

FAST = ("GPT2TokenizerFast", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast")
SETTINGS: dict[str, Any] = {
    "padding_side": "left",
    "truncation_side": "left",
    "model_max_length": 77,
    "pad_token": "<pad>",
    "additional_special_tokens": ["<one>", "<two>"],
    "clean_up_tokenization_spaces": True,
    "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}


def made(name: str, folder: Path) -> Any:
    """A tokenizer of a class, with settings that are not the default."""
    (write_gpt_neox if "NeoX" in name else write_gpt2)(folder)
    if name == "PreTrainedTokenizerFast":
        gptrio.GPT2TokenizerFast.from_pretrained(folder).save_pretrained(folder)
        tokenizer: Any = gptrio.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SETTINGS)
    else:
        tokenizer = getattr(gptrio, name).from_pretrained(folder, **SETTINGS)
    tokenizer.add_tokens(["[NEW]"])
    return tokenizer


@pytest.mark.parametrize("name", [*FAST, "GPT2Tokenizer"])
def test_the_other_class_gives_the_same_and_says_the_same(name: str, tmp_path: Path) -> None:
    ours = made(name, tmp_path)
    theirs = to_transformers(ours)
    assert type(theirs) is getattr(transformers, name)
    again = from_transformers(theirs)
    assert type(again) is type(ours)
    for other in (theirs, again):
        assert other.get_vocab() == ours.get_vocab()
        assert other.special_tokens_map == ours.special_tokens_map
        assert other.name_or_path == ours.name_or_path
        for setting, value in SETTINGS.items():
            assert getattr(other, setting) == getattr(ours, setting) == value, setting
    for text in TEXTS:
        expected = ours(text)["input_ids"]
        assert theirs(text)["input_ids"] == again(text)["input_ids"] == expected, text
        assert theirs.decode(expected) == again.decode(expected) == ours.decode(expected), text
    batch = {"padding": True, "truncation": True, "max_length": 6}
    assert dict(theirs(TEXTS[:4], **batch)) == dict(ours(TEXTS[:4], **batch))


@pytest.mark.parametrize("name", FAST)
def test_the_backend_is_shared(name: str, tmp_path: Path) -> None:
    ours = made(name, tmp_path)
    theirs = to_transformers(ours)
    assert theirs.backend_tokenizer is ours.backend_tokenizer
    assert from_transformers(theirs).backend_tokenizer is ours.backend_tokenizer
    theirs.add_tokens(["<later>"])
    assert ours("<later>")["input_ids"] == theirs("<later>")["input_ids"] == [len(ours) - 1]
    theirs("some text", padding="max_length", truncation=True, max_length=3)
    assert len(ours("some longer text than three tokens")["input_ids"]) > 3
