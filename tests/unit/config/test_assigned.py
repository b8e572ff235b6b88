"""Fields assigned after construction: normalised and checked like those given to the constructor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gptrio
from gptrio.errors import ConfigError

ROPE = {"type": "linear", "factor": 2.0}


def neox(**kwargs: Any) -> gptrio.GPTNeoXConfig:
    sizes = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return gptrio.GPTNeoXConfig(**sizes, intermediate_size=16, rotary_pct=1.0, **kwargs)


def test_assigned_rope_scaling_is_the_given_one_in_configuration_and_logits() -> None:
    given, assigned, plain = neox(rope_scaling=ROPE), neox(), neox()
    assigned.rope_scaling = ROPE
    assert assigned == given
    assert assigned.rope_scaling == {"type": "linear", "factor": 2.0, "rope_type": "linear"}
    logits = []
    for config in (given, assigned, plain):
        torch.manual_seed(0)
        model = gptrio.GPTNeoXForCausalLM(config).eval()
        logits.append(model(torch.arange(8)[None]).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (neox(), "rope_scaling", {"type": "spiral", "factor": 2.0}),
        (neox(), "rope_scaling", {"type": "linear"}),
        (neox(), "rope_scaling", "linear"),
        (neox(), "hidden_size", "16"),
        (neox(), "rope_theta", -1),
        (neox(), "vocab_size", 2**62),
        (gptrio.GPT2Config(), "attn_pdrop", 2.0),
        (gptrio.GPT2Config(), "num_hidden_layers", -1),
        (gptrio.GPT2Config(), "problem_type", "guessing"),
        (gptrio.GPT2Config(), "torch_dtype", "float17"),
        (gptrio.GPT2Config(), "id2label", 3),
        (gptrio.GPTNeoConfig(), "attention_types", [[["sideways"], 24]]),
        (gptrio.GPTNeoConfig(), "attention_types", [[["global"], 10**12]]),
    ],
)
def test_impossible_assignments_are_refused_and_change_nothing(config: Any, name: str, value: object) -> None:
    before = getattr(config, name)
    with pytest.raises(ConfigError):
        setattr(config, name, value)
    assert getattr(config, name) == before
    with pytest.raises(ConfigError):
        config.update({name: value})
    assert getattr(config, name) == before
