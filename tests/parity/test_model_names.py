"""Every public name of the reference's models, and every flag that other libraries read, beside ours."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.loss import loss_utils

import gptrio
from gptrio.errors import GptrioWarning, UnsupportedError
from gptrio.models.base import inputs
from gptrio.testing import assert_close
from tests.cases import first
from tests.parity.test_model_surface import CAUSAL, CLASSES
from tests.reference import model_pair, task_inputs, token_ids
from tests.sizes import SIZES

# Public names of the reference's models that ours do not have, and why.
LEFT_OUT = {
    "load_tf_weights": "reads TensorFlow checkpoints, which gptrio refuses with a way out",
    "parallelize": "deprecated and for GPT-2 alone; device_map spreads a model over devices",
    "deparallelize": "goes with parallelize",
    "device_map": "an attribute that parallelize fills; hf_device_map is what device_map gives",
    "to_bettertransformer": "hands the model to Optimum, which knows Transformers' classes alone",
    "reverse_bettertransformer": "goes with to_bettertransformer",
    "generate_batch": "continuous batching, which gptrio does not have",
    "init_continuous_batching": "continuous batching, which gptrio does not have",
    "load_custom_generate": "runs code of a hub repository, which gptrio never does",
    "add_memory_hooks": "resident memory of the process by psutil; torch.profiler tells more",
    "reset_memory_hooks_state": "goes with add_memory_hooks",
    "get_init_context": "a step inside from_pretrained there",
    "retrieve_modules_from_names": "a step inside from_pretrained there",
    "get_position_embeddings": "only raises NotImplementedError for these families",
    "resize_position_embeddings": "only raises NotImplementedError for these families",
}
FLAGS = [
    "_auto_class",
    "_can_compile_fullgraph",
    "_can_record_outputs",
    "_checkpoint_conversion_mapping",
    "_hf_peft_config_loaded",
    "_is_hf_initialized",
    "_is_stateful",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_keys_to_ignore_on_load_missing",
    "_keys_to_ignore_on_load_unexpected",
    "_keys_to_ignore_on_save",
    "_no_split_modules",
    "_pp_plan",
    "_skip_keys_device_placement",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
    "_tied_weights_keys",
    "_tp_plan",
    "_tp_size",
    "base_model_prefix",
    "can_record_outputs",
    "framework",
    "gradient_checkpointing",
    "is_gradient_checkpointing",
    "is_parallelizable",
    "loss_type",
    "main_input_name",
    "model_parallel",
    "model_tags",
    "name_or_path",
    "pp_plan",
    "supports_gradient_checkpointing",
    "supports_pp_plan",
    "supports_tp_plan",
    "tp_plan",
    "tp_size",
    "training",
    "warnings_issued",
]
# Flags whose value is another one here, for the families named: (our value, why).
OTHER_VALUES: dict[str, tuple[list[str], Any, str]] = {
    "_can_compile_fullgraph": (["GPTNeo"], True, "its static cache has rings for local layers"),
    "_can_record_outputs": (["GPTNeoX"], None, "blocks hand states and weights along"),
    "can_record_outputs": (["GPTNeoX"], {}, "blocks hand states and weights along"),
    "_supports_sdpa": (["GPTNeo"], True, "it has this back end"),
    "_supports_attention_backend": (["GPTNeo"], True, "registered functions are looked up here too"),
    "is_parallelizable": (["GPT2"], False, "there is no parallelize"),
    "_tp_plan": (["GPTNeoX"], {}, "there is no plan"),
    "tp_plan": (["GPTNeoX"], {}, "there is no plan"),
    "_pp_plan": (["GPTNeoX"], {}, "there is no plan"),
    "pp_plan": (["GPTNeoX"], {}, "there is no plan"),
    "supports_tp_plan": (list(SIZES), False, "there is no plan; the reference says True of an empty one"),
    "supports_pp_plan": (list(SIZES), False, "there is no plan; the reference says True of an empty one"),
}


@functools.cache
def pair_of(class_name: str) -> tuple[Any, Any]:
    return model_pair(class_name)


def family_of(class_name: str) -> str:
    return next(name for name in ("GPTNeoX", "GPTNeo", "GPT2") if class_name.startswith(name))


# names and flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CLASSES)
def test_every_public_name_is_there_or_left_out_for_a_reason(class_name: str) -> None:
    oracle, ours = pair_of(class_name)
    missing = {name for name in dir(oracle) if not name.startswith("_") and not hasattr(ours, name)}
    assert missing <= set(LEFT_OUT)


def test_nothing_is_left_out_that_is_there() -> None:
    present = {name for class_name in CLASSES for name in LEFT_OUT if hasattr(pair_of(class_name)[1], name)}
    assert present == set()
    there = {name for class_name in CLASSES for name in dir(pair_of(class_name)[0])}
    assert set(LEFT_OUT) <= there


@pytest.mark.parametrize("class_name", CLASSES)
def test_methods_take_the_references_arguments(class_name: str) -> None:
    """Whatever can be given by name there can be given by name here."""
    oracle, ours = pair_of(class_name)
    lacking = {}
    for name in dir(oracle):
        if name.startswith("_") or name in LEFT_OUT or not inspect.isroutine(getattr(type(oracle), name, None)):
            continue
        theirs, own = (inspect.signature(getattr(model, name)).parameters for model in (oracle, ours))
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            continue
        named = {key for key, p in theirs.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not named <= set(own):
            lacking[name] = named - set(own)
    assert lacking == {}


@pytest.mark.parametrize("class_name", CLASSES)
def test_flags_have_the_references_values(class_name: str) -> None:
    oracle, ours = pair_of(class_name)
    family = family_of(class_name)
    for name in FLAGS:
        families, value, _ = OTHER_VALUES.get(name, ((), None, ""))
        expected = getattr(oracle, name, "absent")
        if family in families:
            assert expected != value, f"{name}: no reason to differ any longer"
            expected = value
        if expected != "absent":
            assert getattr(ours, name) == expected, name


@pytest.mark.parametrize("class_name", CLASSES)
def test_what_classes_say_of_themselves(class_name: str) -> None:
    oracle, ours = pair_of(class_name)
    for of in (lambda model: model, type):
        assert of(ours).can_generate() == of(oracle).can_generate()
        for name in ("generate", "prepare_inputs_for_generation", "heal_tokens", "compute_transition_scores"):
            assert hasattr(of(ours), name) == hasattr(of(oracle), name)
        assert of(ours).config_class.__name__ == of(oracle).config_class.__name__
        assert of(ours).is_backend_compatible() is True  # GPT-Neo, too
    mixins = (gptrio.GenerationMixin, transformers.GenerationMixin)
    assert isinstance(ours, mixins[0]) == isinstance(oracle, mixins[1])
    if not oracle.can_generate():
        for model in (oracle, ours):
            with pytest.raises(AttributeError, match=f"'{class_name}' object has no attribute 'generate'"):
                model.generate(token_ids())
    for name in ("hf_device_map", "vocab_size", "hf_quantizer", "is_quantized", "quantization_method"):
        assert hasattr(ours, name) == hasattr(oracle, name)
    assert getattr(ours, "embed_dim", None) == getattr(oracle, "embed_dim", None)
    expected = oracle.dummy_inputs["input_ids"]
    assert ours.dummy_inputs["input_ids"].shape == expected.shape
    assert torch.equal(ours.dummy_inputs["input_ids"], expected % ours.config.vocab_size)


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("named", [None, "eager"])
def test_a_models_configuration_names_its_back_end(class_name: str, named: str | None) -> None:
    family = family_of(class_name)
    oracle, model = (
        getattr(library, class_name)(getattr(library, f"{family}Config")(**SIZES[family], attn_implementation=named))
        for library in (transformers, gptrio)
    )
    expected = "sdpa" if family == "GPTNeo" and named is None else oracle.config._attn_implementation
    assert (model.config._attn_implementation, model.attn_implementation) == (expected, expected)
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
    assert "_attn_implementation" not in model.config.to_dict()
    with pytest.raises(ValueError, match="nothing"):
        type(model)(type(model.config)(**SIZES[family], attn_implementation="nothing"))


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_back_end_is_found_by_its_name(class_name: str) -> None:
    oracle, ours = pair_of(class_name)
    for name in ("eager", "sdpa", None):
        if name == "eager" or oracle._supports_sdpa:
            assert ours.get_correct_attn_implementation(name) == oracle.get_correct_attn_implementation(name)
    for model, error in ((oracle, ValueError), (ours, UnsupportedError)):
        with pytest.raises(error, match="nothing"):
            model.get_correct_attn_implementation("nothing")


# losses -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", [name for name in CLASSES if name not in ("GPT2Model", "GPT2DoubleHeadsModel")])
def test_loss_functions_give_the_references_loss(class_name: str) -> None:
    oracle, ours = model_pair(class_name, num_labels=4, pad_token_id=0)
    expected, actual = oracle.loss_function, ours.loss_function
    logits, labels = torch.randn(2, 7, 61), token_ids(2, 7).masked_fill(torch.rand(2, 7) < 0.3, -100)
    scores = logits[..., :4].contiguous()
    if class_name.endswith("SequenceClassification"):
        arguments = {"logits": scores, "labels": torch.tensor([1, 3]), "pooled_logits": scores[:, 0]}
        assert_close(actual(**arguments, config=ours.config), expected(**arguments, config=oracle.config))
        assert ours.config.problem_type == oracle.config.problem_type == "single_label_classification"
    elif class_name.endswith("TokenClassification"):
        assert_close(
            actual(scores, labels.clamp(max=3), ours.config), expected(scores, labels.clamp(max=3), ours.config)
        )
    elif class_name.endswith("QuestionAnswering"):
        ends = torch.tensor([[1, 2], [3, 99]])
        assert_close(actual(*scores[..., :2].unbind(-1), *ends), expected(*scores[..., :2].unbind(-1), *ends))
    else:
        for options in ({}, {"num_items_in_batch": 5}, {"ignore_index": 3}, {"shift_labels": labels.roll(-1, 1)}):
            arguments = {"logits": logits, "labels": labels.clamp(min=0), "vocab_size": 61, **options}
            if "shift_labels" in options:
                arguments["labels"] = None
            assert_close(actual(**arguments), expected(**arguments))


@pytest.mark.parametrize(
    "class_name", [name for name in CLASSES if name.startswith("GPTNeoX") and name != "GPTNeoXModel"]
)
def test_a_loss_function_of_the_users_own_is_called_alike(class_name: str) -> None:
    """GPT-NeoX's heads all ask for it in the reference."""
    batch, calls = task_inputs(class_name), []
    if "CausalLM" in class_name:
        batch["labels"] = batch["input_ids"]
    for model in model_pair(class_name, num_labels=4, pad_token_id=0):

        def loss(*args: Any, model: Any = model, **kwargs: Any) -> Tensor:
            calls.append((args, {key: value for key, value in kwargs.items() if key != "config"}))
            return torch.tensor(7.0)

        model.loss_function = loss
        extra = {"temperature": 3} if "CausalLM" in class_name else {}
        assert float(model(**batch, **extra).loss) == 7
    named = [
        [*(value for value in args if not hasattr(value, "to_dict")), *(kwargs[key] for key in sorted(kwargs))]
        for args, kwargs in calls
    ]
    if "CausalLM" in class_name:  # positional there or here, the same values
        named = [sorted(values, key=lambda value: str(getattr(value, "shape", value))) for values in named]
    assert len(named[0]) == len(named[1]) > 1
    for expected, actual in zip(*named, strict=True):
        if isinstance(expected, Tensor):
            assert_close(actual, expected)
        else:
            assert actual == expected


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_loss_function_can_be_set_and_taken_back(class_name: str) -> None:
    ids = token_ids()
    losses = []
    for model in model_pair(class_name):
        plain = model(ids, labels=ids).loss
        model.loss_function = lambda logits, labels, vocab_size, weight=1.0, **_: logits.float().mean() * weight
        losses.append((plain, model(ids, labels=ids, weight=3.0).loss))
        model.loss_function = None if type(model).__module__.startswith("gptrio") else loss_utils.ForCausalLMLoss
        assert torch.equal(model(ids, labels=ids).loss, plain)
    for expected, actual in zip(*losses, strict=True):
        assert_close(actual, expected)
    _, ours = model_pair(class_name)
    with pytest.warns(GptrioWarning, match="does not know weight"):
        assert torch.equal(ours(ids, labels=ids, weight=3.0).loss, ours(ids, labels=ids).loss)


