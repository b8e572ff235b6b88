"""Transformers' own tools over our models as they are: `Trainer` and `pipeline`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import gptrio
from gptrio.testing import assert_close
from tests.cases import first
from tests.parity.test_model_surface import CAUSAL
from tests.reference import model_pair, token_ids

accelerate = pytest.importorskip("accelerate", reason="Trainer needs it")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def trainer_for(model: Any, folder: Path, **options: Any) -> transformers.Trainer:
    """Updates over twelve rows without dropout, with a checkpoint after every second one."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)
    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids(12, 9)]
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **options}
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, seed=3, logging_steps=1, **settings
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


def losses(trainer: transformers.Trainer) -> torch.Tensor:
    return torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
@pytest.mark.parametrize("tied", first([True, False]))
def test_training_is_the_references(class_name: str, tied: bool, tmp_path: Path) -> None:
    pair = model_pair(class_name, tie_word_embeddings=tied)
    trainers, names = [], []
    for model, name in zip(pair, ("theirs", "ours"), strict=True):
        trainer = trainer_for(model, tmp_path / name)
        trainer.train()
        trainers.append(trainer)
        names.append(sorted(path.name for path in (tmp_path / name / "checkpoint-4").iterdir()))
    assert_close(losses(trainers[1]), losses(trainers[0]))
    for (name, one), other in zip(pair[1].named_parameters(), pair[0].parameters(), strict=True):
        if one.dim() == 2:  # Adam makes steps of the rounding that keys' biases have for a gradient
            assert_close(one, other, 1e-3, name)
    assert trainers[1].state.total_flos == trainers[0].state.total_flos > 0
    assert names[1] == names[0]
    folder = tmp_path / "ours" / "checkpoint-4"
    files = [load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("theirs", "ours")]
    assert sorted(files[1]) == sorted(files[0])
    for library in (gptrio, transformers):
        again = getattr(library, class_name).from_pretrained(folder)
        for name, tensor in pair[1].state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
def test_training_goes_on_from_a_checkpoint(class_name: str, tmp_path: Path) -> None:
    _, whole = model_pair(class_name)
    trainer_for(whole, tmp_path).train()
    _, resumed = model_pair(class_name)
    trainer = trainer_for(resumed, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    for (name, one), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert_close(one, other, 1e-6, name)


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
def test_the_best_checkpoint_is_loaded_at_the_end(class_name: str, tmp_path: Path) -> None:
    _, ours = model_pair(class_name)
    trainer = trainer_for(ours, tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    trainer.train()
    best = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["best_model_checkpoint"]
    held = load_file(Path(best) / "model.safetensors")
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in held.items())


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
@pytest.mark.parametrize("how", first(["get_peft_model", "add_adapter"]))
def test_adapters_are_trained_over_codes_of_four_bits(class_name: str, how: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    oracle, ours = model_pair(class_name, **({"n_embd": 64} if class_name.startswith("GPT2") else {"hidden_size": 64}))
    oracle.save_pretrained(tmp_path / "full")
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    runs, files = [], []
    for model in (oracle, ours):
        options = {"quantization_config": config, "dtype": torch.float32, "device_map": "cpu"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = type(model).from_pretrained(tmp_path / "full", **options)
            with pytest.raises(ValueError, match="purely quantized"):
                trainer_for(quantized, tmp_path)
            torch.manual_seed(4)
            adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2)
            if how == "add_adapter":
                quantized.add_adapter(adapter)
            else:
                quantized = peft.prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)
                quantized = peft.get_peft_model(quantized, adapter)
            folder = tmp_path / type(model).__module__.partition(".")[0]
            trainer = trainer_for(quantized, folder)
            trainer.train()
        runs.append(losses(trainer))
        files.append(sorted(path.name for path in (folder / "checkpoint-4").iterdir()))
    assert_close(runs[1], runs[0])
    assert files[1] == files[0] and "adapter_model.safetensors" in files[1]


@pytest.mark.parametrize("class_name", first(CAUSAL.values()))
@pytest.mark.parametrize("method", ["int8", "int4"])
def test_codes_of_our_own_are_not_trained(class_name: str, method: str, tmp_path: Path) -> None:
    _, ours = model_pair(class_name)
    ours.save_pretrained(tmp_path)
    quantized = type(ours).from_pretrained(tmp_path, load_in=method)
    assert not quantized.hf_quantizer.is_trainable
    assert quantized.hf_quantizer.quantization_config.quant_method == f"gptrio_{method}"
    with pytest.raises(ValueError, match="purely quantized"):
        trainer_for(quantized, tmp_path)
    trainer_for(quantized.dequantize(), tmp_path, max_steps=1).train()


def test_a_pipeline_continues_text() -> None:
    model = gptrio.AutoModelForCausalLM.from_pretrained("gptrio/stdlib-gpt2")
    tokenizer = gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2")
    theirs, their_tokenizer = gptrio.to_transformers(model), gptrio.to_transformers(tokenizer)
    texts = [
        transformers.pipeline("text-generation", model=one, tokenizer=other)(
            "import os\n", max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        for one, other in ((theirs, their_tokenizer), (model, their_tokenizer), (model, tokenizer))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0][0]["generated_text"]) > len("import os\n")


def test_a_pipeline_classifies_text() -> None:
    tokenizer = gptrio.to_transformers(gptrio.AutoTokenizer.from_pretrained("gptrio/stdlib-gpt2"))
    oracle, ours = model_pair("GPT2ForSequenceClassification", vocab_size=len(tokenizer), num_labels=3)
    scores = [
        transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)("import os", top_k=None)
        for model in (oracle, ours)
    ]
    for expected, actual in zip(*scores, strict=True):
        assert actual["label"] == expected["label"]
        assert abs(actual["score"] - expected["score"]) < 1e-5
