"""Checkpoints as they are published and as both libraries write them; and two trained models with their goldens."""

from __future__ import annotations

import json
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

import gptrio
from gptrio.checkpoint.write import save_state_dict
from gptrio.testing import assert_close
from tests.cases import first
from tests.reference import model_pair, task_inputs, token_ids
from tests.sizes import SIZES

CLASSES = [
    *("GPT2" + name for name in ("Model", "LMHeadModel", "DoubleHeadsModel")),
    *("GPT2For" + name for name in ("SequenceClassification", "TokenClassification", "QuestionAnswering")),
    *(family + name for family in ("GPTNeo", "GPTNeoX") for name in ("Model", "ForCausalLM")),
    *(
        f"{family}For{name}"
        for family in ("GPTNeo", "GPTNeoX")
        for name in ("SequenceClassification", "TokenClassification", "QuestionAnswering")
    ),
]
STORED = [{}, {"safe_serialization": False}, {"max_shard_size": "20KB"}]
STORED.append({"safe_serialization": False, "max_shard_size": "20KB"})


def assert_equal_results(one: Any, other: Any, class_name: str) -> None:
    inputs = task_inputs(class_name)
    expected, actual = one.eval()(**inputs), other.eval()(**inputs)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert_close(actual[name], value, name=name)


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("options", STORED, ids=str)
def test_models_saved_here_open_there(class_name: str, options: dict[str, Any], tmp_path: Path) -> None:
    _, ours = model_pair(class_name, num_labels=4, pad_token_id=60)
    ours.save_pretrained(tmp_path, **options)
    theirs, info = getattr(transformers, class_name).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    assert_equal_results(theirs, ours, class_name)


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("options", STORED, ids=str)
def test_models_saved_there_open_here(class_name: str, options: dict[str, Any], tmp_path: Path) -> None:
    oracle, _ = model_pair(class_name, num_labels=4, pad_token_id=60)
    oracle.save_pretrained(tmp_path, **options)
    ours, info = getattr(gptrio, class_name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal_results(oracle, ours, class_name)


# layouts of published GPT-2 files -------------------------------------------------------------------------------------


def masks(config: Any, prefix: str, with_value: bool) -> dict[str, Tensor]:
    """Causal masks as they lie among published weights."""
    size = config.n_positions
    buffers = {}
    for i in range(config.n_layer):
        buffers[f"{prefix}h.{i}.attn.bias"] = torch.ones(size, size).tril().view(1, 1, size, size)
        if with_value:
            buffers[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return buffers


def layouts(oracle: Any) -> dict[str, dict[str, Tensor]]:
    """The weights of a language model under the names of several eras."""
    state = {name: tensor for name, tensor in oracle.state_dict().items() if name != "lm_head.weight"}
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    head = {"lm_head.weight": oracle.lm_head.weight.detach().clone()}
    norms = {".weight": ".gamma", ".bias": ".beta"}
    old = {
        name.replace(".weight", norms[".weight"]).replace(".bias", norms[".bias"]) if ".ln_" in name else name: tensor
        for name, tensor in state.items()
    }
    return {
        "released: no prefix, masks, no head": {**bare, **masks(oracle.config, "", False)},
        "distilled: prefix, masks, head": {**state, **masks(oracle.config, "transformer.", True), **head},
        "head beside bare names": {**bare, **head},
        "head only, no token table": {
            **{name: t for name, t in state.items() if name != "transformer.wte.weight"},
            **head,
        },
        "gamma and beta": old,
    }


OLD_KEYS = {
    "n_ctx": 32,
    "gradient_checkpointing": False,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "torch_dtype": "float32",
    "predict_special_tokens": True,
    "output_past": True,
    "transformers_version": "2.1.0",
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
}


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor], how: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    if how == "plain torch file":  # as torch.save wrote it, shared tensors and all
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_state_dict(state, folder, "20KB" if "shards" in how else "5GB", "safetensors" in how)


@pytest.mark.parametrize("how", ["safetensors", "plain torch file", "safetensors shards", "torch shards"])
@pytest.mark.parametrize("layout", layouts(transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES["GPT2"]))))
def test_published_layouts(layout: str, how: str, tmp_path: Path) -> None:
    oracle, _ = model_pair("GPT2LMHeadModel")
    write(tmp_path, {**SIZES["GPT2"], **OLD_KEYS}, layouts(oracle)[layout], how)
    ids = token_ids()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, info = gptrio.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert ours.lm_head.weight is ours.transformer.wte.weight
    assert_close(ours(ids).logits, oracle(ids).logits)
    auto = gptrio.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(auto(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("layout", ["released: no prefix, masks, no head", "gamma and beta"])
def test_published_layouts_in_the_backbone(layout: str, tmp_path: Path) -> None:
    oracle, _ = model_pair("GPT2LMHeadModel")
    write(tmp_path, SIZES["GPT2"], layouts(oracle)[layout], "safetensors")
    ours, info = gptrio.GPT2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ids = token_ids()
    assert_close(ours(ids).last_hidden_state, oracle.transformer(ids).last_hidden_state)


def test_keys_of_other_eras_stay_in_the_configuration(tmp_path: Path) -> None:
    oracle, _ = model_pair("GPT2LMHeadModel")
    write(tmp_path, {**SIZES["GPT2"], **OLD_KEYS}, layouts(oracle)["gamma and beta"], "safetensors")
    gptrio.GPT2LMHeadModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for key in ("n_ctx", "gradient_checkpointing", "task_specific_params", "predict_special_tokens", "output_past"):
        assert written[key] == OLD_KEYS[key]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again").eval()
    ids = token_ids()
    assert_close(theirs(ids).logits, oracle(ids).logits)


# trained models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def goldens(reference_dir: Path) -> dict[str, Any]:
    """Published facts of the two trained checkpoints."""
    content: dict[str, Any] = json.loads((reference_dir / "checkpoints" / "computed_goldens.json").read_text())
    return content


def assert_published(actual: Tensor, published: list[float]) -> None:
    """Five decimals are given."""
    assert (actual - torch.tensor(published)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("back_end", first(["sdpa", "eager"]))
def test_adder(reference_dir: Path, goldens: dict[str, Any], back_end: str) -> None:
    golden = goldens["minigpt_adder"]
    folder = reference_dir / "checkpoints" / "minigpt_adder"
    model = gptrio.GPT2LMHeadModel.from_pretrained(folder, attn_implementation=back_end)
    assert model.num_parameters() == golden["n_parameters"]
    for example in golden["examples"]:
        ids = torch.tensor([example["input_ids"]])
        assert_published(model(ids).logits[0, -1], example["logits_last_position"])
    digits = torch.tensor([[a // 10, a % 10, b // 10, b % 10] for a, b in product(range(100), repeat=2)])
    sums = digits @ torch.tensor([10, 1, 10, 1])
    answers = torch.stack([sums % 10, sums // 10 % 10, sums // 100], dim=1)
    ids, past = digits, None
    for step in range(3):
        out = model(ids, past_key_values=past)
        ids, past = out.logits[:, -1:].argmax(-1), out.past_key_values
        assert torch.equal(ids[:, 0], answers[:, step])
    logits = model(torch.cat([digits, answers[:, :2]], dim=1)).logits[:, 3:]
    loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
    assert loss.item() == pytest.approx(golden["mean_cross_entropy_of_answer_digits_over_all_10000"], abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_character_model(reference_dir: Path, goldens: dict[str, Any], back_end: str) -> None:
    golden = goldens["slm4096_char"]
    folder = reference_dir / "checkpoints" / "slm4096_char"
    model = gptrio.GPT2LMHeadModel.from_pretrained(folder, attn_implementation=back_end)
    assert model.num_parameters() == golden["n_parameters"]
    ids = torch.tensor([golden["prompt_ids"]])
    logits = model(ids).logits[0]
    assert_published(logits[-1], golden["logits_last_position"])
    assert_published(logits[0], golden["logits_first_position"])
    vocabulary = json.loads((folder / "vocab.json").read_text())
    text = (folder / "corpus.txt").read_text()
    corpus = torch.tensor([vocabulary[character] for character in text])
    windows = corpus.unfold(0, 129, 16)
    assert len(windows) == golden["windows"]["count"]
    loss = F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())
    assert loss.item() == pytest.approx(golden["mean_cross_entropy"], abs=1e-5)


def test_character_model_continues_its_corpus(reference_dir: Path, goldens: dict[str, Any]) -> None:
    golden = goldens["slm4096_char"]
    model = gptrio.AutoModelForCausalLM.from_pretrained(reference_dir / "checkpoints" / "slm4096_char")
    ids = model.generate(torch.tensor([golden["prompt_ids"]]), max_new_tokens=100, do_sample=False)
    assert ids[0].tolist() == golden["greedy_100_ids"]


@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "GPTNeoForCausalLM", "GPTNeoXForCausalLM"])
def test_torch_files_name_a_shared_tensor_by_all_its_names(class_name: str, size: str, tmp_path: Path) -> None:
    oracle, ours = model_pair(class_name)
    found = []
    for model, folder in ((oracle, tmp_path / "theirs"), (ours, tmp_path / "ours")):
        model.save_pretrained(folder, safe_serialization=False, max_shard_size=size)
        paths = sorted(folder.glob("pytorch_model*.bin"))
        parts = [torch.load(path, weights_only=True) for path in paths]
        tensors = {name: tensor for part in parts for name, tensor in part.items()}
        assert sum(path.stat().st_size for path in paths) < 1.5 * model.get_memory_footprint()  # each is there once
        if size == "20KB":
            index = json.loads((folder / "pytorch_model.bin.index.json").read_text(encoding="utf-8"))
            holders = {name: path.name for path, part in zip(paths, parts, strict=True) for name in part}
            assert index["weight_map"] == holders
        found.append({name: tensor.tolist() for name, tensor in sorted(tensors.items())})
    assert found[1] == found[0]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_a_function_of_ones_own_writes_torch_files(safe: bool, size: str, tmp_path: Path) -> None:
    written: dict[str, list[str]] = {"theirs": [], "ours": []}
    for model, name in zip(model_pair("GPT2LMHeadModel"), ("theirs", "ours"), strict=True):

        def save(tensors: dict[str, torch.Tensor], path: str, names: list[str] = written[name]) -> None:
            names.extend(tensors)
            torch.save({key: tensor + 1 for key, tensor in tensors.items()}, path)

        model.save_pretrained(tmp_path / name, save_function=save, safe_serialization=safe, max_shard_size=size)
        loaded = gptrio.GPT2LMHeadModel.from_pretrained(tmp_path / name)
        assert_close(loaded.transformer.wpe.weight, model.transformer.wpe.weight + (0 if safe else 1))
    assert sorted(written["ours"]) == sorted(written["theirs"])
    assert bool(written["ours"]) == (not safe)
    if not safe:
        with pytest.raises(gptrio.CheckpointError, match="save_function wrote no file at"):
            model.save_pretrained(tmp_path, save_function=lambda *_: None, safe_serialization=False)
