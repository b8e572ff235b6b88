"""The collators give the batches of Transformers 4.56.2: same entries, types and values."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import gptrio
from gptrio.training.collators import pad_without_fast_tokenizer_warning
from tests.tiny_tokenizers import write_gpt2, write_gpt_neox

CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast")
KINDS = ("pt", "np")
TEXTS = ("Hello world", "The quick brown fox jumps over the lazy dog.", "生活的真谛是 good", "a")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    gpt2 = write_gpt2(tmp_path_factory.mktemp("gpt2"))
    return dict(zip(CLASSES, (gpt2, gpt2, write_gpt_neox(tmp_path_factory.mktemp("neox"))), strict=True))


@pytest.fixture(params=CLASSES)
def tokenizers(request, folders):
    return both(folders, request.param)


def both(folders, name: str, **kwargs: Any) -> list[Any]:
    settings = {"pad_token": "<pad>", "mask_token": "<mask>", **kwargs}
    return [getattr(library, name).from_pretrained(folders[name], **settings) for library in (gptrio, transformers)]


def plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    return (type(value).__name__, str(value.dtype), value.tolist()) if hasattr(value, "tolist") else value


def assert_same(name: str, tokenizers: list[Any], features: Any, call: dict[str, Any] | None = None, **options: Any):
    """Both libraries' collators give the same batch, in the same order, and leave the examples as they are."""
    batches = []
    for library, tokenizer in zip((gptrio, transformers), tokenizers, strict=True):
        torch.manual_seed(1)
        np.random.seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            collator = getattr(library, name)(*([tokenizer] if tokenizer is not None else []), **options)
            batches.append([plain(collator(features(), **(call or {}))) for _ in range(2)])
    assert batches[0] == batches[1]
    return batches[0]


def encoded(tokenizer: Any, labels: str | None = None) -> list[dict[str, Any]]:
    rows = [dict(tokenizer(text)) for text in TEXTS]
    for i, row in enumerate(rows):
        if labels in ("label", "label_ids"):
            row[labels] = i % 3
        elif labels is not None:
            row["labels"] = [(i + j) % 5 for j in range(len(row["input_ids"]))]
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_default(kind):
    array = np.array if kind == "np" else torch.tensor
    examples = [
        [{"label": i, "input_ids": [1, 2, i], "text": "left out", "none": None} for i in range(3)],
        [{"label": i / 2, "x": i * 1.5} for i in range(3)],
        [{"label": array(i), "x": array([i, 2])} for i in range(3)],
        [{"label_ids": [i, 2], "x": np.array([i, 2.5])} for i in range(3)],
        [{"label_ids": [i / 2, 2.0], "x": True} for i in range(3)],
        [{"label_ids": array([i, 2]), "label": None} for i in range(3)],
        [type("Example", (), {})() for _ in range(2)],
    ]
    for i, example in enumerate(examples[-1]):
        vars(example).update(label=i, input_ids=[i, 1])
    for rows in examples:
        ours = gptrio.default_data_collator(rows, return_tensors=kind)
        assert plain(ours) == plain(transformers.default_data_collator(rows, return_tensors=kind))
        assert plain(gptrio.DefaultDataCollator(kind)(rows)) == plain(ours)
        assert plain(gptrio.DefaultDataCollator()(rows, return_tensors=kind)) == plain(ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [None, "label", "label_ids"])
