"""Score processors and lists of them, and the helpers that they share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from gptrio.config.fields import check_token_ids
from gptrio.errors import InputError, OptionError, warn

NEG_INF = float("-inf")

Item = TypeVar("Item")
Processor = Callable[..., torch.Tensor]

# parameters after ids and scores; reading a signature takes longer than most processors
_PARAMETERS: WeakKeyDictionary[Processor, list[inspect.Parameter]] = WeakKeyDictionary()


class LogitsProcessor:
    """A callable that returns changed scores; subclass it and define `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the processed scores.

        Args:
            input_ids: (B, T) the tokens so far, prompt included.
            scores: (B, V) logits, or log-probabilities in beam search; never changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


LogitsWarper = LogitsProcessor


class LogitsProcessorList(list[Processor]):
    """Processors applied one after the other."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the scores after every processor.

        Args:
            input_ids: (B, T) the tokens so far.
            scores: (B, V) scores of the next token.
            **kwargs: further arguments; each processor is called with those that its signature names.

        Raises:
            InputError: a processor has a further argument without a default that is not in `kwargs`.
        """
        for processor in self:
            scores = processor(input_ids, scores, **_further_arguments(processor, kwargs))
        return scores


def _further_arguments(processor: Processor, given: dict[str, Any]) -> dict[str, Any]:
    """Return those of the `given` arguments that a processor takes after ids and scores."""
    is_function = inspect.isroutine(processor) or isinstance(processor, partial)
    call = processor if is_function else type(processor).__call__
    if call not in _PARAMETERS:
        _PARAMETERS[call] = list(inspect.signature(call).parameters.values())[2 if is_function else 3 :]
    parameters = [parameter for parameter in _PARAMETERS[call] if parameter.kind is not parameter.VAR_POSITIONAL]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names, parameters = set(given), parameters[:-1]
    else:
        names = {parameter.name for parameter in parameters}
    missing = [item.name for item in parameters if item.default is item.empty and item.name not in given]
    if missing:
        raise InputError(f"{type(processor).__name__} needs the arguments {missing}; pass them by name")
    return {name: value for name, value in given.items() if name in names}


def merge(built: Sequence[Item], own: Iterable[Item], name: str) -> list[Item]:
    """Return the built items, each replaced by the caller's of the same class, then the caller's others.

    Warns once when something is replaced, since an option then has no effect.

    Args:
        built: made from options.
        own: the caller's.
        name: the argument of `generate` that holds the caller's items.
    """
    own = list(own)
    by_type = {type(item): item for item in reversed(own)}
    merged = [by_type.get(type(item), item) for item in built]
    replaced = sorted({type(item).__name__ for item in built if type(item) in by_type})
    if replaced:
        warn(f"{', '.join(replaced)} from {name}= replaces the one of the options; leave one out")
    return merged + [item for item in own if not any(item is other for other in merged)]


class TokenIds:
    """Token ids, given as an integer, a sequence or a tensor, that index scores on any device.

    Args:
        name: the argument, for messages.
        ids: the token ids.
        device: device of `tensor`; ids that are a tensor stay on theirs.

    Raises:
        OptionError: the ids are not integers, or empty.
    """

    def __init__(self, name: str, ids: int | Sequence[int] | torch.Tensor, device: str | torch.device = "cpu") -> None:
        self.ids = check_token_ids(name, ids.tolist() if isinstance(ids, torch.Tensor) else ids)
        if not self.ids:
            raise OptionError(f"{name}={ids!r} must be a token id or a list of them")
        self.tensor = ids if isinstance(ids, torch.Tensor) and ids.dim() else torch.tensor(self.ids, device=device)
        self._index: torch.Tensor | None = None
        self._made_for = (-1, -1)

    def within(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the ids below V as an index tensor on the device of the scores (B, V); edits of `tensor` count."""
        made_for = (scores.shape[-1], -1 if self.tensor.is_inference() else self.tensor._version)
        if self._index is None or self._made_for != made_for or self._index.device != scores.device:
            inside = [token for token in self.tensor.tolist() if 0 <= token < scores.shape[-1]]
            self._index = torch.tensor(inside, dtype=torch.long, device=scores.device)
            self._made_for = made_for
        return self._index


class TokenIdsAttribute:
    """A descriptor: set to a token id, several or a tensor, it returns a tensor (N,).

    The processor stores the `TokenIds` as the attribute of the same name with "_" before it.

    Args:
        option: the option that the ids come from, for messages.
    """

    def __init__(self, option: str) -> None:
        self._option = option

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, processor: object, owner: type) -> torch.Tensor:
        ids: TokenIds = getattr(processor, self._name)
        return ids.tensor

    def __set__(self, processor: object, ids: int | Sequence[int] | torch.Tensor) -> None:
        setattr(processor, self._name, TokenIds(self._option, ids))


def force(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return scores (B, V) that are 0 for `tokens` and minus infinity for all others."""
    return torch.full_like(scores, NEG_INF).index_fill_(1, tokens, 0.0)


def repeat_prompts(ids: torch.Tensor, rows: int, name: str) -> torch.Tensor:
    """Repeat each prompt of ids (E, T) for its beams or samples: (rows, T)."""
    if ids.dim() == 1:
        ids = ids[None]
    if rows % ids.shape[0]:
        raise InputError(f"{name} has {ids.shape[0]} rows and the scores {rows}; expected a multiple")
    return ids.repeat_interleave(rows // ids.shape[0], dim=0)
