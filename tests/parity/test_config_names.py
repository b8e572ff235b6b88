"""Names of configurations that scripts use, by value beside the reference."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

import gptrio

UPDATE = "n_embd=24,resid_pdrop=0.2,scale_attn_weights=false,summary_type=mean,n_head=4"
FIELDS = ("n_embd", "resid_pdrop", "scale_attn_weights", "summary_type", "n_head")


def test_update_from_string_sets_what_the_reference_sets() -> None:
    ours, theirs = gptrio.GPT2Config(), transformers.GPT2Config()
    ours.update_from_string(UPDATE)
    theirs.update_from_string(UPDATE)
    values = [getattr(ours, name) for name in FIELDS]
    assert values == [getattr(theirs, name) for name in FIELDS] == [24, 0.2, False, "mean", 4]
    assert [type(value) for value in values] == [int, float, bool, str, int]


@pytest.mark.parametrize("text", ["nothing=1", "n_embd=many", "use_cache=perhaps", ""])
def test_update_from_string_refuses_what_the_reference_refuses(text: str) -> None:
    for config in (gptrio.GPT2Config(), transformers.GPT2Config()):
        with pytest.raises(ValueError):
            config.update_from_string(text)


@pytest.mark.parametrize("name", ["GPT2Config", "GPTNeoConfig", "GPTNeoXConfig"])
def test_sub_configs_and_commit_hash_are_the_references(name: str) -> None:
    ours: Any = getattr(gptrio, name)()
    theirs: Any = getattr(transformers, name)()
    assert (ours.sub_configs, ours._commit_hash) == (theirs.sub_configs, theirs._commit_hash) == ({}, None)


@pytest.mark.parametrize("name", ["GPT2Config", "GPTNeoConfig", "GPTNeoXConfig"])
def test_our_own_classes_are_known_to_their_auto_class_and_others_are_not_shipped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: Any = getattr(gptrio, name)
    theirs: Any = type(name, (getattr(transformers, name),), {})
    monkeypatch.setattr(ours, "_auto_class", None)
    for config_class in (ours, theirs):
        assert config_class._auto_class is None
        config_class.register_for_auto_class()
    assert ours._auto_class == theirs._auto_class == "AutoConfig"
    assert "_auto_class" not in ours().to_dict()
    mine: Any = type("Mine", (ours,), {"model_type": "mine"})
    with pytest.raises(ValueError, match=r"AutoConfig.register\('mine', Mine\)"):
        mine.register_for_auto_class()
