"""A batch, or a dictionary of options, that a script passes on whole, with more in it than the call needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gptrio
from gptrio.errors import ConfigError, GptrioWarning
from gptrio.testing import assert_close
from tests.parity.test_model_surface import CAUSAL, CLASSES
from tests.reference import model_pair, token_ids


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_generate_leaves_labels_out(class_name: str) -> None:
    oracle, ours = model_pair(class_name)
    ids = token_ids()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    found, expected = (model.generate(**batch, **options) for model in (ours, oracle))
    assert torch.equal(found, expected)
    assert "labels" not in ours.prepare_inputs_for_generation(**batch)


@pytest.mark.parametrize("class_name", CLASSES)
def test_a_forward_takes_unknown_columns_where_the_reference_does(class_name: str) -> None:
    oracle, ours = model_pair(class_name, pad_token_id=0)
    ids = token_ids()
    batch = {"input_ids": ids, "length": torch.tensor([11, 11]), "special_tokens_mask": torch.zeros_like(ids)}
    try:
        expected = oracle(**batch)[0]
    except TypeError:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            ours(**batch)
        return
    with pytest.warns(GptrioWarning, match="does not know length, special_tokens_mask, and leaves that out"):
        found = ours(**batch)[0]
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("dtype", [{"": torch.bfloat16}, {"": "float64", "text_config": "float16"}, {}])
def test_a_dictionary_of_dtypes_is_read_as_in_the_reference(
    dtype: dict[str, torch.dtype | str], tmp_path: Path
) -> None:
    oracle, ours = model_pair("GPTNeoXForCausalLM", dtype=torch.float16)
    ours.save_pretrained(tmp_path)
    found, expected = (type(model).from_pretrained(tmp_path, torch_dtype=dtype) for model in (ours, oracle))
    assert found.dtype is expected.dtype


def test_the_name_of_a_configuration_is_none() -> None:
    with pytest.raises(ConfigError, match=r"config='gpt2' is a str.*AutoConfig.from_pretrained\(name\)"):
        gptrio.AutoModelForCausalLM.from_config("gpt2")


@pytest.mark.parametrize("class_name", CAUSAL.values())
def test_a_model_that_accelerate_has_prepared_is_unwrapped_to_its_own_forward(class_name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    _, model = model_pair(class_name)
    ids = token_ids()
    expected = model(ids).logits
    accelerate.state.AcceleratorState._reset_state(True)  # which a trainer of an earlier test may have set
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    assert not torch.equal(prepared(ids).logits, expected)
    plain = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert torch.equal(plain(ids, attention_mask=torch.ones_like(ids)).logits, expected)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # shared by the tests of a process
