"""Classes of one's own in the auto classes, and the tables of the auto classes, beside the reference's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import transformers
from transformers.models.auto import modeling_auto, modeling_flax_auto

import gptrio
from gptrio.config.auto import CONFIG_MAPPING
from gptrio.tokenization import auto as tokenizers

LIBRARIES = (transformers, gptrio)
CONFIGS = ("GPT2Config", "GPTNeoConfig", "GPTNeoXConfig")
TABLES = [
    name
    for name in gptrio.__all__
    if name.endswith("_MAPPING") and name.startswith(("MODEL", "FLAX")) and not name.startswith("FLAX_MODEL_FOR_TOKEN")
]


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    """Take back what a test registers, in both libraries."""
    ours = (CONFIG_MAPPING, gptrio.AutoModelForCausalLM._registered, tokenizers._CLASSES, tokenizers._CONFIGS)
    theirs = [
        getattr(transformers, name)._extra_content
        for name in ("CONFIG_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "TOKENIZER_MAPPING")
    ]
    tables: tuple[dict[Any, Any], ...] = (*ours, *theirs)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def definitions(library: Any) -> tuple[Any, Any, Any, Any]:
    """Classes of one's own as a cell of a notebook defines them: new ones each time."""

    class NoteConfig(library.GPT2Config):  # type: ignore[name-defined, misc]
        model_type = "note"

    class NoteModel(library.GPT2LMHeadModel):  # type: ignore[name-defined, misc]
        config_class = NoteConfig

    class NoteTokenizer(library.GPT2Tokenizer):  # type: ignore[name-defined, misc]
        pass

    class NoteTokenizerFast(library.GPT2TokenizerFast):  # type: ignore[name-defined, misc]
        slow_tokenizer_class = NoteTokenizer

    return NoteConfig, NoteModel, NoteTokenizer, NoteTokenizerFast


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_a_cell_that_registers_classes_may_run_again(library: Any) -> None:
    for _ in range(2):
        config_class, model_class, slow, fast = definitions(library)
        library.AutoConfig.register("note", config_class)
        library.AutoModelForCausalLM.register(config_class, model_class)
        library.AutoModelForCausalLM.register(config_class, model_class)
        library.AutoTokenizer.register(config_class, slow_tokenizer_class=slow)
        assert library.TOKENIZER_MAPPING[config_class][0] is slow
        library.AutoTokenizer.register(config_class, fast_tokenizer_class=fast)
        assert library.TOKENIZER_MAPPING[config_class] == (slow, fast)
    assert type(library.AutoConfig.for_model("note")) is config_class
    assert library.CONFIG_MAPPING["note"] is config_class
    assert library.MODEL_FOR_CAUSAL_LM_MAPPING[config_class] is model_class
    small = config_class(vocab_size=9, n_embd=4, n_head=1, n_layer=1, n_positions=4)
    assert type(library.AutoModelForCausalLM.from_config(small)) is model_class


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_tables_register_classes(library: Any) -> None:
    config_class, model_class, slow, fast = definitions(library)
    library.CONFIG_MAPPING.register("note", config_class)
    library.MODEL_FOR_CAUSAL_LM_MAPPING.register(config_class, model_class)
    library.TOKENIZER_MAPPING.register(config_class, (slow, fast))
    assert type(library.AutoConfig.for_model("note")) is config_class
    assert library.MODEL_FOR_CAUSAL_LM_MAPPING[config_class] is model_class
    assert library.TOKENIZER_MAPPING[config_class] == (slow, fast)
    with pytest.raises(ValueError, match=r"already|exist_ok"):
        library.CONFIG_MAPPING.register("gpt2", library.GPT2Config)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_classes_of_the_library_are_replaced_only_on_request(library: Any) -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        with pytest.raises(ValueError, match=r"already|exist_ok"):
            yield

    config_class, model_class = library.GPT2Config, library.GPT2LMHeadModel
    with refused():
        library.AutoConfig.register("gpt2", config_class)
    with refused():
        library.AutoModelForCausalLM.register(config_class, model_class)
    with refused():
        library.AutoTokenizer.register(config_class, slow_tokenizer_class=library.GPT2Tokenizer)
    library.AutoConfig.register("gpt2", config_class, exist_ok=True)
    library.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_the_references_classes(table: str) -> None:
    ours = getattr(gptrio, table)
    names = getattr(modeling_flax_auto if table.startswith("FLAX") else modeling_auto, f"{table}_NAMES")
    assert list(ours) == list(ours.keys()) and len(ours) == len(list(ours))
    own = {key: value for key, value in ours.items() if key.__module__.startswith("gptrio.")}  # others register theirs
    assert [key.__name__ for key in own] == list(CONFIGS if table != "MODEL_FOR_PRETRAINING_MAPPING" else CONFIGS[:1])
    assert {key.model_type for key in own} >= {"gpt2", "gpt_neo", "gpt_neox"} & set(names)
    for config_class, model_class in own.items():
        assert config_class in ours
        if config_class.model_type in names:  # the Flax classes here are more
            assert model_class.__name__ == names[config_class.model_type]
    assert ours.get(gptrio.PretrainedConfig) is None
    module = "modeling_flax_auto" if table.startswith("FLAX") else "modeling_auto"
    by_type = getattr(importlib.import_module(f"gptrio.models.auto.{module}"), f"{table}_NAMES")
    assert by_type == {key.model_type: model_class.__name__ for key, model_class in own.items()}


