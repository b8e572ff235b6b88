"""Token embeddings of a model: access, tying, and changing their number of rows."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from gptrio.errors import InputError, UnsupportedError
from gptrio.nn.fast_call import FastCallModule


@runtime_checkable
class ResizableCodes(Protocol):
    """A quantized table or head, with scales for each row, as `gptrio.quantization` makes them."""

    weight_scale: Tensor

    def dequantized(self) -> Tensor:
        """The rows (V, C) that the codes stand for."""

    def set_rows(self, kept: int, new: Tensor | None) -> None:
        """Keep the first rows and quantize new ones after them."""


class EmbeddingsMixin(FastCallModule):
    """Input and output embeddings of a model, tied or not."""

    config: Any
    base_model_prefix: ClassVar[str] = ""
    head_name: ClassVar[str] = "lm_head"
    vocab_size: int  # of the last `resize_token_embeddings`

    def get_input_embeddings(self) -> nn.Module:
        """The token table (V, C): the part `embed_tokens` of a class of the user's own, or the backbone's table.

        Raises:
            UnsupportedError: there is neither; such a class defines this method itself.
        """
        owner = self._table_owner()
        return cast(nn.Module, self.embed_tokens if owner is self else owner.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token table."""
        owner = self._table_owner()
        if owner is self:
            self.embed_tokens = value
        else:
            owner.set_input_embeddings(value)

    def _table_owner(self) -> Any:
        if "embed_tokens" in self._modules:
            return self
        backbone = getattr(self, self.base_model_prefix, None)
        if backbone is None:
            raise UnsupportedError(
                f"{type(self).__name__} does not say which of its parts is the token table; define "
                "get_input_embeddings and set_input_embeddings"
            )
        return backbone

    def get_output_embeddings(self) -> nn.Module | None:
        """The language-model head, a linear layer (V, C), or None."""
        return cast("nn.Module | None", getattr(self, self.head_name, None))

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language-model head; models without one ignore it."""
        if hasattr(self, self.head_name):
            setattr(self, self.head_name, new_embeddings)

    def tied_weights(self) -> dict[str, str]:
        """Names in the state dict that share a tensor: head -> token table; empty if nothing is tied."""
        head = self.get_output_embeddings()
        if head is None or not self.config.tie_word_embeddings:
            return {}
        paths = {id(module): path for path, module in self.named_modules()}
        return {f"{paths[id(head)]}.weight": f"{paths[id(self.get_input_embeddings())]}.weight"}

    def tie_weights(self) -> None:
        """Tie this model, the models inside it, and all modules that have a method `_tie_weights`."""
        for module in self.modules():
            if isinstance(module, EmbeddingsMixin):
                module.tie_embeddings_and_encoder_decoder()
            tie = getattr(module, "_tie_weights", None)
            if tie is not None:
                tie()

    def tie_embeddings_and_encoder_decoder(self) -> None:
        """Share the token table with the language-model head, if the configuration says so."""
        if self.tied_weights():
            head, table = cast(nn.Linear, self.get_output_embeddings()), cast(nn.Embedding, self.get_input_embeddings())
            if table.weight.is_meta and not head.weight.is_meta:  # a file that names the head alone
                table.weight = head.weight
            head.weight = table.weight
            if isinstance(table, ResizableCodes):
                cast(Any, head).weight_scale = table.weight_scale
            head.out_features = table.num_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of tokens; rows that stay keep their values, tied heads stay tied.

        Args:
            new_num_tokens: V; unchanged if None.
            pad_to_multiple_of: round V up to a multiple of this.
            mean_resizing: draw new rows around the mean of the old ones with their covariance (Hewitt, 2021) rather
                than as new weights are drawn.

        Returns:
            The token table.

        Raises:
            InputError: V or the multiple is not a positive integer.
            UnsupportedError: the rows are in a form that cannot be resized; the model is unchanged.
        """
        table, head = cast(nn.Embedding, self.get_input_embeddings()), self.get_output_embeddings()
        rows = _rounded(table.num_embeddings if new_num_tokens is None else new_num_tokens, pad_to_multiple_of)
        if rows != table.num_embeddings:
            is_tied = head is not None and (bool(self.tied_weights()) or head.weight is table.weight)
            for part in (table, *(() if head is None or is_tied else (head,))):  # before anything changes
                _check_resizable(part)
            self._resize_table(table, rows, mean_resizing)
            self.set_input_embeddings(table)
            if head is not None:
                self._resize_head(head, rows, mean_resizing, is_tied)
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            self.config.vocab_size = self.vocab_size = rows
            self.tie_weights()
        return table

    def _resize_table(self, table: Any, rows: int, mean_resizing: bool) -> None:
        """Change the rows of a table, which keeps its class, its hooks and its parameter."""
        if isinstance(table, ResizableCodes):
            self._resize_codes(table, rows, mean_resizing)
            return
        table.weight.data, table.weight.grad = self._resized(table.weight, rows, mean_resizing).data, None
        table.num_embeddings = rows
        if table.padding_idx is not None and table.padding_idx >= rows:
            table.padding_idx = None

    def _resize_head(self, head: Any, rows: int, mean_resizing: bool, is_tied: bool) -> None:
        if not is_tied and isinstance(head, ResizableCodes):
            self._resize_codes(head, rows, mean_resizing)
        elif not is_tied:
            head.weight = self._resized(head.weight, rows, mean_resizing)
        head.out_features = rows
        if head.bias is not None:
            bias = head.bias.detach()
            new = nn.functional.pad(bias, (0, rows - len(bias)))
            if mean_resizing:
                new[len(bias) :].normal_(float(bias.float().mean()), 1e-9 * float(bias.float().std(correction=0)))
            head.bias = nn.Parameter(new, head.bias.requires_grad)

    @torch.no_grad()
    def _resize_codes(self, part: ResizableCodes, rows: int, mean_resizing: bool) -> None:
        """Keep the codes of the rows that stay; quantize new rows, which are drawn like the dequantized old ones."""
        old = part.dequantized()
        part.set_rows(
            min(rows, len(old)), self._drawn(old, rows - len(old), mean_resizing) if rows > len(old) else None
        )

    @torch.no_grad()
    def _resized(self, weight: Tensor, rows: int, mean_resizing: bool) -> nn.Parameter:
        kept = min(rows, weight.shape[0])
        new = weight.new_empty(rows, weight.shape[1])
        new[:kept] = weight[:kept]
        if rows > kept:
            new[kept:] = self._drawn(weight, rows - kept, mean_resizing)
        return nn.Parameter(new, requires_grad=weight.requires_grad)

    def _drawn(self, weight: Tensor, count: int, mean_resizing: bool) -> Tensor:
        """(count, C) new rows beside (V, C) old ones."""
        if mean_resizing:
            return _like(weight, count)
        return torch.randn_like(weight[:1].expand(count, -1)) * float(self.config.initializer_range)


def _check_resizable(part: nn.Module) -> None:
    """Check that the rows of a table or head can be resized.

    Raises:
        UnsupportedError: it is of another kind than linear layers, embeddings and native codes, or has no storage.
    """
    what, weight = type(part).__name__, getattr(part, "weight", None)
    if isinstance(part, ResizableCodes):
        return
    is_own = isinstance(part, (nn.Linear, nn.Embedding)) and not type(part).__module__.startswith("bitsandbytes.")
    if not is_own or weight is None or not weight.is_floating_point():
        raise UnsupportedError(
            f"resize_token_embeddings cannot change the rows of a {what}; resize the model in full precision and "
            "without adapters, save it, and quantize or adapt it then"
        )
    if weight.is_meta and "_hf_hook" in part.__dict__:
        raise UnsupportedError(
            f"resize_token_embeddings cannot change a {what} whose weights accelerate keeps elsewhere; resize the "
            "model before it is offloaded, or call accelerate.hooks.remove_hook_from_submodules(model) first"
        )


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
    noise = torch.randn(count, rows.shape[1], dtype=rows.dtype, device=rows.device) * values.clamp(min=0).sqrt()
    drawn: Tensor = mean + noise @ vectors.T
    return drawn.to(weight.dtype)
