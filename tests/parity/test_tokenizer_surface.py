"""What a tokenizer and its encodings offer, name by name, with the reference's values."""

from __future__ import annotations

import copy
import importlib
import json
import shutil

import pytest
import torch
import transformers
from transformers import AddedToken as ReferenceToken

import gptrio
from gptrio import AddedToken
from gptrio.errors import GptrioWarning, TokenizationError
from gptrio.hub import local_folder

TEXTS = ["def hello_world():", "  import os\n", "größer 東", "<|endoftext|> end", ""]
CLASSES = ["GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:the files belong to a:gptrio.GptrioWarning"),  # on purpose: one folder for all
    pytest.mark.filterwarnings("ignore:add_bos_token=True has no effect:gptrio.GptrioWarning"),
]
PAIRED = dict(zip(("ours", "theirs"), (gptrio, transformers), strict=True))

# public names of the reference's that gptrio lacks
ABSENT = {
    "save_chat_templates": "save_pretrained writes them",
    "prepare_seq2seq_batch": "deprecated; for models with an encoder",
    "deprecation_warnings": "state of the reference's log; gptrio's warnings are Python's",
    "convert_added_tokens": "a step of reading tokenizer_config.json",
    "cache": "the words met so far; no part of a tokenizer's state here",
    "tokens_trie": "how the reference finds added tokens; a pattern here",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped vocabulary with every file that the reference writes."""
    bare = tmp_path_factory.mktemp("bare")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(local_folder("gptrio/stdlib-gpt2") / name, bare)
    full = tmp_path_factory.mktemp("full")
    transformers.GPT2TokenizerFast.from_pretrained(bare, model_max_length=77).save_pretrained(full)
    return str(full)


@pytest.fixture(params=CLASSES)
def both(request, folder):
    """(ours, theirs) of one class."""
    return tuple(getattr(library, request.param).from_pretrained(folder) for library in PAIRED.values())


def names_of(value):
    return {name for name in dir(value) if not name.startswith("_")}


def test_every_public_name_is_there_or_absent_for_a_reason(both):
    ours, theirs = both
    assert {name for name in names_of(theirs) if not hasattr(ours, name)} <= ABSENT.keys()
    assert names_of(theirs("a")) <= names_of(ours("a"))


def test_absent_names_are_still_the_references(folder):
    known = {name for cls in CLASSES for name in names_of(getattr(transformers, cls).from_pretrained(folder))}
    assert ABSENT.keys() <= known
    assert [name for name in ABSENT if hasattr(gptrio.GPT2TokenizerFast, name)] == []


def plain(value):
    """A value without what libraries name in their own way: paths as text, added tokens by their rules."""
    if isinstance(value, (AddedToken, ReferenceToken)):
        return repr(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_every_plain_attribute_has_the_references_value(both):
    ours, theirs = both
    compared = []
    for name in sorted(names_of(theirs) - ABSENT.keys() - {"SPECIAL_TOKENS_ATTRIBUTES"}):
        value = getattr(theirs, name)
        if isinstance(value, (str, int, float, list, tuple, dict, type(None))):
            assert plain(getattr(ours, name)) == plain(value), name
            compared.append(name)
    assert len(compared) >= 25


KEYWORDS = [{}, {"flavour": [3], "additional_special_tokens": ["<z>"], "pad_token": "!", "add_prefix_space": True}]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=["plain", "more"])
@pytest.mark.parametrize("kind", ["vocabulary", "fast", "slow", "sized"])
@pytest.mark.parametrize("cls", CLASSES)
def test_settings_of_the_start_are_the_references(cls, kind, keywords, folder, tmp_path):
    if kind == "vocabulary" and cls == "GPTNeoXTokenizerFast":
        pytest.skip("the reference cannot read it")
    if kind == "vocabulary":
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(f"{folder}/{name}", tmp_path)
    else:
        maker = transformers.GPT2Tokenizer if kind == "slow" else transformers.GPT2TokenizerFast
        tokenizer = maker.from_pretrained(folder, padding_side="left", spice=1)
        tokenizer.add_tokens(["<x>"])
        tokenizer.save_pretrained(tmp_path)
        if kind == "slow" and cls == "GPTNeoXTokenizerFast":
            pytest.skip("the reference cannot read it")
        if kind == "sized":
            tokenizer.backend_tokenizer.enable_truncation(9, stride=1)
            tokenizer.backend_tokenizer.enable_padding(length=11, pad_id=1, pad_token="!")
            tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours, theirs = (getattr(library, cls).from_pretrained(tmp_path, **keywords) for library in PAIRED.values())
    got, expected = plain(ours.init_kwargs), plain(theirs.init_kwargs)
    for settings in (got, expected):
        settings["name_or_path"] = str(settings["name_or_path"])
        if cls.endswith("Fast") and settings.get("tokenizer_file") is None:
            settings.pop("tokenizer_file", None)  # None says as much as nothing
    assert got == expected
    assert (ours.init_inputs, theirs.init_inputs) == ((), ())


def test_options_may_be_given_by_place(both):
    def results(tokenizer):
        tokenizer.pad_token = "<|endoftext|>"
        text = TEXTS[0]
        return [
            dict(tokenizer(text, None, None, None, True, "max_length", True, 4, 0, False, None, "left", None, True)),
            dict(tokenizer.encode_plus(text, TEXTS[1], False, False, "only_first", 5)),
            dict(tokenizer.batch_encode_plus(TEXTS[:2], True, True)),
            tokenizer.encode(text, None, False, "max_length", True, 6, 0, "left"),
            dict(tokenizer.prepare_for_model([1, 2, 3], None, True, "max_length", True, 5)),
            tokenizer.batch_decode([[1, 2], [3]], True, False),
        ]

    ours, theirs = map(results, both)
    assert ours == theirs


def test_an_option_twice_or_too_many_are_refused(both):
    with pytest.raises(TypeError, match="'add_special_tokens' was given twice"):
        both[0].encode("a", None, True, add_special_tokens=True)
    with pytest.raises(TypeError, match="at most 7 options can be positional"):
        both[0].encode("a", None, *range(8))


@pytest.mark.parametrize("call", [lambda t: t("ab", flavour=1), lambda t: t.tokenize("ab", flavour=1)])
def test_unknown_arguments_are_ignored_or_refused_as_in_the_reference(both, call):
    ours, theirs = both
    if ours.is_fast:
        for tokenizer in both:
            with pytest.raises(TypeError, match="flavour"):
                call(tokenizer)
    else:
        with pytest.warns(GptrioWarning, match="does not know 'flavour'"):
            assert call(ours) == call(theirs)
    assert ours.decode([1, 2], flavour=1) == theirs.decode([1, 2], flavour=1)


def test_a_subclass_may_take_arguments_of_its_own(folder):
    texts = []
    for library in PAIRED.values():

        class Shouting(library.GPT2Tokenizer):
            def prepare_for_tokenization(self, text, is_split_into_words=False, **kwargs):
                loud = kwargs.pop("loud", False)
                text, kwargs = super().prepare_for_tokenization(text, is_split_into_words, **kwargs)
                return text.upper() if loud else text, kwargs

        tokenizer = Shouting.from_pretrained(folder)
        texts.append([tokenizer.decode(tokenizer("import os", loud=loud).input_ids) for loud in (False, True)])
    assert texts[0] == texts[1] == ["import os", "IMPORT OS"]


def test_additional_special_tokens_may_be_none(both):
    def results(tokenizer):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<a>"]})
        tokenizer.additional_special_tokens = None
        seen = [tokenizer.additional_special_tokens, tokenizer.additional_special_tokens_ids]
        seen += [tokenizer.all_special_tokens, tokenizer.special_tokens_map, tokenizer("x <a>").input_ids]
        if tokenizer.is_fast:  # the reference's tokenizer in Python cannot decode then
            seen.append(tokenizer.decode(tokenizer("x <a> y").input_ids, skip_special_tokens=True))
        tokenizer.additional_special_tokens = ["<b>"]
        return [*seen, tokenizer.additional_special_tokens, tokenizer.all_special_tokens]

    ours, theirs = map(results, both)
    assert ours == theirs


def test_tokens_can_be_added_after_they_were_set_to_none(both):
    ours, _ = both  # the reference raises AttributeError here
    ours.additional_special_tokens = None
    ours.add_special_tokens({"additional_special_tokens": ["<b>"]}, replace_additional_special_tokens=False)
    assert ours.additional_special_tokens == ["<b>"]
    ours.additional_special_tokens = None
    ours.add_tokens(["<c>"], special_tokens=True)
    assert ours.convert_tokens_to_ids("<c>") == len(ours) - 1


def test_special_tokens_are_added_where_they_lack(both):
    def results(tokenizer):
        tokenizer.pad_token = "<new>"
        return tokenizer.sanitize_special_tokens(), len(tokenizer), tokenizer.pad_token_id

    ours, theirs = map(results, both)
    assert ours == theirs


def test_words_are_the_references(both):
    ours, theirs = both
    for text in TEXTS:
        if not ours.is_fast:
            with pytest.raises(ValueError, match="fast"):
                ours(text).words()
            continue
        with pytest.warns(GptrioWarning, match="word_ids"):
            got = ours(text).words()
        with pytest.warns(FutureWarning):
            assert got == theirs(text).words()


def test_the_word_splitting_of_the_tokenizer_in_python_is_the_references(folder):
    ours, theirs = (library.GPT2Tokenizer.from_pretrained(folder) for library in PAIRED.values())
    assert (ours.total_vocab_size, ours.pat.pattern) == (theirs.total_vocab_size, ours.pat.pattern)
    for text in TEXTS:
        words = theirs.pat.findall(text)
        assert ours.pat.findall(text) == words
        for word in words:
            symbols = "".join(theirs.byte_encoder[byte] for byte in word.encode())
            assert ours.bpe(symbols) == theirs.bpe(symbols)


def test_a_class_is_not_written_as_code(both):
    with pytest.raises(ValueError, match=r"AutoTokenizer\.register"):
        both[0].register_for_auto_class()


CORPUS = [["def one(): return 1", "import os, sys"], ["größer größer größer", "one two one two"]] * 5


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("more", ["nothing", "tokens", "names"])
@pytest.mark.parametrize("cls", ["GPT2TokenizerFast", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_trained_tokenizer_is_the_references(cls, more, batched, folder, tmp_path):
    def trained(library):
        extra = {} if cls == "PreTrainedTokenizerFast" else {"add_bos_token": True}
        tokenizer = getattr(library, cls).from_pretrained(folder, **extra)
        tokenizer.add_tokens(["<plain>"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<note>"], "pad_token": "<pad>"})
        texts = CORPUS if batched else [text for batch in CORPUS for text in batch]
        options = {
            "nothing": {},
            "tokens": {"new_special_tokens": ["<one>", "<two>"], "min_frequency": 2},
            "names": {"special_tokens_map": {"<|endoftext|>": "<end>", "<pad>": "<void>"}},
        }[more]
        before = tokenizer.get_vocab()
        new = tokenizer.train_new_from_iterator(iter(texts), 300, length=10, show_progress=False, **options)
        assert tokenizer.get_vocab() == before and new is not tokenizer
        return new

    ours, theirs = (trained(library) for library in PAIRED.values())
    assert type(ours).__name__ == cls
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert ours.get_vocab() == theirs.get_vocab()
    assert plain(ours.special_tokens_map_extended) == plain(theirs.special_tokens_map_extended)
    for text in [*TEXTS, "one <note> <two> größer <end>"]:
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    ours.save_pretrained(tmp_path)
    again = getattr(gptrio, cls).from_pretrained(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [ours(text).input_ids for text in TEXTS]


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram"])
def test_other_kinds_of_backend_are_trained_too(kind):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    model = {
        "WordLevel": lambda: models.WordLevel({"?": 0, "a": 1, "[E]": 2}, unk_token="?"),
        "WordPiece": lambda: models.WordPiece({"?": 0, "a": 1, "[E]": 2}, unk_token="?"),
        "Unigram": lambda: models.Unigram([("?", 0.0), ("a", -1.0), ("[E]", -2.0)], unk_id=0),
    }[kind]()
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["?", "[E]"])
    backend.post_processor = processors.BertProcessing(("[E]", 2), ("?", 0))
    ours, theirs = (
        library.PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(backend), unk_token="?").train_new_from_iterator(
            [["one two three one"], ["two two four"]], 40, special_tokens_map={"?": "!"}, show_progress=False
        )
        for library in PAIRED.values()
    )
    mine, other = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (ours, theirs))
    if kind != "WordLevel":  # training of the others is not repeatable: their order of counting is not fixed
        mine, other = ({**state, "model": len(state["model"]["vocab"])} for state in (mine, other))
    assert mine == other
    assert ours.unk_token == theirs.unk_token == "!"


def test_a_special_token_that_gets_lost_is_named(folder):
    tokenizer = gptrio.GPT2TokenizerFast.from_pretrained(folder)
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="def:0 $A:0", special_tokens=[("def", 5)])
    with pytest.raises(TokenizationError, match="'def' is added around texts"):
        tokenizer.train_new_from_iterator([["x y z"]], 280, show_progress=False)


@pytest.mark.parametrize("collator", ["WithPadding", "ForLanguageModeling", "ForTokenClassification", "ForSeq2Seq"])
@pytest.mark.parametrize("cls", CLASSES[:2])
def test_collators_of_the_reference_take_our_tokenizers(cls, collator, folder):
    def collated(library):
        tokenizer = getattr(library, cls).from_pretrained(folder)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        rows = [dict(tokenizer(text)) for text in TEXTS[:3]]
        if collator in ("ForTokenClassification", "ForSeq2Seq"):
            rows = [{**row, "labels": list(row["input_ids"])} for row in rows]
        torch.manual_seed(0)
        batch = getattr(transformers, f"DataCollator{collator}")(tokenizer)(rows)
        return {name: value.tolist() for name, value in batch.items()}

    assert collated(gptrio) == collated(transformers)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.tokenize(None),
        lambda t: t.encode_plus(None),
        lambda t: t.batch_encode_plus(None),
        lambda t: t.add_tokens([1]),
        lambda t: t.add_special_tokens({"additional_special_tokens": [1]}),
    ],
    ids=["tokenize", "encode_plus", "batch_encode_plus", "add_tokens", "add_special_tokens"],
)
def test_what_is_no_text_has_an_error_of_the_references_type(call, folder):
    ours, theirs = (library.GPT2TokenizerFast.from_pretrained(folder) for library in PAIRED.values())
    with pytest.raises(Exception) as expected:
        call(theirs)
    with pytest.raises(gptrio.TextTypeError) as found:
        call(ours)
    assert isinstance(expected.value, (TypeError, AssertionError, AttributeError))
    assert isinstance(found.value, (TypeError, ValueError))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_setting_named_like_a_method_has_an_error_of_the_references_type(cls, folder):
    for library in PAIRED.values():
        with pytest.raises(AttributeError, match="add_special_tokens"):
            getattr(library, cls).from_pretrained(folder, add_special_tokens=True)


def test_names_of_special_tokens_are_a_list_as_in_the_reference(both):
    ours, theirs = both
    assert ours.SPECIAL_TOKENS_ATTRIBUTES == theirs.SPECIAL_TOKENS_ATTRIBUTES
    assert gptrio.SpecialTokensMixin.SPECIAL_TOKENS_ATTRIBUTES.copy() == ours.SPECIAL_TOKENS_ATTRIBUTES


@pytest.mark.parametrize(
    "versions",
    [["4.0.0"], ["4.0.0", "4.9.1"], ["4.9.1", "4.0.0", "42.0.0"], ["42.0.0"], []],
    ids=lambda versions: "-".join(versions) or "none",
)
def test_the_tokenizer_json_for_this_version_is_the_references(versions, folder, tmp_path):
    plain = transformers.GPT2TokenizerFast.from_pretrained(folder)
    files = [f"tokenizer.{version}.json" for version in versions]
    plain.init_kwargs["fast_tokenizer_files"] = [*files, "tokenizer.json"]
    plain.save_pretrained(tmp_path)
    for file in files:
        plain.add_tokens(f"<{file}>")
        plain.backend_tokenizer.save(str(tmp_path / file))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = (library.AutoTokenizer.from_pretrained(tmp_path) for library in PAIRED.values())
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.init_kwargs["fast_tokenizer_files"] == theirs.init_kwargs["fast_tokenizer_files"]


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"add_bos_token": True}])
def test_a_tokenizer_in_python_becomes_a_backend(folder, settings):
    backends = []
    for library in PAIRED.values():
        convert = importlib.import_module(f"{library.__name__}.convert_slow_tokenizer")
        slow = library.GPT2Tokenizer.from_pretrained(folder, **settings)
        backends.append(convert.convert_slow_tokenizer(slow))
        assert list(convert.bytes_to_unicode().items())[:3] == [(33, "!"), (34, '"'), (35, "#")]
    assert json.loads(backends[0].to_str()) == json.loads(backends[1].to_str())
    with pytest.raises(TokenizationError, match="cannot be converted"):
        importlib.import_module("gptrio.convert_slow_tokenizer").convert_slow_tokenizer(object())


def test_the_bytes_and_pairs_of_gpt2_are_those_of_the_reference():
    ours, theirs = (
        importlib.import_module(f"{library.__name__}.models.gpt2.tokenization_gpt2") for library in PAIRED.values()
    )
    assert list(ours.bytes_to_unicode().items()) == list(theirs.bytes_to_unicode().items())
    assert ours.get_pairs(("a", "b", "a")) == theirs.get_pairs(("a", "b", "a"))


@pytest.mark.parametrize(("padding", "truncation"), [("max_length", "longest_first"), ("longest", "do_not_truncate")])
def test_the_backend_truncates_and_pads_as_it_is_told(folder, padding, truncation):
    found = []
    for library in PAIRED.values():
        tokenizer = library.GPT2TokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>", padding_side="left")
        module = importlib.import_module(f"{library.__name__}.tokenization_utils_base")
        ways = (module.PaddingStrategy(padding), module.TruncationStrategy(truncation))
        tokenizer.set_truncation_and_padding(*ways, 6, 1, 4, None)
        rows = tokenizer.backend_tokenizer.encode_batch(TEXTS[:3])
        found.append([(row.ids, row.attention_mask, [part.ids for part in row.overflowing]) for row in rows])
    assert found[0] == found[1]
