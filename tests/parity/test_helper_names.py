"""Helpers that scripts import from the reference's modules: the same names at the same paths, with the same results."""

from __future__ import annotations

import copy
import importlib
import inspect

import pytest
import torch
import transformers
from torch import nn

import gptrio
from gptrio.testing import tiny_config

LIBRARIES = (gptrio, transformers)
ACTIVATIONS = "NewGELUActivation GELUActivation PytorchGELUTanh FastGELUActivation QuickGELUActivation"
PLACES = {
    "activations": f"{ACTIVATIONS} AccurateGELUActivation ACT2CLS ACT2FN get_activation ClassInstantier gelu silu",
    "models.gpt_neox.modeling_gpt_neox": "rotate_half apply_rotary_pos_emb",
    "modeling_rope_utils": "ROPE_INIT_FUNCTIONS",
    "modeling_utils": "no_init_weights load_state_dict load_sharded_checkpoint",
    "pytorch_utils": "prune_linear_layer prune_conv1d_layer prune_layer find_pruneable_heads_and_indices",
    "utils": "cached_file",
    "utils.hub": "cached_file",
}


def both(path, name):
    return [getattr(importlib.import_module(f"{library.__name__}.{path}"), name) for library in LIBRARIES]


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in PLACES.items() for name in names.split()])
def test_a_helper_has_the_reference_s_arguments(path, name):
    ours, theirs = both(path, name)
    if inspect.isfunction(theirs) and name not in ("get_activation", "cached_file"):
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert callable(ours) == callable(theirs)


@pytest.mark.parametrize("name", ACTIVATIONS.split())
def test_activation_classes_compute_the_reference_s_numbers(name):
    ours, theirs = (made() for made in both("activations", name))
    x = torch.linspace(-6, 6, 97)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert repr(ours) == f"{name}()"


def test_models_hold_the_activation_classes_of_the_reference():
    model = gptrio.GPT2Model(tiny_config("gpt2"))
    theirs = transformers.GPT2Model(transformers.GPT2Config(**model.config.to_dict()))
    assert type(model.h[0].mlp.act).__name__ == type(theirs.h[0].mlp.act).__name__


def test_a_table_of_activations_takes_classes_with_arguments():
    for made in both("activations", "ClassInstantier"):
        table = made({"leaky": (nn.LeakyReLU, {"negative_slope": 0.5}), "tanh": nn.Tanh})
        assert (table["leaky"].negative_slope, type(table["tanh"])) == (0.5, nn.Tanh)


@pytest.mark.parametrize(("width", "axis"), [(8, 1), (4, 2)])
def test_rotation_equals_the_reference_s(width, axis):
    q, k, cos, sin = (
        torch.randn(2, 3, 3, 8),
        torch.randn(2, 3, 3, 8),
        torch.randn(2, 3, width),
        torch.randn(2, 3, width),
    )
    (our_half, their_half), (ours, theirs) = (
        both("models.gpt_neox.modeling_gpt_neox", name) for name in ("rotate_half", "apply_rotary_pos_emb")
    )
    torch.testing.assert_close(our_half(q), their_half(q), rtol=0, atol=0)
    torch.testing.assert_close(ours(q, k, cos, sin, None, axis), theirs(q, k, cos, sin, None, axis))


SCALINGS = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {"factor": 2.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]},
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("length", [None, 100])
def test_frequencies_equal_the_reference_s(kind, length):
    ours, theirs = both("modeling_rope_utils", "ROPE_INIT_FUNCTIONS")
    settings = {"hidden_size": 32, "num_attention_heads": 2, "rotary_pct": 0.25, "max_position_embeddings": 64}
    scaling = {"rope_type": kind, **SCALINGS[kind]} if kind != "default" else None
    configs = [library.GPTNeoXConfig(**settings, rope_scaling=copy.deepcopy(scaling)) for library in LIBRARIES]
    device = torch.device("cpu")
    for seq_len in (length, length and torch.tensor(length)):
        found, expected = ours[kind](configs[0], device, seq_len), theirs[kind](configs[1], device, seq_len)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
