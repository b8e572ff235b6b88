"""PEFT over our models and over the reference: the same parts adapted, the same numbers, files that both read."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

import gptrio
from gptrio import DynamicCache, GPT2LMHeadModel, InputError, MissingDependencyError, OptionError, enable_peft
from gptrio.nn.linear import Conv1D
from tests.reference import model_pair, padded, task_inputs, token_ids

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT: base models without a name, fan_in_fan_out

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
CLASSES = ("GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM")
KINDS: dict[str, Callable[..., Any]] = {
    "LoRA": lambda **task: peft.LoraConfig(r=4, **task),
    "LoRA of all linear layers": lambda **task: peft.LoraConfig(r=4, target_modules="all-linear", **task),
    "IA3": peft.IA3Config,
    "VeRA": lambda **task: peft.VeraConfig(r=4, **task),
    "AdaLoRA": lambda **task: peft.AdaLoraConfig(total_step=10, **task),
    "prompt tuning": lambda **task: peft.PromptTuningConfig(num_virtual_tokens=4, **task),
    "p-tuning": lambda **task: peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, **task),
    "prefix tuning": lambda **task: peft.PrefixTuningConfig(num_virtual_tokens=4, **task),
}
PROMPTS = ("prompt tuning", "p-tuning", "prefix tuning")


def pair(class_name: str, **config: Any) -> tuple[Any, Any]:
    length = "n_positions" if class_name.startswith("GPT2") else "max_position_embeddings"
    return model_pair(class_name, eos_token_id=None, **{length: 64}, **config)


@torch.no_grad()
def draw_adapter(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(0.0, 0.3)


def adapted_pair(class_name: str, kind: str, task_type: str = "CAUSAL_LM") -> tuple[Any, Any]:
    """The reference and our model under the same adapter."""
    oracle, ours = pair(class_name)
    oracle, ours = (peft.get_peft_model(model, KINDS[kind](task_type=task_type)).eval() for model in (oracle, ours))
    draw_adapter(oracle)
    ours.load_state_dict(oracle.state_dict(), strict=False)
    return oracle, ours


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_close(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_every_kind_of_adapter_adapts_what_it_adapts_in_the_reference(class_name: str, kind: str) -> None:
    torch.manual_seed(0)
    oracle, ours = adapted_pair(class_name, kind)
    assert trainable(ours) == trainable(oracle) != set()
    ids, mask = token_ids(), padded([11, 7], 11, "left")
    plain = ours.get_base_model()(ids).logits
    for attention_mask in (torch.ones_like(ids), mask):
        inputs = {"input_ids": ids, "attention_mask": attention_mask}
        with torch.no_grad():
            actual, expected = ours(**inputs, labels=ids), oracle(**inputs, labels=ids)
        if kind != "prefix tuning":
            assert_close(actual.loss, expected.loss)
        real = (attention_mask == 1)[:, :, None].expand(-1, -1, actual.logits.shape[-1])
        assert_close(actual.logits[:, -11:][real], expected.logits[:, -11:][real])
        if kind in PROMPTS:
            assert not torch.allclose(actual.logits[:, -11:], plain, atol=0.1)
        for options in ({}, {"num_beams": 3}):
            options |= {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **inputs}
            assert torch.equal(ours.generate(**options), oracle.generate(**options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("class_name", CLASSES)
@torch.inference_mode()
def test_compiled_steps_of_a_model_with_lora_give_the_numbers_of_the_reference(
    class_name: str, rows: int, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("numba")
    torch.manual_seed(0)
    heads = {"GPT2": "n_head", "GPTNeo": "num_heads"}.get(class_name.partition("LM")[0].partition("For")[0])
    models = pair(class_name, dtype=dtype, **{heads or "num_attention_heads": 2})
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    oracle, ours = (peft.get_peft_model(model, config).eval() for model in models)
    draw_adapter(oracle)
    ours.load_state_dict(oracle.state_dict(), strict=False)
    ids, cache = token_ids(rows, 16), DynamicCache(config=ours.config)
    expected = oracle(input_ids=ids).logits
    ours(input_ids=ids[:, :4], past_key_values=cache)
    step = ours.get_base_model().compiled_step(1)
    logits = torch.stack([step(ids[:, place, None], cache)[:, 0] for place in range(4, 16)], 1)
    if dtype is torch.float32:
        torch.testing.assert_close(logits, expected[:, 4:], atol=1e-4, rtol=1e-5)
    else:  # as near to the numbers of these weights in float32 as the reference is, whose error is one of few samples
        exact = copy.deepcopy(oracle).float()(input_ids=ids).logits
        error, reference_error = logits - exact[:, 4:], expected.float() - exact
        assert error.pow(2).mean() <= 1.5**2 * reference_error[:, 4:].pow(2).mean()
    with caplog.at_level("INFO", "gptrio"):
        options = {"input_ids": ids[:1], "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
        tokens = ours.generate(**options)
    assert "decoding steps run compiled" in caplog.text
    if dtype is torch.float32:
        assert torch.equal(tokens, oracle.generate(**options))


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt_tuning_decodes_alike_in_every_batch_and_without_a_cache(kind: str) -> None:
    torch.manual_seed(2)
    _, ours = adapted_pair("GPT2LMHeadModel", kind)
    ids = token_ids(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 9}
    expected = ours.generate(**inputs)
    assert not torch.equal(ours.get_base_model().generate(**inputs), expected)
    assert torch.equal(ours.generate(**inputs, use_cache=False), expected)
    two = {**inputs, "input_ids": ids.repeat(2, 1), "attention_mask": inputs["attention_mask"].repeat(2, 1)}
    assert torch.equal(ours.generate(**two), expected.repeat(2, 1))


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "GPTNeoForSequenceClassification"])
def test_all_linear_leaves_a_classifier_out_as_it_does_in_the_reference(name: str) -> None:
    found = []
    for model in model_pair(name, num_labels=3, pad_token_id=0):
        config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")
        found.append(trainable(peft.get_peft_model(model, config)))
    assert found[0] == found[1]
    assert any("score.modules_to_save" in name for name in found[1])


@pytest.mark.parametrize("kind", ["LoRA", "prefix tuning"])
@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
)
@pytest.mark.parametrize("family", ["GPT2", "GPTNeo", "GPTNeoX"])
def test_adapters_over_other_heads_give_the_numbers_of_the_reference(family: str, head: str, kind: str) -> None:
    torch.manual_seed(0)
    task = {"SequenceC": "SEQ_CLS", "TokenClas": "TOKEN_CLS", "QuestionA": "QUESTION_ANS"}
    config = {"num_labels": 4, "pad_token_id": 0}
    adapted = []
    for model in pair(f"{family}{head}", **config):
        task_type = task.get(head.removeprefix("For")[:9], "FEATURE_EXTRACTION")
        adapted.append(peft.get_peft_model(model, KINDS[kind](task_type=task_type)).eval())
    oracle, ours = adapted
    draw_adapter(oracle)
    ours.load_state_dict(oracle.state_dict(), strict=False)
    assert trainable(ours) == trainable(oracle)
    inputs = task_inputs(f"{family}{head}")
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    actual, expected = ours(**inputs), oracle(**inputs)
    assert actual.keys() >= {"last_hidden_state"} or "loss" in actual
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert_close(actual[name], value)


def test_a_merged_adapter_is_a_plain_model_of_the_same_numbers() -> None:
    torch.manual_seed(0)
    _, ours = adapted_pair("GPT2LMHeadModel", "LoRA")
    ids = token_ids()
    merged = copy.deepcopy(ours).merge_and_unload()
    assert type(merged.transformer.h[0].attn.c_attn) is Conv1D
    assert_close(merged(ids).logits, ours(input_ids=ids).logits)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(merged.generate(ids, **options), ours.generate(input_ids=ids, **options))


@pytest.mark.parametrize("kind", ["LoRA", "LoRA of all linear layers", "IA3", "prefix tuning"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_saved_adapter_is_read_here_and_by_the_reference(class_name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle, ours = pair(class_name)
    fresh, ids = copy.deepcopy(ours), token_ids()
    adapted = peft.get_peft_model(ours, KINDS[kind](task_type="CAUSAL_LM")).eval()
    draw_adapter(adapted)
    expected = adapted(input_ids=ids).logits
    assert not torch.allclose(expected, fresh(ids).logits, atol=0.1)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(peft.PeftModel.from_pretrained(fresh, tmp_path).eval()(input_ids=ids).logits, expected)
    assert_close(peft.PeftModel.from_pretrained(oracle, tmp_path).eval()(input_ids=ids).logits, expected)


def test_training_lowers_the_loss_and_moves_the_adapter_alone() -> None:
    torch.manual_seed(0)
    oracle, ours = pair("GPT2LMHeadModel")
    before = copy.deepcopy(ours.state_dict())
    ids = token_ids()
    losses = []
    for model in (oracle, ours):
        torch.manual_seed(1)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
        losses.append([])
        for _ in range(3):
            loss = adapted(input_ids=ids, labels=ids).loss
            losses[-1].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[1][-1] < losses[1][0]
    after = {name.replace(".base_layer", ""): tensor for name, tensor in ours.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("class_name", "load_in"), [(CLASSES[0], "nf4"), *((class_name, "llm_int8") for class_name in CLASSES)]
)
def test_adapters_over_layers_of_bitsandbytes_train_as_over_the_reference(
    class_name: str, load_in: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    width = "n_embd" if class_name.startswith("GPT2") else "hidden_size"
    oracle, ours = pair(class_name, **{width: 64})  # a block of codes
    oracle.save_pretrained(tmp_path)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = transformers.BitsAndBytesConfig(**(four if load_in == "nf4" else {"load_in_8bit": True}))
    ids = token_ids()
    losses: list[list[float]] = []
    for loader in (type(oracle), type(ours)):
        base = loader.from_pretrained(tmp_path, quantization_config=config)
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        torch.manual_seed(1)
        model = peft.get_peft_model(base, KINDS["LoRA of all linear layers"](task_type="CAUSAL_LM"))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        losses.append([])
        for _ in range(3):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if load_in == "nf4" else 1e-4)
    assert losses[1][2] < losses[1][0]


# The methods of the model itself


def both(method: str, models: tuple[Any, Any], *args: Any, **kwargs: Any) -> None:
    for model in models:
        getattr(model, method)(*args, **kwargs)


@pytest.mark.parametrize("class_name", CLASSES)
def test_adapter_methods_do_what_those_of_the_reference_do(class_name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle, ours = models = pair(class_name)
    ids = token_ids()
    plain = ours(ids).logits
    for name in ("default", "other"):
        both("add_adapter", models, peft.LoraConfig(r=2, target_modules="all-linear"), adapter_name=name)
        draw_adapter(oracle)
        ours.load_state_dict(oracle.state_dict(), strict=False)
        assert ours.active_adapters() == oracle.active_adapters() == [name] and ours.active_adapter() == name
    seen = {}

    def check(name: str) -> None:
        seen[name] = ours.eval()(ids).logits
        assert_close(
            seen[name], oracle.eval()(ids).logits, atol=5e-5
        )  # either is as far from float64 with two adapters

    check("other")
    both("set_adapter", models, "default")
    check("default")
    both("set_adapter", models, ["default", "other"])
    check("both")
    both("disable_adapters", models)
    check("none")
    assert torch.equal(seen["none"], plain)
    both("enable_adapters", models)
    check("both again")
    assert torch.equal(seen["both"], seen["both again"])
    both("set_adapter", models, "other")
    mine, theirs = (model.get_adapter_state_dict() for model in models)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    both("delete_adapter", models, "default")
    check("other alone")
    assert torch.equal(seen["other"], seen["other alone"]) and list(ours.peft_config) == ["other"]
    oracle.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    files = [{path.name for path in (tmp_path / side).iterdir()} - {"README.md"} for side in ("theirs", "ours")]
    assert files[0] == files[1] >= {"adapter_model.safetensors", "adapter_config.json"}
    for side in ("theirs", "ours"):
        fresh = pair(class_name)
        for model, source in zip(fresh, models, strict=True):
            base = {name.replace(".base_layer", ""): value for name, value in source.state_dict().items()}
            model.load_state_dict(base, strict=False)
            model.load_adapter(str(tmp_path / side))
            assert_close(model(ids).logits, seen["other"])
            assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora" in name)


@torch.no_grad()
def test_generate_follows_the_adapters_of_the_moment() -> None:
    torch.manual_seed(0)
    model = gptrio.AutoModelForCausalLM.from_pretrained("gptrio/stdlib-gpt2")
    ids = torch.randint(5, 4000, (1, 6))

    def tokens() -> Tensor:
        slow = ids
        for _ in range(12):
            slow = torch.cat([slow, model(slow).logits[:, -1:].argmax(-1)], dim=1)
        fast: Tensor = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert torch.equal(fast, slow)
        return fast

    plain = tokens()
    model.add_adapter(peft.LoraConfig(r=4, target_modules="all-linear"))
    draw_adapter(model)
    model.eval()
    adapted = tokens()
    assert not torch.equal(adapted, plain)
    model.disable_adapters()
    assert torch.equal(tokens(), plain)
    model.enable_adapters()
    assert torch.equal(tokens(), adapted)
    model.delete_adapter("default")
    assert torch.equal(tokens(), plain)


def test_an_adapter_is_taken_from_a_dictionary_and_can_be_trained() -> None:
    torch.manual_seed(0)
    oracle, ours = pair("GPT2LMHeadModel")
    config = peft.LoraConfig(r=2)
    oracle.add_adapter(config)
    draw_adapter(oracle)
    tensors = oracle.get_adapter_state_dict()
    ours.load_adapter(peft_config=peft.LoraConfig(r=2), adapter_state_dict=tensors, is_trainable=True)
    ids = token_ids()
    assert_close(ours.eval()(ids).logits, oracle(ids).logits)
    assert trainable(ours) >= {name for name, _ in ours.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_saved_adapter_is_loaded_with_the_model_that_it_names(class_name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    oracle, ours = pair(class_name)
    ours.save_pretrained(tmp_path / "model")
    ours.name_or_path = str(tmp_path / "model")
    ours.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"))
    draw_adapter(ours)
    ours.save_pretrained(tmp_path / "adapter")
    ids = token_ids()
    expected = ours.eval()(ids).logits
    for loader in (gptrio.AutoModelForCausalLM, type(ours)):
        model = loader.from_pretrained(tmp_path / "adapter", adapter_name="mine")
        assert type(model) is type(ours) and model.active_adapters() == ["mine"] and not model.training
        assert_close(model(ids).logits, expected)
    _, info = type(ours).from_pretrained(tmp_path / "adapter", output_loading_info=True)
    assert not info["missing_keys"]
    assert_close(type(oracle).from_pretrained(tmp_path / "adapter")(ids).logits, expected)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(OSError, match="does not name the model that it adapts"):
        type(ours).from_pretrained(tmp_path / "adapter")


def test_what_cannot_be_done_with_adapters_is_said(tmp_path: Path) -> None:
    _, model = pair("GPT2LMHeadModel")
    for call in (model.disable_adapters, model.enable_adapters, model.active_adapters, model.get_adapter_state_dict):
        with pytest.raises(OptionError, match="the model has no adapter; add_adapter"):
            call()
    with pytest.raises(OptionError, match="needs peft_model_id"):
        model.load_adapter()
    with pytest.raises(OSError, match="there is no adapter to be read"):
        model.load_adapter(tmp_path)
    with pytest.raises(InputError, match="expected a peft"):
        model.add_adapter({"r": 2})
    assert not model._hf_peft_config_loaded
    model.add_adapter(peft.LoraConfig(r=2))
    with pytest.raises(ValueError, match="an adapter 'default' already"):
        model.add_adapter(peft.LoraConfig(r=2))
    with pytest.raises(ValueError, match="no adapter 'else'; the model has: default"):
        model.set_adapter("else")
    with pytest.raises(ValueError, match="no adapter 'else'"):
        model.delete_adapter(["default", "else"])


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = pair("GPT2LMHeadModel")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gptrio\[peft\]'"):
        model.add_adapter(None)


def test_a_model_may_be_built_before_peft_is_imported() -> None:
    code = """
