"""Folders of tokenizer files: what is written, what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gptrio import (
    AddedToken,
    AutoTokenizer,
    CheckpointNotFoundError,
    GPT2Config,
    GPT2Tokenizer,
    GPT2TokenizerFast,
    GPTNeoXTokenizerFast,
    GptrioWarning,
    OptionError,
    PreTrainedTokenizerFast,
    TokenizationError,
    UnsupportedError,
)
from gptrio.hub import read_json
from gptrio.tokenization import auto

TEXT = "Hello <new>  world <|endoftext|> don't"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def changed(tokenizer):
    tokenizer.add_tokens([AddedToken("<new>", rstrip=True)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<x>"]})
    tokenizer.padding_side, tokenizer.model_max_length = "left", 77
    return tokenizer


def test_round_trip(changed, tmp_path):
    paths = changed.save_pretrained(tmp_path)
    assert {Path(path).name for path in paths} == names(tmp_path)
    again = type(changed).from_pretrained(tmp_path)
    assert again(TEXT, return_special_tokens_mask=True).data == changed(TEXT, return_special_tokens_mask=True).data
    assert again.get_vocab() == changed.get_vocab() and again.special_tokens_map == changed.special_tokens_map
    assert (again.padding_side, again.model_max_length, len(again)) == ("left", 77, len(changed))
    assert again.name_or_path == str(tmp_path)


def test_slow_and_fast_read_each_others_folders(slow, fast, tmp_path):
    for maker in (slow, fast):
        maker.add_tokens([AddedToken("<new>", rstrip=True)])
        maker.save_pretrained(tmp_path / type(maker).__name__)
        for reader in (GPT2Tokenizer, GPT2TokenizerFast):
            assert reader.from_pretrained(tmp_path / type(maker).__name__).encode(TEXT) == slow.encode(TEXT)


def test_files_of_each_format(slow, fast, neox, tmp_path):
    common = {"tokenizer_config.json", "special_tokens_map.json"}
    vocabulary = {"vocab.json", "merges.txt"}
    slow.save_pretrained(tmp_path / "slow")
    fast.save_pretrained(tmp_path / "both")
    fast.save_pretrained(tmp_path / "legacy", legacy_format=True)
    neox.save_pretrained(tmp_path / "neox")
    assert names(tmp_path / "slow") == names(tmp_path / "legacy") == common | vocabulary
    assert names(tmp_path / "both") == common | vocabulary | {"tokenizer.json"}
    assert names(tmp_path / "neox") == common | {"tokenizer.json"}
    with pytest.raises(TokenizationError, match="needs a fast tokenizer"):
        slow.save_pretrained(tmp_path / "slow", legacy_format=False)
    with pytest.raises(TokenizationError, match="has no legacy format"):
        neox.save_pretrained(tmp_path / "neox", legacy_format=True)
    fast.save_pretrained(tmp_path / "prefix", filename_prefix="my")
    assert names(tmp_path / "prefix") == {f"my-{name}" for name in names(tmp_path / "both")}


def test_a_call_leaves_no_trace_in_the_files(fast, tmp_path):
    fast.pad_token = fast.eos_token
    fast(["a", "b c d"], padding=True, truncation=True, max_length=2)
    fast.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None


@pytest.mark.parametrize("template", ["{{ messages }}", {"default": "{{ a }}", "tool_use": "{{ b }}"}])
@pytest.mark.parametrize("as_files", [True, False])
def test_chat_templates_survive(tokenizer, tmp_path, template, as_files):
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path, save_jinja_files=as_files)
    assert (tmp_path / "chat_template.jinja").exists() == as_files
    assert type(tokenizer).from_pretrained(tmp_path).chat_template == template


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", "/tmp/x"])
def test_a_chat_template_is_not_written_outside_its_folder(gpt2, tmp_path, name):
    gpt2.chat_template = {"default": "{{ a }}", name: "{{ b }}"}
    with pytest.raises(TokenizationError, match="cannot be a file of that name"):
        gpt2.save_pretrained(tmp_path / "folder")
    assert names(tmp_path) == {"folder"} and names(tmp_path / "folder") == set()


def test_unknown_settings_survive(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"of_another_era": {"x": [1]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    type(gpt2).from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == config


def test_older_files(slow, gpt2_folder, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((gpt2_folder / name).read_text())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": len(slow), "[PAD]": len(slow) + 1}))
    pad = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {"pad_token": pad, "bos_token": "<|endoftext|>", "additional_special_tokens": ["<x>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    for cls in (GPT2Tokenizer, GPT2TokenizerFast):
        old = cls.from_pretrained(tmp_path)
        assert (old.pad_token_id, old.convert_tokens_to_ids("<new>")) == (len(slow) + 1, len(slow))
        assert old.additional_special_tokens_ids == [len(slow) + 2]
        assert cls.from_pretrained(tmp_path, pad_token="<new>").pad_token_id == len(slow)


def test_arguments_go_before_the_files(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    again = type(gpt2).from_pretrained(tmp_path, add_prefix_space=True, model_max_length=9, pad_token="<|endoftext|>")
    assert again.encode("a") == gpt2.encode(" a") and (again.model_max_length, again.pad_token) == (9, "<|endoftext|>")


@pytest.mark.parametrize("name", ["token", "use_auth_token"])
def test_a_token_for_the_hub_is_never_written(gpt2_folder, tmp_path, name):
    made = GPT2Tokenizer.from_pretrained(gpt2_folder, revision="main", **{name: "secret"})
    made.save_pretrained(tmp_path)
    assert all("secret" not in path.read_text() for path in tmp_path.iterdir())


def test_two_names_of_the_token_for_the_hub_are_refused(gpt2_folder):
    with pytest.raises(OptionError, match="token and use_auth_token are both given"):
        GPT2Tokenizer.from_pretrained(gpt2_folder, token="secret", use_auth_token="secret")


def test_another_class_warns(fast, tmp_path):
    fast.save_pretrained(tmp_path)
    with pytest.warns(GptrioWarning, match="to a GPT2Tokenizer, but GPTNeoXTokenizerFast reads them"):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path)


def test_any_backend(neox_folder, tmp_path):
    backend = Tokenizer.from_file(str(neox_folder / "tokenizer.json"))
    backend.enable_padding(direction="left", pad_token="<|padding|>", pad_id=1)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    assert (made.pad_token_id, made.padding_side) == (1, "left")
    assert made("a b")["token_type_ids"] == [0, 0]
    made.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is PreTrainedTokenizerFast
    assert made.backend_tokenizer is not backend and made.vocab == made.get_vocab()


def test_failed_saves_leave_nothing_half_written(gpt2, tmp_path, monkeypatch):
    gpt2.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    gpt2.add_tokens("<new>")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        gpt2.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(TokenizationError, match="is a file; expected a folder"):
        gpt2.save_pretrained(tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": "x"}}', "added token 'x': expected an object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "expected added tokens by id"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}', "expected added tokens by id"),
        ("tokenizer_config.json", '{"model_max_length": "many"}', "model_max_length is 'many'"),
        ("special_tokens_map.json", "[]", "holds a list; expected a JSON object"),
        ("tokenizer.json", '{"version": "1.0"}', "cannot build a tokenizer"),
        ("special_tokens_map.json", "nonsense", "not valid JSON"),
    ],
)
def test_malformed_files_are_named(gpt2_folder, tmp_path, name, content, message):
    for vocabulary in ("vocab.json", "merges.txt"):
        (tmp_path / vocabulary).write_text((gpt2_folder / vocabulary).read_text())
    (tmp_path / name).write_text(content)
    with pytest.raises(TokenizationError, match=message):
        GPT2TokenizerFast.from_pretrained(tmp_path)


def test_a_configuration_cannot_name_files_elsewhere(slow, gpt2_folder, tmp_path):
    for vocabulary in ("vocab.json", "merges.txt"):
        (tmp_path / vocabulary).write_text((gpt2_folder / vocabulary).read_text())
    elsewhere = {"vocab_file": "/etc/passwd", "merges_file": "/etc/passwd", "tokenizer_file": "/etc/passwd"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(elsewhere | {"tokenizer_object": "x"}))
    for cls in (GPT2Tokenizer, GPT2TokenizerFast):
        assert cls.from_pretrained(tmp_path).encode(TEXT) == slow.encode(TEXT)


@pytest.mark.parametrize(
    ("files", "slow_class", "fast_class"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}}, GPT2Tokenizer, GPT2TokenizerFast),
        ({"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast"}}, GPT2Tokenizer, GPT2TokenizerFast),
        ({"config.json": {"model_type": "gpt_neo"}}, GPT2Tokenizer, GPT2TokenizerFast),
        ({"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {}}, GPT2Tokenizer, GPT2TokenizerFast),
        ({"config.json": {"model_type": "gpt_neox"}}, GPTNeoXTokenizerFast, GPTNeoXTokenizerFast),
        ({"config.json": {"model_type": "x", "tokenizer_class": "GPT2Tokenizer"}}, GPT2Tokenizer, GPT2TokenizerFast),
    ],
)
def test_auto_takes_the_named_class(fast, tmp_path, files, slow_class, fast_class):
    fast.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is fast_class
    assert type(AutoTokenizer.from_pretrained(tmp_path, use_fast=False)) is slow_class


def test_auto_takes_arguments(gpt2_folder):
    assert type(AutoTokenizer.from_pretrained(gpt2_folder, tokenizer_type="gpt_neo")) is GPT2TokenizerFast
    made = AutoTokenizer.from_pretrained(gpt2_folder, config=GPT2Config(), use_fast=False, pad_token="<|endoftext|>")
    assert type(made) is GPT2Tokenizer and made.pad_token_id == made.eos_token_id


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}, "class 'BertTokenizer'; gptrio has GPT2"),
        ({"config.json": {"model_type": "bert"}}, "'bert' is not one of gptrio's: gpt2, gpt_neo, gpt_neox"),
    ],
)
def test_auto_refuses_other_families_by_name(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match=message):
        AutoTokenizer.from_pretrained(tmp_path)


def test_auto_says_that_the_cache_lacks_a_model_where_no_hub_may_be_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFoundError, match=r"config.json of 'no/model' .* not in the hub cache and HF_HUB_"):
        AutoTokenizer.from_pretrained("no/model", cache_dir=tmp_path)


def test_auto_needs_something_that_names_the_class(gpt2_folder):
    with pytest.raises(CheckpointNotFoundError, match="no tokenizer found for"):
        AutoTokenizer.from_pretrained(gpt2_folder)
    with pytest.raises(UnsupportedError, match="from_pretrained"):
        AutoTokenizer()


def test_code_from_a_checkpoint_is_refused(gpt2_folder, tmp_path):
    tokenizer = GPT2TokenizerFast.from_pretrained(gpt2_folder, trust_remote_code=True)  # there is no code
    tokenizer.save_pretrained(tmp_path)
    assert type(AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)) is GPT2TokenizerFast
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is GPT2TokenizerFast
    with pytest.raises(UnsupportedError, match="never runs code"):
        AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)


def test_register(fast, tmp_path, monkeypatch):
    class OwnConfig:
        model_type = "own"

    class OwnTokenizer(GPT2Tokenizer):
        pass

    for table in ("_CLASSES", "_CONFIGS"):
        monkeypatch.setattr(auto, table, dict(getattr(auto, table)))
    AutoTokenizer.register(OwnConfig, slow_tokenizer_class=OwnTokenizer)
    fast.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "own"}')
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is OwnTokenizer
    for config_class, classes, message in (
        (OwnConfig, {}, "nothing to register"),
        (OwnConfig, {"fast_tokenizer_class": OwnTokenizer}, "OwnTokenizer is not a fast tokenizer"),
        (OwnConfig, {"slow_tokenizer_class": GPT2TokenizerFast}, "GPT2TokenizerFast is a fast tokenizer"),
        (GPT2Config, {"slow_tokenizer_class": OwnTokenizer}, "exist_ok=True"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            AutoTokenizer.register(config_class, **classes)


def test_auto_tokenizer_reads_each_file_once(monkeypatch):
    read = []

    def reading(path, error_class):
        read.append(Path(path).name)
        return read_json(path, error_class)

    monkeypatch.setattr("gptrio.tokenization.vocabulary.read_json", reading)
    AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    assert "tokenizer_config.json" in read
    assert len(read) == len(set(read))
