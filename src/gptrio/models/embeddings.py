"""Token tables of a model: which they are, tying them, and changing their number of rows."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, UnsupportedError
from gptrio.nn.lean import Embedding, LeanModule


class EmbeddingsMixin(LeanModule):
    """Input and output embeddings of a model, tied or not."""

    config: Any
    base_model_prefix: ClassVar[str] = ""
    head_name: ClassVar[str | None] = None

    def get_input_embeddings(self) -> nn.Module:
        """The token table (V, C)."""
        backbone = getattr(self, self.base_model_prefix, None)
        if backbone is None:
            raise UnsupportedError(f"{type(self).__name__} does not say which of its parts is the token table")
        return cast(nn.Module, backbone.get_input_embeddings())

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the token table."""
        getattr(self, self.base_model_prefix).set_input_embeddings(new_embeddings)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language-model head, a linear layer (V, C), or None."""
        return None if self.head_name is None else cast(nn.Module, getattr(self, self.head_name))

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language-model head; models without one ignore it."""
        if self.head_name is not None:
            setattr(self, self.head_name, new_embeddings)

    def tied_weights(self) -> dict[str, str]:
        """Names in the state dict that share a tensor: head -> token table; empty if nothing is tied."""
        head = self.get_output_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return {}
        table = self.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is table)
        return {f"{self.head_name}.weight": f"{name}.weight"}

    def tie_weights(self) -> None:
        """Let the language-model head use the token table, if the configuration says so."""
        if self.tied_weights():
            head, table = cast(nn.Linear, self.get_output_embeddings()), cast(nn.Embedding, self.get_input_embeddings())
            if table.weight.is_meta and not head.weight.is_meta:  # a file that names the head alone
                table.weight = head.weight
            head.weight = table.weight
            head.out_features = table.num_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Change the number of tokens; rows that stay keep their values, tied heads stay tied.

        Args:
            new_num_tokens: V; as it is if None.
            pad_to_multiple_of: round V up to a multiple of this.
            mean_resizing: draw new rows around the mean of the old ones with their covariance (Hewitt, 2021) rather
                than as new weights are drawn.

        Returns:
            The token table.

        Raises:
            InputError: V or the multiple is not a positive integer.
        """
        table = cast(nn.Embedding, self.get_input_embeddings())
        rows = _rounded(table.num_embeddings if new_num_tokens is None else new_num_tokens, pad_to_multiple_of)
        if rows == table.num_embeddings:
            return table
        head = self.get_output_embeddings()
        new_table = Embedding(rows, table.embedding_dim, device=table.weight.device, dtype=table.weight.dtype)
        new_table.weight = self._resized(table.weight, rows, mean_resizing)
        new_table.train(table.training)
        self.set_input_embeddings(new_table)
        self.config.vocab_size = rows
        if isinstance(head, nn.Linear):
            head.out_features = rows
            if head.weight is not table.weight:
                head.weight = self._resized(head.weight, rows, mean_resizing)
            if head.bias is not None:
                head.bias = nn.Parameter(nn.functional.pad(head.bias.detach(), (0, rows - len(head.bias))))
        self.tie_weights()
        return new_table

    @torch.no_grad()
    def _resized(self, weight: Tensor, rows: int, mean_resizing: bool) -> nn.Parameter:
        kept = min(rows, weight.shape[0])
        new = weight.new_empty(rows, weight.shape[1])
        new[:kept] = weight[:kept]
        if rows > kept:
            drawn = _like(weight, rows - kept) if mean_resizing else torch.randn_like(new[kept:])
            new[kept:] = drawn if mean_resizing else drawn * self.config.initializer_range
        return nn.Parameter(new, requires_grad=weight.requires_grad)


def _rounded(rows: int, multiple: int | None) -> int:
    for name, value in (("new_num_tokens", rows), ("pad_to_multiple_of", multiple)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(f"{name}={value!r} is not possible; expected a positive integer")
    return rows if multiple is None else -(-rows // multiple) * multiple


def _like(weight: Tensor, count: int) -> Tensor:
    """(count, C) rows drawn around the mean of (V, C) rows with a small part of their covariance."""
    rows = weight.float()
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.T @ centred / rows.shape[0]
    values, vectors = torch.linalg.eigh(1e-9 * covariance)
    noise = torch.randn(count, rows.shape[1], device=rows.device) * values.clamp(min=0).sqrt()
    drawn: Tensor = mean + noise @ vectors.T
    return drawn.to(weight.dtype)
