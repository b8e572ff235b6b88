"""When a row is finished, and why: length, time, end tokens, stop strings, low confidence, the caller's own rules."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Protocol

import torch

from gptrio.config.fields import check_number
from gptrio.errors import OptionError, warn
from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.processors.base import TokenIds, merge

Criterion = Callable[..., "torch.Tensor | bool"]


class FinishReason(str, Enum):
    """Why a row is finished; if several reasons apply, the first in this order."""

    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    TIME = "time"
    CRITERION = "criterion"  # a rule of the caller's

    @property
    def api_name(self) -> str:
        """The reason as servers of OpenAI's kind name it: "stop" for tokens and strings, else the value ("length")."""
        return "stop" if self in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING) else self.value


OnFinish = Callable[[int, FinishReason, int], object]  # row, reason, number of new tokens


class Tokenizer(Protocol):
    """What generation needs of a tokenizer, to find stop strings and to stream text."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of token ids."""


class StoppingCriteria:
    """A callable that returns which rows are finished; subclass it and define `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) True for each row that is finished.

        Args:
            input_ids: (B, T) the tokens so far, the newest included.
            scores: the scores that `generate` keeps, a (B, V) tensor for each step, if it keeps any.
            **kwargs: further arguments of the caller.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class StoppingCriteriaList(list[Criterion]):
    """Criteria of which any one finishes a row."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) True for each row that any criterion finishes; a criterion may return one bool for all rows."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            done = done | criterion(input_ids, scores, **kwargs)
        return done

    @property
    def max_length(self) -> int | None:
        """Length at which every row is finished, if there is such a criterion."""
        return next((item.max_length for item in self if isinstance(item, MaxLengthCriteria)), None)


class MaxLengthCriteria(StoppingCriteria):
    """Finish rows of `max_length` tokens, prompt included.

    Args:
        max_length: that length.
        max_position_embeddings: positions that the model was made for; reaching it first gives one warning.
    """

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) whether T reaches the length."""
        length = input_ids.shape[1]
        done = length >= self.max_length
        if self.max_position_embeddings is not None and not done and length >= self.max_position_embeddings:
            warn(f"{length} tokens reach the model's {self.max_position_embeddings} positions; text beyond may degrade")
            self.max_position_embeddings = None  # once is enough
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


class MaxTimeCriteria(StoppingCriteria):
    """Finish all rows when a time has passed.

    Args:
        max_time: seconds.
        initial_timestamp: start, as `time.time()` gives it; now by default.
    """

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = check_number("max_time", max_time, float, ge=0)
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) whether the time is over."""
        done = time.time() - self.initial_timestamp > self.max_time
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


