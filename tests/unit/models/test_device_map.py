"""The device that a device map gives each tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptrio import OptionError
from gptrio.models.base.device_map import device_function

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("device_map", [None, "cpu", CPU, {"": "cpu"}, {"": "disk"}], ids=str)
def test_one_device_is_every_tensors(device_map: Any) -> None:
    assert device_function(device_map)("transformer.wte.weight") == CPU


def test_the_longest_name_of_a_module_decides() -> None:
    device_of = device_function({"transformer": "cpu", "transformer.h.1": "meta", "lm_head": "disk"})
    names = ("transformer.wte.weight", "transformer.h.1.ln_1.bias", "transformer.h.10.ln_1.bias", "lm_head.weight")
    assert [device_of(name) for name in names] == [CPU, META, CPU, CPU]


def test_a_tensor_without_a_device_is_named() -> None:
    device_of = device_function({"transformer.h": "cpu"})
    with pytest.raises(OptionError, match=r"device_map has no device for transformer\.wte\.weight"):
        device_of("transformer.wte.weight")


@pytest.mark.parametrize("device_map", ["disk", "gpu", {"transformer": "nowhere"}, {"transformer": None}], ids=str)
def test_what_is_no_device_is_answered_with_what_is(device_map: Any) -> None:
    with pytest.raises(OptionError, match=r"device_map=.* is not possible; expected a device such as"):
        device_function(device_map)


def test_torchs_default_device_is_taken_without_a_map() -> None:
    with torch.device("meta"):
        assert device_function(None)("lm_head.weight") == META
