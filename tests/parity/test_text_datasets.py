"""Text files as data sets, beside the reference's deprecated classes."""

from __future__ import annotations

import pytest
import torch
import transformers

import gptrio

LIBRARIES = (gptrio, transformers)
TEXT = "def first(values):\n    return values[0]\n\n   \nfor name in ('a', 'b'):\n    print(name)\n" * 3


def datasets(name, path, **options):
    """The data set of each library, over the packaged model's tokenizer."""
    folder = gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2").name_or_path
    made = []
    for library in LIBRARIES:
        source = "gptrio/stdlib-gpt2" if library is gptrio else gptrio.hub.local_folder(folder)
        with pytest.warns(FutureWarning, match="deprecated|will be removed"):
            tokenizer = library.AutoTokenizer.from_pretrained(source)
            made.append(getattr(library, name)(tokenizer, str(path), **options))
    return made


@pytest.mark.parametrize("block_size", [7, 16])
def test_blocks_of_a_file_are_the_references(tmp_path, block_size):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    ours, theirs = datasets("TextDataset", path, block_size=block_size)
    assert len(ours) == len(theirs) > 2
    assert all(torch.equal(mine, other) and mine.dtype == torch.long for mine, other in zip(ours, theirs, strict=True))
    assert {len(block) for block in ours} == {block_size}


def test_lines_of_a_file_are_the_references(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    ours, theirs = datasets("LineByLineTextDataset", path, block_size=5)
    assert len(ours) == len(theirs) == 12
    assert [row["input_ids"].tolist() for row in ours] == [row["input_ids"].tolist() for row in theirs]
    assert {len(row["input_ids"]) for row in ours} <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", ["TextDataset", "LineByLineTextDataset"])
def test_a_file_that_is_not_there_is_an_error_as_in_the_reference(name, tmp_path):
    for library in LIBRARIES:
        with pytest.warns(FutureWarning), pytest.raises(ValueError, match=r"none\.txt"):
            getattr(library, name)(None, str(tmp_path / "none.txt"), 4)
