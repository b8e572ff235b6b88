"""Special and added tokens: attributes, registration, matching, skipping."""

from __future__ import annotations

import pytest

from gptrio import AddedToken, GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizer, TokenizationError


def test_attributes_follow_each_other(tokenizer):
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", None, None)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.pad_token_id = tokenizer.encode("a")[0]
    assert tokenizer.pad_token == "a"
    tokenizer.pad_token_id = None
    assert tokenizer.pad_token is None
    with pytest.raises(TokenizationError, match="pad_token is 5"):
        tokenizer.pad_token = 5
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tokenizer.nonsense  # noqa: B018 - reading it is the test
    with pytest.raises(AttributeError, match="not to its class"):
        type(tokenizer).bos_token  # noqa: B018 - as above


def test_add_special_tokens(tokenizer):
    size = len(tokenizer)
    assert tokenizer.add_special_tokens({"cls_token": "[CLS]", "pad_token": AddedToken("[PAD]", lstrip=True)}) == 2
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, len(tokenizer)) == (size, size + 1, size + 2)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]}) == 2
    more = {"additional_special_tokens": ["<b>", "<c>"]}
    assert tokenizer.add_special_tokens(more, replace_additional_special_tokens=False) == 1
    assert tokenizer.additional_special_tokens == ["<a>", "<b>", "<c>"]
    assert tokenizer.additional_special_tokens_ids == [size + 2, size + 3, size + 4]
    assert tokenizer.all_special_tokens == ["<|endoftext|>", "[PAD]", "[CLS]", "<a>", "<b>", "<c>"]
    assert tokenizer.decode(tokenizer.encode("[CLS]a<c>"), skip_special_tokens=True) == "a"
    assert tokenizer.special_tokens_map["additional_special_tokens"] == ["<a>", "<b>", "<c>"]
    tokenizer.additional_special_tokens_ids = [size + 2]
    assert tokenizer.additional_special_tokens == ["<a>"]
    with pytest.raises(TokenizationError, match="'dog_token' is not a special token; expected one of bos_token"):
        tokenizer.add_special_tokens({"dog_token": "x"})
    with pytest.raises(TokenizationError, match="expected strings or AddedToken"):
        tokenizer.add_special_tokens({"additional_special_tokens": "x"})


def test_add_tokens(tokenizer):
    size = len(tokenizer)
    assert tokenizer.add_tokens("<one>") == 1 and tokenizer.add_tokens(["<one>", "<two>"]) == 1
    assert tokenizer.add_tokens([]) == 0
    assert tokenizer.convert_tokens_to_ids(["<one>", "<two>"]) == [size, size + 1]
    assert tokenizer.get_added_vocab()["<two>"] == size + 1 == tokenizer.get_vocab()["<two>"]
    assert tokenizer.tokenize("a<one>b") == ["a", "<one>", "b"]
    assert tokenizer.vocab_size < len(tokenizer) == size + 2
    with pytest.raises(TokenizationError, match="expected strings or AddedToken"):
        tokenizer.add_tokens([1])


def test_matching_rules(gpt2):
    gpt2.add_tokens([AddedToken("<s>", lstrip=True, rstrip=True), AddedToken("cat", single_word=True)])
    assert gpt2.encode("a  <s>  b") == gpt2.convert_tokens_to_ids(["a", "<s>", "b"])
    assert gpt2.tokenize("cat") == ["cat"] and "cat" in gpt2.tokenize("a cat b")
    assert "cat" not in gpt2.tokenize("concat") and "cat" not in gpt2.tokenize("cats")


def test_the_longest_added_token_wins(gpt2):
    gpt2.add_tokens(["<x>", "<x>1", "<x>12"])
    assert gpt2.tokenize("<x>123") == ["<x>12", "3"]


def test_special_tokens_can_be_split(tokenizer):
    text = "a<|endoftext|>"
    assert tokenizer.tokenize(text) == ["a", "<|endoftext|>"]
    assert len(tokenizer.tokenize(text, split_special_tokens=True)) > 2
    assert [len(row) > 2 for row in tokenizer([text, text], split_special_tokens=True)["input_ids"]] == [True, True]
    tokenizer.split_special_tokens = True
    assert len(tokenizer(text)["input_ids"]) > 2
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenize_pairs_and_special_tokens(slow, gpt2_folder):
    assert slow.tokenize("a", "b") == ["a", "b"]
    bos = GPT2Tokenizer.from_pretrained(gpt2_folder, add_bos_token=True)
    assert bos.tokenize("a", "b", add_special_tokens=True) == ["<|endoftext|>", "a", "<|endoftext|>", "b"]


def test_special_tokens_of_one_model(gpt2_folder, tmp_path):
    made = GPT2Tokenizer.from_pretrained(gpt2_folder, extra_special_tokens={"image_token": "<image>"})
    assert made.image_token == "<image>" and made.image_token_id == len(made) - 1
    assert "<image>" in made.all_special_tokens
    made.save_pretrained(tmp_path)
    assert GPT2Tokenizer.from_pretrained(tmp_path).image_token_id == made.image_token_id


def test_masks_of_ready_ids(tokenizer):
    ids = [*tokenizer.encode("a"), tokenizer.eos_token_id]
    assert tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) == [0, 1]
    with pytest.raises(TokenizationError, match="takes one list"):
        tokenizer.get_special_tokens_mask(ids, ids, already_has_special_tokens=True)


def test_a_setting_may_not_hide_a_method(gpt2_folder):
    with pytest.raises(TokenizationError, match="'decode' has the name of a method"):
        GPT2Tokenizer.from_pretrained(gpt2_folder, decode=1)
    with pytest.raises(TokenizationError, match="padding_side is 'middle'"):
        GPT2Tokenizer.from_pretrained(gpt2_folder, padding_side="middle")


class Letters(PreTrainedTokenizer):
    """A tokenizer of one's own: a token is a letter."""

    model_input_names = ("input_ids", "attention_mask")
    vocab_size = 26

    def get_vocab(self):
        return {chr(97 + i): i for i in range(26)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token) - 97

    def _convert_id_to_token(self, index):
        return chr(97 + index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return ()


def test_a_tokenizer_of_ones_own():
    letters = Letters(pad_token="<pad>")
    assert letters(["ab", "z"], padding=True).data == {
        "input_ids": [[0, 1], [25, 26]],
        "attention_mask": [[1, 1], [1, 0]],
    }
    assert letters.decode([0, 1, 26], skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("cls", [GPT2Tokenizer, GPT2TokenizerFast])
@pytest.mark.parametrize("value", [5, True, 1.5, [], ["a"], {"a": 1}], ids=str)
def test_a_special_token_of_another_type_is_named(gpt2_folder, cls, value):
    with pytest.raises(TokenizationError, match=r"^bos_token is .*; expected a string, an AddedToken or None"):
        cls(gpt2_folder / "vocab.json", gpt2_folder / "merges.txt", bos_token=value)
