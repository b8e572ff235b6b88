"""Run the model on the tokens that its cache lacks: the prompt first, then what was chosen."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.cache import DynamicCache
from gptrio.cache.transformers import as_own_cache
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.max_length import last_column, no_more_positions
from gptrio.generation.prompt import Prompt, keeping
from gptrio.generation.runners.cuda_graph import CudaGraphStep, capture_step
from gptrio.kernels.cpu_decode import MAX_ROWS_AMX, Reason, is_installed
from gptrio.kernels.cpu_decode.compilation import NotYet
from gptrio.kernels.linear import packing_disabled
from gptrio.kernels.threads import OneThread
from gptrio.nn.fast_call import has_no_hooks, has_package_forward, is_dispatch_skipped, is_written_in
from gptrio.nn.masks import tokens_are_real

_AS_IT_IS = nullcontext()
_log = logging.getLogger("gptrio")
_SPARE = 256  # columns by which the mask grows


class Logits(NamedTuple):
    """What a step returns when nothing but logits is asked for.

    Attributes:
        logits: (B, 1, V).
    """

    logits: Tensor


class Stepper:
    """One model, one batch and its cache, from step to step.

    The prompt is read once for all copies of a row that are asked for.

    Args:
        model: a language model.
        prompt: the rows to continue, one for each prompt.
        config: says what the model shall return and whether it shall cache.
        copies: rows that continue each prompt.
        cache: empty, or holding the first positions of the prompt; None to run without.
    """

    def __init__(self, model: Any, prompt: Prompt, config: GenerationConfig, copies: int, cache: Any) -> None:
        self.model = model
        self.cache = cache
        self.calls = 0
        self._last_column = last_column(model, prompt)
        self._prepare = _own_preparation(model)
        self._watched = not (
            is_dispatch_skipped() or has_no_hooks(model)
        )  # by hooks, which are to see what the reference gives its modules
        own = self._watched or self._prepare is not None
        self._shares_prefill = copies > 1 and type(cache) is DynamicCache and not own
        if copies > 1 and not self._shares_prefill and cache is not None and cache.get_seq_length():
            cache.batch_repeat_interleave(copies)
        self._copies = copies if self._shares_prefill else 1
        self._prompt = prompt if self._shares_prefill else prompt.repeated(copies)
        self._embeds = self._prompt.embeds
        self._offset = prompt.length - prompt.ids.shape[1]  # positions that have no ids
        self._unseen = 0  # positions of the cache that no mask tells of: tokens that a model's own preparation adds
        self._keeps = bool(keeping(model, 1))  # else the model gives the logits of all positions
        self._constants = {"use_cache": cache is not None, **_flags(config)}
        self._constants.update(self._prompt.constants)
        self._in_place = cache is not None and type(cache) is not DynamicCache
        self._chunk = config.prefill_chunk_size
        lean = is_dispatch_skipped() and type(self.cache) is DynamicCache and self._is_bare()
        told = (prompt.position_ids, prompt.token_type_ids, prompt.embeds)
        lean = lean and all(item is None for item in told)
        self._direct = self.model.next_logits if lean and prompt.attention_mask is None else None
        self._compiles = (
            lean and prompt.has_left_padding_only and self._may_compile(config, prompt.ids.shape[0] * copies)
        )
        self._compiled: Any = None
        self._records = self._in_place and self._keeps and self._is_bare() and not config.disable_compile
        self._recorded: CudaGraphStep | None = None
        self._spread(self._prompt)

    def _is_bare(self) -> bool:
        """Whether this package's forward runs, and a step is told nothing but tokens and where they stand."""
        ours = all(has_package_forward(each) for each in (self.model, getattr(self.model, "base_model", self.model)))
        return ours and self._prepare is None and set(self._constants) == {"use_cache"}

    def _may_compile(self, config: GenerationConfig, rows: int) -> bool:
        """Whether a compiled step shall decode, if the model has one."""
        guides = config.guidance_scale not in (None, 1)  # by forwards of the model, which want all threads
        return is_installed() and rows <= MAX_ROWS_AMX and not (config.disable_compile or guides)

    def _spread(self, prompt: Prompt) -> None:
        """Take masks and positions from a prompt."""
        self._mask = prompt.attention_mask  # (B, at least S) bool
        self._types = prompt.token_type_ids
        self._shift: Tensor | None = None  # (B, 1) what a column's number exceeds its position by, negated
        self._positions: Tensor | None = None  # (B, S) of the prompt
        if prompt.position_ids is not None:
            self._positions = prompt.position_ids
        elif prompt.attention_mask is not None:
            self._positions = (prompt.attention_mask.long().cumsum(-1) - 1).masked_fill_(~prompt.attention_mask, 1)
        if self._positions is not None:
            self._shift = self._positions[:, -1:] + 1 - prompt.length

    def __call__(self, ids: Tensor, keep: int = 1, **flags: Any) -> Any:
        """Return the model's output for the positions that it has not seen, logits of the last `keep` only.

        Args:
            ids: (B, T) all tokens so far.
            keep: number of positions to return logits (B, keep, V) for.
            **flags: arguments of the model's forward for this call.
        """
        if self._last_column is not None and ids.shape[1] > self._last_column:
            raise no_more_positions(self.model, self._prompt, ids.shape[1])
        length = ids.shape[1] + self._offset
        seen = 0 if self.cache is None else self.cache.get_seq_length() - self._unseen
        self.calls += 1
        if self._prepare is not None:
            return self._by_own_preparation(ids, seen, length, keep, flags)
        if self._records and self.calls > 1 and length - seen == keep == 1 and not flags:
            logits = self._replay(ids[:, -1:], seen)
            if logits is not None:
                return Logits(logits)
        shared = self._copies > 1 and self.calls == 1
        rows = ids[:: self._copies] if shared else ids
        if self._chunk is not None and self.calls == 1 and self.cache is not None:
            while length - seen > self._chunk:
                self._run(rows, seen, seen + self._chunk, 1, {})
                seen += self._chunk
        bare = keep == 1 and not flags and not shared
        new = ids[:, seen - self._offset :]
        if bare and self.calls > 1 and self._steps_compiled(new):
            with self.on_one_thread():
                return Logits(self._compiled(new, self.cache))
        with packing_disabled() if self._compiles and self.calls == 1 else nullcontext():
            if bare and self._direct is not None:
                return Logits(self._direct(new, self.cache))
            output = self._run(rows, seen, length, keep, flags)
        return self._share(output) if shared else output

    def _steps_compiled(self, new: Tensor) -> bool:
        """Whether the compiled step takes the new tokens; it is made when it is first asked for, after the prompt."""
        if self._compiles:
            mask = self._prompt.attention_mask
            left = None if mask is None else (~mask).sum(-1)
            step = self.model.compiled_step(new.shape[0], left)
            self._compiles = isinstance(step, NotYet)  # ask again in the next step
            if self._compiles:
                return False
            if isinstance(step, Reason):
                _log.info("decoding goes on without compiled steps: %s", step)
            else:
                self._compiled = step
        return self._compiled is not None and self._compiled.supports(new, self.cache)

    def on_one_thread(self) -> AbstractContextManager[None]:
        """A context for torch operations between compiled steps, whose threads want the processors for themselves."""
        several = self._compiled is not None and self._compiled.threads > 1
        return OneThread() if several else _AS_IT_IS

    def _run(self, ids: Tensor, seen: int, length: int, keep: int, flags: dict[str, Any]) -> Any:
        arguments = {**self._constants, **flags, **self._masks(seen, length)}
        if self._embeds is not None and seen < self._embeds.shape[1]:
            arguments["inputs_embeds"] = self._embeds[:, seen:length]
        else:
            arguments["input_ids"] = ids[:, seen - self._offset : length - self._offset]
        output = self._call({"past_key_values": self.cache, **arguments}, keep)
        if self.cache is not None:
            self.cache = as_own_cache(output.past_key_values)
        return output

    def _call(self, arguments: dict[str, Any], keep: int) -> Any:
        """The model's output, with the logits of the last `keep` positions only."""
        with _AS_IT_IS if "attention_mask" in arguments else tokens_are_real():
            if self._keeps:
                return self.model(return_dict=True, logits_to_keep=keep, **arguments)
            output = self.model(return_dict=True, **arguments)
        output.logits = output.logits[:, -keep:]
        return output

    def _replay(self, ids: Tensor, seen: int) -> Tensor | None:
        """Logits (B, 1, V) by the recorded step, which is recorded first; None if it cannot be."""
        if self._recorded is None:
            told: dict[str, Tensor] = {}
            if self._mask is not None:
                told["attention_mask"] = self._mask_of(self.cache.max_cache_len)
            if self._types is not None:
                told["token_type_ids"] = self._types[:, -1:]
            self._recorded = capture_step(self.model, self.cache, ids, told, self._shift)
        if self._recorded is None:
            self._records = False
            return None
        return self._recorded(ids, seen)

    def _masks(self, seen: int, length: int) -> dict[str, Tensor]:
        """Mask, positions and types of the columns from `seen` to `length`, as far as there is something to tell."""
        told: dict[str, Tensor] = {}
        if self._mask is not None:
            told["attention_mask"] = self._mask_of(length)
        if self._shift is not None:
            told["position_ids"] = self._positions_of(seen, length)
        elif self._watched:
            positions = torch.arange(seen, length, device=self._device)
            told["position_ids"] = positions.expand(self._prompt.ids.shape[0], -1)
        if self._types is not None:
            missing = length - self._types.shape[1]
            types = (
                self._types if missing <= 0 else torch.cat([self._types, self._types[:, -1:].expand(-1, missing)], 1)
            )
            told["token_type_ids"] = types[:, seen:length]
        if self._in_place:
            told["cache_position"] = torch.arange(seen, length, device=self._device)
        return told

    def _mask_of(self, length: int) -> Tensor:
        assert self._mask is not None
        if self._mask.shape[1] < length:
            room = self._mask.new_ones(self._mask.shape[0], length - self._mask.shape[1] + _SPARE)
            self._mask = torch.cat([self._mask, room], dim=1)
        return self._mask[:, :length]

    def _positions_of(self, seen: int, length: int) -> Tensor:
        assert self._shift is not None and self._positions is not None
        prompt = self._positions.shape[1]
        if length - seen == 1 and seen >= prompt:
            return self._shift + seen
        if length <= prompt:
            return self._positions[:, seen:length]
        new = self._shift + torch.arange(max(seen, prompt), length, device=self._device)
        return torch.cat([self._positions[:, seen:length], new], dim=1)

    @property
    def _device(self) -> torch.device:
        return self._prompt.ids.device

    def _share(self, output: Any) -> Any:
        """Give every copy of a row the prompt's keys, values and what the model said of it."""
        self.cache.batch_repeat_interleave(self._copies)
        self._prompt = self._prompt.repeated(self._copies)
        self._constants.update(self._prompt.constants)
        self._spread(self._prompt)
        output.logits = output.logits.repeat_interleave(self._copies, dim=0)
        for name in ("attentions", "hidden_states"):
            layers = getattr(output, name, None)
            if layers is not None:
                setattr(output, name, tuple(layer.repeat_interleave(self._copies, dim=0) for layer in layers))
        return output

    def _by_own_preparation(self, ids: Tensor, seen: int, length: int, keep: int, flags: dict[str, Any]) -> Any:
        """A step of a model whose class defines `prepare_inputs_for_generation` itself."""
        assert self._prepare is not None
        masks = self._masks(seen, length)
        masks.pop("position_ids", None)
        mask = masks.pop("attention_mask", ids.new_ones(ids.shape[0], length))
        arguments = {**self._constants, **flags, **masks}
        arguments["cache_position"] = torch.arange(seen, length, device=self._device)
        prepared = self._prepare(
            ids, past_key_values=self.cache, attention_mask=mask.long(), inputs_embeds=self._embeds, **arguments
        )
        output = self._call({name: value for name, value in prepared.items() if name != "logits_to_keep"}, keep)
        if self.cache is not None:
            self.cache = as_own_cache(output.past_key_values)
            self._unseen = self.cache.get_seq_length() - length
        return output

    def reorder(self, rows: Tensor) -> None:
        """Continue row `rows[i]` (B,) as row i."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def crop(self, length: int) -> None:
        """Forget the positions from `length` on (counted as columns of the ids)."""
        kept = length + self._offset + self._unseen
        if self.cache is not None and self.cache.get_seq_length() > kept:
            self.cache.crop(kept)


def _flags(config: GenerationConfig) -> dict[str, bool]:
    return {name: True for name in ("output_attentions", "output_hidden_states") if getattr(config, name)}


def _own_preparation(model: Any) -> Any:
    """The model's `prepare_inputs_for_generation`, where its class has not just inherited this package's."""
    method = getattr(model, "prepare_inputs_for_generation", None)
    return None if method is None or is_written_in(method, "gptrio.") else method
