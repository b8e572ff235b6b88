"""The forward that all backbones share: embed, blocks, norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gptrio.cache import Cache
from gptrio.cache.transformers import as_given
from gptrio.errors import InputError, TokenIdError
from gptrio.models.base import inputs
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.models.base.signatures import overridable
from gptrio.nn.blocks import DROPOUTS
from gptrio.nn.context import LAST_POSITION, AttentionContext, CrossAttention, DenseContext
from gptrio.nn.fast_call import Embedding
from gptrio.nn.masks import AttentionMask
from gptrio.nn.packed_context import PackedContext
from gptrio.nn.replaced_parts import call_part
from gptrio.nn.rotary import RotaryTables
from gptrio.outputs import BaseModelOutputWithPast, BaseModelOutputWithPastAndCrossAttentions
from gptrio.quantization.native import QuantizedEmbedding

if TYPE_CHECKING:
    from gptrio.cache.protocol import LegacyCache

EMBEDDINGS = (Embedding, nn.Embedding, QuantizedEmbedding)


class Backbone(PreTrainedModel):
    """A stack of blocks over embeddings; a family names its parts and defines the embedding.

    A forward is `embed_inputs`, then `run_blocks`. `forward_last` and the compiled step share them with `forward`.

    Attributes:
        mask_fully_padded_rows: apply the causal mask also when the caller passes a 4D mask, and to rows whose visible
            keys are all padding.
        packs_by_position: positions that start anew, without a mask or cache, start another sequence.
        positions_are_relative: a sequence gives the same when all its positions are shifted.
        compiled_modules: the classes, by path, of the modules that `embed` and `rotary_tables` call; see `Block`.
    """

    mask_fully_padded_rows = True
    packs_by_position = True
    positions_are_relative = False
    compiled_modules: ClassVar[Mapping[str, tuple[type, ...]] | None] = None

    def embed(self, x: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Token embeddings (B, T, C) to the input of the first block (B, T, C)."""
        raise NotImplementedError(f"{type(self).__name__} must define embed")

    def rotary_tables(self, x: Tensor, position_ids: Tensor) -> RotaryTables | None:
        """Cosine and sine tables for the blocks, for families with rotary positions."""
        return None

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks."""
        raise NotImplementedError(f"{type(self).__name__} must define blocks")

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        raise NotImplementedError(f"{type(self).__name__} must define final_norm")

    @overridable
    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        cache_position: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        segment_ids: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states of a batch of sequences.

        Args:
            input_ids: (B, T) token ids; (..., T) is flattened and restored.
            past_key_values: a cache, or a tuple of (keys, values) per layer, of the positions before these.
            cache_position: (T,) positions of the new tokens; a static cache writes there.
            attention_mask: (B, past + T), 1 for real tokens; or (B or 1, H or 1, T, S), bool (True attends) or
                added to the scores.
            token_type_ids: (B, T) ids looked up in the token embedding and added (families with learned positions).
            position_ids: (B, T); counted from the past's length if not given.
            head_mask: (H,) or (L, H), 1 keeps a head and 0 removes it.
            inputs_embeds: (B, T, C) instead of `input_ids`.
            encoder_hidden_states: (B, S, C), for a model with `add_cross_attention`.
            encoder_attention_mask: (B, S), 1 for real states.
            use_cache: return keys and values; `config.use_cache` if None.
            output_attentions: return attention weights.
            output_hidden_states: return the input of every block and the result.
            return_dict: return a `ModelOutput` rather than a tuple.
            segment_ids: (B, T) number of the packed sequence that each token belongs to, equal for neighbours only: no
                token attends to another sequence, and positions start anew with each.

        Raises:
            InputError: arguments do not fit each other or the model.
            TokenIdError: ids or positions outside their tables.
        """
        config = self.config
        inputs.one_of_ids_and_embeddings(input_ids, inputs_embeds, config.hidden_size)
        need_weights = config.output_attentions if output_attentions is None else output_attentions
        need_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self._may_cache(config.use_cache if use_cache is None else use_cache)
        if inputs_embeds is None:
            ids = cast(Tensor, input_ids)
            leading, x = ids.shape, self._embed_tokens(ids.flatten(0, -2))
        else:
            leading, x = inputs_embeds.shape[:-1], inputs_embeds.flatten(0, -3)  # (B, T, C)
        cache = inputs.as_cache(past_key_values, use_cache, config)
        inputs.warn_of_missing_mask(input_ids, attention_mask, config)
        if segment_ids is not None:
            segment_ids = self._checked_segments(x, cache, segment_ids)
            if position_ids is None:
                position_ids = inputs.positions_by_segment(segment_ids)
        mask, position_ids = self._mask_and_positions(x, cache, cache_position, attention_mask, position_ids)
        if segment_ids is not None:
            mask.segments = segment_ids
        context = DenseContext(
            mask,
            self.attn_implementation,
            need_weights,
            cache,
            inputs.per_layer_head_mask(head_mask, config, x.dtype),
            cross=self._cross(x, cache, encoder_hidden_states, encoder_attention_mask),
        )
        if token_type_ids is not None:
            token_type_ids = inputs.rows_of(token_type_ids, x.shape[0], x.shape[1], "token_type_ids")
        x, context.rotary = self.embed_inputs(None, position_ids, token_type_ids, inputs_embeds=x)
        states: list[Tensor] | None = [] if need_states else None
        weights: list[tuple[Tensor, ...]] = []
        x = self.run_blocks(x, context, states=states, weights=weights if need_weights else None)
        x = x.view(*leading, x.shape[-1])  # one tensor for both names, so that both have the gradient
        result: dict[str, Any] = {
            "last_hidden_state": x,
            "past_key_values": as_given(cache) if use_cache else None,
            "hidden_states": None if states is None else (*states, x),
            "attentions": tuple(own[0] for own in weights) if need_weights else None,
        }
        if self.has_cross_attention:
            cross = tuple(own[1] for own in weights if len(own) > 1)
            result["cross_attentions"] = cross if need_weights and cross else None
            output: BaseModelOutputWithPast = BaseModelOutputWithPastAndCrossAttentions(**result)
        else:
            output = BaseModelOutputWithPast(**result)
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def forward_last(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Hidden state (B, 1, C) of the last of the next tokens of unpadded rows: the forward without options.

        The last block stores keys and values of all tokens, and computes its output for the last one only.

        Args:
            input_ids: (B, T) ids inside the vocabulary, without padding before them.
            cache: what came before; the new keys and values are appended.

        Raises:
            InputError: the model has fewer positions.
        """
        past, length = cache.get_seq_length(), input_ids.shape[1]
        x, rotary = self.embed_inputs(input_ids, self.next_positions(past, length, input_ids.device))
        mask = AttentionMask(length, past + length, x.device, query_start=past)
        context, last = DenseContext(mask, self.attn_implementation, cache=cache, rotary=rotary), None
        if length > 1:
            mask = AttentionMask(1, past + length, x.device, query_start=past + length - 1)
            last = replace(context, mask=mask, selected=LAST_POSITION, _masks=[], _copies={})
        return self.run_blocks(x, context, last)

    def forward_real(self, input_ids: Tensor, real: Tensor) -> Tensor:
        """Hidden states (N, C) of the real tokens of rows, one row after the other: the forward without options.

        Args:
            input_ids: (B, T) ids inside the vocabulary, padding included.
            real: (B, T) bool, True for the N real tokens, which follow each other in each row.

        Raises:
            InputError: the model has fewer positions.
        """
        rows, length = input_ids.shape
        if not self.positions_are_relative:
            inputs.warn_of_left_padding(real, None)
        positions = self.next_positions(0, length, input_ids.device).expand(rows, -1)
        x, rotary = self.embed_inputs(input_ids[real].unsqueeze(0), positions[real].unsqueeze(0))
        lengths = real.sum(-1).tolist()
        return self.run_blocks(x, PackedContext.of_lengths(lengths, self.attn_implementation, rotary, x.device))[0]

    def next_positions(self, past: int, length: int, device: torch.device) -> Tensor:
        """Position ids (1, T) of `length` tokens after `past` others; raises InputError if the model has fewer."""
        self._check_length(past + length)
        return torch.arange(past, past + length, device=device).unsqueeze(0)

    def embed_inputs(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, RotaryTables | None]:
        """Input of the first block (B, T, C), and the rotary tables of a family that has them.

        Args:
            input_ids: (B, T) token ids; None if `inputs_embeds` are given.
            position_ids: (B or 1, T).
            token_type_ids: (B or 1, T), for families with learned positions.
            inputs_embeds: (B, T, C) rows of the token table.

        Raises:
            TokenIdError: ids or positions outside their tables.
        """
        x = self._embed_tokens(cast(Tensor, input_ids)) if inputs_embeds is None else inputs_embeds
        x = self.embed(x, position_ids, token_type_ids)
        return x, self.rotary_tables(x, position_ids)

    def run_blocks(
        self,
        x: Tensor,
        context: AttentionContext,
        last_context: AttentionContext | None = None,
        *,
        states: list[Tensor] | None = None,
        weights: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """All blocks and the final norm: hidden states (B, T', C) of the positions that the last context selects.

        Args:
            x: (B, T, C), see `embed_inputs`.
            context: what the blocks attend to.
            last_context: the same for the last block, where fewer positions' output is needed; `context` if None.
            states: a list that the input of every block is appended to.
            weights: a list that the attention weights a block returns are appended to, cross-attention's second.
        """
        may_recompute = self.training and context.cache is None  # a cache would be appended to twice
        blocks = self.blocks
        last = len(blocks) - 1
        for i, block in enumerate(blocks):
            if states is not None:
                states.append(x)
            if i == last and last_context is not None:
                context = last_context
            if may_recompute and _is_checkpointed(block):
                outputs = cast(Any, block)._gradient_checkpointing_func(block, x, context)
            else:
                outputs = call_part(block, x, context)
            x = outputs[0]
            if weights is not None:
                weights.append(outputs[1:])
        return cast(Tensor, self.final_norm(x))

    def _embed_tokens(self, ids: Tensor) -> Tensor:
        return embed_tokens(cast(nn.Embedding, self.get_input_embeddings()), ids)

    def _may_cache(self, use_cache: bool) -> bool:
        if use_cache and self.training and (self.gradient_checkpointing or any(map(_is_checkpointed, self.blocks))):
            inputs.warn_once("use_cache=True does not go with gradient checkpointing; going on with use_cache=False")
            return False
        return use_cache

    def _mask_and_positions(
        self,
        x: Tensor,
        cache: Cache | None,
        cache_position: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
    ) -> tuple[AttentionMask, Tensor]:
        """What the new tokens may attend to, and their positions (B or 1, T)."""
        rows, length = x.shape[:2]
        if position_ids is not None:
            position_ids = inputs.rows_of(position_ids, rows, length, "position_ids")
        positions = inputs.written_positions(cache, cache_position, length, x.device)
        past = 0 if cache is None or positions is not None else cache.get_seq_length()
        keys = past + length if cache is None or positions is None else cache.max_cache_len
        strict = self.mask_fully_padded_rows
        mask = AttentionMask(length, keys, x.device, past, mask_fully_padded_rows=strict, positions=positions)
        if attention_mask is not None and attention_mask.dim() == 4:
            heads = self.config.num_attention_heads
            mask.custom = inputs.checked_custom_mask(attention_mask, rows, heads, length, keys)
            mask.causal = strict
        elif attention_mask is not None:
            exact = cache is None or not cache.is_compileable
            mask.attention_mask = inputs.checked_attention_mask(attention_mask, rows, past + length, exact)
            if mask.attention_mask is not None and cache is not None:
                mask.attention_mask = cache.mask_in_order(mask.attention_mask)
            if length > 1 and not self.positions_are_relative:
                inputs.warn_of_left_padding(mask.attention_mask, position_ids)
        elif position_ids is not None and cache is None and self.packs_by_position:
            mask.segments = inputs.packed_segments(position_ids, rows)
        if position_ids is not None:
            return mask, position_ids
        next_positions = self.next_positions(past, length, x.device)
        return mask, next_positions if positions is None else positions.unsqueeze(0)

    def _checked_segments(self, x: Tensor, cache: Cache | None, segment_ids: Tensor) -> Tensor:
        """Segments (B, T) of packed rows, which begin with no past."""
        if cache is not None and (cache.is_compileable or cache.get_seq_length() > 0):
            raise InputError("packed rows have no past: pass no past_key_values with packed=True or segment_ids")
        segments = inputs.rows_of(segment_ids, x.shape[0], x.shape[1], "segment_ids")
        return segments.expand(x.shape[0], -1)

    def _check_length(self, length: int) -> None:
        """Raise InputError if the model has fewer positions; rotary models have no such limit."""

    def _cross(
        self, x: Tensor, cache: Cache | None, states: Tensor | None, mask: Tensor | None
    ) -> CrossAttention | None:
        """The encoder's side of a call."""
        if states is None:
            return None
        if not self.config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states were given, but the model has no cross-attention; build it with "
                "config.add_cross_attention=True"
            )
        if states.dim() != 3 or (states.shape[0], states.shape[2]) != (x.shape[0], x.shape[2]):
            raise InputError(
                f"encoder_hidden_states must be (batch {x.shape[0]}, length, width {x.shape[2]}); got "
                f"{tuple(states.shape)}"
            )
        is_real = None
        if mask is not None and mask.dim() <= 2:
            is_real = inputs.checked_attention_mask(mask, x.shape[0], states.shape[1], True)
        visible = AttentionMask(x.shape[1], states.shape[1], x.device, causal=False, attention_mask=is_real)
        if mask is not None and mask.dim() > 2:
            visible.custom = (mask if mask.dim() == 4 else mask[:, None]).bool()  # (B, 1, T, S)
        if cache is None or cache.cross_attention_cache is None:
            return CrossAttention(states, visible)
        return CrossAttention(states, visible, cache.cross_attention_cache, cache.is_updated)


def embed_tokens(table: nn.Embedding, ids: Tensor, what: str = "token id") -> Tensor:
    """Look rows of a table up.

    Args:
        table: (V, C).
        ids: (..., ) integers.
        what: name of the ids in the error.

    Returns:
        (..., C).

    Raises:
        TokenIdError: an id lies outside the table (on the CPU; a GPU reports it in its own way, later).
    """
    try:
        return table(ids)  # type: ignore[no-any-return]  # modules are callables of Any
    except IndexError as error:
        wrong = ids[(ids < 0) | (ids >= table.num_embeddings)]
        if not len(wrong):
            raise
        remedy = "resize_token_embeddings adds tokens" if what == "token id" else "shorten the input"
        rows = table.num_embeddings
        raise TokenIdError(
            f"{what} {int(wrong[0])} is outside the table of {rows} rows; expected 0 to {rows - 1} ({remedy})"
        ) from error


def _is_checkpointed(block: nn.Module) -> bool:
    """Whether a block, which may be of any class, is computed again in the backward pass."""
    return bool(getattr(block, "gradient_checkpointing", False))


class LearnedPositionBackbone(Backbone):
    """A backbone with a table of positions: `wte`, `wpe`, `drop`, `h`, `ln_f`."""

    compiled_modules: ClassVar = {"wte": EMBEDDINGS, "wpe": EMBEDDINGS, "drop": DROPOUTS}

    wte: nn.Embedding
    wpe: nn.Embedding
    drop: nn.Dropout
    h: nn.ModuleList
    ln_f: nn.LayerNorm

    def embed(self, x: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Add positions (Vaswani et al., 2017, learned as in GPT) and token types, and drop."""
        x = x + embed_tokens(self.wpe, position_ids, "position")
        if token_type_ids is not None:
            x = x + embed_tokens(self.wte, token_type_ids)
        return cast(Tensor, self.drop(x))

    @property
    def embed_dim(self) -> int:
        """C: the hidden size."""
        return int(self.config.hidden_size)

    @property
    def blocks(self) -> nn.ModuleList:
        """The L blocks."""
        return self.h

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block."""
        return self.ln_f

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.wte

    def set_input_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the token table."""
        self.wte = cast(nn.Embedding, new_embeddings)

    @property
    def max_positions(self) -> int:
        """Rows of the table of positions, which no sequence can exceed; the configuration's, of another module."""
        return int(getattr(self.wpe, "num_embeddings", self.config.max_position_embeddings))

    def _check_length(self, length: int) -> None:
        if length > self.max_positions:
            raise InputError(
                f"the sequence has {length} positions, but the model has {self.max_positions}; shorten the input, "
                "or generate fewer tokens"
            )
