"""Modules of the reference from which scripts import: here under the same paths, with the same objects."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import pytest

import gptrio
from gptrio.import_paths import EXTENDED
from gptrio.import_paths import MODULES as MADE

MODULES = {  # names in the reference's module that are absent here, and why
    "trainer_utils": "default_hp_space_ray default_hp_space_sigopt default_hp_space_wandb "  # Optuna alone searches
    "TrainerMemoryTracker RemoveColumnsCollator check_target_module_exists seed_worker "
    "find_executable_batch_size number_of_arguments total_processes_number",  # the loop's own
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
    "trainer_pt_utils": "AcceleratorConfig get_parameter_names LabelSmoother LengthGroupedSampler",
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


@pytest.mark.parametrize("path", [*MADE, *EXTENDED])
def test_a_made_module_has_the_public_names_of_the_reference_s(path):
    theirs, ours = importlib.import_module(f"transformers.{path}"), importlib.import_module(f"gptrio.{path}")
    public = {name for name in dir(theirs) if name in gptrio.__all__ and not name.startswith("_")}
    assert {name for name in public if getattr(ours, name) is not getattr(gptrio, name)} <= {"logging"}  # a module
    for place in (MADE | EXTENDED)[path].split():
        module = importlib.import_module(f"gptrio.{place}")
        assert public & set(vars(module)) or set(dir(theirs)) & set(dir(module)), f"{path} has no name of {place}"
    assert not hasattr(ours, "no_such_name")
    assert not hasattr(ours, "__all__")  # which would be asked by `import *`


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("models.gpt2.modeling_gpt2", "GPT2Attention GPT2MLP GPT2Block GPT2SequenceSummary Conv1D ACT2FN"),
        ("models.gpt_neo.modeling_gpt_neo", "GPTNeoSelfAttention GPTNeoAttention GPTNeoMLP GPTNeoBlock"),
        ("models.gpt_neox.modeling_gpt_neox", "GPTNeoXAttention GPTNeoXMLP GPTNeoXLayer GPTNeoXRotaryEmbedding"),
        ("modeling_outputs", "BaseModelOutput CausalLMOutput SequenceClassifierOutput"),
        ("pytorch_utils", "ALL_LAYERNORM_LAYERS Conv1D"),
        ("activations", "ACT2FN get_activation"),
        ("utils", "WEIGHTS_NAME SAFE_WEIGHTS_NAME CONFIG_NAME PaddingStrategy ExplicitEnum"),
        ("modeling_utils", "PreTrainedModel WEIGHTS_NAME"),
        ("cache_utils", "DynamicSlidingWindowLayer QuantizedLayer"),
        ("tokenization_utils_base", "TruncationStrategy VERY_LARGE_INTEGER"),
        ("generation", "GenerationMixin GreedySearchDecoderOnlyOutput"),
        ("generation.utils", "GreedySearchDecoderOnlyOutput"),
    ],
)
def test_names_that_only_a_module_of_the_reference_has(path, names):
    theirs, ours = importlib.import_module(f"transformers.{path}"), importlib.import_module(f"gptrio.{path}")
    for name in names.split():
        own, other = getattr(ours, name), getattr(theirs, name)
        if isinstance(own, (str, int)):
            assert own == other
        elif inspect.isclass(other):
            assert own.__name__ == other.__name__
            assert own.__module__.startswith("gptrio.")


def test_results_without_a_cache_have_the_reference_s_fields():
    for name in ("BaseModelOutput", "CausalLMOutput", "SequenceClassifierOutput"):
        ours, theirs = (
            inspect.signature(getattr(importlib.import_module(f"{library}.modeling_outputs"), name))
            for library in ("gptrio", "transformers")
        )
        assert list(ours.parameters) == list(theirs.parameters)


def test_importing_a_path_loads_no_torch_until_a_name_is_taken():
    program = "import sys, gptrio.modeling_outputs, gptrio.cache_utils, gptrio.generation.logits_process\n"
    check = "print('torch' in sys.modules, gptrio.modeling_outputs.ModelOutput, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program + check], capture_output=True, text=True, check=True)
    assert done.stdout == "False <class 'gptrio.outputs.ModelOutput'> False\n"


@pytest.mark.parametrize("undo", ["set", "delete"])
def test_a_class_set_on_a_made_module_is_what_models_are_built_of(undo: str) -> None:
    module: Any = importlib.import_module("gptrio.models.gpt2.modeling_gpt2")
    before = module.GPT2MLP
    mine = type("Mine", (before,), {})
    config = gptrio.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)
    module.GPT2MLP = mine
    assert type(gptrio.GPT2Model(config).h[0].mlp) is mine
    if undo == "set":
        module.GPT2MLP = before
    else:  # as `unittest.mock.patch` does
        del module.GPT2MLP
    assert type(gptrio.GPT2Model(config).h[0].mlp) is before
    assert module.GPT2MLP is before
    module.of_my_own = 3
    assert module.of_my_own == 3
