"""A tokenizer pickles to the same bytes before and after use, and its copies give the same ids."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import pickle
import subprocess
import sys

import pytest

import gptrio
from gptrio import AddedToken, AutoTokenizer, GPTNeoXTokenizerFast
from gptrio.errors import GptrioError

TEXTS = ["def hello_world():", "  import os <mark>\n", "größer 東", "<|endoftext|> end"]


def make(kind):
    if kind == "neox":
        backend = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2").backend_tokenizer
        tokenizer = GPTNeoXTokenizerFast(tokenizer_object=backend, add_bos_token=True, model_max_length=512)
    else:
        tokenizer = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2", use_fast=kind == "fast")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_tokens(["<mark>", AddedToken("<left>", lstrip=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<note>"]})
    return tokenizer


OPTIONS = {
    "padding": [False, True, "max_length"],
    "truncation": [False, "only_first", "longest_first"],
    "max_length": [None, 6],
    "stride": [0, 2],
    "return_overflowing_tokens": [False, True],
    "padding_side": [None, "left"],
    "split_special_tokens": [None, True],
}
CALLS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


@pytest.mark.filterwarnings("ignore::gptrio.GptrioWarning")
@pytest.mark.parametrize("kind", ["slow", "fast", "neox"])
def test_no_call_changes_the_pickle(kind):
    tokenizer = make(kind)
    before = pickle.dumps(tokenizer)
    refused = 0
    for options in CALLS:
        for given in (TEXTS, TEXTS[1]):
            try:
                tokenizer(given, **options)
            except GptrioError:
                refused += 1
            assert pickle.dumps(tokenizer) == before, options
    assert refused < len(CALLS)


@pytest.mark.filterwarnings("ignore::gptrio.GptrioWarning")
@pytest.mark.parametrize("kind", ["slow", "fast", "neox"])
@pytest.mark.parametrize(
    "use",
    [
        lambda t: t("word " * 600),
        lambda t: t.decode(t.encode(TEXTS[0]) * 2, skip_special_tokens=True),
        lambda t: t.decode([511]),
        lambda t: t.tokenize(TEXTS[1]),
        lambda t: t.pad([t(text) for text in TEXTS], return_tensors="np"),
        lambda t: t.get_vocab(),
        lambda t: t.convert_tokens_to_ids(["def", "<mark>", "no such token"]),
        lambda t: copy.deepcopy(t)(TEXTS, truncation=True, max_length=3),
        repr,
        len,
    ],
)
def test_no_use_changes_the_pickle(kind, use):
    tokenizer = make(kind)
    before = pickle.dumps(tokenizer)
    use(tokenizer)
    assert pickle.dumps(tokenizer) == before


@pytest.mark.parametrize("kind", ["slow", "fast", "neox"])
def test_saving_does_not_change_the_pickle(kind, tmp_path):
    tokenizer = make(kind)
    before = pickle.dumps(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert pickle.dumps(tokenizer) == before


@pytest.mark.parametrize("kind", ["fast", "neox"])
def test_truncation_and_padding_set_in_the_backend_stay_there_alone(kind):
    tokenizer, plain = make(kind), make(kind)
    before = pickle.dumps(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(3, stride=1, strategy="only_first", direction="left")
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=1, pad_token="!")
    set_by_hand = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    assert pickle.dumps(tokenizer) == before
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == set_by_hand
    assert tokenizer(TEXTS) == plain(TEXTS)


@pytest.mark.parametrize("kind", ["fast", "neox"])
def test_no_call_leaves_truncation_or_padding_behind(kind):
    tokenizer = make(kind)
    whole = tokenizer.backend_tokenizer.encode(TEXTS[0]).ids
    tokenizer(TEXTS, truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    with pytest.raises(GptrioError):
        tokenizer([TEXTS[0]], truncation=True, max_length=4, stride=9)
    backend = tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding, backend.encode_special_tokens) == (None, None, False)
    assert backend.encode(TEXTS[0]).ids == whole


@pytest.mark.filterwarnings("ignore::gptrio.GptrioWarning")
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
@pytest.mark.parametrize("kind", ["slow", "fast", "neox"])
@pytest.mark.parametrize("split", [False, True])
def test_copies_give_the_same_ids_and_the_same_pickle(kind, again, split):
    tokenizer = make(kind)
    tokenizer.split_special_tokens = split
    before = pickle.dumps(tokenizer)
    copied = again(tokenizer)
    assert type(copied) is type(tokenizer)
    for options in CALLS[:: len(CALLS) // 20]:
        if not options["return_overflowing_tokens"]:
            assert copied(TEXTS, **options) == tokenizer(TEXTS, **options)
    assert copied.batch_decode(copied(TEXTS).input_ids) == tokenizer.batch_decode(tokenizer(TEXTS).input_ids)
    assert pickle.dumps(copied) == before
    assert repr(copied) == repr(tokenizer)


@pytest.mark.parametrize("kind", ["slow", "fast", "neox"])
def test_what_is_set_on_purpose_changes_the_pickle(kind):
    changed = [make(kind) for _ in range(5)]
    changed[1].add_tokens(["<other>"])
    changed[2].padding_side = "left"
    changed[3].pad_token = "<mark>"
    changed[4].model_max_length = 7
    assert len({pickle.dumps(tokenizer) for tokenizer in changed}) == 5


def test_a_pickle_is_the_same_in_another_process():
    program = (
        "import hashlib, pickle, gptrio\n"
        "for fast in (True, False):\n"
        "    tokenizer = gptrio.AutoTokenizer.from_pretrained('gptrio/stdlib-gpt2', use_fast=fast)\n"
        "    {0}\n"
        "    print(hashlib.sha256(pickle.dumps(tokenizer)).hexdigest())"
    )
    uses = ("pass", "tokenizer('word ' * 600, truncation=True, max_length=8, verbose=False)")
    told = [
        subprocess.run(
            [sys.executable, "-c", program.replace("{0}", use)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True,
        ).stdout
        for seed, use in enumerate(uses)
    ]  # fmt: skip
    assert told[0] == told[1] and len(told[0].split()) == 2
    here = AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    assert hashlib.sha256(pickle.dumps(here)).hexdigest() == told[0].split()[0]


@pytest.mark.parametrize("fast", [True, False])
def test_datasets_find_what_they_have_mapped_before(fast, tmp_path):
    datasets = pytest.importorskip("datasets")
    tokenizer = gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2", use_fast=fast)
    tokenizer.pad_token = tokenizer.eos_token

    def encode(rows):
        return tokenizer(rows["text"], truncation=True, max_length=5, padding="max_length")

    before = datasets.fingerprint.Hasher.hash(encode)
    data = datasets.Dataset.from_dict({"text": TEXTS})
    first, second = (data.map(encode, batched=True, cache_file_name=None) for _ in range(2))
    assert datasets.fingerprint.Hasher.hash(encode) == before
    assert first._fingerprint == second._fingerprint
    assert second["input_ids"] == encode({"text": TEXTS})["input_ids"]
