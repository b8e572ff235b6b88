"""Modules of Transformers from which scripts import, such as `models.gpt2.modeling_gpt2`, under the same paths.

They have no files here, as the modules have that most scripts import from, such as `trainer_utils`. When one is first
imported, a finder makes it: its names are those of the modules that the table gives for it, and all public ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# path in Transformers -> where its names are defined here; paths and places are below `gptrio`
MODULES = {
    "activations": "nn.activations",
    "cache_utils": "cache cache.dynamic cache.static_layers cache.quantized",
    "configuration_utils": "config.base config.serialization",
    "convert_slow_tokenizer": "tokenization.convert_slow tokenization.bpe",
    "file_utils": "utils",
    "generation.beam_constraints": "generation.strategies.constraints",
    "generation.candidate_generator": "generation.strategies.candidates",
    "generation.configuration_utils": "generation.options.config generation.options.schema generation.watermark.config",
    "generation.flax_logits_process": "jax.generation.processors.base jax.generation.processors.forcing "
    "jax.generation.processors.sampling jax.generation.processors.sequences",
    "generation.flax_utils": "jax.generation.outputs jax.models.base.generation_mixin",
    "generation.logits_process": "generation.processors.base generation.processors.forcing "
    "generation.processors.guidance generation.processors.penalties generation.processors.sampling "
    "generation.processors.sequences generation.watermark.greenlist generation.watermark.synthid",
    "generation.stopping_criteria": "generation.stopping",
    "generation.utils": "generation.outputs models.base.generation_mixin",
    "generation.watermarking": "generation.watermark.bayesian generation.watermark.detector",
    "integrations.flash_attention": "nn.attention_interface",
    "integrations.sdpa_attention": "nn.attention_interface",
    "masking_utils": "nn.mask_interface",
    "modeling_flax_outputs": "jax.outputs",
    "modeling_flax_utils": "jax.models.base.pretrained utils.file_names",
    "modeling_rope_utils": "nn.rotary",
    "modeling_utils": "models.base.pretrained models.base.initialization checkpoint.state_dicts nn.attention_interface "
    "utils.file_names training.parts",
    "models.auto.auto_factory": "models.auto config.auto_models",
    "models.auto.configuration_auto": "config config.auto",
    "models.auto.modeling_auto": "models.auto config.auto",
    "models.auto.modeling_flax_auto": "jax.models.auto",
    "models.auto.tokenization_auto": "tokenization.auto",
    "models.gpt2.configuration_gpt2": "config.gpt2",
    "models.gpt2.modeling_flax_gpt2": "jax.models.gpt2",
    "models.gpt2.modeling_gpt2": "models.gpt2 outputs nn.linear nn.activations nn.attention_interface",
    "models.gpt2.tokenization_gpt2": "tokenization.gpt2 tokenization.bpe",
    "models.gpt2.tokenization_gpt2_fast": "tokenization.gpt2",
    "models.gpt_neo.configuration_gpt_neo": "config.gpt_neo",
    "models.gpt_neo.modeling_flax_gpt_neo": "jax.models.gpt_neo",
    "models.gpt_neo.modeling_gpt_neo": "models.gpt_neo outputs nn.activations",
    "models.gpt_neox.configuration_gpt_neox": "config.gpt_neox",
    "models.gpt_neox.modeling_gpt_neox": "models.gpt_neox outputs nn.rotary nn.activations nn.attention_interface",
    "models.gpt_neox.tokenization_gpt_neox_fast": "tokenization.gpt_neox",
    "pytorch_utils": "nn.linear models.base.pruning training.optimizers",
    "tokenization_utils": "tokenization.slow tokenization.base",
    "tokenization_utils_base": "tokenization.base tokenization.batch_encoding tokenization.options "
    "tokenization.special_tokens tokenization.files",
    "tokenization_utils_fast": "tokenization.fast",
    "utils.chat_template_utils": "utils.json_schema",
    "utils.generic": "outputs utils.choices nn.attention_interface",
    "utils.hub": "utils.file_names utils.cached_files hub",
    "utils.import_utils": "utils.installed utils.versions",
    "utils.quantization_config": "quantization.bitsandbytes_config",
}
# modules that gptrio has at these paths itself, and where those of their names in Transformers are that they lack
EXTENDED = {
    "generation": "generation.outputs",
    "integrations": "nn.attention_interface",
    "models": "",
    "models.auto": "",
    "models.gpt2": "",
    "models.gpt_neo": "",
    "models.gpt_neox": "",
    "pipelines": "",
    "pipelines.base": "",
    "trainer": "trainer_utils trainer_pt_utils trainer_callback utils modeling_utils",
    "utils": "",
}


class Finder:
    """Finds the modules of the tables, for Python's import system."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of a module of the tables; None for every other."""
        package, _, name = fullname.partition(".")
        if package != "gptrio":
            return None
        if name in MODULES:
            loader: Any = _Maker(MODULES[name])
            return ModuleSpec(fullname, loader)
        spec = PathFinder.find_spec(fullname, path, target) if name in EXTENDED else None
        if spec is not None:
            loader = _Maker(EXTENDED[name], spec.loader)
            spec.loader = loader
            if spec.submodule_search_locations is None:
                spec.submodule_search_locations = []  # modules of the first table can lie below it
        return spec


class _Made(ModuleType):
    """A made module: what is set on it is set where the name is defined, so that models built or run later use it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a name here and at the first of the places that has it."""
        home = self._home(name)
        if home is not None:
            vars(self)["_replaced"].setdefault(name, (home, vars(home)[name]))
            setattr(home, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Take a name away that was set, and put the first one back."""
        if name in vars(self)["_replaced"]:
            home, value = vars(self)["_replaced"].pop(name)
            setattr(home, name, value)
        super().__delattr__(name)

    def _home(self, name: str) -> ModuleType | None:
        homes = (sys.modules.get(place) for place in vars(self).get("_places", ()))
        return next((home for home in homes if home is not None and name in vars(home)), None)


class _Maker:
    """Makes a module with the names of some places and all public ones, or gives them to one that another loader loads.

    Args:
        places: modules below `gptrio`, which are asked first.
        loader: of the module's file, if it has one.
    """

    def __init__(self, places: str, loader: Any = None) -> None:
        self.places, self.loader = (*(f"gptrio.{place}" for place in places.split()), "gptrio"), loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module to fill."""
        return _Made(spec.name) if self.loader is None else self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        if self.loader is not None:
            self.loader.exec_module(module)

        def find(name: str) -> Any:
            if not name.startswith("__"):
                for place in self.places:
                    try:
                        value = getattr(importlib.import_module(place), name)
                    except AttributeError:
                        continue
                    vars(module)[name] = value
                    return value
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        if self.loader is None:
            vars(module).update(_places=self.places[:-1], _replaced={})
        vars(module)["__getattr__"] = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # what else tools ask the loader of a file


def install() -> None:
    """Let Python find the modules of the tables."""
    sys.meta_path.insert(0, Finder)
