"""One call of `generate`, made ready: what every decoding loop is handed, and the chores they share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.processors.base import LogitsProcessorList
from gptrio.generation.prompt import Prompt
from gptrio.generation.step import Stepper
from gptrio.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    OnFinish,
    StoppingCriteriaList,
    finish_reason,
)
from gptrio.generation.streamers import Streamer
from gptrio.nn.fast_call import for_the_caller

Generators = torch.Generator | Sequence[torch.Generator] | None


class OutputRecorder:
    """What the caller asked to see of every step."""

    def __init__(self, config: GenerationConfig) -> None:
        self.wanted = bool(config.return_dict_in_generate)
        names = ("scores", "logits", "attentions", "hidden_states")
        self.kept: dict[str, list[Any]] = {
            name: [] for name in names if self.wanted and getattr(config, f"output_{name}")
        }

    def add(self, output: Any, logits: Tensor, scores: Tensor) -> None:
        """Keep a step's output of the model, and the logits (B, V) before and after processing."""
        values = {"scores": scores, "logits": logits}
        for name, steps in self.kept.items():
            steps.append(values[name] if name in values else getattr(output, name))

    def tuples(self) -> dict[str, tuple[Any, ...]]:
        """What was kept, a tuple with one entry for each step."""
        return {name: tuple(steps) for name, steps in self.kept.items()}

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """Processed scores so far, for stopping criteria that look at them."""
        return tuple(self.kept["scores"]) if "scores" in self.kept else None


@dataclass
class GenerationState:
    """What a decoding loop needs.

    Attributes:
        model: the language model.
        config: the options of this call.
        prompt: the prompts, a row for every sequence or beam.
        step: runs the model.
        processors: change the scores.
        criteria: say which rows are finished.
        pad: token that fills finished rows, or None.
        generators: where random numbers come from: torch's own, one for all rows, or one for each.
        streamer: is handed the tokens, or None.
        synced_gpus: go on with other processes until all have finished.
        on_finish: is told of rows that are finished, or None.
        record: what the result shall hold.
        prompts: number of prompts.
        own_processors: no processor is the caller's, or calls a function of the caller's.
    """

    model: Any
    config: GenerationConfig
    prompt: Prompt
    step: Stepper
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    pad: int | None
    record: OutputRecorder
    prompts: int
    generators: Generators = None
    streamer: Streamer | None = None
    synced_gpus: bool = False
    on_finish: OnFinish | None = None
    own_processors: bool = False

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
        """A context to call the processors in; those of a caller find torch as the caller left it."""
        return self.step.on_one_thread() if self.own_processors else nullcontext()

    def put(self, tokens: Tensor) -> None:
        """Hand tokens (B,) or (B, n) to the streamer, if there is one."""
        if self.streamer is not None:
            with for_the_caller():
                self.streamer.put(tokens.clone().cpu())  # a clone can be trained on

    def finish(self, ids: Tensor) -> Tensor | GenerateDecoderOnlyOutput:
        """End the stream and return what the caller asked for."""
        if self.streamer is not None:
            with for_the_caller():
                self.streamer.end()
        if not self.record.wanted:
            return ids
        return GenerateDecoderOnlyOutput(ids, past_key_values=self.step.cache, **self.record.tuples())

    def tell_finished(self, row: int, ids: Tensor) -> None:
        """Tell the caller, if asked to, that a row is finished: ids (T,) up to the token that finished it."""
        if self.on_finish is not None:
            reason = finish_reason(self.criteria, ids[None])
            with for_the_caller():
                self.on_finish(row, reason, len(ids) - self.ids.shape[1])


class SequenceStatus:
    """Which rows go on.

    Lengths and end tokens are looked at without a tensor call; they are all there is to look at in most calls.

    Args:
        call: its criteria say which rows are finished, its `pad` fills these, its streamer is told of them.
        count: B.
    """

    def __init__(self, call: GenerationState, count: int) -> None:
        criteria, pad = call.criteria, call.pad
        limits = [item for item in criteria if type(item) is MaxLengthCriteria and item.max_position_embeddings is None]
        ends = [item for item in criteria if type(item) is EosTokenCriteria]
        self._limit = min((item.max_length for item in limits), default=None)
        self._ends = frozenset(token for item in ends for token in item.eos_token_id.tolist())
        self._others = StoppingCriteriaList(item for item in criteria if item not in limits and item not in ends)
        known = [item.eos_token_id for item in criteria if hasattr(item, "eos_token_id")]
        self.pad = pad if pad is not None or not known else int(torch.as_tensor(known[0]).flatten()[0])
        self._pads = bool(known)
        self._end_row = getattr(call.streamer, "end_row", None) if count > 1 else None
        self._call = call
        self._flags = [True] * count
        self.running: Tensor | None = None  # (B,) bool, None while all are

    def fill(self, tokens: Tensor) -> Tensor:
        """Put padding in place of the tokens (B,) of finished rows."""
        if self.running is None or not self._pads or self.pad is None:
            return tokens
        return tokens.masked_fill(~self.running, self.pad)

    def all_finished(self, ids: Tensor, scores: Any) -> bool:
        """Look at the newest tokens of ids (B, T) and tell whether no row goes on."""
        flags = self._flags
        if self._ends:
            flags = [on and token not in self._ends for on, token in zip(flags, ids[:, -1].tolist(), strict=True)]
        if self._others:
            done = self._others(ids, scores).tolist()
            flags = [on and not ended for on, ended in zip(flags, done, strict=True)]
        if not any(flags) or (self._limit is not None and ids.shape[1] >= self._limit):
            self._tell(ids, [False] * len(flags), is_last=True)
            return True
        if flags != self._flags:
            self._tell(ids, flags)
            self._flags = flags
            self.running = torch.tensor(flags, device=ids.device)
        return False

    def _tell(self, ids: Tensor, flags: list[bool], is_last: bool = False) -> None:
        """Tell the caller and the streamer (which ends by itself at last) of rows of ids (B, T) just finished."""
        for row, (ran, runs) in enumerate(zip(self._flags, flags, strict=True)):
            if ran and not runs:
                self._call.tell_finished(row, ids[row])
                if self._end_row is not None and not is_last:
                    with for_the_caller():
                        self._end_row(row)