def test_tables_of_configurations_and_tokenizers_have_the_references_classes() -> None:
    for name in CONFIGS:
        ours, theirs = getattr(gptrio, name), getattr(transformers, name)
        assert gptrio.CONFIG_MAPPING[ours.model_type] is ours
        assert transformers.CONFIG_MAPPING[ours.model_type] is theirs
        found, expected = gptrio.TOKENIZER_MAPPING[ours], transformers.TOKENIZER_MAPPING[theirs]
        assert [cls and cls.__name__ for cls in found] == [cls and cls.__name__ for cls in expected]
    assert gptrio.PretrainedConfig not in gptrio.TOKENIZER_MAPPING


def test_every_auto_class_with_one_of_the_families_is_here() -> None:
    families = {"gpt2", "gpt_neo", "gpt_neox"}
    tables = [name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES")]
    own = importlib.import_module("gptrio.models.auto.modeling_auto")
    for name in tables:
        expected = {key: value for key, value in getattr(modeling_auto, name).items() if key in families}
        assert getattr(own, name, {}) == expected, name
    assert len([name for name in tables if hasattr(own, name)]) == 8  # that of the configurations included
    made = {name: auto._model_mapping._model_mapping for name, auto in vars(modeling_auto).items() if is_auto(auto)}
    missing = [name for name, names in made.items() if families & set(names) and not hasattr(gptrio, name.strip("_"))]
    assert missing == []


def is_auto(value: Any) -> bool:
    return isinstance(value, type) and getattr(value, "_model_mapping", None) is not None


@pytest.mark.parametrize("name", CONFIGS)
def test_pretraining_is_of_the_same_families(name: str) -> None:
    made = []
    for library in LIBRARIES:
        config = getattr(library, name)(num_layers=1, attention_types=[[["global"], 1]], vocab_size=9)
        try:
            made.append(type(library.AutoModelForPreTraining.from_config(config)).__name__)
        except ValueError as error:
            made.append("gpt2" in str(error).lower())  # the error lists what there is
    assert made[1] == made[0]


def test_values_of_a_table_are_the_references() -> None:
    expected = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING[getattr(transformers, name)].__name__ for name in CONFIGS]
    assert [kind.__name__ for kind in gptrio.get_values(gptrio.MODEL_FOR_CAUSAL_LM_MAPPING)] == expected
    assert gptrio.get_values({gptrio.GPT2Config: (gptrio.GPT2Model, gptrio.GPT2LMHeadModel)}) == (
        transformers.models.auto.get_values({1: (gptrio.GPT2Model, gptrio.GPT2LMHeadModel)})
    )
