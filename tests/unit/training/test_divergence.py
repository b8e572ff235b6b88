"""The first loss or gradient that is not finite is told once, with the tensor where it began."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptrio import AutoModelForCausalLM, Trainer
from gptrio.errors import DivergenceError, GptrioWarning
from gptrio.testing import tiny_config
from gptrio.training.divergence import DivergenceWatch, find_first_bad_tensor
from gptrio.training.order import epoch_order
from tests.unit.training.trainer_run import new_trainer


def model_of(family: str) -> Any:
    return AutoModelForCausalLM.from_config(tiny_config(family)).train()


def batch_of(rows: int = 3) -> dict[str, Tensor]:
    ids = torch.randint(257, (rows, 6))
    return {"input_ids": ids, "labels": ids}


def loss_of(model: nn.Module) -> Any:
    return lambda batch: model(**batch).loss


OVERFLOWS = {
    "gpt2": ("transformer.h.1.mlp.c_fc", r"the output of transformer\.h\.1\.mlp\.c_fc \(Conv1D\)"),
    "gpt_neo": ("transformer.h.1.mlp.c_fc", r"the output of transformer\.h\.1\.mlp\.c_fc \(Linear\)"),
    "gpt_neox": (
        "gpt_neox.layers.1.mlp.dense_h_to_4h",
        r"the output of gpt_neox\.layers\.1\.mlp\.dense_h_to_4h \(Linear\)",
    ),
}


@pytest.mark.parametrize("family", OVERFLOWS)
def test_module_whose_output_overflows_first_is_named(family: str) -> None:
    model, (name, message) = model_of(family), OVERFLOWS[family]
    model.get_submodule(name).weight.data.mul_(1e30).clamp_(-3e38, 3e38).mul_(1e10).nan_to_num_(
        posinf=3e38, neginf=-3e38
    )
    with pytest.warns(
        GptrioWarning, match=rf"the loss is nan at update 7, rows 4, 8, 15 of the data: .*{message}, float32"
    ):
        watch = DivergenceWatch()
        assert not watch.observe(
            7, math.nan, None, model=model, batches=[batch_of()], compute_loss=loss_of(model), rows=lambda: [4, 8, 15]
        )


def test_parameter_that_is_not_finite_is_named_first() -> None:
    model = model_of("gpt2")
    model.transformer.h[1].attn.c_attn.weight.data[3, 5] = math.nan
    found = find_first_bad_tensor(model, [batch_of()], loss_of(model))
    assert found is not None
    assert found.startswith(
        "parameter transformer.h.1.attn.c_attn.weight, float32 of shape (32, 96): 1 NaN and 0 infinite"
    )


class Root(nn.Module):
    """A square root, whose gradient at 0 is infinite; the row of a batch decides."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).abs().sqrt().sum()


def test_gradient_that_is_not_finite_is_named_where_it_began() -> None:
    model = Root()
    found = find_first_bad_tensor(
        model, [{"x": torch.ones(2, 1)}, {"x": torch.tensor([[1.0], [0.0]])}], lambda b: model(**b)
    )
    assert found is not None
    assert found.startswith("the gradient of the output of inner (Linear), float32 of shape (2, 1): ")
    assert found.endswith("first in row 1; the outputs of all modules are finite in batch 2 of 2")


def test_loss_alone_is_named() -> None:
    model = nn.Linear(1, 1)
    found = find_first_bad_tensor(model, [{"input": torch.ones(1, 1)}], lambda b: model(**b).sum() * math.inf)
    assert found == "the loss, although the outputs of all modules are finite"


def test_looking_again_changes_nothing() -> None:
    model = model_of("gpt2")
    batch = batch_of()
    loss_of(model)(batch).backward()
    before = [parameter.grad.clone() for parameter in model.parameters()], torch.get_rng_state()
    assert find_first_bad_tensor(model, [batch], loss_of(model)) is None
    assert all(map(torch.equal, before[0], (parameter.grad for parameter in model.parameters())))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert not any(module._forward_hooks for module in model.modules())


def observe(watch: DivergenceWatch, step: int, loss: float, norm: float | None = 1.0) -> bool:
    model = nn.Linear(1, 1)
    batches = [{"input": torch.ones(1, 1)}]
    return watch.observe(step, loss, norm, model=model, batches=batches, compute_loss=lambda b: model(**b).sum())


def test_one_warning_and_a_stop_after_three_in_a_row() -> None:
    watch = DivergenceWatch(stop_after=3)
    assert observe(watch, 1, 2.0)
    with pytest.warns(
        GptrioWarning, match="norm of the gradients is inf at update 2: computed again, all tensors are finite"
    ):
        assert not observe(watch, 2, 2.0, math.inf)
    assert not observe(watch, 3, math.nan)
    assert observe(watch, 4, 2.0)
    assert not observe(watch, 5, math.nan)
    assert not observe(watch, 6, math.nan)
    with pytest.raises(DivergenceError, match="stopped at update 7: the loss is -inf, as in the 2 updates before it"):
        observe(watch, 7, -math.inf)


def test_without_a_limit_it_never_stops_and_a_norm_may_be_unknown() -> None:
    watch = DivergenceWatch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not any(observe(watch, step, math.nan, None) for step in range(5))
    assert len(caught) == 1


def diverging(path: Path, **changes: Any) -> Trainer:
    """A trainer whose second row has a label of such weight that the loss overflows."""
    trainer = new_trainer(path, save_strategy="no", **changes)
    compute = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        is_bad = (inputs["input_ids"] == trainer.train_dataset[1]["input_ids"]).all(1).any()
        return compute(model, inputs, *args, **kwargs) * (math.inf if is_bad else 1.0)

    trainer.compute_loss = compute_loss
    return trainer


def test_trainer_names_the_update_and_its_rows(tmp_path: Path) -> None:
    trainer = diverging(tmp_path, num_train_epochs=1)
    order = epoch_order(10, 42, 0)
    step = order.index(1) // 2 + 1
    rows = f"{order[2 * step - 2]}, {order[2 * step - 1]}"
    with pytest.warns(GptrioWarning, match=rf"loss is inf at update {step}, rows {rows} of the data: .* is the loss"):
        trainer.train()
    assert trainer.state.global_step == 5


def test_trainer_stops_where_it_is_asked_to(tmp_path: Path) -> None:
    trainer = diverging(tmp_path, debug="underflow_overflow")
    with pytest.warns(GptrioWarning), pytest.raises(DivergenceError, match="stopped at update"):
        trainer.train()
    trainer = diverging(tmp_path)
    trainer.stop_after_divergence = 3  # the weights are not finite after the first
    with pytest.warns(GptrioWarning), pytest.raises(DivergenceError, match="as in the 2 updates before it"):
        trainer.train()
