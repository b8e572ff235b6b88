"""Options of `generate` on the model's configuration: obeyed, warned of and moved exactly as by Transformers 4.56.2."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import gptrio
from tests.cases import first
from tests.parity.generation import FAMILIES, pair_of_models

LIBRARIES = ("gptrio", "transformers")
IDS = torch.tensor([[5, 6, 7]])
OLD_KEYS = {
    "max_length": 8,
    "no_repeat_ngram_size": 2,
    "task_specific_params": {"text-generation": {"max_length": 50, "do_sample": True}},
}
FROM_MODEL = {"_from_model_config": True, "eos_token_id": 3}
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {  # keys in config.json, generation_config.json
    "no file": ({}, None),
    "old keys": (OLD_KEYS, None),
    "file from the model's": ({}, FROM_MODEL),
    "file of its own": ({}, {"eos_token_id": 3, "max_length": 7}),
    "old keys beside a file": (OLD_KEYS, FROM_MODEL),
}


@pytest.fixture(autouse=True)
def quiet_reference() -> Any:
    """Its logger says what flags have no effect; ours warns, which other tests look at."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(level)


def folder_of(family: str, kind: str, where: Path) -> Path:
    """A checkpoint whose config.json and generation_config.json hold what `FOLDERS` says."""
    keys, options = FOLDERS[kind]
    pair_of_models(family)[0].save_pretrained(where)
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | keys))
    (where / "generation_config.json").unlink()
    if options is not None:
        (where / "generation_config.json").write_text(json.dumps(options))
    return where


def told(act: Any) -> tuple[Any, int]:
    """What a function returns, and how many warnings it gave (but those of default lengths, and of no effect)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = act()
    messages = [str(warning.message) for warning in caught]
    return result, sum("model-agnostic" not in text and "have no effect" not in text for text in messages)


def load(library: Any, folder: Path, auto: bool = True, **overrides: Any) -> Any:
    loader = library.AutoModelForCausalLM
    if not auto:
        loader = type(loader.from_pretrained(folder))
    return loader.from_pretrained(folder, **overrides)


def generated(model: Any, **options: Any) -> list[Any]:
    """Ids of two calls, the options that the model has then, and the number of warnings of each call."""
    first, second = (told(lambda: model.generate(IDS, **options).tolist()) for _ in range(2))
    return [first, second, model.generation_config.to_dict(), model.generation_config.to_json_string()]


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("family", first(FAMILIES))
def test_old_files_and_overrides(family: str, kind: str, tmp_path: Path) -> None:
    folder = folder_of(family, kind, tmp_path)
    for arguments in ({}, {"max_length": 9}, {"max_length": 9, "auto": False}, {"num_beams": 2, "pad_token_id": 1}):
        ours, theirs = (load(library, folder, **arguments) for library in (gptrio, transformers))
        assert generated(ours) == generated(theirs), arguments
        assert ours.config.max_length == theirs.config.max_length


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("family", first(FAMILIES))
@pytest.mark.parametrize(
    ("name", "value"), [("max_length", 9), ("no_repeat_ngram_size", 1), ("num_beams", 3), ("top_k", 3), ("top_k", 50)]
)
def test_options_set_after_loading(family: str, kind: str, name: str, value: int, tmp_path: Path) -> None:
    folder = folder_of(family, kind, tmp_path)
    pair = [load(library, folder) for library in (gptrio, transformers)]
    for model in pair:
        setattr(model.config, name, value)
    assert generated(pair[0]) == generated(pair[1])
    pair = [load(library, folder) for library in (gptrio, transformers)]
    for model in pair:
        setattr(model.config, name, value)
        model.generation_config.min_length = 3  # now it is the user's own
    assert generated(pair[0]) == generated(pair[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_in_the_call_wins_over_the_model_config(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, "no file", tmp_path)
    results = []
    for library in (gptrio, transformers):
        model = load(library, folder)
        model.config.max_length = 9
        results.append(generated(model, generation_config=library.GenerationConfig(max_new_tokens=3)))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saving_moves_options_to_the_generation_config(family: str, kind: str, tmp_path: Path) -> None:
    folder = folder_of(family, kind, tmp_path / "from")
    results = []
    for library in (gptrio, transformers):
        model = load(library, folder)
        model.config.max_length = 9
        into = tmp_path / library.__name__
        _, warned = told(lambda model=model, into=into: model.save_pretrained(into))
        files = [json.loads((into / name).read_text()) for name in ("config.json", "generation_config.json")]
        results.append([*files, warned, model.config.max_length, *generated(model), *generated(load(library, into))])
    for mine, expected in zip(*results, strict=True):
        assert mine == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_saved_with_options_warns(family: str, tmp_path: Path) -> None:
    for library in (gptrio, transformers):
        config = library.AutoConfig.for_model(family, max_length=9)
        assert told(lambda config=config: config.save_pretrained(tmp_path))[1] == 1
        assert config._get_non_default_generation_parameters() == {"max_length": 9}
        assert library.AutoConfig.for_model(family)._get_non_default_generation_parameters() == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_cannot_be_saved_leave_no_weights(family: str, tmp_path: Path) -> None:
    for library in (gptrio, transformers):
        model = load(library, folder_of(family, "no file", tmp_path / f"{library.__name__} from"))
        model.config.top_k = 3  # without do_sample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="top_k"):
                model.save_pretrained(tmp_path / library.__name__)
        assert not list((tmp_path / library.__name__).glob("*.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_of_saving_by_place(family: str, tmp_path: Path) -> None:
    for model in pair_of_models(family):
        where = tmp_path / type(model).__module__.partition(".")[0]
        model.save_pretrained(where / "not", False)
        assert not (where / "not" / "config.json").exists()
        state = {name: tensor * 2 for name, tensor in model.state_dict().items()}
        model.save_pretrained(where / "yes", True, state, torch.save, False, "1GB", True, "x")
    names = [sorted(path.name for path in (tmp_path / library / "yes").iterdir()) for library in LIBRARIES]
    assert names[0] == names[1]
