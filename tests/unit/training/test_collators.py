"""What the collators add to those of Transformers: ends of text that count, and errors that name the way out."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import gptrio
from tests.tiny_tokenizers import write_gpt2

EOS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def tokenizer(folder):
    return gptrio.GPT2TokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>")


def ends(side: str) -> list[list[int]]:
    """Labels of two rows [5, 6, EOS] and [7, EOS], padded by EOS."""
    return [[5, 6, EOS], [-100, 7, EOS] if side == "left" else [7, EOS, -100]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("as_mappings", [True, False])
def test_keep_eos_ignores_padding_only(tokenizer, side, kind, as_mappings):
    assert tokenizer.eos_token_id == EOS
    tokenizer.padding_side = side
    collator = gptrio.DataCollatorForLanguageModeling(tokenizer, mlm=False, keep_eos=True, return_tensors=kind)
    rows = [[5, 6, EOS], [7, EOS]]
    batch = collator([{"input_ids": row} for row in rows] if as_mappings else rows)
    assert batch["labels"].tolist() == ends(side)


def test_ignored_ends_of_text_are_told_once(tokenizer):
    collator = gptrio.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert collator([[5, 6], [7]])["labels"].tolist() == [[5, 6], [7, -100]]  # padding alone is no reason to warn
    with pytest.warns(gptrio.GptrioWarning, match="keep_eos=True"):
        labels = collator([[5, 6, EOS], [7]])["labels"]
    assert labels.tolist() == [[5, 6, -100], [7, -100, -100]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator([[5, 6, EOS], [7]])


def test_another_padding_token_is_no_reason_to_warn(tokenizer):
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    labels = gptrio.DataCollatorForLanguageModeling(tokenizer, mlm=False)([[5, EOS], [7]])["labels"]
    assert labels.tolist() == [[5, EOS], [7, -100]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mlm=False"),
        ({"mlm": False, "mask_replace_prob": 1.5}, "mask_replace_prob is 1.5"),
        ({"mlm": False, "mask_replace_prob": 0.8, "random_replace_prob": 0.4}, "more than 1 together"),
        ({"mlm": False, "tf_experimental_compile": True}, "TensorFlow"),
    ],
)
def test_wrong_options_are_named(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        gptrio.DataCollatorForLanguageModeling(tokenizer, **options)


def test_a_share_that_is_none_is_refused_only_where_it_is_used(tokenizer):
    assert gptrio.DataCollatorForLanguageModeling(tokenizer, mlm=False, mlm_probability=None).mlm_probability is None
    tokenizer.mask_token = "<|endoftext|>"
    with pytest.raises(gptrio.OptionError, match="mlm_probability is None"):
        gptrio.DataCollatorForLanguageModeling(tokenizer, mlm_probability=None)


def test_rows_of_different_lengths_need_a_padding_token_or_a_collator_that_pads(folder):
    tokenizer = gptrio.GPT2TokenizerFast.from_pretrained(folder)
    with pytest.raises(gptrio.TokenizationError, match=r"tokenizer\.pad_token = tokenizer\.eos_token"):
        gptrio.DataCollatorForLanguageModeling(tokenizer, mlm=False)([[1, 2], [3]])
    with pytest.raises(gptrio.InputError, match=r"'input_ids'.*DataCollatorWithPadding"):
        gptrio.default_data_collator([{"input_ids": [1, 2]}, {"input_ids": [3]}])
    with pytest.raises(gptrio.InputError, match="no entry 'x'"):
        gptrio.default_data_collator([{"x": 1}, {"y": 1}])


def test_an_unknown_kind_of_tensor_is_named(tokenizer):
    with pytest.raises(gptrio.UnsupportedError, match="'tf'"):
        gptrio.DefaultDataCollator()([{"x": 1}], return_tensors="tf")


def test_each_worker_masks_other_tokens(folder):
    tokenizer = gptrio.GPT2TokenizerFast.from_pretrained(folder, pad_token="<pad>", mask_token="<mask>")
    collator = gptrio.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5, seed=1)
    rows = [list(range(1, 60))] * 2
    loader = torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=collator, num_workers=2)
    first, second = (batch["input_ids"].tolist() for batch in loader)
    expected = gptrio.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5, seed=1)
    assert first != second and first == expected(rows[:1])["input_ids"].tolist()


def test_arrays_need_no_torch():
    code = (
        "import sys; from gptrio import DataCollatorWithFlattening, default_data_collator as default; "
        "print(default([{'x': 1}], 'np'), DataCollatorWithFlattening('np')([{'input_ids': [1, 2]}])['labels'], "
        "'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["{'x':", "array([1])}", "[[-100", "2]]", "False"]


def test_labels_of_arrays_keep_their_type():
    rows = [{"label_ids": np.array([1, 2], dtype=np.int32), "x": np.float16(1)}]
    batch = gptrio.default_data_collator(rows, return_tensors="np")
    assert batch["labels"].dtype == np.int32 and batch["x"].dtype == np.float16
