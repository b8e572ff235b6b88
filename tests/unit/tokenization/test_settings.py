"""Settings of wrong kinds are named, from a file as from a caller; those that mean the same are taken."""

from __future__ import annotations

import json
import shutil

import pytest

from gptrio import GPT2Tokenizer, GPT2TokenizerFast, TokenizationError
from gptrio.tokenization.settings import _RULES

WRONG = {
    "add_bos_token": ["yes", 2, [], {}],
    "add_eos_token": ["yes", 1.5],
    "add_prefix_space": ["", 10**30, [True], {"a": 1}],
    "clean_up_tokenization_spaces": ["false", []],
    "split_special_tokens": [[[]], "no"],
    "model_max_length": ["many", float("nan"), float("inf"), [5]],
    "max_len": ["many"],
    "padding_side": ["middle", None, 1, ["left"]],
    "truncation_side": ["", True],
    "errors": [None, 1, True, [], {}, "no such handler", "\0"],
    "model_input_names": ["input_ids", None, [1], 7],
    "chat_template": [1, [1], [{"name": "default"}], True],
    "extra_special_tokens": ["abc", {"a": {}}, {"a": 1}, 3],
}


def test_every_rule_is_tried():
    assert WRONG.keys() == _RULES.keys()


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named_whoever_says_it(gpt2_folder, tmp_path, cls, name):
    shutil.copytree(gpt2_folder, tmp_path, dirs_exist_ok=True)
    for value in WRONG[name]:
        with pytest.raises(TokenizationError, match=f"^{name} is .*; expected "):
            cls.from_pretrained(gpt2_folder, **{name: value})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(TokenizationError, match=f"^{name} is .*; expected "):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast])
@pytest.mark.parametrize("value", [None, False, 0])
def test_null_and_0_switch_off(gpt2_folder, cls, value):
    names = ("add_bos_token", "add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens")
    plain = cls.from_pretrained(gpt2_folder)
    made = cls.from_pretrained(gpt2_folder, **dict.fromkeys(names, value), extra_special_tokens=None)
    assert made("ab <|endoftext|> .") == plain("ab <|endoftext|> .")
    assert made.decode([1, 2, 3]) == plain.decode([1, 2, 3])


def test_1_switches_on(gpt2_folder):
    for cls in (GPT2Tokenizer, GPT2TokenizerFast):
        assert cls.from_pretrained(gpt2_folder, add_prefix_space=1)("ab") == cls.from_pretrained(gpt2_folder)(" ab")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("depth", [60, 400, 5000, 100_000])
def test_a_file_nested_without_end_is_named(gpt2_folder, tmp_path, file, depth):
    shutil.copytree(gpt2_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(TokenizationError, match=f"{file} is (nested more than 50 deep|not valid JSON)"):
        GPT2TokenizerFast.from_pretrained(tmp_path)
