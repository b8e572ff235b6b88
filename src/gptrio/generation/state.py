"""One call of `generate`: what is fixed once it is set up, and what changes while its rows are decoded."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.processors.base import LogitsProcessorList
from gptrio.generation.prompt import Prompt
from gptrio.generation.protocol import CausalLM
from gptrio.generation.sampling import Generators
from gptrio.generation.step import DecodeRunner
from gptrio.generation.stopping import (
    EosTokenCriteria,
    FinishReason,
    MaxLengthCriteria,
    OnFinish,
    StoppingCriteriaList,
    finish_reasons,
)
from gptrio.generation.streamers import Streamer


class OutputRecorder:
    """The outputs of every step that the caller requested.

    Attributes:
        is_active: whether the caller requested more than ids.
    """

    def __init__(self, config: GenerationConfig) -> None:
        self.is_active = bool(config.return_dict_in_generate)
        names = ("scores", "logits", "attentions", "hidden_states")
        self._steps: dict[str, list[Any]] = {
            name: [] for name in names if self.is_active and getattr(config, f"output_{name}")
        }

    def add(self, output: Any, logits: Tensor, scores: Tensor) -> None:
        """Keep a step's output of the model, and the logits (B, V) before and after processing."""
        for name, steps in self._steps.items():
            steps.append(scores if name == "scores" else logits if name == "logits" else getattr(output, name))

    def tuples(self) -> dict[str, tuple[Any, ...]]:
        """What was kept, a tuple with one entry for each step."""
        return {name: tuple(steps) for name, steps in self._steps.items()}

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """Processed scores so far, for stopping criteria that look at them."""
        return tuple(self._steps["scores"]) if "scores" in self._steps else None


@dataclass(frozen=True)
class GenerationState:
    """The constant part of a call, for its decoding loop.

    Attributes:
        model: the language model.
        config: the options of this call.
        prompt: the prompts, a row for every sequence or beam.
        step: runs the model.
        processors: change the scores.
        criteria: decide which rows are finished.
        pad: token that fills finished rows, or None.
        num_prompts: number of prompts.
        generators: where random numbers come from: torch's own, one for all rows, or one for each.
        streamer: gets the tokens, or None.
        synced_gpus: go on with other processes until all have finished.
        on_finish: is called when a row is finished, or None.
        has_own_processors_only: whether no processor is the caller's or calls a function of the caller's.
    """

    model: CausalLM
    config: GenerationConfig
    prompt: Prompt
    step: DecodeRunner
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    pad: int | None
    num_prompts: int
    generators: Generators = None
    streamer: Streamer | None = None
    synced_gpus: bool = False
    on_finish: OnFinish | None = None
    has_own_processors_only: bool = False

    @property
    def ids(self) -> Tensor:
        """(B, T) ids of the prompts."""
        return self.prompt.ids

    def process(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Scores (B, V) after the processors."""
        if not self.processors:
            return logits
        with self.processing():
            return self.processors(ids, logits)

    def processing(self) -> AbstractContextManager[None]:
        """A context to call the processors in; torch's thread count is unchanged for those of the caller."""
        return self.step.on_one_thread() if self.has_own_processors_only else nullcontext()


class SequenceStatus:
    """What changes while the rows of a batch are decoded.

    Lengths and end tokens, the only criteria of most calls, are checked without tensor operations.

    Attributes:
        ids: (B, T) the tokens so far.
        running: (B,) bool, True for rows that are not finished; None while none is.
        finish_reasons: row -> why it is finished.
        is_finished: whether all rows are finished.
        record: the requested outputs of the steps.

    Args:
        state: its criteria decide which rows are finished, and its `pad` fills these.
        ids: (B, T) the prompts.
    """

    def __init__(self, state: GenerationState, ids: Tensor) -> None:
        self.ids = ids
        self.running: Tensor | None = None
        self.finish_reasons: dict[int, FinishReason] = {}
        self.is_finished = False
        self.record = OutputRecorder(state.config)
        criteria = state.criteria
        limits = [item for item in criteria if type(item) is MaxLengthCriteria and item.max_position_embeddings is None]
        ends = [item for item in criteria if type(item) is EosTokenCriteria]
        self._limit = min((item.max_length for item in limits), default=None)
        self._ends = frozenset(token for item in ends for token in item.eos_token_id.tolist())
        self._others = [item for item in criteria if item not in limits and item not in ends]
        known = [item.eos_token_id for item in criteria if hasattr(item, "eos_token_id")]
        self._fill: int | None = None  # rows are filled where a criterion looks at end tokens
        if known:
            self._fill = int(torch.as_tensor(known[0]).flatten()[0]) if state.pad is None else state.pad

    def append(self, tokens: Tensor, scores: Tensor, start: int | None = None) -> StepOutput:
        """Append a token to each row, padding to finished ones.

        Args:
            tokens: (B,) chosen tokens.
            scores: (B, V) what they were chosen from.
            start: first column of the step's tokens; by default the new one, which is then its only one.
        """
        if self.running is not None and self._fill is not None:
            tokens = tokens.masked_fill(~self.running, self._fill)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        if start is not None and start < self.ids.shape[1] - 1:
            tokens = self.ids[:, start:]
        return StepOutput(tokens, scores, self.ids, self)

    def finish_rows(self) -> dict[int, FinishReason]:
        """Call the stopping criteria on the newest tokens; return the rows that these finish, and why."""
        ids, count = self.ids, self.ids.shape[0]
        reasons: list[FinishReason | None] = [None] * count
        if self._others:
            reasons = finish_reasons(self._others, ids, self.record.scores)
        if self._limit is not None and ids.shape[1] >= self._limit:
            strings = FinishReason.STOP_STRING
            reasons = [reason if reason is strings else FinishReason.LENGTH for reason in reasons]
        if self._ends:
            for row, token in enumerate(ids[:, -1].tolist()):
                if token in self._ends:
                    reasons[row] = FinishReason.STOP_TOKEN
        if not any(reasons):
            return {}
        known = self.finish_reasons
        new = {row: why for row, why in enumerate(reasons) if why is not None and row not in known}
        known.update(new)
        self.is_finished = len(known) == count
        if new:
            self.running = torch.tensor([row not in known for row in range(count)], device=ids.device)
        return new


@dataclass(eq=False)
class StepOutput:
    """One step of decoding.

    Attributes:
        tokens: (B,) the new token of each row, padding in finished ones; (B, n) where n drafted tokens were accepted.
        scores: (B, V) processed scores that the last of them was chosen from.
        ids: (B, T) all tokens so far.
        status: of the rows.
    """

    tokens: Tensor
    scores: Tensor
    ids: Tensor
    status: SequenceStatus
    _finished: dict[int, FinishReason] | None = None
    _is_last: bool = False

    @property
    def finished(self) -> dict[int, FinishReason]:
        """Rows that this step finishes, and why.

        The stopping criteria are called when this is first read, before the next step at the latest. Read the tokens
        first to have them before the caller's own criteria are called, as streamers of Transformers do.
        """
        if self._finished is None:
            self._finished = self.status.finish_rows()
            self._is_last = bool(self._finished) and self.status.is_finished
        return self._finished

    @property
    def is_last(self) -> bool:
        """Whether all rows are finished; reading it calls the stopping criteria, as reading `finished` does."""
        return bool(self.finished) and self._is_last
