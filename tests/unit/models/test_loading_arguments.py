"""Every argument of Transformers' `from_pretrained`: taken, without effect, or refused with a way out."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrio import AutoModelForCausalLM, GenerationConfig, GPT2LMHeadModel, GPTNeoXForCausalLM
from gptrio.errors import OptionError, UnsupportedError
from gptrio.testing import tiny_config

HARMLESS: list[dict[str, Any]] = [
    {"from_tf": False, "from_flax": False},
    {"use_auth_token": None, "token": None, "proxies": None, "resume_download": True, "mirror": None},
    {"_fast_init": True, "_from_auto": True, "_from_pipeline": None, "_commit_hash": None},
    {"weights_only": True},
    {"weights_only": False},
    {"key_mapping": None},
    {"key_mapping": {}},
    {"tp_plan": None, "tp_size": None, "device_mesh": None, "distributed_config": None, "use_kernels": False},
    {"gguf_file": None, "adapter_kwargs": None, "adapter_name": "default", "generation_config": None},
    {"adapter_kwargs": {}},
    {"offload_state_dict": True, "offload_buffers": False, "offload_folder": None, "max_memory": None},
    {"low_cpu_mem_usage": True, "trust_remote_code": False, "code_revision": None},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2LMHeadModel, Path]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config()).eval()
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return model, folder


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    found, wanted = one.state_dict(), other.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("arguments", HARMLESS, ids=str)
@pytest.mark.parametrize("cls", [AutoModelForCausalLM, GPT2LMHeadModel])
def test_arguments_that_change_nothing(
    saved: tuple[GPT2LMHeadModel, Path], cls: Any, arguments: dict[str, Any]
) -> None:
    model, folder = saved
    loaded = cls.from_pretrained(folder, **arguments)
    assert same_weights(loaded, model)
    assert loaded.config.to_dict() == cls.from_pretrained(folder).config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "way_out"),
    [
        ({"from_tf": True}, "convert the TensorFlow weights"),
        ({"gguf_file": "x.gguf"}, "load the model's safetensors"),
        ({"tp_plan": "auto"}, "device_map spreads"),
        ({"tp_size": 2}, "device_map spreads"),
        ({"device_mesh": "a mesh"}, "device_map spreads"),
        ({"distributed_config": {"enable_expert_parallel": True}}, "device_map spreads"),
        ({"use_kernels": True}, "own kernels"),
        ({"proxies": {"http": "localhost:1"}}, "HTTPS_PROXY"),
    ],
    ids=str,
)
def test_arguments_that_ask_for_what_is_not_there(
    saved: tuple[GPT2LMHeadModel, Path], arguments: dict[str, Any], way_out: str
) -> None:
    name = next(iter(arguments))
    with pytest.raises(UnsupportedError, match=rf"from_pretrained does not support {name}=.*{way_out}"):
        AutoModelForCausalLM.from_pretrained(saved[1], **arguments)


def test_no_argument_of_transformers_is_unknown(saved: tuple[GPT2LMHeadModel, Path]) -> None:
    from transformers import PreTrainedModel

    function = PreTrainedModel.from_pretrained.__func__
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    popped = {
        ast.literal_eval(call.args[0])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "kwargs.pop"
        and isinstance(call.args[0], ast.Constant)
    }
    own = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    positional = {"config", "cache_dir", "ignore_mismatched_sizes", "force_download", "local_files_only", "token"}
    names = (popped | own | positional | {"revision", "use_safetensors", "weights_only"}) - {"state_dict"}
    assert {"from_tf", "key_mapping", "max_memory", "tp_plan", "weights_only"} <= names
    refused = []
    for name in sorted(names):
        try:
            GPT2LMHeadModel.from_pretrained(saved[1], **{name: None})
        except OptionError:
            refused.append(name)
    assert refused == []


def test_use_auth_token_is_an_older_name_of_token(saved: tuple[GPT2LMHeadModel, Path]) -> None:
    from gptrio.hub import HubOptions

    assert HubOptions.pop_from({"use_auth_token": "secret"}).token == "secret"
    with pytest.raises(OptionError, match="token and use_auth_token are both given"):
        GPT2LMHeadModel.from_pretrained(saved[1], token="a", use_auth_token="b")


def test_generation_config_replaces_that_of_the_files(saved: tuple[GPT2LMHeadModel, Path]) -> None:
    given = GenerationConfig(max_new_tokens=3, do_sample=False)
    loaded = GPT2LMHeadModel.from_pretrained(saved[1], generation_config=given)
    assert loaded.generation_config is not given
    assert loaded.generation_config.max_new_tokens == 3
    assert loaded.generate(torch.tensor([[1, 2]]), pad_token_id=0, eos_token_id=None).shape == (1, 5)
    import transformers

    loaded = GPT2LMHeadModel.from_pretrained(
        saved[1], generation_config=transformers.GenerationConfig(max_new_tokens=4)
    )
    assert loaded.generation_config.max_new_tokens == 4


MAPPINGS = [
    ({r"^model\.decoder\.": ""}, True),
    ({r"^model\.decoder\.(h\.\d+)": r"\1", r"^model\.decoder\.": "", r"h\.": "never."}, True),
    ({r"^model\.decoder\.": "transformer."}, False),  # 4.56.2 puts the prefix before such names once more
]


@pytest.mark.parametrize(("mapping", "is_known"), MAPPINGS, ids=["one", "first that is found", "with the prefix"])
def test_key_mapping_as_transformers_has_it(
    saved: tuple[GPT2LMHeadModel, Path], tmp_path: Path, mapping: dict[str, str], is_known: bool
) -> None:
    import transformers
    from safetensors.torch import save_file

    model, _ = saved
    tensors = {name.replace("transformer.", "model.decoder."): t for name, t in model.state_dict().items()}
    tensors.pop("lm_head.weight")
    model.config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path, key_mapping=mapping)
    assert same_weights(loaded, model)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, key_mapping=mapping).state_dict()
    assert is_known == all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.state_dict().items())


def test_key_mapping_errors(saved: tuple[GPT2LMHeadModel, Path]) -> None:
    with pytest.raises(OptionError, match="is not a regular expression"):
        GPT2LMHeadModel.from_pretrained(saved[1], key_mapping={"(": ""})
    with pytest.raises(OptionError, match="the same name"):
        GPT2LMHeadModel.from_pretrained(saved[1], key_mapping={r"h\.\d": "h.0"})


def test_key_mapping_finds_the_statistics_of_codes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    full = tmp_path / "full"
    GPTNeoXForCausalLM(tiny_config("gpt_neox", hidden_size=64, intermediate_size=128)).save_pretrained(full)
    small = GPTNeoXForCausalLM.from_pretrained(full, load_in="int8")
    small.config.save_pretrained(tmp_path)
    save_file({f"old.{k}": v.contiguous() for k, v in small.state_dict().items()}, tmp_path / "model.safetensors")
    again = GPTNeoXForCausalLM.from_pretrained(tmp_path, key_mapping={r"^old\.": ""})
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).logits, small(ids).logits)


@pytest.mark.parametrize("cls", [AutoModelForCausalLM, GPT2LMHeadModel])
def test_a_configuration_may_be_a_dictionary(saved: tuple[GPT2LMHeadModel, Path], cls: Any) -> None:
    model, folder = saved
    loaded = cls.from_pretrained(folder, config={**model.config.to_dict(), "layer_norm_epsilon": 0.5})
    assert loaded.config.layer_norm_epsilon == 0.5 and same_weights(loaded, model)
    with pytest.raises(UnsupportedError, match="model_type='bert'"):
        cls.from_pretrained(folder, config={"model_type": "bert"})