def test_padding(tokenizers, labels, kind):
    for options in ({}, {"padding": "max_length", "max_length": 70}, {"pad_to_multiple_of": 8}):
        batch, _ = assert_same(
            "DataCollatorWithPadding",
            tokenizers,
            lambda: encoded(tokenizers[0], labels),
            return_tensors=kind,
            **options,
        )
        assert ("labels" in batch) == (labels is not None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_token_classification(tokenizers, kind, side):
    for tokenizer in tokenizers:
        tokenizer.padding_side = side
    make = lambda: encoded(tokenizers[0], "tokens")  # noqa: E731
    name = "DataCollatorForTokenClassification"
    for options in ({}, {"pad_to_multiple_of": 8, "label_pad_token_id": 7}):
        assert_same(name, tokenizers, make, {"return_tensors": kind}, **options)
    assert_same(name, tokenizers, lambda: encoded(tokenizers[0]), return_tensors=kind)
    if kind == "pt":  # the reference's other form fails on rows of several lengths
        renamed = lambda: [{"label": torch.tensor(row.pop("labels")), **row} for row in make()]  # noqa: E731
        assert_same(name, tokenizers, renamed)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_seq2seq(tokenizers, kind, side):
    for tokenizer in tokenizers:
        tokenizer.padding_side = side

    def uneven(as_array: bool) -> list[dict[str, Any]]:
        rows = encoded(tokenizers[0], "tokens")
        for i, row in enumerate(rows):
            row["labels"] = np.array(row["labels"][i:] or [1]) if as_array else row["labels"][i:] or [1]
        return rows

    name = "DataCollatorForSeq2Seq"
    for options in ({}, {"pad_to_multiple_of": 8}, {"padding": "max_length", "max_length": 70}):
        for as_array in (False, True):
            assert_same(name, tokenizers, lambda a=as_array: uneven(a), return_tensors=kind, **options)
    same = lambda: [{"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [3, i]} for i in range(2)]  # noqa: E731
    assert_same(name, tokenizers, same, padding=False, return_tensors=kind)
    assert assert_same(name, tokenizers, lambda: encoded(tokenizers[0]), return_tensors=kind)[0]["labels"] is None
    assert_same(name, tokenizers, lambda: [row | {"labels": None} for row in encoded(tokenizers[0])])


def test_seq2seq_asks_the_model_for_decoder_inputs(folders):
    class Model:
        def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
            return labels + 1

    tokenizers = both(folders, "GPT2TokenizerFast")
    make = lambda: encoded(tokenizers[0], "tokens")  # noqa: E731
    assert "decoder_input_ids" in assert_same("DataCollatorForSeq2Seq", tokenizers, make, model=Model())[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_next_token(tokenizers, kind, side):
    for tokenizer in tokenizers:
        tokenizer.padding_side = side
    name, options = "DataCollatorForLanguageModeling", {"mlm": False, "return_tensors": kind}
    ids = lambda: [row["input_ids"] for row in encoded(tokenizers[0])]  # noqa: E731
    forms = [lambda: encoded(tokenizers[0]), ids, lambda: [np.array(row) for row in ids()]]
    if kind == "pt":
        forms.append(lambda: [torch.tensor(row, dtype=torch.int32) for row in ids()])
    for make in forms:
        for multiple in (None, 8):
            assert_same(name, tokenizers, make, pad_to_multiple_of=multiple, **options)
    for tokenizer in tokenizers:
        tokenizer.pad_token = tokenizer.eos_token
    with_eos = lambda: [[*row, tokenizers[0].eos_token_id] for row in ids()]  # noqa: E731
    assert_same(name, tokenizers, with_eos, **options)
    for tokenizer in tokenizers:
        tokenizer.pad_token = None
    even = lambda: [[1, 2, 3, 4]] * 2  # noqa: E731
    assert_same(name, tokenizers, even, **options)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens(tokenizers, kind, seed):
    def make() -> list[Any]:
        return [tokenizers[0](text * 3, return_special_tokens_mask=True) for text in TEXTS]

    ids = lambda: [row["input_ids"] for row in make()]  # noqa: E731
    for shares in ({}, {"mask_replace_prob": 0.3, "random_replace_prob": 0.6}, {"mask_replace_prob": 1.0,
                   "random_replace_prob": 0.0}, {"mask_replace_prob": 0.5, "random_replace_prob": 0.0}):  # fmt: skip
        for form in (make, ids):
            options = {"mlm_probability": 0.5, "seed": seed, "return_tensors": kind, **shares}
            batches = assert_same("DataCollatorForLanguageModeling", tokenizers, form, **options)
            assert batches[0] != batches[1]  # each batch is drawn anew


@pytest.mark.parametrize("kind", KINDS)
def test_flattening(kind):
    rng = random.Random(0)
    rows = [{"input_ids": [rng.randrange(9) for _ in range(rng.randint(1, 7))]} for _ in range(5)]
    labelled = [{**row, "labels": [token + 1 for token in row["input_ids"]]} for row in rows]
    everything = {"return_flash_attn_kwargs": True, "return_seq_idx": True}
    for options in ({}, {"return_position_ids": False, "separator_id": 4}, everything):
        for features in (rows, labelled):
            name = "DataCollatorWithFlattening"
            assert_same(name, [None, None], lambda f=features: f, {"return_tensors": kind}, **options)
    assert_same("DataCollatorWithFlattening", [None, None], lambda: rows, {"separator_id": 5}, return_tensors=kind)


def test_a_tokenizer_of_the_reference_is_not_told_that_calling_it_would_be_faster(folders):
    _, theirs = both(folders, "GPT2TokenizerFast")
    batch = pad_without_fast_tokenizer_warning(theirs, [{"input_ids": [1]}, {"input_ids": [1, 2]}])
    assert batch["attention_mask"] == [[1, 0], [1, 1]]
    assert theirs.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] is False
