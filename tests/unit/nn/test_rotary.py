"""Rotary tables: in float32, where they are needed, and no part of what a model stores."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import gptrio
from gptrio.config.rotary import SCALINGS, RotarySettings
from gptrio.nn.rotary import RotaryEmbedding, rotate
from gptrio.testing import assert_close, tiny_config


def tables_of(rotary: RotaryEmbedding, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables as blocks get them, each (B or 1, 1, T, 1, R)."""
    cos, sin = rotary(x, positions)
    return cos[:, None, :, None], sin[:, None, :, None]


def test_pairs_turn_by_their_angle() -> None:
    tables = tables_of(RotaryEmbedding(RotarySettings(4, 100.0, 8)), torch.empty(0), torch.arange(6)[None])
    x = torch.randn(2, 3, 6, 2, 10)
    out = rotate(x, tables)
    assert torch.equal(out[..., 4:], x[..., 4:])
    for place in range(6):
        for pair in range(2):
            point = torch.complex(x[:, :, place, :, pair], x[:, :, place, :, pair + 2])
            turned = point * torch.polar(torch.tensor(1.0), torch.tensor(place * 100.0 ** (-pair / 2)))
            assert_close(
                torch.view_as_real(turned), torch.stack([out[:, :, place, :, pair], out[:, :, place, :, pair + 2]], -1)
            )


def test_scores_depend_on_distances_only() -> None:
    rotary = RotaryEmbedding(RotarySettings(8, 10_000.0, 2048))
    q, k = torch.randn(2, 1, 1, 5, 1, 8, dtype=torch.float64)
    scores = [
        (rotate(q, tables).squeeze(-2) @ rotate(k, tables).squeeze(-2).mT)
        for tables in (tables_of(rotary, q, torch.arange(start, start + 5)[None]) for start in (0, 700))
    ]
    assert_close(scores[1], scores[0], 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_are_computed_in_float32(dtype: torch.dtype) -> None:
    """In bfloat16 position 1000 would be 1000 or 1004, and its angle anything."""
    rotary = RotaryEmbedding(RotarySettings(8, 10_000.0, 2048)).to(dtype)
    positions = torch.arange(990, 1010)[None]
    low, high = (rotary(torch.empty(0, dtype=kind), positions) for kind in (dtype, torch.float32))
    assert low[0].dtype == dtype
    assert torch.equal(low[0], high[0].to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary(torch.empty(0), positions)[1], high[1])


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "longrope"])
def test_factor_one_changes_nothing(kind: str) -> None:
    scaling = {
        "rope_type": kind,
        "factor": 1.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0] * 4,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    stretched, plain = (RotaryEmbedding(RotarySettings(8, 500.0, 16, given)) for given in (scaling, {}))
    positions = torch.arange(40)[None]
    for one, other in zip(stretched(torch.empty(0), positions), plain(torch.empty(0), positions), strict=True):
        assert_close(one, other)


def test_longrope_without_a_factor_scales_nothing() -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    cos, _ = RotaryEmbedding(RotarySettings(8, 500.0, 16, scaling))(torch.empty(0), torch.arange(4)[None])
    assert torch.equal(cos[0, 0], torch.ones(8))


def test_every_kind_of_the_configuration_has_its_way() -> None:
    with pytest.raises(gptrio.ConfigError, match=", ".join(SCALINGS)):
        gptrio.GPTNeoXConfig(rope_scaling={"rope_type": "nonsense"})


def test_dynamic_needs_two_pairs() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(gptrio.ConfigError, match="more than one rotated pair"):
        tiny_config("gpt_neox", rope_scaling=scaling)
    assert tiny_config("gpt_neox", rope_scaling=scaling, rotary_pct=0.5)


@pytest.mark.parametrize("kind", ["default", "longrope"])
def test_frequencies_survive_new_storage(kind: str) -> None:
    scaling = {"rope_type": kind, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    settings, positions = RotarySettings(8, 500.0, 16, scaling), torch.arange(20)[None]
    expected = RotaryEmbedding(settings)(torch.empty(0), positions)
    with torch.device("meta"):
        built = RotaryEmbedding(settings)
    moved = RotaryEmbedding(settings).to("meta").to_empty(device="cpu")
    for rotary in (built.to_empty(device="cpu").half(), moved):
        found = rotary(torch.empty(0), positions)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@torch.no_grad()
def test_tables_are_no_part_of_a_model_on_disk() -> None:
    model = gptrio.GPTNeoXModel(tiny_config("gpt_neox")).eval()
    ids = torch.randint(0, 250, (1, 9))
    with torch.inference_mode():
        model(ids)
    assert not [name for name in model.state_dict() if "rotary" in name]
    assert [name for name, _ in model.named_buffers()] == ["rotary_emb.inv_freq"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(ids).last_hidden_state, model(ids).last_hidden_state)
    model.train()
    with torch.enable_grad():  # tables first made in inference mode do not stand in the way
        model(ids, use_cache=False).last_hidden_state.sum().backward()
