"""What a call returns and refuses: strategies, pairs, words, tensors, warnings."""

from __future__ import annotations

import copy
import threading
import warnings

import numpy as np
import pytest
import torch

from gptrio import BatchEncoding, GPT2Tokenizer, GptrioWarning, TokenizationError, UnsupportedError


@pytest.fixture
def padded(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_padding_strategies(padded):
    texts = ["a", "a b c"]
    ids = padded(texts)["input_ids"]
    pad = padded.pad_token_id
    assert padded(texts, padding=True)["input_ids"] == [ids[0] + [pad] * 2, ids[1]]
    assert padded(texts, padding="longest", padding_side="left")["input_ids"] == [[pad] * 2 + ids[0], ids[1]]
    assert padded(texts, padding="max_length", max_length=4)["attention_mask"] == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert [len(row) for row in padded(texts, padding=True, pad_to_multiple_of=8)["input_ids"]] == [8, 8]
    assert padded("", padding="max_length", max_length=3)["input_ids"] == [pad] * 3


def test_truncation_sides_and_strategies(padded):
    first, second = ["a", "b", "c", "d"], ["e", "f"]
    pair = (" ".join(first), " ".join(second))
    decoded = lambda **options: padded.decode(padded.encode(*pair, max_length=4, **options))  # noqa: E731 - one line a case
    assert decoded(truncation="only_first") == "a be f"
    assert decoded(truncation=True) == "a be f"
    padded.truncation_side = "left"
    assert decoded(truncation="only_first") == " c de f"
    with pytest.raises(TokenizationError) if padded.is_fast else pytest.warns(GptrioWarning, match="cannot remove 3"):
        padded.encode(*pair, max_length=3, truncation="only_second")


def test_overflow_with_stride(slow, fast):
    text = "a b c d e"
    parts = fast(text, max_length=3, truncation=True, stride=1, return_overflowing_tokens=True)
    assert [fast.decode(ids) for ids in parts["input_ids"]] == ["a b c", " c d e"]
    assert parts["overflow_to_sample_mapping"] == [0, 0]
    row = slow(text, max_length=3, truncation=True, stride=1, return_overflowing_tokens=True)
    assert slow.decode(row["overflowing_tokens"]) == " c d e" and row["num_truncated_tokens"] == 2


def test_impossible_strides_are_errors(fast, neox):
    for tokenizer in (fast, neox):
        with pytest.raises(TokenizationError, match="stride"):
            tokenizer("a b c d", max_length=2, truncation=True, stride=5, return_overflowing_tokens=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "all"}, "padding is 'all'; expected True, False or one of 'longest'"),
        ({"truncation": "left"}, "truncation is 'left'"),
        ({"padding_side": "up"}, "padding_side is 'up'"),
        ({"padding": True}, "no pad_token; set one"),
    ],
)
def test_bad_options(tokenizer, options, message):
    tokenizer.pad_token = None
    with pytest.raises(TokenizationError, match=message):
        tokenizer("a", **options)


def test_truncation_must_fit_pad_to_multiple_of(padded):
    with pytest.raises(TokenizationError, match="max_length 6 of the truncation is not a multiple"):
        padded("a", truncation=True, padding=True, max_length=6, pad_to_multiple_of=4)


@pytest.mark.parametrize("text", [None, 5, b"a", [1, 2], {"a": 1}, [["a", "b", "c"]], [("a", "b", "c")], []])
def test_bad_texts(tokenizer, text):
    with pytest.raises(TokenizationError):
        tokenizer(text)


def test_bad_pairs_and_options(tokenizer):
    with pytest.raises(TokenizationError, match="batch of 2 and text_pair one string"):
        tokenizer(["a", "b"], "c")
    with pytest.raises(TokenizationError, match="batch of 2 and text_pair 1 texts"):
        tokenizer(["a", "b"], ["c"])


def test_unknown_arguments_are_named_with_what_may_be_meant(slow, fast):
    with pytest.raises(TypeError, match="'max_len' \\(did you mean 'max_length'"):
        fast("a", max_len=3)
    with pytest.warns(GptrioWarning, match="'max_len' \\(did you mean 'max_length'.*has no effect"):
        assert slow("a", max_len=3) == slow("a")