# the rest -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_ties_of_the_users_own_are_made(class_name: str) -> None:
    for model in model_pair(class_name, tie_word_embeddings=True):

        class Twin(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

            def _tie_weights(self) -> None:
                self.two.weight = self.one.weight

        model.twin = Twin()
        model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
        model.tie_weights()
        assert model.twin.two.weight is model.twin.one.weight
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
        model.tie_embeddings_and_encoder_decoder()
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
def test_a_compiled_call_gives_the_same(class_name: str) -> None:
    _, ours = model_pair(class_name, pad_token_id=0)
    config = gptrio.CompileConfig(backend="eager", mode=None)  # type: ignore[arg-type]
    ids = task_inputs(class_name)["input_ids"]
    compiled = ours.get_compiled_call(config)
    with torch.no_grad():
        assert_close(compiled(ids)[0], ours(ids)[0])
    assert ours.get_compiled_call(config) is compiled
    assert ours.get_compiled_call(gptrio.CompileConfig(backend="aot_eager")) is not compiled


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_copy_compiles_its_own_call(class_name: str) -> None:
    _, ours = model_pair(class_name, pad_token_id=0)
    config = gptrio.CompileConfig(backend="eager", mode=None)  # type: ignore[arg-type]
    ids = task_inputs(class_name)["input_ids"]
    ours.get_compiled_call(config)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
            assert_close(other.get_compiled_call(config)(ids)[0], other(ids)[0])


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_tokens_are_healed_alike(class_name: str, tmp_path: Any) -> None:
    letters = ["h", "t", "p", "s", ":", "/", "Ġ", "ht", "htt", "http", "https", ":/", "<|endoftext|>", "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh t\nht t\nhtt p\nhttp s\n: /\n")
    pair = model_pair(class_name, vocab_size=14, bos_token_id=12, eos_token_id=12)
    prompts = (["s http", "ttht:", " p "], ["ht"], [""], ["s", "p "])
    healed: list[list[Tensor]] = []
    for model, library in zip(pair, (transformers, gptrio), strict=True):
        files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
        tokenizer = library.GPT2TokenizerFast(*files, pad_token="<pad>", padding_side="left")
        batches = [tokenizer(texts, return_tensors="pt", padding=True)["input_ids"] for texts in prompts]
        healed.append([model.heal_tokens(ids, tokenizer) for ids in batches])
        ids = batches[0]
        with pytest.raises(ValueError, match="tokenizer"):
            model.heal_tokens(ids)
    for ours, theirs in zip(healed[1], healed[0], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_padding_without_a_mask_is_warned_of(class_name: str) -> None:
    _, ours = model_pair(class_name, pad_token_id=0)
    inputs.warn_once.cache_clear()
    ids = token_ids()
    ours.warn_if_padding_and_no_attention_mask(ids, None)
    ids[:, 0] = 0
    ours.warn_if_padding_and_no_attention_mask(ids, torch.ones_like(ids))
    with pytest.warns(gptrio.errors.GptrioWarning, match="no attention_mask"):
        ours.warn_if_padding_and_no_attention_mask(ids, None)


def test_a_head_without_the_mixin_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: list[str] = []
    monkeypatch.setattr(transformers.modeling_utils.logger, "warning", theirs.append)
    found = []
    for library in (transformers, gptrio):

        class Preparing:
            def prepare_inputs_for_generation(self, input_ids, **kwargs):
                return {"input_ids": input_ids}

        class Head(Preparing, library.GPT2PreTrainedModel):
            pass

        class Mixed(Head, library.GenerationMixin):
            pass

        class Own(Preparing, library.GPT2LMHeadModel):
            pass

        with warnings.catch_warnings(record=True) as ours:
            warnings.simplefilter("always")
            found.append([kind.can_generate() for kind in (Mixed, Own, library.GPT2PreTrainedModel, Head)])
    assert found[1] == found[0] == [True, True, False, False]
    assert len(theirs) == len(ours) == 1
    for text in (theirs[0], str(ours[0].message)):
        assert text.startswith("Head ") and "prepare_inputs_for_generation" in text and "GenerationMixin" in text
