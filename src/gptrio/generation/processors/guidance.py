"""Classifier-free guidance: move the scores away from those of an unconditional or negative prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gptrio.cache.protocol import real_positions_last
from gptrio.config.fields import check_number
from gptrio.errors import InputError
from gptrio.generation.processors.base import LogitsProcessor, repeat_prompts


class ClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Guidance for a batch whose second half is unconditional.

    Args:
        guidance_scale: above 1; a larger one follows the prompt more closely.
    """

    def __init__(self, guidance_scale: float) -> None:
        self.guidance_scale = check_number("guidance_scale", guidance_scale, float, gt=1)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) from ids (B, T) and scores (2 * B, V), conditional ones first."""
        if scores.shape[0] != 2 * input_ids.shape[0]:
            raise InputError(
                f"{scores.shape[0]} rows of scores for {input_ids.shape[0]} rows of ids; expected twice as many, "
                "the conditional ones first"
            )
        with_prompt, without = scores.chunk(2)
        return without + (with_prompt - without) * self.guidance_scale


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Guidance that runs the model a second time each step, on an unconditional or negative prompt.

    Source: Sanchez et al., "Stay on topic with Classifier-Free Guidance", arXiv:2306.17806.

    Args:
        guidance_scale: above 1 follows the prompt more closely, 1 changes nothing but the normalisation.
        model: called with ids, `attention_mask`, `use_cache` and `past_key_values`, and with `position_ids` where a
            negative prompt is padded.
        unconditional_ids: (E, U) the negative prompt, B a multiple of E; the prompt's last token by default.
        unconditional_attention_mask: (E, U) 0 for padding.
        use_cache: cache keys and values of the negative prompt.

    Attributes:
        unconditional_context: ids and mask of the negative prompt; after a call, of its last forward, and its cache.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: Callable[..., Any],
        unconditional_ids: torch.Tensor | None = None,
        unconditional_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = True,
    ) -> None:
        self.guidance_scale = guidance_scale
        self.model = model
        self.unconditional_context: dict[str, Any] = {
            "input_ids": unconditional_ids,
            "attention_mask": unconditional_attention_mask,
            "use_cache": use_cache,
            "past_key_values": None,
            "first_pass": True,
        }
        self._ids: torch.Tensor | None = None  # (B, U) the negative prompt of each row, and its mask
        self._mask: torch.Tensor | None = None
        self._is_padded = False
        self._prompt_length = 0
        self._seen: torch.Tensor | None = None  # ids of the last call

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return guided log-probabilities (B, V) after ids (B, T); the ids of the first call are the prompt.

        The cache is used while each call's ids are those of the call before with one more token.
        """
        with_prompt = scores.log_softmax(-1)
        if self.guidance_scale == 1:
            return with_prompt
        without = self._unconditional(input_ids).to(scores.dtype).log_softmax(-1)
        return self.guidance_scale * (with_prompt - without) + without

    def _unconditional(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the model's scores (B, V) after the negative prompt and the tokens generated so far."""
        if self._seen is None:
            self._start(input_ids)
        assert self._ids is not None and self._mask is not None  # set by `_start`
        generated = input_ids[:, self._prompt_length :]
        ids = torch.cat([self._ids, generated], dim=1)
        mask = torch.cat([self._mask, torch.ones_like(generated)], dim=1)
        context = self.unconditional_context
        is_next_step = (
            context["past_key_values"] is not None
            and self._seen is not None
            and torch.equal(self._seen, input_ids[:, :-1])
        )
        new = 1 if is_next_step else ids.shape[1]
        output = self.model(
            ids[:, -new:],
            attention_mask=mask,
            use_cache=bool(context["use_cache"]),
            past_key_values=context["past_key_values"] if is_next_step else None,
            **({"position_ids": (mask.cumsum(-1) - 1).clamp_(min=0)[:, -new:]} if self._is_padded else {}),
        )
        fed = ids[:, -1:] if context["use_cache"] and not context["first_pass"] else ids
        context.update(input_ids=fed, attention_mask=mask, first_pass=False)
        context["past_key_values"] = output.past_key_values if context["use_cache"] else None
        self._seen = input_ids
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def _start(self, input_ids: torch.Tensor) -> None:
        """Set the negative prompt of every row: the row's last token if none was given."""
        given, real = (self.unconditional_context[name] for name in ("input_ids", "attention_mask"))
        prompt = input_ids[:, -1:] if given is None else given.to(input_ids.device)
        mask = torch.ones_like(prompt) if real is None else real.to(input_ids.device)
        self._ids = repeat_prompts(prompt, input_ids.shape[0], "unconditional_ids")
        self._mask = repeat_prompts(mask, input_ids.shape[0], "unconditional_attention_mask")
        self._is_padded = not bool((self._mask != 0).all())
        order = real_positions_last(self._mask != 0)  # padding first, so that the last column is a real token
        self._ids, self._mask = self._ids.gather(1, order), self._mask.gather(1, order)
        self._prompt_length = input_ids.shape[1]
