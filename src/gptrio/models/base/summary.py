"""One vector for a whole sequence."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.nn.activations import activation
from gptrio.nn.linear import Linear


class SequenceSummary(nn.Module):
    """Reads a sequence at one token (or their mean), and projects what it reads.

    Args:
        config: its `summary_type`, `summary_use_proj`, `summary_proj_to_labels`, `summary_activation`,
            `summary_first_dropout`, `num_labels` and `hidden_size` say how.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.summary_type = config.summary_type
        width = config.num_labels if config.summary_proj_to_labels and config.num_labels > 0 else config.hidden_size
        self.summary = Linear(config.hidden_size, width) if config.summary_use_proj else nn.Identity()
        self.activation = activation(config.summary_activation) if config.summary_activation else nn.Identity()
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.last_dropout = nn.Dropout(getattr(config, "summary_last_dropout", None) or 0.0)

    def forward(self, states: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """Summarise (..., T, C).

        Args:
            states: (..., T, C).
            cls_index: (...) place of the token to read, for "cls_index"; the last one if None.

        Returns:
            (..., C) or (..., num_labels).
        """
        summary = self.summary(self.first_dropout(self._read(states, cls_index)))
        return cast(Tensor, self.last_dropout(self.activation(summary)))

    def _read(self, states: Tensor, cls_index: Tensor | None) -> Tensor:
        if self.summary_type == "mean":
            return states.mean(dim=1)
        if self.summary_type == "first":
            return states[:, 0]
        if self.summary_type == "last":
            return states[:, -1]
        if cls_index is None:
            return states[..., -1, :]
        place = cls_index[..., None, None].expand(*cls_index.shape, 1, states.shape[-1])
        return torch.gather(states, -2, place).squeeze(-2)
