"""The arguments of forwards: heads and backbones are written once, but each family has its own positional order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from torch import Tensor, nn

from gptrio.models.base.inputs import warn_of_unknown

if TYPE_CHECKING:
    from gptrio.cache.protocol import Cache, LegacyCache

ModelClass = TypeVar("ModelClass", bound=type[nn.Module])


class BackboneInputs(TypedDict, total=False):
    """Arguments that a head passes on to its backbone; see `Backbone.forward`."""

    input_ids: Tensor | None
    past_key_values: Cache | LegacyCache | None
    cache_position: Tensor | None
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    head_mask: Tensor | None
    inputs_embeds: Tensor | None
    encoder_hidden_states: Tensor | None
    encoder_attention_mask: Tensor | None
    use_cache: bool | None
    output_attentions: bool | None
    output_hidden_states: bool | None


def overridable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a model's forward that subclasses override with other arguments.

    Type checkers then accept any arguments, as for `nn.Module.forward`; at run time nothing changes.
    """
    return forward


def positional_order(order: str) -> Callable[[ModelClass], ModelClass]:
    """Decorate a model class with the order in which its forward takes positional arguments.

    `inspect.signature` then shows these arguments, those of `BackboneInputs` included. Other arguments of the class or
    its base can still be given by name. A head passes all of the `BackboneInputs` that it accepts to
    its backbone, and to hooks there: None for those that were not given.

    Args:
        order: names of the arguments. `**name` at the end accepts other keywords: the forward that the class defines
            gets them as a dictionary `name`, or they are left out with a warning if it has no such argument.
    """
    names = tuple(name for name in order.split() if not name.startswith("**"))

    def decorate(cls: ModelClass) -> ModelClass:
        shared = getattr(cls.forward, "positional", cls.forward)  # without the order of a base class
        known = _parameters(cls.forward, order)
        rest = [name for name, parameter in known.items() if parameter.kind is parameter.VAR_KEYWORD]
        accepted = frozenset(known) - {"self", *rest}
        taken = inspect.signature(shared).parameters
        is_head, takes_rest = "backbone_inputs" in taken, not taken.keys().isdisjoint(rest)
        handed_on = [name for name in BackboneInputs.__annotations__ if is_head and name in accepted]

        @functools.wraps(shared)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if len(args) > len(names):
                raise TypeError(f"{cls.__name__}.forward takes {len(names)} positional arguments, not {len(args)}")
            for name, value in zip(names, args):  # noqa: B905 - names may be more
                if name in kwargs:
                    raise TypeError(f"{cls.__name__}.forward got {name} twice, by position and by name")
                kwargs[name] = value
            others = [name for name in kwargs if name not in accepted]
            if others and not rest:
                raise TypeError(f"{type(self).__name__}.forward() got an unexpected keyword argument {others[0]!r}")
            if others:
                options = {name: kwargs.pop(name) for name in others}
                if takes_rest:
                    kwargs[rest[0]] = options
                else:
                    warn_of_unknown(others)
            backbone_inputs = {name: kwargs.pop(name, None) for name in handed_on}  # all, in one order, for hooks
            return shared(self, **backbone_inputs, **kwargs)

        shown = [known[name] for name in ("self", *names, *rest)]
        returned = inspect.signature(cls.forward).return_annotation
        forward.positional = shared  # type: ignore[attr-defined]  # read above
        set_forward(cls, forward, inspect.Signature(shown, return_annotation=returned))
        return cls

    return decorate


def set_forward(cls: type[nn.Module], forward: Any, signature: inspect.Signature) -> None:
    """Make a wrapper, by `functools.wraps`, of a class's forward that forward, shown with a signature."""
    del forward.__wrapped__  # accelerate puts the innermost function of a forward in its place
    # code of its own for each class: torch.compile counts compilations, which it limits, by it
    forward.__code__ = forward.__code__.replace(co_name=f"{cls.__name__}_forward")
    forward.__signature__ = signature  # read by inspect
    cls.forward = forward


def _parameters(forward: Callable[..., Any], order: str) -> dict[str, inspect.Parameter]:
    """Parameters of a forward by name; `order` names those that it takes as `BackboneInputs`, or as other keywords."""
    shared = getattr(forward, "positional", forward)
    known = {name: p for name, p in inspect.signature(shared).parameters.items() if p.kind is not p.VAR_KEYWORD}
    if shared is not forward:
        known |= inspect.signature(forward).parameters
    for name in order.split():
        if name.startswith("**"):
            known[name[2:]] = inspect.Parameter(name[2:], inspect.Parameter.VAR_KEYWORD, annotation="Any")
        elif name not in known:
            hint = BackboneInputs.__annotations__[name].__forward_arg__
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
            known[name] = inspect.Parameter(name, kind, default=None, annotation=hint)
    return known
