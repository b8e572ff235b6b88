"""The real vocabularies: published ids, hard cases, whole files, and slow equal to fast."""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path

import pytest

from gptrio import GPT2Tokenizer, GPT2TokenizerFast, GPTNeoXTokenizerFast
from tests.cases import first

NAMES = ["slow", "fast", "neox"]


@pytest.fixture(scope="module")
def real(reference_dir: Path):
    folder = reference_dir / "gpt2"
    plain = {"unk_token": None, "bos_token": None, "eos_token": None}  # the goldens are without special tokens
    return {
        "slow": GPT2Tokenizer.from_pretrained(folder, **plain),
        "fast": GPT2TokenizerFast.from_pretrained(folder, **plain),
        "neox": GPTNeoXTokenizerFast(tokenizer_file=str(reference_dir / "gpt_neox" / "20B_tokenizer.json")),
    }


@pytest.fixture(scope="module")
def goldens(reference_dir: Path):
    return json.loads((reference_dir / "tokenization_goldens.json").read_text(encoding="utf-8"))


def golden_name(name: str) -> str:
    return "gpt_neox_20b" if name == "neox" else "gpt2"


def test_hello_world(real):
    for name in ("slow", "fast"):
        assert real[name].encode("Hello world") == [15496, 995] and real[name].encode(" Hello world") == [18435, 995]
    assert real["neox"].encode("Hello world") == [12092, 1533]


@pytest.mark.parametrize("name", NAMES)
def test_published_ids(real, goldens, name):
    rows = [row for row in goldens["published"] if row["tokenizer"] == golden_name(name)]
    assert rows
    for row in rows:
        assert real[name].encode(row["text"]) == row["ids"]
        if "tokens" in row and name != "neox":
            assert real[name].tokenize(row["text"]) == row["tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_hard_cases(real, goldens, name):
    for row in goldens["computed"]:
        ids = real[name].encode(row["text"])
        assert ids == row[f"{golden_name(name)}_ids"], row["text"]
        assert (real[name].decode(ids) == row["text"]) == row[f"{golden_name(name)}_decodes_back"], row["text"]


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast])
def test_hard_cases_with_the_special_token(reference_dir, goldens, cls):
    tokenizer = cls.from_pretrained(reference_dir / "gpt2")
    rows = [row for row in goldens["computed"] if "gpt2_ids_with_special_token" in row]
    assert rows
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["gpt2_ids_with_special_token"], row["text"]


@pytest.mark.parametrize("name", first(NAMES))
def test_whole_files(real, goldens, reference_dir, name):
    files = list(goldens["whole_files"].items())
    for path, expected in {"neox": files[:2], "slow": files[::2]}.get(name, files):
        text = (reference_dir / path).read_bytes().decode("utf-8")
        ids = real[name].encode(text)
        row = expected[golden_name(name)]
        assert (len(ids), ids[:16]) == (row["n_tokens"], row["first_16"]), path
        assert hashlib.sha256(array("I", ids).tobytes()).hexdigest() == row["sha256_of_ids_as_little_endian_u32"], path
        assert (real[name].decode(ids) == text) == row["decodes_back"], path


def test_slow_equals_fast_on_chinese_questions(real, reference_dir):
    data = json.loads((reference_dir / "qa" / "xquad_zh.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph["context"] for article in data for paragraph in article["paragraphs"]][::4]
    batch = real["fast"](paragraphs, return_offsets_mapping=True)
    assert real["slow"](paragraphs)["input_ids"] == batch["input_ids"]
    for text, offsets, ids in zip(paragraphs, batch["offset_mapping"], batch["input_ids"], strict=True):
        assert real["slow"].decode(ids) == text
        covered = {i for start, end in offsets for i in range(start, end)}
        assert covered == set(range(len(text)))
