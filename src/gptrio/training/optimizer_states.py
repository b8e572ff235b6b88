"""The state of an optimizer by names of parameters, so that it does not depend on the order in which they are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptrio.errors import CheckpointError
from gptrio.training.sharding import placed

_OF_PARAMETERS_SHAPE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum")


def gather(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer, by names of parameters rather than by their numbers.

    Args:
        model: gives the names.
        optimizer: of torch, or with its `state_dict` and `param_groups`.

    Returns:
        "class", "groups" (settings, and "params": names) and "state" (name -> the parameter's state).
    """
    names, state = _names(model, optimizer), optimizer.state_dict()
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    by_name = {names[i] if isinstance(i, int) else i: value for i, value in state["state"].items()}
    return {"class": _class_name(optimizer), "groups": groups, "state": by_name}


def restore(folder: Path, model: nn.Module, optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Restore an optimizer from a state of `gather`.

    Args:
        folder: where the state is from, for errors.
        model, optimizer: as for `gather`.
        saved: the state.

    Raises:
        CheckpointError: the state is of another optimizer or other parameters.
    """
    if saved["class"] != _class_name(optimizer):
        raise CheckpointError(
            f"{folder} has the state of {saved['class']}, but this run trains with {_class_name(optimizer)}; choose "
            "that optimizer, or begin a new run from the model in the folder"
        )
    names = _names(model, optimizer)
    groups = [[names[i] for i in group["params"]] for group in optimizer.state_dict()["param_groups"]]
    before = [group["params"] for group in saved["groups"]]
    if [sorted(group) for group in groups] != [sorted(group) for group in before]:
        raise CheckpointError(f"{folder} has the optimizer's state of other parameters: {_difference(before, groups)}")
    numbers = {name: i for i, name in enumerate(names)}
    state = {numbers.get(name, name): value for name, value in saved["state"].items()}
    merged = [
        {**group, "params": [numbers[name] for name in now]} for group, now in zip(saved["groups"], groups, strict=True)
    ]
    load(folder, model, optimizer, {"state": state, "param_groups": merged})


def load(folder: Path, model: nn.Module, optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Load the `state_dict` of an optimizer, in which parameters are numbers.

    Args:
        folder: where it is from, for errors.
        model, optimizer: as for `gather`.
        state_dict: as the optimizer's class gives it.

    Raises:
        CheckpointError: it has other groups or parameters of other shapes.
    """
    parameters, state = _parameters(optimizer), state_dict["state"]
    _check_shapes(folder, _names(model, optimizer), parameters, state)
    state = {
        i: {key: placed(value, parameters[i]) for key, value in each.items()} if i in range(len(parameters)) else each
        for i, each in state.items()
    }
    try:
        optimizer.load_state_dict({**state_dict, "state": state})
    except ValueError as error:
        raise CheckpointError(f"{folder} has the optimizer's state of other parameters: {error}") from error
    _undo_casts(optimizer, state)


def _undo_casts(optimizer: Any, state: Mapping[Any, Any]) -> None:
    """Put tensors back whose type torch changed to the parameter's: float32 states of bfloat16 parameters."""
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in state.get(i, {}).items():
            loaded = optimizer.state[parameter][key]
            if isinstance(value, torch.Tensor) and key != "step" and loaded.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(loaded.device)


def _check_shapes(
    folder: Path, names: list[str], parameters: list[torch.Tensor], state: Mapping[Any, Mapping[str, Any]]
) -> None:
    for i, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        for key in _OF_PARAMETERS_SHAPE:
            value: Any = state.get(i, {}).get(key)
            if hasattr(value, "shape") and value.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder} has {key} of {name} in shape {tuple(value.shape)}; the parameter has "
                    f"{tuple(parameter.shape)}"
                )


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(model: nn.Module, optimizer: Any) -> list[str]:
    """Name of each of the optimizer's parameters, by the numbers that torch gives them."""
    of_model = {id(parameter): name for name, parameter in model.named_parameters()}
    return [of_model.get(id(parameter), f"unnamed.{i}") for i, parameter in enumerate(_parameters(optimizer))]


def _class_name(optimizer: Any) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate's wrapper is passed over


def _difference(before: list[list[str]], now: list[list[str]]) -> str:
    old, new = ({name for group in groups for name in group} for groups in (before, now))
    missing, added = sorted(old - new), sorted(new - old)
    if missing or added:
        lost, lacking = (", ".join(names[:5]) or "none" for names in (missing, added))
        return f"of those that it has, {lost} are not trained now; of those that are, it lacks {lacking}"
    return f"groups of {[len(group) for group in before]} parameters, but now {[len(group) for group in now]}"