def test_words(slow, gpt2_folder, fast, neox):
    words = ["Hello", "world", "don't"]
    ids = slow(words, is_split_into_words=True)["input_ids"]
    prefixed = type(fast).from_pretrained(gpt2_folder, add_prefix_space=True)
    batch = prefixed(words, is_split_into_words=True)
    assert batch["input_ids"] == ids
    assert sorted(set(batch.word_ids())) == [0, 1, 2]
    with pytest.raises(TokenizationError, match="only with add_prefix_space=True"):
        fast(words, is_split_into_words=True)
    assert neox([words, ["a"]], is_split_into_words=True)["attention_mask"][1] == [1]
    assert slow([], is_split_into_words=True)["input_ids"] == []


def test_prefix_space_of_a_call(slow, fast):
    assert slow("a", add_prefix_space=True)["input_ids"] == slow(" a")["input_ids"]
    with pytest.raises(TokenizationError, match="when it is made"):
        fast("a", add_prefix_space=True)


@pytest.mark.parametrize("kind", ["pt", "np", "jax"])
def test_tensors(padded, kind):
    if kind == "jax":
        pytest.importorskip("jax")
    one = padded("a b", return_tensors=kind)["input_ids"]
    assert one.shape == (1, 2) and one.tolist() == [padded.encode("a b")]
    batch = padded(["a", "b c"], padding=True, return_tensors=kind)
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert padded.decode(one[0]) == "a b" and padded.batch_decode(one) == ["a b"]


def test_ragged_tensors_are_errors(tokenizer):
    with pytest.raises(TokenizationError, match="padding=True"):
        tokenizer(["a", "b c"], return_tensors="pt")
    assert tokenizer(["a", "b c"], return_tensors="np")["input_ids"].dtype == object
    with pytest.raises(UnsupportedError, match="'pt', 'np' or 'jax'"):
        tokenizer("a", return_tensors="tf")


def test_targets_become_labels(tokenizer):
    batch = tokenizer("a", text_target="b c")
    assert batch["labels"] == tokenizer.encode("b c") and batch["input_ids"] == tokenizer.encode("a")
    assert tokenizer(text_target="b")["input_ids"] == tokenizer.encode("b")
    with pytest.warns(GptrioWarning, match="pass the targets as text_target"), tokenizer.as_target_tokenizer():
        assert tokenizer("b c")["input_ids"] == batch["labels"]


def test_a_subclass_may_treat_targets_otherwise(tokenizer):
    class Marked(type(tokenizer)):
        def _switch_to_target_mode(self):
            modes.append("target")

        def _switch_to_input_mode(self):
            modes.append("input")

    tokenizer, modes = copy.copy(tokenizer), []
    tokenizer.__class__ = Marked
    tokenizer("a", text_target="b")
    with pytest.warns(GptrioWarning), tokenizer.as_target_tokenizer():
        tokenizer("a")
        assert modes == ["target", "input", "target"]
    assert modes[3:] == ["input"]


def test_pad_takes_encodings_lists_and_tensors(padded):
    rows = [padded("a"), padded("b c d")]
    expected = padded(["a", "b c d"], padding=True).data
    assert padded.pad(rows).data == expected
    assert padded.pad({key: [row[key] for row in rows] for key in rows[0]}, return_tensors="pt")["input_ids"].shape == (
        2,
        3,
    )
    assert isinstance(padded.pad({"input_ids": torch.tensor([[1], [2]])})["input_ids"], torch.Tensor)
    assert isinstance(padded.pad({"input_ids": [np.array([1]), np.array([2, 3])]})["input_ids"], np.ndarray)
    assert padded.pad({"input_ids": []}, return_attention_mask=True).data == {"input_ids": [], "attention_mask": []}
    with pytest.raises(TokenizationError, match="expected encodings with an entry 'input_ids'"):
        padded.pad({"labels": [1]})
    with pytest.raises(TokenizationError, match="has 2 rows, but"):
        padded.pad({"input_ids": [[1], [2]], "labels": [[1]]})


def test_a_text_too_long_warns_once(tokenizer):
    tokenizer.model_max_length = 2
    with pytest.warns(GptrioWarning, match="has 4 tokens, the model takes 2") as caught:
        tokenizer("a b c d")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a b c d", "a b c d e"])
        assert len(tokenizer("a b c d", truncation=True)["input_ids"]) == 2


def test_implied_truncation_warns(tokenizer):
    with pytest.warns(GptrioWarning, match="pass truncation=True"):
        assert len(tokenizer.encode("a b c", max_length=2)) == 2


