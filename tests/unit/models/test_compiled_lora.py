"""A model with LoRA steps compiled, unmerged, with the logits of the plain step, or says why it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from gptrio import quantize
from gptrio.kernels.cpu_decode import Reason
from gptrio.models.base.compiled import CompiledStep, compiled_step
from gptrio.quantization.native import QuantizedLinear
from tests.cases import where
from tests.unit.models.test_compiled import build, ids_of, largest_error

pytest.importorskip("numba")

ERRORS = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 0.01}  # standard deviations of the logits
FAMILIES = ("gpt2", "gpt-neo", "gpt-neox")


@pytest.fixture(autouse=True)
def guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard words around everything that a compiled step writes to."""
    monkeypatch.setenv("GPTRIO_GUARDS", "1")


@torch.no_grad()
def adapt(model: Any, name: str = "first", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Add an adapter to a model and draw its weights, so that it counts."""
    settings = {"r": 4, "lora_alpha": 2 * options.get("r", 4), "target_modules": "all-linear", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT corrects
        model.add_adapter(peft.LoraConfig(**settings), name)
    for path, parameter in model.named_parameters():
        if "lora_" in path and name in path:
            parameter.data = torch.randn_like(parameter.float()).mul_(0.25 * parameter.shape[-1] ** -0.5).to(dtype)
    return model.eval()


def lora_layer(model: Any) -> Any:
    return next(module for module in model.modules() if type(module).__module__ == "peft.tuners.lora.layer")


def reason_of(model: Any) -> str:
    step = compiled_step(model)
    assert isinstance(step, Reason)
    return step


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(
    ("family", "rank", "rows"),
    where(lambda family, rank, rows: family == "gpt2" or (rank, rows) == (8, 3), FAMILIES, [1, 8, 17], [1, 3, 9]),
)
def test_logits_are_those_of_the_plain_step(family: str, dtype: torch.dtype, rank: int, rows: int) -> None:
    model = adapt(build(family, dtype), r=rank)
    assert largest_error(model, ids_of(rows, 20)) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_16_bits_are_read_as_they_are(dtype: torch.dtype) -> None:
    model = adapt(build("gpt2"), dtype=dtype)
    wide = adapt(build("gpt2"))
    for name, parameter in wide.named_parameters():
        parameter.data = model.get_parameter(name).data.float()
    assert largest_error(model, ids_of(2, 20), wide) < ERRORS[torch.float32]


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_stay_as_they_are_around_codes(family: str, bits: str) -> None:
    model = adapt(build(family))
    quantize(model, bits)
    layer = lora_layer(model)
    assert type(layer.base_layer) is QuantizedLinear
    assert type(layer.lora_A["first"]) is type(layer.lora_B["first"]) is nn.Linear
    plain = build(family)
    quantize(plain, bits)
    ids = ids_of(2, 20)
    assert largest_error(model, ids) < 0.2
    assert largest_error(model, ids, plain) > 0.5


def test_an_adapter_of_the_head_alone() -> None:
    model = adapt(build("gpt2"), target_modules=["lm_head"])
    assert type(model.get_output_embeddings()) is type(lora_layer(model))
    assert largest_error(model, ids_of(2, 20)) < ERRORS[torch.float32]


STATES: dict[str, Callable[[Any], Any]] = {
    "one of two": lambda model: adapt(model, "second", r=7),
    "the first again": lambda model: adapt(model, "second", r=7).set_adapter("first"),
    "both": lambda model: adapt(model, "second", r=7).set_adapter(["first", "second"]),
    "scaled": lambda model: lora_layer(model).scale_layer(0.3),
    "rank-stabilised": lambda model: adapt(model, "second", use_rslora=True),
    "dropout": lambda model: adapt(model, "second", lora_dropout=0.5),
    "disabled": lambda model: model.disable_adapters(),
    "merged": lambda model: lora_layer(model).merge(),
    "some layers only": lambda model: lora_layer(model).enable_adapters(False),
    "deleted": lambda model: model.delete_adapter("first"),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_state_of_adapters_is_computed(family: str, state: str) -> None:
    model = adapt(build(family))
    STATES[state](model)
    assert largest_error(model, ids_of(2, 20)) < ERRORS[torch.float32]


def test_a_step_reads_weights_of_adapters_that_are_edited_in_place() -> None:
    model, ids = adapt(build("gpt2")), ids_of(1, 20)
    step = compiled_step(model)
    assert isinstance(step, CompiledStep)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.neg_()
    with torch.inference_mode():
        caches = [model(ids[:, :5], use_cache=True).past_key_values for _ in range(2)]
        got, want = step(ids[:, 5:6], caches[0]), model.next_logits(ids[:, 5:6], caches[1])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def merged_and_disabled(model: Any) -> None:
    lora_layer(model).merge()
    model.disable_adapters()


def of_two_dtypes(model: Any) -> None:
    lora_layer(model).lora_A["first"].to(torch.bfloat16)


def of_another_rank(model: Any) -> None:
    lora_layer(model).lora_A["first"].weight.data = torch.zeros(3, 64)


def stored_column_by_column(model: Any) -> None:
    weight = lora_layer(model).lora_B["first"].weight
    weight.data = weight.data.t().contiguous().t()


REASONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "DoRA": (lambda model: adapt(model, "second", use_dora=True), "DoraLinear"),
    "bias": (lambda model: adapt(model, "second", lora_bias=True), "adapter 'second' of .* has a bias"),
    "embedding": (lambda model: adapt(model, "second", target_modules=["wte"]), "peft.tuners.lora.layer.Embedding"),
    "modules to save": (lambda model: adapt(model, "second", modules_to_save=["ln_f"]), "ModulesToSaveWrapper"),
    "merged and disabled": (merged_and_disabled, "are merged and disabled"),
    "two dtypes": (of_two_dtypes, "weights of torch.bfloat16 and torch.float32"),
    "another rank": (of_another_rank, r"has A \(3, 64\) and B \(192, 4\)"),
    "columns": (stored_column_by_column, "do not lie row after row"),
    "scaled by a tensor": (lambda m: lora_layer(m).scaling.update(first=torch.ones(())), "scaled by tensor"),
    "in training": (lambda model: lora_layer(model).lora_dropout.train(), "training mode"),
    "hook": (lambda model: lora_layer(model).register_forward_hook(lambda *_: None), "hooks"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_plain_lora_is_left_to_the_plain_step(name: str) -> None:
    change, text = REASONS[name]
    model = adapt(build("gpt2"))
    change(model)
    with pytest.raises(AssertionError, match=text):
        raise AssertionError(reason_of(model))


def test_a_forward_that_was_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt(build("gpt2"))
    kind: Any = type(lora_layer(model))
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *given: 2 * forward(self, *given))
    assert "Linear.forward was replaced" in reason_of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_follows_adapters_and_steps_compiled(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, steps = adapt(adapt(build(family)), "second"), ids_of(1, 5), []
    run = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda self, *given: steps.append(1) or run(self, *given))

    def tokens() -> Tensor:
        steps.clear()
        options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        found: Tensor = model.generate(ids, **options)
        assert len(steps) == 8
        assert torch.equal(found, model.generate(ids, disable_compile=True, **options))
        return found

    second = tokens()
    model.set_adapter("first")
    first = tokens()
    model.disable_adapters()
    plain = tokens()
    model.enable_adapters()
    assert torch.equal(tokens(), first)
    assert len({tuple(row[0].tolist()) for row in (first, second, plain)}) == 3