class EosTokenCriteria(StoppingCriteria):
    """Finish rows whose newest token is an end.

    Args:
        eos_token_id: token or tokens that end a row.
    """

    def __init__(self, eos_token_id: int | Sequence[int] | torch.Tensor) -> None:
        self.eos_token_id = torch.tensor(TokenIds("eos_token_id", eos_token_id).ids, device="cpu")

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) whether the newest token is an end."""
        self.eos_token_id = self.eos_token_id.to(input_ids.device)
        return (input_ids[:, -1:] == self.eos_token_id).any(-1)


class StopStringCriteria(StoppingCriteria):
    """Finish rows whose newest token completes one of some strings.

    A string may begin and end inside tokens. Text before the newest token was checked at earlier steps.

    Args:
        tokenizer: the model's tokenizer; its `decode` is used. The text of a token must not depend on distant tokens.
        stop_strings: one string or several.

    Raises:
        OptionError: there is no tokenizer, no stop string, or an empty one.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop_strings: str | Sequence[str]) -> None:
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if tokenizer is None:
            raise OptionError(f"stop_strings={list(self.stop_strings)} need the model's tokenizer; pass tokenizer=...")
        if not self.stop_strings or any(not isinstance(text, str) or not text for text in self.stop_strings):
            raise OptionError(f"stop_strings={list(self.stop_strings)} must be strings, none of them empty")
        self._tokenizer = tokenizer
        self.num_stop_strings = len(self.stop_strings)
        self.target_lens = torch.tensor([len(text) for text in self.stop_strings], dtype=torch.int32, device="cpu")
        self.maximum_token_len = max(len(text) for text in self.stop_strings)
        longest = max(len(text.encode()) for text in self.stop_strings)
        self._window = longest + 1  # a token has a byte at least; one more, since some decoders strip the first

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) whether the newest token completed a stop string."""
        rows = input_ids[:, -self._window :].tolist()
        return torch.tensor([self._is_completed(row) for row in rows], device=input_ids.device)

    def _is_completed(self, token_ids: list[int]) -> bool:
        """Whether a stop string ends in the last token's part of the text."""
        before, text = self._decode(token_ids[:-1]), self._decode(token_ids)
        if not text.startswith(before):
            before = before.rstrip("\ufffd")  # the last token completes a character
        settled = len(before)
        return any(text.find(stop, max(0, settled - len(stop) + 1)) >= 0 for stop in self.stop_strings)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class ConfidenceCriteria(StoppingCriteria):
    """Finish rows whose newest token had a low probability; ends the drafting of assisted generation.

    Args:
        assistant_confidence_threshold: the least probability to go on with.
    """

    def __init__(self, assistant_confidence_threshold: float) -> None:
        self.assistant_confidence_threshold = assistant_confidence_threshold

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return (B,) whether the newest token was unlikely under the last scores (B, V)."""
        probabilities: torch.Tensor = scores[-1].softmax(-1)
        return probabilities.gather(1, input_ids[:, -1:])[:, 0] < self.assistant_confidence_threshold


def build_stopping(
    config: GenerationConfig,
    *,
    stopping_criteria: Iterable[Criterion] = (),
    tokenizer: Tokenizer | None = None,
    max_position_embeddings: int | None = None,
) -> StoppingCriteriaList:
    """Return the criteria of the options, then the caller's.

    Args:
        config: the options.
        stopping_criteria: the caller's own; one of a built-in class replaces the one built here.
        tokenizer: needed for stop strings.
        max_position_embeddings: see `MaxLengthCriteria`.

    Raises:
        OptionError: stop strings without a tokenizer.
    """
    built: list[Criterion] = []
    if config.max_length is not None:
        built.append(MaxLengthCriteria(config.max_length, max_position_embeddings))
    if config.max_time is not None:
        built.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        built.append(StopStringCriteria(tokenizer, config.stop_strings))
    if ends := eos_ids(config):
        built.append(EosTokenCriteria(ends))
    if config.is_assistant and config.assistant_confidence_threshold:
        built.append(ConfidenceCriteria(config.assistant_confidence_threshold))
    return StoppingCriteriaList(merge(built, stopping_criteria, "stopping_criteria"))


def finish_reasons(criteria: Iterable[Criterion], ids: torch.Tensor, scores: Any = None) -> list[FinishReason | None]:
    """Why each row of ids (B, T) is finished by its newest token; None for rows that go on.

    Every criterion is called once. If several apply, the first in the order of `FinishReason` is the reason.

    Args:
        criteria: the rules.
        ids: (B, T) the tokens so far.
        scores: see `StoppingCriteria`.
    """
    found: list[set[FinishReason]] = [set() for _ in ids]
    for criterion in criteria:
        done = torch.as_tensor(criterion(ids, scores)).expand(len(found)).tolist()
        for reasons, is_done in zip(found, done, strict=True):
            if is_done:
                reasons.add(_reason_of(criterion))
    return [next((reason for reason in FinishReason if reason in reasons), None) for reasons in found]


def sequence_finish_reason(criteria: Iterable[Criterion], ids: torch.Tensor) -> FinishReason:
    """Why a whole sequence ids (T,), found by beam search, ends where it does; no rule of the caller's is called."""
    known = [criterion for criterion in criteria if _reason_of(criterion) is not FinishReason.CRITERION]
    return finish_reasons(known, ids[None])[0] or FinishReason.CRITERION


def _reason_of(criterion: Criterion) -> FinishReason:
    return next((reason for kind, reason in _REASONS.items() if isinstance(criterion, kind)), FinishReason.CRITERION)


_REASONS: dict[type[StoppingCriteria], FinishReason] = {
    EosTokenCriteria: FinishReason.STOP_TOKEN,
    StopStringCriteria: FinishReason.STOP_STRING,
    MaxLengthCriteria: FinishReason.LENGTH,
    MaxTimeCriteria: FinishReason.TIME,
}


def validate_stopping_criteria(stopping_criteria: StoppingCriteriaList, max_length: int) -> StoppingCriteriaList:
    """Return a copy of the criteria that has a maximum length; warn when it already has another one."""
    criteria = copy.deepcopy(stopping_criteria)
    if criteria.max_length is None:
        criteria.append(MaxLengthCriteria(max_length))
    elif criteria.max_length != max_length:
        warn(f"stopping_criteria stop at {criteria.max_length} tokens, not at max_length={max_length}")
    return criteria
