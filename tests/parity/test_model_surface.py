"""What models can be asked and told beside their forward, with the reference's answers."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import gptrio
from gptrio.errors import GptrioWarning, InputError, OptionError, UnsupportedError
from gptrio.nn.linear import Conv1D
from tests.cases import where
from tests.reference import assert_same_output, model_pair, token_ids
from tests.sizes import SIZES

CAUSAL = {"GPT2": "GPT2LMHeadModel", "GPTNeo": "GPTNeoForCausalLM", "GPTNeoX": "GPTNeoXForCausalLM"}
HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
CLASSES = [*CAUSAL.values(), "GPT2DoubleHeadsModel", *(family + head for family in SIZES for head in HEADS)]


def seeded_pair(class_name: str, seed: int = 5, **config: Any) -> list[Any]:
    """Both libraries' new model of a class, each drawn from the same seed."""
    family = next(name for name in SIZES if class_name.startswith(name))
    models = []
    for library in (transformers, gptrio):
        cls = getattr(library, class_name)
        torch.manual_seed(seed)
        models.append(cls(cls.config_class(**SIZES[family], **config)))
    return models


def assert_same_weights(ours: nn.Module, oracle: nn.Module) -> None:
    expected, actual = oracle.state_dict(), ours.state_dict()
    assert list(actual) == list(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


# new weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_seed_gives_the_references_weights(class_name: str) -> None:
    oracle, ours = seeded_pair(class_name)
    assert_same_weights(ours, oracle)


def test_a_seed_gives_the_references_weights_for_cross_attention() -> None:
    oracle, ours = seeded_pair("GPT2LMHeadModel", add_cross_attention=True, initializer_range=0.3)
    assert_same_weights(ours, oracle)


@pytest.mark.parametrize("class_name", CLASSES)
def test_weights_are_drawn_once_and_anew_on_request(class_name: str) -> None:
    pair = seeded_pair(class_name)
    before = copy.deepcopy(pair[1].state_dict())
    for model in pair:
        model.init_weights()
        model.initialize_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair[1].state_dict().items())
    for model in pair:
        model.extra = nn.Linear(3, 2)  # the one part without weights of the model's kind
        torch.manual_seed(6)
        model.init_weights()
    assert_same_weights(pair[1], pair[0])
    for model in pair:
        torch.manual_seed(7)
        model.apply(model._init_weights)
    assert_same_weights(pair[1], pair[0])
    assert not torch.equal(pair[1].get_input_embeddings().weight, before[next(iter(before))])


@pytest.mark.parametrize("family", SIZES)
def test_a_seed_gives_a_loaded_models_new_head(family: str, tmp_path: Path) -> None:
    seeded_pair(f"{family}Model")[0].save_pretrained(tmp_path)
    loaded = []
    for library in (transformers, gptrio):
        torch.manual_seed(8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the head is new
            loaded.append(getattr(library, f"{family}ForSequenceClassification").from_pretrained(tmp_path))
    assert_same_weights(loaded[1], loaded[0])
    before = copy.deepcopy(loaded[1].state_dict())
    loaded[1].init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded[1].state_dict().items())


def test_parts_of_a_model_inside_are_drawn_by_that_model() -> None:
    weights = []
    for library in (transformers, gptrio):
        base: Any = library.GPT2LMHeadModel

        class Twice(base):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.scale = nn.Linear(4, 4)
                self.post_init()

            def _init_weights(self, module: nn.Module) -> None:
                for parameter in module.parameters(recurse=False):
                    parameter.data.fill_(2.0)

        torch.manual_seed(0)
        model = Twice(library.GPT2Config(**SIZES["GPT2"]))
        assert bool((model.scale.weight == 2).all())
        weights.append(model)
    assert_same_weights(weights[1], weights[0])
    assert not bool((weights[1].transformer.wpe.weight == 2).all())