def test_pruned_layers_equal_the_reference_s(kind, dim):
    index = torch.tensor([0, 2, 3])
    layers = [library.pytorch_utils.Conv1D(4, 5) for library in LIBRARIES]
    if kind != "conv1d":
        layers = [nn.Linear(5, 4, bias=kind == "linear") for _ in LIBRARIES]
    layers[1].load_state_dict(layers[0].state_dict())
    ours, theirs = (
        prune(layer, index, dim) for prune, layer in zip(both("pytorch_utils", "prune_layer"), layers, strict=True)
    )
    x = torch.randn(2, 3 if dim == (0 if kind == "conv1d" else 1) else 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert all(parameter.requires_grad for parameter in ours.parameters())
    assert layers[0].weight.shape == layers[1].weight.shape


def test_layers_of_other_classes_are_not_pruned():
    for prune in both("pytorch_utils", "prune_layer"):
        with pytest.raises(ValueError, match="Embedding"):
            prune(nn.Embedding(2, 2), torch.tensor([0]))


@pytest.mark.parametrize(("heads", "gone"), [([0, 3], set()), ([1, 2, 4], {2, 0}), ([], {1})])
def test_heads_to_prune_and_their_features_equal_the_reference_s(heads, gone):
    (ours, index), (theirs, expected) = (
        find(heads, 5 - len(gone), 3, gone) for find in both("pytorch_utils", "find_pruneable_heads_and_indices")
    )
    assert ours == theirs
    assert index.tolist() == expected.tolist()


def test_no_weights_are_drawn_in_the_block():
    config = tiny_config("gpt2")
    before = torch.get_rng_state()
    with gptrio.modeling_utils.no_init_weights():
        model, layer = gptrio.GPT2LMHeadModel(config), nn.Linear(2, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert layer.weight.shape == (2, 2)
    drawn = gptrio.GPT2LMHeadModel(config)
    model.load_state_dict(drawn.state_dict())
    assert not torch.equal(before, torch.get_rng_state())
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model.eval()(ids).logits, drawn.eval()(ids).logits, rtol=0, atol=0)
    model.init_weights()  # as nothing was drawn before, everything is now
    assert not torch.equal(model.transformer.wte.weight, drawn.transformer.wte.weight)


@pytest.mark.parametrize("is_safe", [True, False])
def test_files_and_shards_are_read_as_by_the_reference(tmp_path, is_safe):
    model = gptrio.GPTNeoXForCausalLM(tiny_config("gpt_neox"))
    model.save_pretrained(tmp_path, max_shard_size="20KB", safe_serialization=is_safe)
    files = sorted(tmp_path.glob("*.safetensors" if is_safe else "*.bin"))
    assert len(files) > 1
    for place in ("cpu", "meta"):
        ours, theirs = (load(str(files[0]), map_location=place) for load in both("modeling_utils", "load_state_dict"))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert (tensor.device.type, tensor.dtype, tensor.shape) == (place, theirs[key].dtype, theirs[key].shape)
            assert place == "meta" or torch.equal(tensor, theirs[key])
    for load in both("modeling_utils", "load_sharded_checkpoint"):
        other = gptrio.GPTNeoXForCausalLM(model.config)
        assert load(other, str(tmp_path), strict=True, prefer_safe=True) == ([], [])
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
        with pytest.raises(RuntimeError, match=r"embed_out\.weight"):
            load(other.gpt_neox, str(tmp_path))
        assert "embed_out.weight" in load(other.gpt_neox, str(tmp_path), strict=False).unexpected_keys


def test_the_path_of_a_file_is_the_reference_s(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("here")
    for find in both("utils.hub", "cached_file"):
        assert find(str(tmp_path), "notes.txt", subfolder="sub") == str(tmp_path / "sub" / "notes.txt")
        assert find(tmp_path, "absent.txt", _raise_exceptions_for_missing_entries=False) is None
        with pytest.raises(OSError, match=r"absent\.txt"):
            find(str(tmp_path), "absent.txt")
    with pytest.raises(gptrio.UnsupportedError, match="dataset"):
        gptrio.utils.cached_file("a/b", "c", repo_type="dataset")
