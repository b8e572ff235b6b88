"""The arguments of a forward, checked and brought into the one form that the blocks use."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.cache import Cache, DynamicCache, EncoderDecoderCache
from gptrio.cache.transformers import cache_of
from gptrio.config import PretrainedConfig
from gptrio.config.fields import as_list
from gptrio.errors import InputError, warn
from gptrio.kernels.cuda_graph import is_capturing
from gptrio.nn.masks import are_tokens_real

if TYPE_CHECKING:
    from gptrio.cache.protocol import LegacyCache


LOSS_OPTIONS = {"num_items_in_batch", "ignore_index", "shift_labels", "label_smoothing"}
_OF_GENERATE = {"streamer", "synced_gpus"}  # which a decoding loop of one's own passes on with the model's arguments


def one_of_ids_and_embeddings(input_ids: Tensor | None, inputs_embeds: Tensor | None, width: int) -> None:
    """Raise InputError unless exactly one of the two is given and its shape and type are possible."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise InputError(f"forward takes either input_ids or inputs_embeds; {given} given")
    if input_ids is not None and (input_ids.dtype not in (torch.long, torch.int) or input_ids.dim() < 2):
        raise InputError(
            f"input_ids must be integers (batch, length); got {input_ids.dtype} of shape {tuple(input_ids.shape)}"
        )
    if inputs_embeds is not None and (inputs_embeds.dim() < 3 or inputs_embeds.shape[-1] != width):
        raise InputError(
            f"inputs_embeds must be (batch, length, width {width}); got shape {tuple(inputs_embeds.shape)}"
        )


def loss_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of a forward's other keywords that the loss takes.

    The rest is left out, with a warning.
    """
    given = dict(options or {})
    unknown = given.keys() - LOSS_OPTIONS - _OF_GENERATE
    if unknown:
        warn_of_unknown(unknown)
    return {name: value for name, value in given.items() if name not in unknown}


def warn_of_unknown(names: Iterable[str]) -> None:
    """Warn of keywords that a forward leaves out, as Transformers does silently.

    Columns of a batch that no model takes rely on that; but a misspelt argument is not to pass unseen.
    """
    warn(f"forward does not know {', '.join(sorted(names))}, and leaves that out; see its documented arguments")


def rows_of(ids: Tensor, rows: int, length: int, name: str) -> Tensor:
    """Ids (..., T) of a batch as (B or 1, T); raises InputError if they do not fit it."""
    flat = ids.reshape(-1, ids.shape[-1]) if ids.dim() else ids
    if flat.dim() != 2 or flat.shape[1] != length or flat.shape[0] not in (1, rows):
        raise InputError(f"{name} have shape {tuple(ids.shape)}; expected (batch {rows} or 1, {length} new positions)")
    return flat


def as_cache(past: Cache | LegacyCache | None, use_cache: bool, config: PretrainedConfig) -> Cache | None:
    """The cache of a call: the one given, ours or Transformers', one made of a legacy tuple, a new one, or none."""
    if isinstance(past, (tuple, list)):
        _check_layers(len(past), config)
    past = cache_of(past, config)
    if past is None:
        if not use_cache:
            return None
        past = DynamicCache(config=config)
    if past.has_layers and len(past.layers) != config.num_hidden_layers and past.get_seq_length() > 0:
        _check_layers(len(past.layers), config)
    is_cross = config.add_cross_attention and past.cross_attention_cache is None
    return EncoderDecoderCache(past, DynamicCache()) if is_cross else past


def _check_layers(held: int, config: PretrainedConfig) -> None:
    layers = config.num_hidden_layers
    if held != layers:
        raise InputError(f"past_key_values hold {held} layers, the model has {layers}; pass what this model returned")


def written_positions(
    cache: Cache | None, cache_position: Tensor | None, length: int, device: torch.device
) -> Tensor | None:
    """(T,) positions that a static cache writes at, or None if it appends, as other caches do.

    A compiled graph must not read the cache's length as a number: it would be compiled anew for each.
    """
    if cache is None or not cache.is_compileable:
        return None
    if cache_position is None and torch.compiler.is_compiling():
        return cache.next_positions(length, device)
    return cache_position


def missing_labels() -> InputError:
    """The error of a call for the loss alone that has no labels."""
    return InputError("logits=False asks for the loss alone, which needs labels; pass labels, or leave logits=True")


def checked_attention_mask(mask: Tensor, rows: int, length: int, exact: bool) -> Tensor | None:
    """(B, positions) bool of a 2D attention mask, or None if every token is real.

    Args:
        mask: (B, past + T) of ones and zeros, leading axes flattened to B.
        rows: B.
        length: past + T.
        exact: the mask may not be longer (it may for a static cache, whose slots it then describes).

    Raises:
        InputError: the shape does not fit.
    """
    mask = mask.reshape(-1, mask.shape[-1])
    if mask.shape[0] != rows or (mask.shape[1] != length if exact else mask.shape[1] < length):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; expected ({rows}, {length}): batch, and past plus new "
            "positions (with past_key_values the mask covers the past too)"
        )
    is_real = mask if mask.dtype == torch.bool else mask != 0
    if not _is_traced() and bool(is_real.all()):
        return None
    return is_real