# size and work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_tokens_and_operations_are_counted(class_name: str, tied: bool) -> None:
    pair = model_pair(class_name, tie_word_embeddings=tied)
    for model in pair:
        model.get_input_embeddings().weight.requires_grad_(False)
        next(iter(model.base_model.children())).weight.requires_grad_(False)
    oracle, ours = pair
    batch = {"input_ids": token_ids(3, 7), "labels": token_ids(3, 7)}
    for trainable in (False, True):
        for without in (False, True):
            assert ours.num_parameters(trainable, without) == oracle.num_parameters(trainable, without) > 0
    assert ours.estimate_tokens(batch) == oracle.estimate_tokens(batch) == 21
    assert ours.floating_point_ops(batch) == oracle.floating_point_ops(batch)
    assert ours.floating_point_ops(batch, False) == oracle.floating_point_ops(batch, exclude_embeddings=False)


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_batch_without_ids_has_no_tokens(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    batch = {"inputs_embeds": torch.zeros(1, 2, 32)}
    with pytest.warns(GptrioWarning, match="counted as 0"):
        assert ours.floating_point_ops(batch) == oracle.floating_point_ops(batch) == 0
    assert ours.estimate_tokens(batch) == 0  # says it once
    assert ours.warnings_issued == oracle.warnings_issued == {"estimate_tokens": True}


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_codes_count_as_the_weights_they_stand_for(family: str, method: str, tmp_path: Path) -> None:
    _, plain = model_pair(CAUSAL[family], **{"GPT2": {"n_embd": 64}}.get(family, {"hidden_size": 64}))
    plain.save_pretrained(tmp_path)
    quantized = type(plain).from_pretrained(tmp_path, load_in=method)
    assert quantized.num_parameters() == plain.num_parameters()
    assert quantized.num_parameters(exclude_embeddings=True) == plain.num_parameters(exclude_embeddings=True)


# full precision again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CAUSAL.values())
@pytest.mark.parametrize("method", ["int8", "int4", "nf4", "fp4", "llm_int8"])
def test_dequantized_models_are_plain(class_name: str, method: str, tmp_path: Path) -> None:
    if method not in ("int8", "int4"):
        pytest.importorskip("bitsandbytes")
    width = {"n_embd": 64} if class_name.startswith("GPT2") else {"hidden_size": 64}
    _, plain = model_pair(class_name, **width)
    plain.save_pretrained(tmp_path / "plain")
    model = type(plain).from_pretrained(tmp_path / "plain", load_in=method, dtype=torch.float32)
    ids = token_ids()
    with torch.no_grad():
        before = model(ids).logits
    count = model.num_parameters()
    meant = {path: m.dequantized() for path, m in model.named_modules() if hasattr(m, "dequantized")}
    assert model.dequantize() is model
    for path, weight in meant.items():
        held = model.get_submodule(path).weight
        assert torch.equal(held.t() if isinstance(model.get_submodule(path), Conv1D) else held, weight), path
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert {name: (p.shape, p.dtype) for name, p in model.named_parameters()} == {
        name: (p.shape, p.dtype) for name, p in plain.named_parameters()
    }
    assert model.num_parameters() == count == plain.num_parameters()
    assert not model.is_quantized and not hasattr(model.config, "quantization_config")
    with torch.no_grad():
        after = model(ids).logits
    difference = float((after - before).abs().max() / before.abs().max())
    assert difference < 0.06 and not torch.equal(after, plain(ids).logits)
    model.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(type(plain).from_pretrained(tmp_path / "again")(ids).logits, after)


@pytest.mark.parametrize("class_name", CAUSAL.values())
@pytest.mark.parametrize("method", ["nf4", "llm_int8"])
def test_dequantized_weights_are_the_references(class_name: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    width = {"n_embd": 64} if class_name.startswith("GPT2") else {"hidden_size": 64}
    oracle, ours = model_pair(class_name, **width)
    oracle.save_pretrained(tmp_path)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if method == "nf4" else {"load_in_8bit": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.BitsAndBytesConfig(**options)
        oracle = (
            type(oracle)
            .from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu")
            .dequantize()
        )
    ours = type(ours).from_pretrained(tmp_path, load_in=method, dtype=torch.float32).dequantize()
    expected = oracle.state_dict()
    for path, module in ours.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
            assert torch.equal(weight, expected[f"{path}.weight"]), path


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_plain_model_is_not_dequantized(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    with pytest.raises(ValueError, match="quantize"):
        oracle.dequantize()
    with pytest.raises(OptionError, match="no quantized weights"):
        ours.dequantize()


# parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_model_is_its_own_decoder(class_name: str) -> None:
    for model in model_pair(class_name):
        assert model.get_decoder() is model
        model.set_decoder(nn.Identity())
        assert model.get_decoder() is model


@pytest.mark.parametrize("name", ["decoder", "model"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_decoder_of_the_users_own_is_found(class_name: str, name: str) -> None:
    found = []
    for model, other in zip(model_pair(class_name), model_pair(class_name), strict=True):
        part, wrapper = nn.Identity(), copy.deepcopy(model)
        setattr(model, name, part)
        assert model.get_decoder() is part
        model.set_decoder(nn.Dropout())
        wrapper.model = other.base_model  # a model inside a model
        found.append((type(model.get_decoder()), wrapper.get_decoder() is other.base_model))
    assert found[0] == found[1]


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_tensor_is_found_by_its_path(class_name: str) -> None:
    class Counter(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    for model in model_pair(class_name):
        model.counter = Counter()
        model.register_buffer("offset", torch.ones(2))
        for name, parameter in model.named_parameters():
            assert model.get_parameter_or_buffer(name) is parameter
        assert model.get_parameter_or_buffer("offset") is model.offset
        assert model.get_parameter_or_buffer("counter._extra_state") == {"count": 3}
        for wrong in ("nothing", "counter.nothing", "nothing.weight", "counter"):
            with pytest.raises(AttributeError):
                model.get_parameter_or_buffer(wrong)


@pytest.mark.parametrize(
    ("class_name", "arguments"),
    where(
        lambda class_name, arguments: class_name in CAUSAL.values() or arguments in ((70,), (None,)),
        CLASSES,
        [(70,), (40,), (61,), (None, 8), (65, 32), (None,)],
    ),
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_size_follows_the_table(class_name: str, tied: bool, arguments: tuple[Any, ...]) -> None:
    answers = []
    for model in model_pair(class_name, tie_word_embeddings=tied):
        table, parameter = model.get_input_embeddings(), model.get_input_embeddings().weight
        assert model.resize_token_embeddings(*arguments, mean_resizing=False) is table
        head = model.get_output_embeddings()
        answers.append(
            (
                model.get_input_embeddings() is table,
                table.weight is parameter,
                tuple(table.weight.shape),
                table.num_embeddings,
                getattr(model, "vocab_size", None),
                model.config.vocab_size,
                None if head is None else (tuple(head.weight.shape), head.out_features, head.weight is table.weight),
            )
        )
    assert answers[1] == answers[0]


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_hook_on_the_table_outlives_a_new_size(class_name: str) -> None:
    _, ours = model_pair(class_name)
    seen: list[int] = []
    ours.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
    ours.resize_token_embeddings(64)
    ours(token_ids())
    assert seen == [1]


@pytest.mark.parametrize(
    ("class_name", "kind"),
    where(
        lambda class_name, kind: class_name == CLASSES[0] or kind == "parts",
        CLASSES,
        ["none", "text", "device", "auto", "sequential", "whole", "parts"],
    ),
)
def test_a_device_map_is_kept_on_the_model(class_name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    oracle, ours = model_pair(class_name)
    oracle.save_pretrained(tmp_path)
    device_map: Any = {
        "none": None,
        "text": "cpu",
        "device": torch.device("cpu"),
        "whole": {"": "cpu"},
        "parts": {name: "cpu" for name, _ in ours.named_children()},
    }.get(kind, kind)
    if kind in ("auto", "sequential") and torch.cuda.is_available():
        pytest.skip("the reference chooses by free memory")
    found = []
    for model in (oracle, ours):
        loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
        found.append(getattr(loaded, "hf_device_map", None))
        assert loaded.device == torch.device("cpu")
    assert found[1] == found[0]
    assert (found[1] is None) == (kind == "none")


# masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_masks_are_extended(class_name: str, is_decoder: bool, dtype: torch.dtype | None) -> None:
    oracle, ours = model_pair(class_name, is_decoder=is_decoder)
    for mask, shape in (
        (torch.tensor([[1, 1, 0], [0, 1, 1]]), (2, 3)),
        (torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]), (2, 2)),
        (torch.randint(0, 2, (2, 3, 4)), (2, 3)),
    ):
        expected = oracle.get_extended_attention_mask(mask, shape, dtype=dtype)
        actual = ours.get_extended_attention_mask(mask, shape, dtype=dtype)
        assert actual.dtype == expected.dtype and torch.equal(actual, expected)
        if mask.dim() == 2:
            expected = oracle.create_extended_attention_mask_for_decoder(shape, mask)
            actual = ours.create_extended_attention_mask_for_decoder(shape, mask)
            assert actual.dtype == expected.dtype and torch.equal(actual, expected)
    with pytest.raises(ValueError, match="shape"):
        oracle.get_extended_attention_mask(torch.ones(1, 1, 1, 1), (1, 1))
    with pytest.raises(InputError, match="shape"):
        ours.get_extended_attention_mask(torch.ones(1, 1, 1, 1), (1, 1))


# tags and auto classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
def test_tags_are_kept_once_each(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    assert ours.model_tags is oracle.model_tags is None
    for tags in ("one", ["two", "one"], [], ["three"]):
        for model in (oracle, ours):
            model.add_model_tags(tags)
        assert ours.model_tags == oracle.model_tags
    assert type(ours).model_tags is None


@pytest.mark.parametrize("class_name", [*CAUSAL.values(), *(f"{family}Model" for family in SIZES)])
def test_our_own_classes_are_known_to_their_auto_class(class_name: str) -> None:
    auto = "AutoModel" if class_name.endswith("Model") and "LM" not in class_name else "AutoModelForCausalLM"
    answers = []
    for library in (transformers, gptrio):
        cls = type(class_name, (getattr(library, class_name),), {}) if library is transformers else None
        cls = cls or getattr(library, class_name)
        assert cls._auto_class is None
        cls.register_for_auto_class(getattr(library, auto))
        answers.append(cls._auto_class)
        with pytest.raises(ValueError, match="AutoNothing"):
            cls.register_for_auto_class("AutoNothing")
        cls._auto_class = None
    assert answers == [auto, auto]


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_code_of_the_users_own_is_not_shipped(class_name: str) -> None:
    base: Any = getattr(gptrio, class_name)
    mine: Any = type("Mine", (base,), {})
    with pytest.raises(UnsupportedError, match=rf"AutoModelForCausalLM.register\({base.config_class.__name__}, Mine\)"):
        mine.register_for_auto_class("AutoModelForCausalLM")
    assert mine._auto_class is None


def test_outputs_after_resizing_equal_the_references() -> None:
    for class_name in CAUSAL.values():
        oracle, ours = model_pair(class_name)
        for model in (oracle, ours):
            model.resize_token_embeddings(53)
        ids = token_ids(2, 9, 53)
        with torch.no_grad():
            assert_same_output(ours(ids), oracle(ids))
