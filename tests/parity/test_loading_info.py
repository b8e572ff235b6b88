"""`output_loading_info=True` beside the reference, for each pair of classes that a checkpoint goes between."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import gptrio
from gptrio.errors import GptrioWarning, SizeMismatchError
from tests.parity.test_model_surface import CAUSAL
from tests.sizes import SIZES

KINDS = ["base", "lm", "ForSequenceClassification"]
LAST = {"GPT2": ("h", "attn"), "GPTNeo": ("h", "attn.attention"), "GPTNeoX": ("layers", "attention")}
pytestmark = pytest.mark.filterwarnings("ignore::gptrio.errors.GptrioWarning")


def class_of(library: Any, family: str, kind: str) -> Any:
    return getattr(library, {"base": f"{family}Model", "lm": CAUSAL[family]}.get(kind, family + kind))


def checkpoint(folder: Path, family: str, kind: str, **config: Any) -> Path:
    """A folder of the reference's, with strange tensors and without some that belong there."""
    cls = class_of(transformers, family, kind)
    model = cls(cls.config_class(**SIZES[family], **config))
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    prefix = "" if kind == "base" else f"{model.base_model_prefix}."
    blocks, attention = LAST[family]
    for key in ("junk.weight", "score.extra", f"{prefix}junk"):
        tensors[key] = torch.ones(2)
    for name in ("bias", "masked_bias"):  # causal masks in old files
        tensors[f"{prefix}{blocks}.0.{attention}.{name}"] = torch.ones(1)
    gone = [key for key in tensors if key.startswith(f"{prefix}{blocks}.1.mlp") or "ln_f" in key or "final" in key]
    for key in gone:
        del tensors[key]
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_report_is_the_references(family: str, source: str, target: str, tied: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family, source, tie_word_embeddings=tied)
    reports = [
        class_of(library, family, target).from_pretrained(folder, output_loading_info=True)[1]
        for library in (transformers, gptrio)
    ]
    assert reports[1] == reports[0]
    assert {key: type(value) for key, value in reports[1].items()} == dict.fromkeys(reports[0], list)
    assert len(reports[1]["missing_keys"]) > 2 and len(reports[1]["unexpected_keys"]) >= 3


@pytest.mark.parametrize("family", SIZES)
def test_shapes_that_differ(family: str, tmp_path: Path) -> None:
    name = f"{family}ForSequenceClassification"
    cls = getattr(transformers, name)
    cls(cls.config_class(**SIZES[family])).save_pretrained(tmp_path)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True, "output_loading_info": True}
    reports = [getattr(library, name).from_pretrained(tmp_path, **options)[1] for library in (transformers, gptrio)]
    assert reports[1] == reports[0] != {}
    assert reports[1]["mismatched_keys"] == ["score.weight"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        cls.from_pretrained(tmp_path, num_labels=5)
    with pytest.raises(SizeMismatchError, match=r"score.weight: \(2, 32\)"):
        getattr(gptrio, name).from_pretrained(tmp_path, num_labels=5)


@pytest.mark.parametrize("family", SIZES)
def test_patterns_of_a_subclass_keep_keys_out_of_the_report_and_the_file(family: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, family, "base")
    reports, files = [], []
    for library in (transformers, gptrio):
        base: Any = class_of(library, family, "ForSequenceClassification")

        class Quiet(base):
            _keys_to_ignore_on_load_missing = [r"^score", r"mlp"]  # noqa: RUF012 - as users write it
            _keys_to_ignore_on_load_unexpected = [r"junk$", r"score\.extra", r"masked_bias", r"bias$"]  # noqa: RUF012
            _keys_to_ignore_on_save = ["score.weight"]  # noqa: RUF012

        loaded, report = Quiet.from_pretrained(folder, output_loading_info=True)
        reports.append(report)
        assert library is transformers or not any(p.is_meta for p in loaded.parameters())  # as there
        Quiet(loaded.config).save_pretrained(tmp_path / library.__name__)
        files.append(sorted(load_file(tmp_path / library.__name__ / "model.safetensors")))
    assert reports[1] == reports[0]
    assert len(reports[1]["unexpected_keys"]) < 3 and "score.weight" not in reports[1]["missing_keys"]
    assert files[1] == files[0] and "score.weight" not in files[1]


@pytest.mark.parametrize("family", SIZES)
def test_a_tensor_that_parts_share_is_enough_once(family: str, tmp_path: Path) -> None:
    reports, loaded = [], []
    for library in (transformers, gptrio):
        base: Any = class_of(library, family, "lm")

        class Twins(base):
            _tied_weights_keys = ["two.weight", *base._tied_weights_keys]  # noqa: RUF012 - as users write it

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
                self.post_init()

            def _tie_weights(self) -> None:
                if hasattr(self, "two"):  # the base class ties before these are built
                    self.two.weight = self.one.weight

        folder = tmp_path / library.__name__
        model = Twins(base.config_class(**SIZES[family]))
        model.save_pretrained(folder)
        assert "two.weight" not in load_file(folder / "model.safetensors")
        again, report = Twins.from_pretrained(folder, output_loading_info=True)
        assert again.two.weight is again.one.weight and torch.equal(again.one.weight, model.one.weight)
        reports.append(report)
        loaded.append(again)
    assert reports[1] == reports[0]
    assert reports[1]["missing_keys"] == []


def test_a_checkpoint_that_fits_is_loaded_without_a_word(tmp_path: Path) -> None:
    for family in SIZES:
        cls = class_of(gptrio, family, "lm")
        cls(cls.config_class(**SIZES[family])).save_pretrained(tmp_path / family)
        with warnings.catch_warnings():
            warnings.simplefilter("error", GptrioWarning)
            _, report = cls.from_pretrained(tmp_path / family, output_loading_info=True)
        assert set(map(tuple, report.values())) == {()}


@pytest.mark.parametrize("family", SIZES)
def test_a_weight_that_a_models_own_method_ties_is_not_missing(family: str, tmp_path: Path) -> None:
    reports, models = [], []
    for library in (transformers, gptrio):
        base: Any = getattr(library, f"{family}PreTrainedModel")
        backbone = class_of(library, family, "base")

        class Scored(base):
            def __init__(self, config: Any, body: Any = backbone) -> None:
                super().__init__(config)
                setattr(self, self.base_model_prefix, body(config))
                self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
                self.post_init()

            def tie_weights(self) -> None:
                self.decoder.weight = self.base_model.get_input_embeddings().weight

        torch.manual_seed(0)
        backbone(backbone.config_class(**SIZES[family])).save_pretrained(tmp_path / library.__name__)
        model, report = Scored.from_pretrained(tmp_path / library.__name__, output_loading_info=True)
        assert model.decoder.weight is model.base_model.get_input_embeddings().weight
        reports.append(report)
        models.append(model)
    assert reports[1]["missing_keys"] == reports[0]["missing_keys"] == ["decoder.bias"]
    assert torch.equal(models[1].decoder.weight, models[0].decoder.weight)
