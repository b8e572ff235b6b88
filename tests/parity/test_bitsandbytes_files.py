"""Checkpoints that hold bitsandbytes codes: written here and read by the reference, and the other way."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import gptrio

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("accelerate", reason="the reference needs accelerate to quantize")

METHODS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}
FAMILIES = {
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 64,
        },
    ),
}
IDS = torch.arange(24).view(2, 12)


@functools.cache
def reference() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    return transformers


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a family, in full precision."""
    name, options = FAMILIES[request.param]
    config = getattr(gptrio, name)(vocab_size=96, bos_token_id=0, eos_token_id=0, **options)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    gptrio.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def load(library: ModuleType, folder: Path, method: str | None = None) -> Any:
    options: dict[str, Any] = {"dtype": torch.float32}
    if method is not None:
        options["quantization_config"] = library.BitsAndBytesConfig(**METHODS[method])
    if library is not gptrio:
        options["device_map"] = "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(IDS).logits


def assert_close(model: Any, other: Any, method: str) -> None:
    """int8 rounds activations too, so that a difference in the last bit may become one of a step."""
    bound = 5e-3 if method == "int8" else 1e-5
    torch.testing.assert_close(logits(model), logits(other), atol=bound, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_reads_what_is_saved_here(folder: Path, method: str, tmp_path: Path) -> None:
    model = load(gptrio, folder, method)
    model.save_pretrained(tmp_path)
    other = load(reference(), tmp_path)
    assert other.is_quantized
    assert_close(other, model, method)


@pytest.mark.parametrize("method", METHODS)
def test_what_the_reference_saves_is_read_here(folder: Path, method: str, tmp_path: Path) -> None:
    other = load(reference(), folder, method)
    other.save_pretrained(tmp_path)
    model = load(gptrio, tmp_path)
    assert model.is_quantized
    assert_close(model, other, method)


@pytest.mark.parametrize("method", METHODS)
def test_files_survive_a_round_trip_through_both(folder: Path, method: str, tmp_path: Path) -> None:
    first = load(gptrio, folder, method)
    first.save_pretrained(tmp_path / "ours")
    load(reference(), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load(gptrio, tmp_path / "theirs")
    assert torch.equal(logits(again), logits(first))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_has_run_is_saved_as_well(folder: Path, method: str, tmp_path: Path) -> None:
    """On processors with bfloat16 units bitsandbytes rounds its scales to bfloat16 when it runs."""
    model = load(gptrio, folder, method)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(model), expected, atol=0.01, rtol=0.01)
    for library in (gptrio, reference()):
        torch.testing.assert_close(logits(load(library, tmp_path)), expected, atol=0.01, rtol=0.01)


def test_sizes_that_bitsandbytes_cannot_pack_still_run(tmp_path: Path) -> None:
    config = gptrio.GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    gptrio.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    expected = logits(load(gptrio, tmp_path))
    for method in METHODS:
        assert 0 < (logits(load(gptrio, tmp_path, method)) - expected).norm() / expected.norm() < 0.3


@pytest.mark.parametrize("method", ["nf4", "nf4 double", "int8"])
def test_adapters_take_a_step_over_a_checkpoint_of_codes(folder: Path, method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    load(gptrio, folder, method).save_pretrained(tmp_path)
    base = load(gptrio, tmp_path)
    targets = ["c_attn", "c_fc", "q_proj", "v_proj", "query_key_value", "dense_h_to_4h"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = peft.prepare_model_for_kbit_training(base)
        model = peft.get_peft_model(prepared, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        losses = []
        for _ in range(4):
            loss = model(input_ids=IDS, labels=IDS).loss
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
