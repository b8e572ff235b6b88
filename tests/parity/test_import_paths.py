"""Modules of the reference's training from which scripts import: here under the same paths, with the same objects."""

from __future__ import annotations

import importlib
import inspect

import pytest

import gptrio

MODULES = {  # names in the reference's module that are absent here, and why
    "trainer_utils": "default_hp_space_ray default_hp_space_sigopt default_hp_space_wandb "  # Optuna alone searches
    "TrainerMemoryTracker RemoveColumnsCollator check_target_module_exists denumpify_detensorize seed_worker "
    "find_executable_batch_size neftune_post_forward_hook number_of_arguments total_processes_number",  # the loop's own
    "training_args": "get_int_from_env get_xla_device_type",  # the environment; TPUs
    "trainer_callback": "",
    "data.data_collator": "DataCollatorForMultipleChoice DataCollatorForPermutationLanguageModeling DataCollatorForSOP "
    "DataCollatorForWholeWordMask tf_default_data_collator "  # for other models
    "numpy_default_data_collator torch_default_data_collator tolist",  # parts of default_data_collator
    "hf_argparser": "",
    "optimization": "",
    "trainer": "safe_globals",  # checkpoints are no pickles
    "debug_utils": "DebugUnderflowOverflow detect_overflow get_abs_min_max",
}
FUNCTIONS_ONLY = {
    "trainer_pt_utils": "AcceleratorConfig get_parameter_names",
    "integrations": "WandbCallback rewrite_logs is_tensorboard_available",
    "modeling_outputs": "SequenceClassifierOutput",
    "testing_utils": "CaptureLogger",
}


@pytest.mark.parametrize("path", MODULES)
def test_every_name_of_a_module_is_there_or_absent_for_a_reason(path):
    theirs, ours = importlib.import_module(f"transformers.{path}"), importlib.import_module(f"gptrio.{path}")
    defined = {
        name
        for name, value in vars(theirs).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == theirs.__name__
    }
    public = {name for name in defined if not name.startswith("_")}
    assert public - set(vars(ours)) == set(MODULES[path].split())


@pytest.mark.parametrize("path", [*MODULES, *FUNCTIONS_ONLY, "data"])
def test_names_are_the_public_objects(path):
    module = importlib.import_module(f"gptrio.{path}")
    theirs = importlib.import_module(f"transformers.{path}")
    names = [name for name in vars(module) if not name.startswith("_") and name != "data_collator"]
    assert set(FUNCTIONS_ONLY.get(path, "").split()) <= set(names)
    for name in names:
        if inspect.ismodule(getattr(module, name)) or name == "annotations":
            continue
        assert hasattr(theirs, name), f"the reference has no {path}.{name}"
        if name in gptrio.__all__:
            assert getattr(module, name) is getattr(gptrio, name)
