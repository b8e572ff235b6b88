"""Optimizers by the names of `TrainingArguments.optim`, and which parameters decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gptrio.errors import OptionError, UnsupportedError, import_optional, nearest
from gptrio.training.adafactor import Adafactor
from gptrio.training.enums import BITSANDBYTES

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_TORCH: dict[str, type[Optimizer]] = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_torch_fused": torch.optim.AdamW,
    "adafactor": Adafactor,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
ALL_LAYERNORM_LAYERS: list[type[nn.Module]] = [nn.LayerNorm]  # whose weights do not decay


def get_parameter_names(
    model: nn.Module, forbidden_layer_types: Iterable[type], forbidden_layer_names: Iterable[str] = ()
) -> list[str]:
    """Names of parameters that lie in no module of some types, and match no pattern (searched in lower case)."""
    patterns = [re.compile(pattern) for pattern in forbidden_layer_names or ()]
    return [name for name in _outside(model, tuple(forbidden_layer_types)) if not _matches(name, patterns)]


def get_decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that weight decay shrinks: all but biases and those of norms."""
    return [name for name in _outside(model, tuple(ALL_LAYERNORM_LAYERS)) if not _matches(name, (_NOT_DECAYED,))]


def parameter_groups(model: nn.Module, decayed: Iterable[str], weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: those that decay, and the others."""
    names = set(decayed)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if name in names], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in names], "weight_decay": 0.0},
    ]


def optimizer_class(args: Any) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """The class and the arguments of the optimizer that `args.optim` names.

    Args:
        args: `TrainingArguments`; `optim_args` is a text such as "momentum=0.9,nesterov=True".

    Raises:
        UnsupportedError: this project does not have the optimizer.
        MissingDependencyError: it needs bitsandbytes, which is not installed.
        OptionError: `optim_args` is malformed.
    """
    name = str(getattr(args.optim, "value", args.optim))
    given = parse_options(args.optim_args)
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if name in BITSANDBYTES:
        class_name, bits = BITSANDBYTES[name]
        library = import_optional(
            "bitsandbytes", f"optim={name!r} needs bitsandbytes; pip install bitsandbytes, or use adamw_torch"
        )
        options = {"lr": args.learning_rate, **_bitsandbytes_options(class_name, adam, given), "optim_bits": bits}
        if class_name != "RMSprop":  # which has no pages
            options["is_paged"] = name.startswith("paged")
        return getattr(library.optim, class_name), options
    if name not in _TORCH:
        raise UnsupportedError(
            f"optim={name!r} is not available; {nearest(name, [*_TORCH, *BITSANDBYTES]) or 'use adamw_torch'}, or "
            "pass an optimizer of your own: Trainer(optimizers=(optimizer, None))"
        )
    own = {"scale_parameter": False, "relative_step": False} if name == "adafactor" else {}
    if name.startswith("adamw"):
        own = {**adam, "fused": True}  # one pass over memory instead of ten
    return _TORCH[name], {"lr": args.learning_rate, **own, **given}


def _bitsandbytes_options(class_name: str, adam: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    if class_name == "Lion":
        return {"betas": adam["betas"], **given}
    if class_name == "RMSprop":
        return given
    if class_name == "AdEMAMix":
        defaults = {"beta1": adam["betas"][0], "beta2": adam["betas"][1], "beta3": 0.9999}
        betas = tuple(float(given.get(name, value)) for name, value in defaults.items())
        others = {name: value for name, value in given.items() if name not in defaults}
        return {"betas": betas, "alpha": 5.0, "eps": adam["eps"], **others}
    return {**adam, **given}


def keep_embeddings_wide(model: nn.Module) -> None:
    """Let optimizers of bitsandbytes keep the states of embeddings in 32 bits, as 8 are too few for rare tokens."""
    library = import_optional("bitsandbytes", "an optimizer of 8 bits needs bitsandbytes; pip install bitsandbytes")
    manager = library.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def parse_options(text: str | None) -> dict[str, Any]:
    """Read "name=value,name=value"; numbers, truth values and None are converted.

    Raises:
        OptionError: a part is no such pair.
    """
    pairs = [part.partition("=") for part in (text or "").replace(" ", "").split(",") if part]
    if any(not sign for _, sign, _ in pairs):
        raise OptionError(f"optim_args={text!r} is malformed; write name=value,name=value")
    return {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    known = {"true": True, "false": False, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _outside(model: nn.Module, types: tuple[type, ...]) -> list[str]:
    """Names of parameters, tied ones under every name, that lie in no part of these types."""
    names = []
    for child_name, child in model.named_children():
        if not isinstance(child, types):
            names += [f"{child_name}.{name}" for name in _outside(child, types)]
    return names + [name for name, parameter in model._parameters.items() if parameter is not None]


def _matches(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    return any(pattern.search(name.lower()) for pattern in patterns)
