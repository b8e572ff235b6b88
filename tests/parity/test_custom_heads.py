"""Heads of a user's own, with parts named like the backbone's: the same class on both libraries loads the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import gptrio
from gptrio.testing import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore::gptrio.errors.GptrioWarning")
PARTS = {
    "gpt2": ("wte", "h", "ln_f"),
    "gpt_neo": ("wpe", "h", "ln_f"),
    "gpt_neox": ("embed_in", "layers", "final_layer_norm"),
}
PREFIX = {"gpt2": "GPT2", "gpt_neo": "GPTNeo", "gpt_neox": "GPTNeoX"}
WIDTH = 32


def build_head(library: Any, family: str) -> Any:
    """A model class with a table, a list and a norm of its own, each named like one of the backbone's."""
    base: Any = getattr(library, f"{PREFIX[family]}PreTrainedModel")
    backbone = getattr(library, f"{PREFIX[family]}Model")
    table, layers, norm = PARTS[family]

    class Head(base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, self.base_model_prefix, backbone(config))
            setattr(self, table, nn.Embedding(3, WIDTH))
            setattr(self, layers, nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(WIDTH, WIDTH)}) for _ in range(4)))
            setattr(self, norm, nn.LayerNorm(WIDTH))
            self.score = nn.Linear(WIDTH, 2)
            self.post_init()

    return Head


def drawn(model: nn.Module) -> Any:
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def config_of(library: Any, family: str) -> Any:
    made = tiny_config(family).to_dict()
    return getattr(library, f"{PREFIX[family]}Config").from_dict(made)


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("source", ["backbone", "language model", "the head itself"])
def test_a_head_takes_what_it_takes_in_transformers(family: str, source: str, tmp_path: Path) -> None:
    prefix = "gpt_neox" if family == "gpt_neox" else "transformer"
    saved = {
        "backbone": lambda: getattr(transformers, f"{PREFIX[family]}Model"),
        "language model": lambda: transformers.AutoModelForCausalLM,
        "the head itself": lambda: build_head(transformers, family),
    }[source]()
    config = config_of(transformers, family)
    model = drawn(saved.from_config(config) if source == "language model" else saved(config))
    model.save_pretrained(tmp_path)
    theirs, their_report = build_head(transformers, family).from_pretrained(tmp_path, output_loading_info=True)
    ours, report = build_head(gptrio, family).from_pretrained(tmp_path, output_loading_info=True)
    expected, found = theirs.state_dict(), ours.state_dict()
    missing = set(report["missing_keys"])
    assert missing == set(their_report["missing_keys"])
    assert missing == (
        set() if source == "the head itself" else {name for name in found if not name.startswith(prefix)}
    )
    for name in found.keys() - missing:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("family", PARTS)
def test_a_backbone_takes_its_own_of_a_heads_file(family: str, tmp_path: Path) -> None:
    model = drawn(build_head(transformers, family)(config_of(transformers, family)))
    model.save_pretrained(tmp_path)
    name = f"{PREFIX[family]}Model"
    expected = getattr(transformers, name).from_pretrained(tmp_path).state_dict()
    found = getattr(gptrio, name).from_pretrained(tmp_path).state_dict()
    for key in found:
        assert torch.equal(found[key], expected[key]), key
        assert torch.equal(found[key], model.base_model.state_dict()[key]), key


def test_layers_that_a_smaller_backbone_leaves_do_not_become_the_heads(tmp_path: Path) -> None:
    config = config_of(transformers, "gpt2")
    config.n_layer = 4
    drawn(transformers.GPT2Model(config)).save_pretrained(tmp_path)

    class Head(gptrio.GPT2PreTrainedModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.transformer = gptrio.GPT2Model(config)
            self.h = nn.ModuleList(nn.ModuleDict({"ln_1": nn.LayerNorm(WIDTH)}) for _ in range(4))
            self.post_init()

    ours, report = Head.from_pretrained(tmp_path, n_layer=2, output_loading_info=True)  # 4.56.2 refuses the file
    assert set(report["missing_keys"]) == {name for name in ours.state_dict() if name.startswith("h.")}
    assert any(name.endswith("h.2.ln_1.weight") for name in report["unexpected_keys"])
    assert torch.equal(ours.h[2]["ln_1"].weight, torch.ones(WIDTH))
