"""Run the model on the tokens that its cache lacks: the prompt first, then what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from torch import Tensor, nn

from gptrio.generation.inputs import ModelInputs
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.max_length import last_column, no_more_positions
from gptrio.generation.prompt import Prompt
from gptrio.generation.protocol import CausalLM
from gptrio.generation.runners import select
from gptrio.generation.runners.eager import EagerRunner
from gptrio.generation.runners.protocol import Step, StepRunner
from gptrio.kernels.cpu_decode import Reason
from gptrio.kernels.cpu_decode.compilation import NotYet
from gptrio.kernels.linear import needs_no_pack, packing_disabled
from gptrio.kernels.threads import yielding_to
from gptrio.nn.fast_call import for_the_caller, hook_reason, is_dispatch_skipped

OnStep = Callable[[int, int], object]  # number of new tokens, the most there can be


class DecodeRunner:
    """One model, one batch and its cache, from step to step.

    Args:
        model: a language model.
        prompt: the rows to continue, one for each prompt; it is computed once for all copies of a row where it can.
        config: says what the model returns.
        copies: rows that continue each prompt.
        cache: empty, or holding the first positions of the prompt; None to run without.
        on_step: is called whenever the model has run.
    """

    def __init__(
        self,
        model: CausalLM,
        prompt: Prompt,
        config: GenerationConfig,
        copies: int,
        cache: Any,
        on_step: OnStep | None = None,
    ) -> None:
        self.model = model
        hooks = None if is_dispatch_skipped() else hook_reason(cast(nn.Module, model))
        self._last_column = last_column(model, prompt)
        self._inputs = inputs = ModelInputs(prompt, config, copies, cache, hooks)
        shares_prefill = copies > 1 and select.fast_path(model, inputs, select.shared_prefill) is None
        self._copies = copies if shares_prefill else 1  # to make of every row once the prompt is computed
        self._eager = EagerRunner(model, inputs, select.fast_path(model, inputs, select.next_logits) is None)
        self._runner: StepRunner = self._eager
        self._pending: Reason | None = None  # why a faster runner is not there yet, if there may be one
        if select.fast_path(model, inputs, select.fast_steps) is None:
            self._pending = NotYet("the prompt is computed first")
        if copies > self._copies:
            inputs.repeat_rows()
            if cache is not None and cache.get_seq_length():
                cache.batch_repeat_interleave(copies)
        self._has_prompt = False
        self._on_step = on_step

    def __call__(self, ids: Tensor, keep: int = 1, **flags: Any) -> Any:
        """Return the model's output for the positions that it has not seen, logits of the last `keep` only.

        Args:
            ids: (B, T) all tokens so far.
            keep: number of positions to return logits (B, keep, V) for.
            **flags: arguments of the model's forward for this call.
        """
        output = self._run(ids, keep, flags)
        if self._on_step is not None:
            start = self._inputs.prompt.ids.shape[1]
            most = (self._inputs.config.max_length or 0) - start
            with for_the_caller():
                self._on_step(min(ids.shape[1] - keep + 2 - start, most), most)
        return output

    def _run(self, ids: Tensor, keep: int, flags: dict[str, Any]) -> Any:
        if self._last_column is not None and ids.shape[1] > self._last_column:
            raise no_more_positions(self.model, self._inputs.prompt, ids.shape[1])
        inputs, cache = self._inputs, self._inputs.cache
        start = 0 if cache is None else cache.get_seq_length() - inputs.extra_positions
        end, is_plain = ids.shape[1] + inputs.offset, keep == 1 and not flags
        step = Step(ids, ids[:, start - inputs.offset :], start, end, cache, keep, flags, is_plain)
        if not self._has_prompt:
            return self._prefill(step)
        if self._pending is not None and step.is_plain and step.end - step.start == 1:
            found = select.choose_runner(self.model, inputs, step, self._pending)
            self._pending = found if isinstance(found, NotYet) else None
            self._runner = self._eager if isinstance(found, Reason) else found
        return (self._runner if self._runner.supports(step) else self._eager).run(step)

    @property
    def cache(self) -> Any:
        """What has been computed; None to compute everything at every step."""
        return self._inputs.cache

    def _prefill(self, step: Step) -> Any:
        """Compute the prompt, in chunks if that was asked for, and give its result to all copies of a row."""
        self._has_prompt, copies = True, self._copies
        chunk = None if self.cache is None or self._eager.prepare else self._inputs.config.prefill_chunk_size
        step = step._replace(ids=step.ids[::copies], new_ids=step.new_ids[::copies])
        with packing_disabled() if self._is_unpacked(len(step.ids) * copies) else nullcontext():
            while chunk is not None and step.end - step.start > chunk:
                new_ids, later_ids = step.new_ids[:, :chunk], step.new_ids[:, chunk:]
                end = step.start + chunk
                self._eager.run(step._replace(new_ids=new_ids, end=end, keep=1, flags={}, is_plain=True))
                step = step._replace(new_ids=later_ids, start=end, cache=self.cache)
            output = self._eager.run(step)
        if copies > 1:
            self.cache.batch_repeat_interleave(copies)
            self._inputs.repeat_rows()
            for name in ("logits", "attentions", "hidden_states"):
                setattr(output, name, _repeated(getattr(output, name, None), copies))
        return output

    def _is_unpacked(self, rows: int) -> bool:
        """Whether no step after the prompt uses packs: those of a runner, and of one row through MKL."""
        return self._pending is not None or needs_no_pack(rows, self.model.dtype)

    def on_one_thread(self) -> AbstractContextManager[None]:
        """A context for torch operations between compiled steps, whose threads need the processors."""
        return yielding_to(self._runner.threads)

    def reorder(self, rows: Tensor) -> None:
        """Continue row `rows[i]` (B,) as row i."""
        if (cache := self.cache) is not None:
            cache.reorder_cache(rows)

    def crop(self, length: int) -> None:
        """Forget the positions from `length` on (counted as columns of the ids)."""
        kept = length + self._inputs.offset + self._inputs.extra_positions
        if (cache := self.cache) is not None and cache.get_seq_length() > kept:
            cache.crop(kept)


def _repeated(value: Any, times: int) -> Any:
    """A tensor, or a tuple of them, with each row `times` times, copies side by side; None as it is."""
    if isinstance(value, tuple):
        return tuple(_repeated(part, times) for part in value)
    return None if value is None else value.repeat_interleave(times, dim=0)
