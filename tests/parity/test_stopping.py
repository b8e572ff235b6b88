"""Stopping criteria against transformers 4.56.2."""

import pytest
import torch

import gptrio

transformers = pytest.importorskip("transformers")

WORDS = ["st", "op", "stop", "opera", "sto", "pper", "las", "topper", "s", "to", "pped", "at", "tion", " ", "\n", "o"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer whose tokens are the words above, read by both libraries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {" ": "Ġ", "\n": "Ċ"}
    vocab = {"".join(letters.get(char, char) for char in word): index for index, word in enumerate(WORDS)}
    vocab |= {letter: len(vocab) + i for i, letter in enumerate("abcdef")}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("length", [3, 4, 5, 30])
def test_max_length(length):
    ids = torch.zeros(3, 4, dtype=torch.long)
    ours, theirs = (lib.MaxLengthCriteria(length)(ids, None) for lib in (gptrio, transformers))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ends", [7, [7], [7, 2], torch.tensor([2])], ids=str)
def test_eos(ends):
    ids = torch.randint(0, 9, (50, 3), generator=torch.Generator().manual_seed(0))
    ours, theirs = (lib.EosTokenCriteria(ends)(ids, None) for lib in (gptrio, transformers))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_max_time(seconds):
    ids = torch.zeros(2, 4, dtype=torch.long)
    start = None if seconds else 1.0
    ours, theirs = (lib.MaxTimeCriteria(seconds, start)(ids, None) for lib in (gptrio, transformers))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("threshold", [0.01, 0.2, 0.9])
def test_confidence_of_the_newest_token(threshold):
    scores = (torch.randn(1, 12, generator=torch.Generator().manual_seed(3)),)
    for token in range(12):
        ids = torch.tensor([[0, token]])
        ours = gptrio.ConfidenceCriteria(threshold)(ids, scores)
        theirs = transformers.generation.ConfidenceCriteria(threshold)(ids, scores)
        assert bool(ours) == bool(theirs)


@pytest.mark.parametrize("stops", ["stop", ["stop", "at\n"], ["o"], ["opst", "s to"]], ids=str)
def test_stop_strings_across_token_borders(tokenizer, stops):
    ours = gptrio.StopStringCriteria(tokenizer, stops)
    theirs = transformers.StopStringCriteria(tokenizer, stops)
    for name in ("stop_strings", "num_stop_strings", "maximum_token_len"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert torch.equal(ours.target_lens, theirs.target_lens)
    generator = torch.Generator().manual_seed(1)
    found = 0
    for length in (1, 2, 3, 5, 9):
        ids = torch.randint(0, len(WORDS), (400, length), generator=generator)
        expected = theirs(ids, None)
        assert torch.equal(ours(ids, None), expected)
        found += int(expected.sum())
    assert found > 20, "the test would show nothing"


def test_stop_string_examples_of_the_documentation(tokenizer):
    stop = gptrio.StopStringCriteria(tokenizer, "stop")
    matching = [["st", "op"], ["stop"], ["st", "opera"], ["sto", "pper"], ["las", "topper"], ["s", "to", "pped"]]
    passing = [["stop", "at"], ["st", "op", "at"], ["st", "opera", "tion"]]
    for words in matching + passing:
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        assert bool(stop(ids, None)) is (words in matching), words


def test_list_joins_criteria():
    ids = torch.tensor([[1, 2], [1, 3]])
    ours, theirs = (
        lib.StoppingCriteriaList([lib.MaxLengthCriteria(5), lib.EosTokenCriteria(3)]) for lib in (gptrio, transformers)
    )
    assert torch.equal(ours(ids, None), theirs(ids, None))
    assert ours.max_length == theirs.max_length == 5
