"""bitsandbytes layers beside the reference's: same codes, same logits, files that each can read."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import pytest
import torch

from gptrio import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
from gptrio.checkpoint.keys import KeyRules
from gptrio.checkpoint.load import load_into
from gptrio.errors import CheckpointFormatError, SizeMismatchError
from gptrio.quantization import BitsAndBytesConfig, get_quantizer, quantize

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("accelerate", reason="the reference needs accelerate to quantize")

METHODS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4 stored as bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
    },
    "int8": {"load_in_8bit": True},
}
SHAPE = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("full")
    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(path)
    return path


@functools.cache
def reference():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    return transformers


def reference_model(folder: Path, method: str | None):
    options = {} if method is None else {"quantization_config": reference().BitsAndBytesConfig(**METHODS[method])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference().GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options)


def ours(source, method: str) -> GPT2LMHeadModel:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    quantizer = get_quantizer(BitsAndBytesConfig(**METHODS[method]))
    quantizer.prepare(model)
    report = load_into(
        model,
        source,
        KeyRules(tied=model.tied_weights(), ignore_unexpected=quantizer.ignore_unexpected),
        dtype=torch.float32,
        on_tensor=functools.partial(quantizer.load_tensor, model),
    )
    assert not (report.missing or report.unexpected)
    model.tie_weights()
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(torch.arange(24).view(2, 12)).logits


@pytest.mark.parametrize("method", list(METHODS))
def test_logits_equal_the_references(folder: Path, method: str) -> None:
    from gptrio.checkpoint.load import open_checkpoint

    model = ours(open_checkpoint(folder), method)
    assert model.is_loaded_in_4bit == (method != "int8") and model.is_quantized
    torch.testing.assert_close(logits(model), logits(reference_model(folder, method)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_built_model_quantizes_alike(folder: Path, method: str) -> None:
    from gptrio.checkpoint.load import open_checkpoint

    model = GPT2LMHeadModel.from_pretrained(folder)
    quantize(model, BitsAndBytesConfig(**METHODS[method]))
    assert torch.equal(logits(model), logits(ours(open_checkpoint(folder), method)))


@pytest.mark.parametrize("method", list(METHODS))
def test_reference_files_load_as_they_are(folder: Path, method: str, tmp_path: Path) -> None:
    from gptrio.checkpoint.load import open_checkpoint

    other = reference_model(folder, method)
    other.save_pretrained(tmp_path)
    model = ours(open_checkpoint(tmp_path), method)
    torch.testing.assert_close(logits(model), logits(other), atol=1e-5, rtol=1e-5)
    assert set(model.state_dict()) - {"lm_head.weight"} == set(other.state_dict()) - {"lm_head.weight"}


@pytest.mark.parametrize("method", ["nf4 double", "int8"])
def test_our_state_dict_loads_as_it_is(folder: Path, method: str) -> None:
    from gptrio.checkpoint.load import open_checkpoint

    first = ours(open_checkpoint(folder), method)
    assert torch.equal(logits(ours(first.state_dict(), method)), logits(first))


def test_heads_keep_their_type_unless_named() -> None:
    model = GPT2ForSequenceClassification(GPT2Config(**SHAPE, num_labels=3, pad_token_id=0))
    quantize(model, BitsAndBytesConfig(load_in_4bit=True))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["score"] == "Linear" and kinds["transformer.h.1.mlp.c_fc"] == "Linear4bit"
    model = GPT2ForSequenceClassification(GPT2Config(**SHAPE, num_labels=3, pad_token_id=0))
    quantize(model, BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["c_fc", "score"]))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["transformer.h.1.mlp.c_fc"] == "Conv1D" and kinds["transformer.h.1.mlp.c_proj"] == "Linear4bit"


def test_codes_without_scales_are_refused(folder: Path) -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    quantizer = get_quantizer(BitsAndBytesConfig(load_in_4bit=True))
    quantizer.prepare(model)
    with pytest.raises(CheckpointFormatError, match="scales"):
        quantizer.load_tensor(model, "transformer.h.0.mlp.c_fc.weight", torch.zeros(8192, 1, dtype=torch.uint8))
    with pytest.raises(SizeMismatchError, match=r"\(256, 32\)"):
        quantizer.load_tensor(model, "transformer.h.0.mlp.c_fc.weight", torch.zeros(32, 256))


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_adapters_of_peft_take_a_step(folder: Path, method: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = GPT2LMHeadModel.from_pretrained(folder)
    quantize(model, BitsAndBytesConfig(**METHODS[method]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM")
        )
        ids = torch.arange(24).view(2, 12)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
        losses = []
        for _ in range(4):
            loss = adapted(input_ids=ids, labels=ids).loss
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["nf4", "int8"])
@torch.no_grad()
def test_casts_are_refused_where_the_reference_refuses_them(folder: Path, method: str) -> None:
    models = [reference_model(folder, method), GPT2LMHeadModel.from_pretrained(folder)]
    quantize(models[1], BitsAndBytesConfig(**METHODS[method]))
    for model in models:
        for cast, given in ((model.half, {}), (model.float, {}), (model.to, {"dtype": torch.float16})):
            with pytest.raises(ValueError, match="cast"):
                cast(**given)
        with pytest.raises(ValueError, match="cast"):
            model.to("cpu", torch.float64)
        before = model.state_dict()["transformer.h.0.mlp.c_fc.weight"].clone()
        assert model.bfloat16().dtype == torch.bfloat16  # of all that is not quantized
        assert torch.equal(model.state_dict()["transformer.h.0.mlp.c_fc.weight"], before)
    torch.testing.assert_close(logits(models[1]), logits(models[0]), atol=0.02, rtol=0.02)
    plain = models[1].dequantize().half()
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float16}


def test_one_method_is_chosen_at_a_time() -> None:
    for library in (reference().BitsAndBytesConfig, BitsAndBytesConfig):
        config = library(load_in_4bit=True)
        with pytest.raises(ValueError, match="both True"):
            config.load_in_8bit = True
        for name in ("load_in_4bit", "load_in_8bit"):
            with pytest.raises(TypeError, match=name):
                setattr(config, name, 1)
        config.load_in_4bit = False
        config.load_in_8bit = True
        assert (config.quantization_method(), config.to_dict()["load_in_4bit"]) == ("llm_int8", False)
        with pytest.raises(ValueError, match="both True"):
            config.load_in_4bit = True
    wrong = [
        {"load_in_4bit": 1},
        {"llm_int8_threshold": "6"},
        {"llm_int8_skip_modules": "h"},
        {"bnb_4bit_quant_type": 4},
    ]
    for given in wrong:
        for library in (reference().BitsAndBytesConfig, BitsAndBytesConfig):
            with pytest.raises(TypeError, match=next(iter(given))):
                library(**given)
