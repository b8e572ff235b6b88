"""Text files as data sets, under the names of Transformers' deprecated classes, which many scripts for GPT-2 use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gptrio.errors import FileOptionError, warn
from gptrio.utils.text import decode_text


class TextDataset(Dataset[Tensor]):
    """The tokens of a text file in blocks of one length; what is left at the end is dropped.

    The file is tokenized each time: no cache is written beside it.

    Args:
        tokenizer: encodes the text.
        file_path: the file, in UTF-8, or in UTF-16 with a byte order mark.
        block_size: tokens of a block, with the special ones that the tokenizer adds.
        overwrite_cache, cache_dir: accepted, without effect.

    Raises:
        OptionError: there is no such file, or it is not text.
    """

    def __init__(
        self,
        tokenizer: Any,
        file_path: str | os.PathLike[str],
        block_size: int,
        overwrite_cache: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        _warn_of_age("TextDataset", "datasets.load_dataset('text', data_files=...) and gptrio.pack")
        text = _read(file_path)
        size = block_size - tokenizer.num_special_tokens_to_add(pair=False)
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
        starts = range(0, len(ids) - size + 1, size)
        self.examples = [tokenizer.build_inputs_with_special_tokens(ids[start : start + size]) for start in starts]

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.examples)

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor(self.examples[i], dtype=torch.long)


class LineByLineTextDataset(Dataset[dict[str, Tensor]]):
    """The lines of a text file that are not blank, each a row of at most `block_size` tokens.

    Args:
        tokenizer: encodes a line, with its special tokens.
        file_path: the file, in UTF-8, or in UTF-16 with a byte order mark.
        block_size: tokens beyond which a line is cut.

    Raises:
        OptionError: there is no such file, or it is not text.
    """

    def __init__(self, tokenizer: Any, file_path: str | os.PathLike[str], block_size: int) -> None:
        _warn_of_age("LineByLineTextDataset", "datasets.load_dataset('text', data_files=...)")
        lines = [line for line in _read(file_path).splitlines() if line and not line.isspace()]
        rows = tokenizer(lines, add_special_tokens=True, truncation=True, max_length=block_size)["input_ids"]
        self.examples = [{"input_ids": torch.tensor(row, dtype=torch.long)} for row in rows]

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.examples[i]


def _warn_of_age(name: str, instead: str) -> None:
    warn(f"{name} is deprecated; use {instead}", FutureWarning)


def _read(file_path: str | os.PathLike[str]) -> str:
    if not os.path.isfile(file_path):
        raise FileOptionError(f"file_path={os.fspath(file_path)!r} is not a file; pass the path of a text file")
    return decode_text(Path(file_path).read_bytes(), os.fspath(file_path))