def test_no_limit_to_cut_to_warns(tokenizer):
    with pytest.warns(GptrioWarning, match="give max_length"):
        assert len(tokenizer.encode("a b c", truncation=True)) == 3


def test_prepare_for_model(slow):
    slow.add_bos_token = True
    batch = slow.prepare_for_model([1, 2], [3], return_token_type_ids=True, return_special_tokens_mask=True)
    bos = slow.bos_token_id
    assert batch["input_ids"] == [bos, 1, 2, bos, 3] and batch["token_type_ids"] == [0, 0, 0, 1, 1]
    assert batch["special_tokens_mask"] == [1, 0, 0, 1, 0]
    assert slow.encode([1, 2]) == [bos, 1, 2]
    with pytest.raises(TokenizationError, match="needs add_special_tokens=True"):
        slow.prepare_for_model([1], return_token_type_ids=True, add_special_tokens=False)


def test_bos_token_must_be_set(slow, neox):
    slow.add_bos_token, slow.bos_token = True, None
    with pytest.raises(TokenizationError, match="no bos_token; set one"):
        slow("a")
    neox.eos_token = None
    with pytest.raises(TokenizationError, match="add_eos_token=True, but the tokenizer has no eos_token"):
        neox.add_eos_token = True


def test_neox_bos_and_eos(neox_folder, neox):
    both = type(neox).from_pretrained(neox_folder, add_bos_token=True, add_eos_token=True)
    end, (a, b) = both.eos_token_id, neox.encode("a b")
    assert both("a b", "a b", return_token_type_ids=True).data == {
        "input_ids": [end, a, b, end, end, a, b, end],
        "token_type_ids": [0, 0, 0, 0, 1, 1, 1, 1],
        "attention_mask": [1] * 8,
    }
    assert both.build_inputs_with_special_tokens([5], [6]) == [end, 5, end, end, 6, end]
    assert both.get_special_tokens_mask([5], [6]) == [1, 0, 1, 1, 0, 1]
    assert both.num_special_tokens_to_add(pair=True) == 4
    both.add_bos_token = False
    assert both.encode("a b") == [a, b, end]


def test_ignored_add_bos_token_is_said(fast, tmp_path):
    fast.save_pretrained(tmp_path)
    with pytest.warns(GptrioWarning, match="add_bos_token=True has no effect"):
        type(fast).from_pretrained(tmp_path, add_bos_token=True)
    honoured = type(fast).from_pretrained(tmp_path, add_bos_token=True, from_slow=True)
    assert honoured.encode("a") == [fast.bos_token_id, *fast.encode("a")]


def test_invalid_ids(tokenizer):
    for ids in (-1, [-100], [1.5], ["a"], [[1, 2]], None, [2**40]):
        with pytest.raises(TokenizationError, match="not a token id"):
            tokenizer.decode(ids)
    assert tokenizer.convert_ids_to_tokens(10**6) is None


def test_ids_without_a_token(slow, fast):
    with pytest.raises(TokenizationError, match="id 100000 is not in the vocabulary"):
        slow.decode([100000])
    with pytest.warns(GptrioWarning, match=r"ids \[100000\] have no token"):
        assert fast.decode([100000, *fast.encode("a")]) == "a"


def test_slow_has_no_offsets(slow):
    with pytest.raises(UnsupportedError, match="class ending in Fast"):
        slow("a", return_offsets_mapping=True)
    with pytest.raises(UnsupportedError, match="class ending in Fast"):
        slow("a").word_ids()


def test_clean_up_spaces(gpt2):
    ids = gpt2.encode("Hello , it 's fine !")
    assert gpt2.decode(ids, clean_up_tokenization_spaces=True) == "Hello, it's fine!"
    assert gpt2.decode(ids) == "Hello , it 's fine !"


def test_threads_do_not_see_each_others_padding(padded):
    texts = ["a", "a b c d"]
    expected = {n: padded(texts, padding="max_length", max_length=n)["input_ids"] for n in range(4, 12)}
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(50):
            if padded(texts, padding="max_length", max_length=n)["input_ids"] != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_batch_encoding_is_a_mapping(tokenizer):
    batch = tokenizer(["a", "b c"])
    assert isinstance(batch, BatchEncoding) and dict(**batch) == batch.data
    assert batch.input_ids == batch["input_ids"] and not hasattr(batch, "labels")
    assert isinstance(tokenizer, GPT2Tokenizer) or batch[1].ids == batch.input_ids[1]
