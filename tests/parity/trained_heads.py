"""Tiny models with heads for tokens and answers, random or trained for a second, ours beside Transformers'."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

import gptrio
from tests.reference import model_pair
from tests.tiny_tokenizers import write_gpt2, write_gpt_neox

NAMES = ["Anna", "Ben", "Clara Smith", "David Jones", "Emma van Dyke"]
PLACES = ["Paris", "Rome", "New York", "San Jose", "Zürich"]
VERBS = ["lives in", "went to", "likes", "is from", "saw"]
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}

Tokenizers = tuple[Any, Any]


def tokenizers(family: str, folder: Path, **settings: Any) -> Tokenizers:
    """Transformers' fast tokenizer of a family, and ours, over one small vocabulary."""
    name = "GPTNeoXTokenizerFast" if family == "GPTNeoX" else "GPT2TokenizerFast"
    (write_gpt_neox if family == "GPTNeoX" else write_gpt2)(folder)
    return tuple(getattr(library, name).from_pretrained(folder, **settings) for library in (transformers, gptrio))


def models(class_name: str, tokenizer: Any, batches: Iterator[dict[str, Any]] | None, **config: Any) -> tuple[Any, Any]:
    """Transformers' model and ours with equal weights: random ones, or, with batches, trained by these."""
    positions = "n_positions" if class_name.startswith("GPT2") else "max_position_embeddings"
    theirs, ours = model_pair(class_name, vocab_size=len(tokenizer), **{positions: 128}, **config)
    if batches is not None:
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=5e-3)
        for batch in batches:
            optimizer.zero_grad()
            theirs(**batch).loss.backward()
            optimizer.step()
        ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tagged(tokenizer: Any, steps: int, rows: int = 16) -> Iterator[dict[str, Any]]:
    """Batches of sentences with a label for each token: "B" for the first of a name, "I" for the others."""
    draw, numbers = random.Random(0), {label: number for number, label in LABELS.items()}
    for _ in range(steps):
        examples = []
        for _ in range(rows):
            ids: list[int] = []
            labels: list[int] = []
            for choices, tag in ((NAMES, "PER"), (VERBS, None), (PLACES, "LOC"), (["today", "again"], None)):
                piece = tokenizer(f" {draw.choice(choices)}" if ids else draw.choice(choices))["input_ids"]
                ids += piece
                labels += [numbers[f"{'I' if i else 'B'}-{tag}"] if tag else 0 for i in range(len(piece))]
            examples.append((ids, labels))
        yield padded(examples, "labels")


def asked(tokenizer: Any, steps: int, rows: int = 16) -> Iterator[dict[str, Any]]:
    """Batches of questions about a text, with the first and the last token of the answer."""
    draw = random.Random(0)
    for _ in range(steps):
        examples, starts, ends = [], [], []
        for _ in range(rows):
            text, place = story(draw)
            encoded = tokenizer(QUESTION, text)
            starts.append(encoded.char_to_token(text.index(place), sequence_index=1))
            ends.append(encoded.char_to_token(text.index(place) + len(place) - 1, sequence_index=1))
            examples.append((encoded["input_ids"], []))
        yield padded(examples) | {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}


QUESTION = "What is the city?"


def story(draw: random.Random) -> tuple[str, str]:
    """A text and the city in it."""
    place = draw.choice(PLACES)
    before = [f"{draw.choice(NAMES)} sings." for _ in range(draw.randint(0, 2))]
    return " ".join([*before, f"{draw.choice(NAMES)} {draw.choice(VERBS)} {place} today."]), place


def padded(examples: list[tuple[list[int], list[int]]], labels: str | None = None) -> dict[str, Any]:
    """One batch of rows of ids, and of labels."""
    length = max(len(ids) for ids, _ in examples)
    batch = {
        "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in examples]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in examples]),
    }
    if labels is not None:
        batch[labels] = torch.tensor([numbers + [-100] * (length - len(numbers)) for _, numbers in examples])
    return batch
