"""What users and other libraries ask of every model object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gptrio
from gptrio.errors import ConfigError, InputError, UnsupportedError
from gptrio.testing import assert_close, tiny_config
from tests.contract.families import FAMILIES, Family, tokens
from tests.reference import randomise

AUTO_CLASSES = {
    "base": gptrio.AutoModel,
    "lm": gptrio.AutoModelForCausalLM,
    "ForSequenceClassification": gptrio.AutoModelForSequenceClassification,
    "ForTokenClassification": gptrio.AutoModelForTokenClassification,
    "ForQuestionAnswering": gptrio.AutoModelForQuestionAnswering,
}


def test_class_attributes_that_others_read(family: Family) -> None:
    for name in family.class_names:
        cls = getattr(gptrio, name)
        assert cls.config_class.model_type == family.model_type
        assert cls.main_input_name == "input_ids"
        assert cls.supports_gradient_checkpointing
        assert cls.base_model_prefix in {"transformer", "gpt_neox"}
        assert cls.can_generate() == (name == family.causal_lm)
        assert "past_key_values" in cls._skip_keys_device_placement
    assert family.class_of("lm")._tied_weights_keys == [f"{family.head}.weight"]


def test_object_attributes_that_others_read(family: Family) -> None:
    model = family.build()
    assert model.base_model is getattr(model, model.base_model_prefix)
    assert model.base_model.base_model is model.base_model
    assert (model.device, model.dtype, model.framework) == (torch.device("cpu"), torch.float32, "pt")
    assert model.config.model_type == family.model_type
    assert callable(model.prepare_inputs_for_generation)
    assert isinstance(model.generation_config, gptrio.GenerationConfig)
    assert family.build("base").generation_config is None
    block = model._no_split_modules[0]
    assert sum(type(module).__name__ == block for module in model.modules()) == 2
    out = model(**model.dummy_inputs)
    assert out.logits.shape == (3, 5, 257)
    assert model.double().dtype == torch.float64


def test_sizes(family: Family) -> None:
    model = family.build()
    parameters = {id(p): p for p in model.parameters()}.values()
    total = sum(p.numel() for p in parameters)
    assert model.num_parameters() == total
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    assert model.num_parameters(exclude_embeddings=True) == total - sum(table.numel() for table in tables)
    buffers = sum(b.nelement() * b.element_size() for b in model.buffers())
    assert model.get_memory_footprint() == 4 * total + buffers
    assert model.half().get_memory_footprint(return_buffers=False) == 2 * total
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    assert model.num_parameters(only_trainable=True) == 257 * 32


def test_embeddings_are_found_and_replaced(family: Family) -> None:
    for name in family.class_names:
        model = getattr(gptrio, name)(tiny_config(family.model_type))
        table = model.get_input_embeddings()
        assert table.weight.shape == (257, 32)
        replacement = nn.Embedding(257, 32)
        model.set_input_embeddings(replacement)
        assert model.base_model.get_input_embeddings() is replacement
        head = model.get_output_embeddings()
        assert (head is None) == (name != family.causal_lm)
    model = family.build(tie_word_embeddings=True)
    model.set_input_embeddings(nn.Embedding(257, 32))
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    replacement = nn.Linear(32, 257, bias=False)
    model.set_output_embeddings(replacement)
    assert model.get_output_embeddings() is replacement


@pytest.mark.parametrize("tied", [True, False])
def test_resizing(family: Family, tied: bool) -> None:
    model = family.build(tie_word_embeddings=tied)
    ids = tokens()
    before = model(input_ids=ids).logits
    parts = model.get_input_embeddings(), model.get_output_embeddings()
    old_table, old_head = (part.weight.detach().clone() for part in parts)  # the table's parameter stays the same
    table = model.resize_token_embeddings(261, pad_to_multiple_of=64)
    assert table is model.get_input_embeddings()
    assert table.weight.shape == model.get_output_embeddings().weight.shape == (320, 32)
    assert table.num_embeddings == model.get_output_embeddings().out_features == model.config.vocab_size == 320
    assert (table.weight is model.get_output_embeddings().weight) == tied
    for old, new in ((old_table, table.weight), (old_head, model.get_output_embeddings().weight)):
        assert torch.equal(new[:257], old)
        assert_close(new[257:], old.mean(0).expand(63, -1), 1e-2)  # covariance times 1e-9
        assert new.requires_grad
    assert_close(model(input_ids=ids).logits[..., :257], before)
    model.resize_token_embeddings(200)
    assert model(input_ids=ids % 200).logits.shape[-1] == 200
    assert torch.equal(model.get_input_embeddings().weight, old_table[:200])
    same = model.get_input_embeddings()
    assert model.resize_token_embeddings() is same
    drawn = model.resize_token_embeddings(1200, mean_resizing=False).weight[200:]
    assert drawn.std().item() == pytest.approx(model.config.initializer_range, rel=0.05)
    for wrong in (0, -3, 2.5):
        with pytest.raises(InputError, match=f"new_num_tokens={wrong}"):
            model.resize_token_embeddings(wrong)


def test_pruning_the_impossible(family: Family) -> None:
    model = family.build()
    for heads, message in (
        ({2: [0]}, "layer 2 to prune does not exist; the model has 2 layers"),
        ({0: [4]}, r"heads \[4\] of layer 0 do not exist"),
        ({0: [0, 1, 2, 3]}, "would leave layer 0 without heads"),
    ):
        with pytest.raises(InputError, match=message):
            model.prune_heads(heads)
    assert not model.config.pruned_heads
    assert model(input_ids=tokens()).logits.isfinite().all()


@pytest.mark.parametrize("change", ["int8", "parametrized"])
def test_heads_stay_whole_where_a_weight_is_not_a_projections_own(family: Family, change: str) -> None:
    model, ids = family.build(), tokens()
    output = model.base_model.blocks[1].spec().output
    if change == "int8":
        gptrio.quantize(model, change)
    else:
        nn.utils.parametrizations.weight_norm(output)
    before = model(input_ids=ids).logits
    with pytest.raises(UnsupportedError, match=r"heads of layer \d cannot be removed from a (Quantized|Parametrized)"):
        model.prune_heads({0: [1], 1: [0]})
    assert not model.config.pruned_heads
    assert torch.equal(model(input_ids=ids).logits, before)


def test_inputs_require_gradients_over_frozen_weights(family: Family) -> None:
    model = family.build().requires_grad_(False)
    ids = tokens()
    assert not model(input_ids=ids).logits.requires_grad
    model.enable_input_require_grads()
    model.enable_input_require_grads()  # twice is once
    assert model(input_ids=ids).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(input_ids=ids).logits.requires_grad


def test_reentrant_checkpointing_trains_an_adapter_over_frozen_weights(family: Family) -> None:
    """As PEFT does it: linear layers wrapped, everything else frozen."""
    model = family.build().requires_grad_(False)
    layers = [(m, n, c) for m in model.base_model.modules() for n, c in m.named_children() if hasattr(c, "init_gain")]
    adapters = [Adapter(layer) for _, _, layer in layers]
    for (parent, name, _), adapter in zip(layers, adapters, strict=True):
        setattr(parent, name, adapter)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    ids = tokens()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert len(adapters) >= 8
    assert all(adapter.down.grad is not None for adapter in adapters)
    assert sum(bool(adapter.up.grad.abs().sum() > 0) for adapter in adapters) == len(adapters)


class Adapter(nn.Module):
    """A low-rank addition to a layer, as others put it in the layer's place."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        width, out = (layer.nx, layer.nf) if hasattr(layer, "nx") else (layer.in_features, layer.out_features)
        self.base_layer = layer
        self.down = nn.Parameter(0.1 * torch.randn(width, 2))
        self.up = nn.Parameter(0.1 * torch.randn(2, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.base_layer(x) + x @ self.down @ self.up
        return added


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_auto_classes_choose_by_model_type(family: Family, name: str, tmp_path: Path) -> None:
    auto, cls = AUTO_CLASSES[name], family.class_of(name)
    built = auto.from_config(tiny_config(family.model_type), dtype="bfloat16", attn_implementation="eager")
    assert type(built) is cls
    assert (built.dtype, built.attn_implementation) == (torch.bfloat16, "eager")
    family.build(name).save_pretrained(tmp_path)
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is cls
    assert not any(info.values())
    given = auto.from_pretrained(tmp_path, config=loaded.config, trust_remote_code=False)
    assert type(given) is cls


def test_no_code_of_a_checkpoint_is_run(family: Family, tmp_path: Path) -> None:
    auto, config = gptrio.AutoModelForCausalLM, tiny_config(family.model_type)
    family.build().save_pretrained(tmp_path)
    for load in (auto.from_pretrained, family.class_of("lm").from_pretrained):
        assert type(load(tmp_path, trust_remote_code=True)) is family.class_of("lm")  # there is no code
    assert type(auto.from_config(config, trust_remote_code=True)) is family.class_of("lm")
    config.auto_map = {"AutoModelForCausalLM": "modeling.Own"}
    config.save_pretrained(tmp_path)
    for call in (
        lambda: auto.from_pretrained(tmp_path, trust_remote_code=True),
        lambda: auto.from_pretrained(tmp_path, config=config, trust_remote_code=True),
        lambda: auto.from_config(config, trust_remote_code=True),
        lambda: gptrio.AutoConfig.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        with pytest.raises(UnsupportedError, match="never runs code from a checkpoint"):
            call()
    assert type(auto.from_pretrained(tmp_path)) is family.class_of("lm")


def test_auto_classes_refuse_other_families_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedError, match="llama"):
        gptrio.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="not instantiated"):
        gptrio.AutoModel()


def test_wrong_family_is_refused(family: Family) -> None:
    other = next(row for row in FAMILIES if row is not family)
    with pytest.raises(ConfigError, match=f"{family.causal_lm} needs a {family.prefix}Config"):
        family.class_of("lm")(tiny_config(other.model_type))


def test_a_class_of_ones_own_is_registered(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = gptrio.AutoModelForCausalLM
    monkeypatch.setattr(auto, "_registered", {})
    their_class = family.class_of("lm")
    config_class = type("OwnConfig", (their_class.config_class,), {})
    own = type("OwnModel", (their_class,), {"config_class": config_class})
    config = config_class(**tiny_config(family.model_type).to_dict())
    with pytest.raises(ConfigError, match="exist_ok=True"):
        auto.register(their_class.config_class, their_class)
    with pytest.raises(ConfigError, match=r"config_class is"):
        auto.register(config_class, their_class)
    auto.register(config_class, own, exist_ok=True)
    model = auto.from_config(config)
    assert type(model) is own
    randomise(model)
    assert model(input_ids=tokens()).logits.isfinite().all()


def test_heads_without_a_language_model_do_not_generate(family: Family) -> None:
    with pytest.raises(UnsupportedError, match="AutoModelForCausalLM"):
        family.build("ForTokenClassification").generate(tokens())