def checked_custom_mask(mask: Tensor, rows: int, heads: int, queries: int, keys: int) -> Tensor:
    """The caller's 4D mask (B or 1, H or 1, T, S), cut to the keys there are; raises InputError if it does not fit."""
    fits = mask.shape[0] in (1, rows) and mask.shape[1] in (1, heads) and mask.shape[2] == queries
    if not fits or mask.shape[3] < keys:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; a 4D mask must be (batch {rows} or 1, heads {heads} or 1, "
            f"{queries} queries, {keys} keys)"
        )
    return mask[..., :keys]


def packed_segments(position_ids: Tensor, rows: int) -> Tensor | None:
    """(B, T) number of the packed sequence of each token, or None if positions never start anew.

    Args:
        position_ids: (B or 1, T); a position that does not follow its left neighbour starts a new sequence.
        rows: B.
    """
    if _is_traced():
        return None
    segments = segments_by_position(position_ids)
    return segments.expand(rows, -1) if bool(segments[:, -1].any()) else None


def segments_by_position(position_ids: Tensor | None) -> Tensor:
    """Number (B or 1, T) of the sequence that each token belongs to, by positions (B or 1, T) that start anew.

    Raises:
        InputError: there are no positions.
    """
    if position_ids is None:
        raise InputError("packed=True needs position_ids that start anew with each sequence, or pass segment_ids")
    return F.pad(position_ids[..., 1:] - position_ids[..., :-1] != 1, (1, 0)).cumsum(-1)


def positions_by_segment(segment_ids: Tensor) -> Tensor:
    """Positions (B, T) that start anew wherever the segment (B, T) changes."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    return index - (index * starts).cummax(-1).values


def without_first_labels(labels: Tensor, segment_ids: Tensor, ignore_index: int) -> Tensor:
    """Labels (..., T) of packed rows, without those that the sequence before would have to predict."""
    first = F.pad(segment_ids[..., 1:] != segment_ids[..., :-1], (1, 0))
    return labels.masked_fill(first.to(labels.device), ignore_index)


def per_layer_head_mask(head_mask: Tensor | None, config: PretrainedConfig, dtype: torch.dtype) -> Tensor | None:
    """Head mask (H,) or (L, H), 1 keeps and 0 removes, as (L, 1, H, 1, 1).

    Raises:
        InputError: another shape, or heads were pruned, so that layers have different numbers of them.
    """
    if head_mask is None:
        return None
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if config.pruned_heads:
        raise InputError("head_mask is for a model with all its heads; prune further heads instead, or load it anew")
    shape, head_mask = tuple(head_mask.shape), spread_head_mask(head_mask, layers)
    if head_mask.dim() != 5 or head_mask.shape[0] != layers or head_mask.shape[2] not in (1, heads):
        raise InputError(f"head_mask must be ({heads} heads,) or ({layers} layers, {heads}); got shape {shape}")
    return head_mask.to(dtype)


def spread_head_mask(head_mask: Tensor, layers: int) -> Tensor:
    """A head mask (H,) or (L, H) as (L, 1, H, 1, 1); any other as it is."""
    if head_mask.dim() == 1:
        head_mask = head_mask.expand(layers, -1)
    return head_mask[:, None, :, None, None] if head_mask.dim() == 2 else head_mask


@functools.cache
def warn_once(message: str) -> None:
    """Warn the first time a message is met."""
    warn(message)


def warn_of_left_padding(is_real: Tensor | None, position_ids: Tensor | None) -> None:
    """Say once that positions count left padding, unless they were given."""
    if is_real is None or position_ids is not None or _is_traced() or bool(is_real[:, 0].all()):
        return
    warn_once(
        "the batch is padded on the left, and position_ids were not given, so positions count the padding and the "
        "numbers differ from those of each row alone; pass position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0), "
        "or use generate(), which does"
    )


def warn_of_missing_mask(input_ids: Tensor | None, mask: Tensor | None, config: PretrainedConfig) -> None:
    """Warn once if the input begins or ends with padding tokens and no mask marks them."""
    pad = config.pad_token_id
    if pad is None or mask is not None or input_ids is None or _is_traced() or are_tokens_real():
        return
    if pad in [*as_list(config.bos_token_id), *as_list(config.eos_token_id), *as_list(config.sep_token_id)]:
        return  # it may be a real token there
    if bool((input_ids[:, [0, -1]] == pad).any()):
        warn_once("input_ids hold pad_token_id at an end, but no attention_mask was given; pass the tokenizer's mask")


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or is_capturing()
