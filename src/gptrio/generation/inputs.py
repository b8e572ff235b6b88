"""The arguments of the model's forward for some columns of a batch: ids or embeddings, mask, positions, token types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gptrio.cache import DynamicCache
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt
from gptrio.generation.runners.protocol import Step
from gptrio.kernels.cpu_decode import Reason

_SPARE = 256  # columns by which the mask grows


class ModelInputs:
    """The rows of a batch, of which every step feeds the columns that the cache lacks.

    Attributes:
        prompt: the rows, one for each prompt until they are repeated.
        config: the options of the call.
        copies: rows that continue each prompt.
        rows: B, with all copies.
        constants: arguments of the forward that are the same at every step.
        offset: columns of embeddings or of the cache that have no ids.
        position_offset: (B, 1) position id minus column, after the prompt; None if the model counts positions itself.
        cache: what has been computed, or None; a forward may put another one in its place.
        extra_positions: of the cache, that have no column: tokens that a model's own preparation adds.
        hooks: what stands between calls of modules and their forwards, or None; hooks see all arguments.
    """

    def __init__(self, prompt: Prompt, config: GenerationConfig, copies: int, cache: Any, hooks: Reason | None) -> None:
        self.config, self.copies, self.cache, self.hooks = config, copies, cache, hooks
        self.extra_positions = 0
        self._gives_cache_position = cache is not None and type(cache) is not DynamicCache
        self.rows, self.offset = prompt.ids.shape[0] * copies, prompt.length - prompt.ids.shape[1]
        self._set_rows(prompt)

    def repeat_rows(self) -> None:
        """Go on with all copies of every row."""
        self._set_rows(self.prompt.repeated(self.copies))

    def _set_rows(self, prompt: Prompt) -> None:
        flags = {name: True for name in ("output_attentions", "output_hidden_states") if getattr(self.config, name)}
        self.prompt, self.constants = prompt, {"use_cache": self.cache is not None, **flags, **prompt.constants}
        self._mask = prompt.attention_mask  # (B, at least S) bool
        self._positions = prompt.position_ids  # (B, S)
        if self._positions is None and self._mask is not None:
            self._positions = (self._mask.long().cumsum(-1) - 1).masked_fill_(~self._mask, 1)
        self.position_offset = None if self._positions is None else self._positions[:, -1:] + 1 - prompt.length

    def arguments(self, step: Step) -> dict[str, Any]:
        """Arguments of the forward for a step."""
        given, embeds = self._without_ids(step), self.prompt.embeds
        if embeds is not None and step.start < embeds.shape[1]:
            given["inputs_embeds"] = embeds[:, step.start : step.end]
        else:
            given["input_ids"] = step.new_ids
        return given

    def arguments_to_prepare(self, step: Step) -> dict[str, Any]:
        """Arguments of a `prepare_inputs_for_generation` besides all ids; it finds the positions itself."""
        given = self._without_ids(step)
        given.pop("position_ids", None)
        mask = given.get("attention_mask", step.ids.new_ones(step.ids.shape[0], step.end)).long()
        return {**given, "attention_mask": mask, "cache_position": _columns(step), "inputs_embeds": self.prompt.embeds}

    def same_at_every_step(self, capacity: int) -> dict[str, Tensor]:
        """Mask and token types that hold for all steps of one column, up to `capacity` columns."""
        types = self.prompt.token_type_ids
        given = {} if types is None else {"token_type_ids": types[:, -1:]}
        return given if self._mask is None else {**given, "attention_mask": self._mask_to(capacity)}

    def _without_ids(self, step: Step) -> dict[str, Any]:
        """Whatever the model does not find out by itself, the ids aside."""
        given = {"past_key_values": step.cache, **self.constants, **step.flags}
        if self._mask is not None:
            given["attention_mask"] = self._mask_to(step.end)
        if self.position_offset is not None:
            given["position_ids"] = self._positions_of(step)
        elif self.hooks is not None:
            given["position_ids"] = _columns(step).expand(step.ids.shape[0], -1)
        types = self.prompt.token_type_ids
        if types is not None:
            given["token_type_ids"] = types[:, _columns(step).clamp(max=types.shape[1] - 1)]
        if self._gives_cache_position:
            given["cache_position"] = _columns(step)
        return given

    def _mask_to(self, length: int) -> Tensor:
        """The mask (B, length): columns after the prompt are real tokens."""
        assert self._mask is not None
        missing = length - self._mask.shape[1]
        if missing > 0:
            real = self._mask.new_ones(self._mask.shape[0], missing + _SPARE)
            self._mask = torch.cat([self._mask, real], dim=1)
        return self._mask[:, :length]

    def _positions_of(self, step: Step) -> Tensor:
        """Position ids (B, T) of the new columns."""
        assert self._positions is not None and self.position_offset is not None
        start, end = step.start, step.end
        positions = self.position_offset + (start if end - start == 1 else _columns(step))
        if start < self._positions.shape[1]:
            known = self._positions[:, start:end]
            positions[:, : known.shape[1]] = known
        return positions


def _columns(step: Step) -> Tensor:
    return torch.arange(step.start, step.end, device=step.ids.device)
