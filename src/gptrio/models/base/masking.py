"""Masks in the shapes and values that a caller's own attention code needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gptrio.errors import InputError
from gptrio.models.base.inputs import spread_head_mask, warn_of_missing_mask


class MaskingMixin(nn.Module):
    """Turns masks of 1 and 0 into factors of attention weights and summands of scores."""

    config: Any
    dtype: Any

    def get_head_mask(
        self, head_mask: Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Tensor | list[None]:
        """A head mask with an axis for everything that attention weights have.

        Args:
            head_mask: (H,) or (L, H), 1 keeps a head and 0 removes it; or None.
            num_hidden_layers: L.
            is_attention_chunked: add an axis for chunks at the end.

        Returns:
            (L, 1, H, 1, 1) in the model's dtype; a list of L None if no mask was given.
        """
        if head_mask is None:
            return [None] * num_hidden_layers
        mask = spread_head_mask(head_mask, num_hidden_layers).to(self.dtype)
        return mask.unsqueeze(-1) if is_attention_chunked else mask

    def invert_attention_mask(self, encoder_attention_mask: Tensor) -> Tensor:
        """What to add to scores for a mask (B, S) or (B, T, S): 0 where it is 1, the least number where it is 0.

        Returns:
            (B, 1, 1 or T, S) in the model's dtype.

        Raises:
            InputError: the mask has another number of axes.
        """
        return _added(_with_head_axis(encoder_attention_mask), self.dtype)

    def get_extended_attention_mask(
        self,
        attention_mask: Tensor,
        input_shape: tuple[int, ...],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What to add to scores, as `invert_attention_mask`; of a decoder's mask (B, S) with the future left out.

        Args:
            attention_mask: (B, S) or (B, T, S), 1 for real tokens.
            input_shape: (B, T), for `config.is_decoder`.
            device: has no effect.
            dtype: of the result; the model's if None.

        Raises:
            InputError: the mask has another number of axes.
        """
        if attention_mask.dim() == 2 and self.config.is_decoder:
            mask = self.create_extended_attention_mask_for_decoder(input_shape, attention_mask)
        else:
            mask = _with_head_axis(attention_mask)
        return _added(mask, dtype or self.dtype)

    @staticmethod
    def create_extended_attention_mask_for_decoder(
        input_shape: tuple[int, ...], attention_mask: Tensor, device: torch.device | None = None
    ) -> Tensor:
        """A mask (B, 1, T, S) of 1 and 0 by which each query sees real tokens up to itself.

        Args:
            input_shape: (B, T); T queries stand at the end of the keys.
            attention_mask: (B, S), 1 for real tokens.
            device: has no effect.
        """
        queries, keys = input_shape[1], attention_mask.shape[1]
        causal = torch.ones(queries, keys, dtype=attention_mask.dtype, device=attention_mask.device).tril(
            keys - queries
        )
        return causal * attention_mask[:, None, None]

    def warn_if_padding_and_no_attention_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Warn once if ids (B, T) have padding at an end, and no mask marks it."""
        warn_of_missing_mask(input_ids, attention_mask, self.config)


def _with_head_axis(mask: Tensor) -> Tensor:
    """(B, S) or (B, T, S) as (B, 1, 1 or T, S)."""
    if mask.dim() not in (2, 3):
        raise InputError(f"a mask must be (B, S) or (B, T, S); got shape {tuple(mask.shape)}")
    return mask[:, None, None] if mask.dim() == 2 else mask[:, None]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return (1.0 - mask.to(dtype)) * torch.finfo(dtype).min
