"""Settings of a run that change more than its numbers: memory, batches that do not fit, steps of a checkpoint."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
import transformers

import gptrio
from gptrio.errors import GptrioWarning, OptionError
from gptrio.training.preparing import find_executable_batch_size
from tests.training_pair import arguments, trainers

LIBRARIES = (gptrio, transformers)
CLASS = "GPT2LMHeadModel"


def test_figures_of_memory_have_the_references_names():
    found = []
    for trainer in trainers(CLASS, {"max_steps": 1, "skip_memory_metrics": False}):
        trainer.eval_dataset = trainer.train_dataset
        metrics = trainer.train().metrics
        found.append([metrics, trainer.evaluate(), trainer.predict(trainer.train_dataset).metrics])
        logged = {name for entry in trainer.state.log_history for name in entry if "_mem_" in name}
        found[-1].append(dict.fromkeys(logged, 0))
    theirs, ours = ([{name for name in each if "_mem_" in name} for each in part] for part in found)
    assert ours == theirs
    assert len(ours[0]) >= 5 and "train_mem_cpu_alloc_delta" in ours[3]
    assert all(value >= 0 for name, value in found[1][0].items() if "peaked" in name)
    assert found[1][0]["before_init_mem_cpu"] > 2**20


def test_no_memory_is_measured_by_default():
    _, ours = trainers(CLASS, {"max_steps": 1})
    assert not any("mem" in name for name in ours.train().metrics)


def test_a_failed_run_measures_no_longer(monkeypatch):
    _, ours = trainers(CLASS, {"max_steps": 1, "skip_memory_metrics": False})
    monkeypatch.setattr(ours, "compute_loss", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours.train()
    assert ours._memory._ended.is_set() and ours._memory._stage is None


def sizes_tried(search: Any, fits: int) -> list[int]:
    tried: list[int] = []

    def run(batch_size: int) -> int:
        tried.append(batch_size)
        if batch_size > fits:
            raise RuntimeError("CUDA out of memory.")
        return batch_size

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GptrioWarning)
        search(run)
    return tried


def test_batches_that_do_not_fit_shrink_as_in_the_reference():
    tried = sizes_tried(lambda run: find_executable_batch_size(run, 64), 9)
    theirs = transformers.trainer_utils.find_executable_batch_size
    assert tried == sizes_tried(lambda run: theirs(run, 64, auto_find_batch_size=True)(), 9)
    assert tried[:3] == [64, 57, 51]


@pytest.mark.parametrize("steps", [1, 10])
def test_accelerates_number_of_batches_is_taken(steps):
    changes = {
        "gradient_accumulation_steps": 1,
        "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": steps}},
    }
    assert [trainer.args.gradient_accumulation_steps for trainer in trainers(CLASS, changes)] == [steps, steps]
    args = arguments(gptrio, **{**changes, "gradient_accumulation_steps": 2})
    with pytest.raises(OptionError, match=f"num_steps={steps}"):
        gptrio.Trainer(gptrio.GPT2LMHeadModel(gptrio.GPT2Config(n_layer=1, n_head=1, n_embd=4)), args)


def test_a_checkpoint_that_goes_on_with_its_own_steps_says_so(tmp_path):
    def run(**changes: Any) -> Any:
        _, ours = trainers(CLASS, {"max_steps": 4, "output_dir": str(tmp_path), "save_strategy": "steps", **changes})
        return ours

    run(save_steps=2, logging_steps=1).train()
    resumed = run(save_steps=3, logging_steps=1)
    with pytest.warns(GptrioWarning, match=r"save_steps: 3 \(from args\) != 2 \(from trainer_state.json\)$"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.save_steps == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_dtypes_among_ones_own_arguments_are_named(library, tmp_path):
    @dataclasses.dataclass
    class Arguments(library.TrainingArguments):
        dtype: torch.dtype = torch.bfloat16

    args = Arguments(tmp_path)
    assert args.to_dict()["dtype"] == "bfloat16" and '"dtype": "bfloat16"' in args.to_json_string()


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_lion_8bit", "lion_32bit"])
def test_embeddings_keep_states_of_32_bits(name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for trainer in trainers(CLASS, {"optim": name}):
        manager.module_weight_config_triple.clear()
        trainer.create_optimizer()
        overridden = [module for module, *_ in manager.module_weight_config_triple]
        embeddings = [module for module in trainer.model.modules() if isinstance(module, torch.nn.Embedding)]
        assert overridden == (embeddings if name.endswith("8bit") else [])
    manager.module_weight_config_triple.clear()


def test_settings_of_accelerate_are_read_from_the_accelerator():
    settings = {"split_batches": True, "even_batches": False, "use_seedable_sampler": False, "dispatch_batches": True}
    for config in (None, settings):
        theirs, ours = (trainer.accelerator for trainer in trainers(CLASS, {"accelerator_config": config}))
        for name in settings:
            assert getattr(ours, name) == getattr(theirs, name), name
