"""Weight files against Transformers: what one library writes, the other reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from gptrio.checkpoint.keys import KeyRules
from gptrio.checkpoint.load import load_into, open_checkpoint
from gptrio.checkpoint.write import save_state_dict

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50}
FAMILIES = {
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config(**SIZES, n_positions=16)),
    "gpt_neo": (
        transformers.GPTNeoForCausalLM,
        transformers.GPTNeoConfig(
            vocab_size=50, hidden_size=16, num_heads=2, num_layers=2, attention_types=[[["global", "local"], 1]]
        ),
    ),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig(**SIZES, intermediate_size=32)),
}
TIED = {"lm_head.weight": "transformer.wte.weight"}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    model_class, config = FAMILIES[request.param]
    torch.manual_seed(0)
    return model_class(config).eval()


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", "4KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_their_files_load_here(
    model: transformers.PreTrainedModel, tmp_path: Path, safe: bool, size: str, variant: str | None
) -> None:
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size, variant=variant)
    with torch.device("meta"):
        empty = type(model)(model.config)
    tied = TIED if model.config.tie_word_embeddings else {}
    reader = open_checkpoint(tmp_path, variant=variant)
    report = load_into(empty, reader, KeyRules(model.base_model_prefix, tied=tied))
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    empty.tie_weights()
    loaded = empty.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["5GB", "4KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_our_files_load_there(
    model: transformers.PreTrainedModel, tmp_path: Path, safe: bool, size: str, variant: str | None
) -> None:
    model.config.save_pretrained(tmp_path)
    save_state_dict(model.state_dict(), tmp_path, size, safe, variant)
    loaded, info = type(model).from_pretrained(tmp_path, variant=variant, output_loading_info=True)
    assert not any(info.values())
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    if size == "5GB":  # how tensors are dealt out to shards is each library's own choice
        model.save_pretrained(tmp_path / "theirs", safe_serialization=safe, variant=variant)
        names = {path.name for path in (tmp_path / "theirs").iterdir()} - {"generation_config.json"}
        assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names


def test_base_and_head_classes_load_from_each_other(model: transformers.PreTrainedModel, tmp_path: Path) -> None:
    prefix = model.base_model_prefix
    model.base_model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "head")
    with torch.device("meta"):
        head, base = type(model)(model.config), type(model.base_model)(model.config)
    tied = TIED if model.config.tie_word_embeddings else {}
    report = load_into(head, open_checkpoint(tmp_path / "base"), KeyRules(prefix, tied=tied))
    assert (report.missing, report.unexpected) == ([] if tied else ["embed_out.weight"], [])
    report = load_into(base, open_checkpoint(tmp_path / "head"), KeyRules(prefix))
    assert (report.missing, report.unexpected) == ([], [] if tied else ["embed_out.weight"])
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(base.state_dict()[name], tensor)
        assert torch.equal(head.base_model.state_dict()[name], tensor)