import warnings; warnings.simplefilter("ignore")
import gptrio
from gptrio.testing import tiny_config
model = gptrio.GPT2LMHeadModel(tiny_config())
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
found = sorted({name.split(".")[-4] for name, p in adapted.named_parameters() if p.requires_grad})
assert found == ["c_attn", "c_fc", "c_proj"], found
config = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
prompt = get_peft_model(gptrio.GPT2LMHeadModel(tiny_config()), config)
prompt.generate(input_ids=model.dummy_inputs["input_ids"], max_new_tokens=2)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_transformers_own_models_are_adapted_as_before() -> None:
    enable_peft()
    enable_peft()
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2)
    adapted = peft.get_peft_model(transformers.GPT2LMHeadModel(config), peft.LoraConfig(target_modules="all-linear"))
    assert not any("lm_head" in name for name in trainable(adapted)) and trainable(adapted)


def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert "trainable params" in capsys.readouterr().out
    ids = token_ids(1)
    assert torch.equal(names["again"](input_ids=ids).logits, names["adapted"].eval()(input_ids=ids).logits)
    assert isinstance(names["again"].get_base_model(), GPT2LMHeadModel)


@pytest.mark.parametrize("peft_format", [True, False])
@pytest.mark.parametrize("class_name", CLASSES)
def test_names_in_a_saved_adapters_file_are_those_of_the_reference(
    class_name: str, peft_format: bool, tmp_path: Path
) -> None:
    models = pair(class_name)
    both("add_adapter", models, peft.LoraConfig(r=2, target_modules="all-linear"))
    names = []
    for model, folder in zip(models, ("theirs", "ours"), strict=True):
        model.save_pretrained(tmp_path / folder, save_peft_format=peft_format)
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "GPTNeoXForCausalLM"])
def test_a_model_whose_adapters_are_all_deleted_has_none(class_name: str) -> None:
    for model in pair(class_name):
        for names in ("first", ["second", "first", "first"]):
            model.add_adapter(peft.LoraConfig(r=2), adapter_name="first")
            if not isinstance(names, str):
                model.add_adapter(peft.LoraConfig(r=2), adapter_name="second")
            model.delete_adapter(names)
            assert not hasattr(model, "peft_config") and model._hf_peft_config_loaded is False
        with pytest.raises(ValueError, match="adapter"):
            model.delete_adapter("first")
        model.add_adapter(peft.LoraConfig(r=2), adapter_name="first")
        model.delete_adapter([])
        assert list(model.peft_config) == model.active_adapters() == ["first"]


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"])
def test_a_model_whose_adapters_are_all_deleted_is_saved_as_a_plain_one(class_name: str, tmp_path: Path) -> None:
    model = pair(class_name)[1]
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"), adapter_name="first")
    model.add_adapter(peft.IA3Config(target_modules="all-linear", feedforward_modules=[]), adapter_name="second")
    model.delete_adapter(["first", "second"])
    model.save_pretrained(tmp_path)
    for state in (model.state_dict(), type(model).from_pretrained(tmp_path).state_dict()):
        assert state.keys() == plain.keys()
        assert all(torch.equal(state[name], plain[name]) for name in plain)
