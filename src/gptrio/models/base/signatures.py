"""The order of a family's arguments: heads and backbones are written once, but each family has its own order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

ModelClass = TypeVar("ModelClass", bound=type[nn.Module])


def overridable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a model's forward that subclasses override with arguments of their own.

    Type checkers then see it as they see `nn.Module.forward`; whoever runs or inspects it sees what it is.
    """
    return forward


def arguments(order: str) -> Callable[[ModelClass], ModelClass]:
    """Decorate a model class whose forward takes its positional arguments in another order than the shared one.

    Arguments are the same by name; those that are not listed can still be given by name.

    Args:
        order: names of the arguments, which is also what `inspect.signature` shows.
    """
    names = tuple(order.split())

    def decorate(cls: ModelClass) -> ModelClass:
        shared = cls.forward

        @functools.wraps(shared)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if len(args) > len(names):
                raise TypeError(f"{cls.__name__}.forward takes {len(names)} positional arguments, not {len(args)}")
            for name, value in zip(names, args):  # noqa: B905 - names may be more
                if name in kwargs:
                    raise TypeError(f"{cls.__name__}.forward got {name} twice, by its place and by its name")
                kwargs[name] = value
            return shared(self, **kwargs)

        known = inspect.signature(shared).parameters
        rest = [parameter for parameter in known.values() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
        shown = [known["self"], *(known[name] for name in names), *rest]
        forward.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # read by inspect
        cls.forward = forward
        return cls

    return decorate
