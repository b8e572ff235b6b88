"""Small tokenizers, trained on the spot, so that the tests need no vocabulary from elsewhere."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel

WORDS = """
The quick brown fox jumps over the lazy dog. It's fine, isn't it? They'll say we've been here, and I'm sure you'd agree.
def hello_world(names: list[str]) -> None:
    for name in names:
        print(f"Hello {name}!")  # says hello to 12345 names in 2024
Größe, naïveté, façade, Ελληνικά, русский язык, עברית, العربية, हिन्दी, 生活的真谛是什么, 日本語のテキスト, 한국어 텍스트
a b c d e f a b c d e f a b c d e f a b c d e f a b c d e f a b c d e f
Emoji 😊😊👩‍👩‍👧 and signs ∑∞≠, tabs\tand   runs of     spaces
"""

TEXTS = [
    "Hello world",
    " Hello",
    "",
    "a",
    "生活的真谛是 good",
    "x <|endoftext|> y",
    "The quick brown fox jumps over the lazy dog. It's  fine !  ",
    "[NEW] tok[NEW]en <L> strip <L>  me",
    "don't  'll  \n\n x",
    "  lead",
    "ab<W>cd <W> e <W>",
    "émoji 😊😊",
    "tabs\t\tand\r\nlines\u00a0\u2028\u3000",
]


def _train(tokenizer: Tokenizer, size: int, special: list[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=size, **settings)
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    return tokenizer


def write_gpt2(folder: Path, size: int = 500) -> Path:
    """Write `vocab.json` and `merges.txt` of a byte-level BPE with `<|endoftext|>` at its end, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = json.loads(_train(tokenizer, size, []).to_str())["model"]
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_gpt_neox(folder: Path, size: int = 450) -> Path:
    """Write a `tokenizer.json` made like the 20B one: NFC, two special tokens first, runs of spaces last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    _train(tokenizer, size, ["<|endoftext|>", "<|padding|>"])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def is_nfc(text: str) -> bool:
    """Whether NFC leaves a text as it is, so that a NeoX tokenizer can give it back."""
    return unicodedata.is_normalized("NFC", text)
