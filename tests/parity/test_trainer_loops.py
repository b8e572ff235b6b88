"""What loops of one's own take from a trainer: loaders, the accelerator, nested tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

import gptrio
from tests.parity.test_trainer_subclasses import LIBRARIES, module_of
from tests.training_pair import arguments, pair_of


class Stream(IterableDataset):
    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(torch.arange(self.rows))


def test_batches_of_prepared_loaders_are_on_the_device_and_know_the_end():
    class Counted(DataLoader):
        begun = 0

        def __iter__(self):
            self.begun += 1
            return super().__iter__()

        def set_epoch(self, epoch):
            self.epoch = epoch

    _, model = pair_of("GPT2LMHeadModel")
    accelerator = gptrio.Trainer(model, arguments(gptrio)).accelerator
    loader = accelerator.prepare(Counted(torch.arange(7), batch_size=3, sampler=SequentialSampler(range(7))))
    state = accelerator.gradient_state
    ends = [(batch.tolist(), state.end_of_dataloader, state.remainder) for batch in loader]
    assert ends == [([0, 1, 2], False, 1), ([3, 4, 5], False, 1), ([6], True, 1)]
    assert not state.in_dataloader and state.remainder == -1 and loader.begun == 1
    loader.set_epoch(3)
    assert loader.epoch == 3 and isinstance(loader, Counted) and accelerator.prepare(loader) is loader
    accelerator.device = torch.device("meta")
    assert [batch.device.type for batch in loader] == ["meta"] * 3
    assert [batch.device.type for batch in loader.host_batches()] == ["cpu"] * 3
    pairs = accelerator.prepare(DataLoader([{"a": (torch.ones(1), "text")}], batch_size=None))
    assert next(iter(pairs))["a"][0].device.type == "meta" and next(iter(pairs))["a"][1] == "text"
    streamed = accelerator.prepare(DataLoader(Stream(5), batch_size=2))
    assert [len(batch) for batch in streamed] == [2, 2, 1] and streamed.remainder == -1


def test_what_code_for_accelerate_calls_gives_the_same():
    found = []
    for library, model in zip(LIBRARIES, pair_of("GPT2LMHeadModel"), strict=True):
        accelerator, seen = library.Trainer(model, arguments(library)).accelerator, []
        accelerator.gradient_accumulation_steps = 2
        for _ in range(3):
            with accelerator.accumulate(model):
                seen.append(accelerator.sync_gradients)
        with accelerator.main_process_first(), accelerator.local_main_process_first():
            seen.append(accelerator.gradient_accumulation_steps)
        with accelerator.split_between_processes({"a": [1, 2, 3]}) as part:
            seen.append(part)
        model(torch.arange(6).view(1, 6), labels=torch.arange(6).view(1, 6)).loss.backward()
        accelerator.clip_grad_value_(model.parameters(), 1e-3)
        seen.append(max(float(each.grad.abs().max()) for each in model.parameters() if each.grad is not None))
        seen.append(accelerator.on_main_process(lambda: 5)() + accelerator.on_last_process(lambda: 6)())
        seen.append(set(accelerator.get_state_dict(model)) - {"lm_head.weight"})
        seen.append(accelerator.free_memory(model, 1))
        seen.append([accelerator.distributed_type == "NO", accelerator.scaler, accelerator.state.use_distributed])
        found.append([each for each in seen if each is not None])
    assert found[1] == found[0]


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("rows", [2, 7, 9])
def test_processes_divide_values_as_accelerate_does(monkeypatch, rows, rank):
    reference = PartialState()
    _, model = pair_of("GPT2LMHeadModel")
    accelerator = gptrio.Trainer(model, arguments(gptrio)).accelerator
    for each in (reference, accelerator):
        monkeypatch.setattr(each, "num_processes", 3)
        monkeypatch.setattr(each, "process_index", rank)
    for padded in (False, True):
        parts = []
        for each in (reference, accelerator):
            with each.split_between_processes(list(range(rows)), apply_padding=padded) as part:
                parts.append(part)
        assert parts[1] == parts[0]


def test_nested_tensors_are_joined_as_in_the_reference():
    first = {"a": (torch.ones(2, 3), torch.ones(2)), "b": [torch.zeros(2, 1, 2, dtype=torch.bfloat16)]}
    second = {"a": (torch.ones(1, 5), torch.ones(1)), "b": [torch.zeros(1, 4, 2, dtype=torch.bfloat16)]}
    results = []
    for library in LIBRARIES:
        tools = module_of(library, "trainer_pt_utils")
        whole, parts = tools.EvalLoopContainer(padding_index=7), tools.EvalLoopContainer(False)
        for container in (whole, parts):
            container.add(first)
            container.to_cpu_and_numpy()
            container.add(second)
        results.append([whole.get_arrays(), parts.get_arrays(), tools.find_batch_size(second)])
        results[-1].append(tools.nested_concat(torch.tensor(1.0), torch.tensor(2.0)).numpy())
        with pytest.raises((TypeError, AssertionError)):
            tools.nested_concat("a", "b")
        with pytest.raises((TypeError, AssertionError)):
            tools.nested_concat([1], (1,))
    np.testing.assert_equal(results[1], results[0])
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1).requires_grad_(False))
    for trainable in (False, True):
        counts = {module_of(each, "trainer_pt_utils").get_model_param_count(model, trainable) for each in LIBRARIES}
        assert len(counts) == 1
