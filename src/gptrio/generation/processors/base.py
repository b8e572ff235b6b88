"""What a score processor is, lists of them, and the helpers they share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from gptrio.config.fields import check_token_ids
from gptrio.errors import InputError, OptionError

NEG_INF = float("-inf")

Processor = Callable[..., torch.Tensor]

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# reading a signature takes longer than most processors
_ARGUMENTS: WeakKeyDictionary[Processor, tuple[tuple[str, ...], tuple[str, ...] | None]] = WeakKeyDictionary()


class LogitsProcessor:
    """A callable that returns changed scores; subclass it and define `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the processed scores.

        Args:
            input_ids: (B, T) the tokens so far, prompt included.
            scores: (B, V) logits, or log-probabilities in beam search; never changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


LogitsWarper = LogitsProcessor


class LogitsProcessorList(list[Processor]):
    """Processors applied one after the other."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return the scores after every processor.

        Args:
            input_ids: (B, T) the tokens so far.
            scores: (B, V) scores of the next token.
            **kwargs: arguments that some processors take besides; each is given those that it names.

        Raises:
            InputError: a processor needs an argument that is not there.
        """
        for processor in self:
            needed, accepted = _further_arguments(processor)
            missing = [name for name in needed if name not in kwargs]
            if missing:
                raise InputError(f"{type(processor).__name__} needs the arguments {missing}; pass them by name")
            taken = kwargs if accepted is None else {name: kwargs[name] for name in accepted if name in kwargs}
            scores = processor(input_ids, scores, **taken)
        return scores


def _further_arguments(processor: Processor) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Return the arguments after ids and scores: those without a default, and all (None: any name)."""
    plain = inspect.isroutine(processor) or isinstance(processor, partial)
    call = processor if plain else type(processor).__call__
    if call not in _ARGUMENTS:
        further = list(inspect.signature(call).parameters.values())[2 if plain else 3 :]
        named = [parameter for parameter in further if parameter.kind not in _VARIABLE]
        any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in further)
        needed = tuple(parameter.name for parameter in named if parameter.default is parameter.empty)
        _ARGUMENTS[call] = needed, None if any_name else tuple(parameter.name for parameter in named)
    return _ARGUMENTS[call]


class TokenIds:
    """Token ids given as one, several or a tensor, ready to index scores on any device.

    Args:
        name: the argument, for messages.
        ids: the token ids.
        device: where they are kept; a tensor stays where it is.

    Raises:
        OptionError: they are not integers, or there is none.
    """

    def __init__(self, name: str, ids: int | Sequence[int] | torch.Tensor, device: str | torch.device = "cpu") -> None:
        self.ids = check_token_ids(name, ids.tolist() if isinstance(ids, torch.Tensor) else ids)
        if not self.ids:
            raise OptionError(f"{name}={ids!r} must be a token id or a list of them")
        self.tensor = ids if isinstance(ids, torch.Tensor) and ids.dim() else torch.tensor(self.ids, device=device)
        self._index: torch.Tensor | None = None
        self._made_for = (-1, -1)

    def within(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the ids below V, as an index tensor beside the scores (B, V); edits of `tensor` count."""
        made_for = (scores.shape[-1], -1 if self.tensor.is_inference() else self.tensor._version)
        if self._index is None or self._made_for != made_for or self._index.device != scores.device:
            inside = [token for token in self.tensor.tolist() if 0 <= token < scores.shape[-1]]
            self._index = torch.tensor(inside, dtype=torch.long, device=scores.device)
            self._made_for = made_for
        return self._index


class TokenIdsAttribute:
    """An attribute of a processor that takes one token id, several or a tensor, and gives a tensor (N,).

    The `TokenIds` behind it are the attribute of the same name with "_" before it.

    Args:
        option: the option that the ids come from, for messages.
    """

    def __init__(self, option: str) -> None:
        self._option = option

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the attribute's name."""
        self._name = f"_{name}"

    def __get__(self, processor: object, owner: type) -> torch.Tensor:
        """Return the ids (N,)."""
        ids: TokenIds = getattr(processor, self._name)
        return ids.tensor

    def __set__(self, processor: object, ids: int | Sequence[int] | torch.Tensor) -> None:
        """Check and take the ids."""
        setattr(processor, self._name, TokenIds(self._option, ids))


def only(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return scores (B, V) that are 0 for `tokens` and minus infinity for all others."""
    return torch.full_like(scores, NEG_INF).index_fill_(1, tokens, 0.0)


def one_row_each(ids: torch.Tensor, rows: int, name: str) -> torch.Tensor:
    """Repeat the rows of ids (E, T) so that each of `rows` beams or samples has its prompt's: (rows, T)."""
    if ids.dim() == 1:
        ids = ids[None]
    if rows % ids.shape[0]:
        raise InputError(f"{name} has {ids.shape[0]} rows and the scores {rows}; expected a multiple")
    return ids.repeat_interleave(rows // ids.shape[0], dim=0)
