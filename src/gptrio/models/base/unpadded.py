"""Heads that read no state of padding compute none: less work by the share of a batch that is padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor
from torch.nn import functional as F

from gptrio.kernels.recompute import is_untransformed
from gptrio.models.base.signatures import BackboneInputs
from gptrio.nn.fast_call import has_own_classes_only, hook_reason

if TYPE_CHECKING:
    from gptrio.models.base.heads import HeadModel

_WORTH = 7 / 8  # of a batch; with more real tokens, moving them takes as long as it saves
_SHOWN = ("use_cache", "output_attentions", "output_hidden_states")  # by which the caller sees states of padding


def real_tokens(head: HeadModel, given: BackboneInputs, read: Tensor | None) -> Tensor | None:
    """The real tokens of a batch on the CPU, where `Backbone.forward_real` gives a head all that it reads.

    Args:
        head: that is called.
        given: arguments of its backbone.
        read: (B, T) bool, True for tokens whose states the head reads; None if it reads all.

    Returns:
        (B, T) bool, True for tokens that follow each other in each row; None if the forward has to run.
    """
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if read is None or ids is None or mask is None or not mask.is_cpu or not is_untransformed():
        return None
    if mask.dim() != 2 or not mask.shape == ids.shape == read.shape:
        return None
    real = mask != 0
    if real.sum() > _WORTH * real.numel() or not _is_plain_call(head, given) or hook_reason(head) is not None:
        return None
    follow_each_other = ((real & ~F.pad(real[:, :-1], (1, 0))).sum(-1) == 1).all()  # one beginning in each row
    is_inside = ids.min() >= 0 and ids.max() < cast(int, head.get_input_embeddings().num_embeddings)
    return real if follow_each_other and is_inside and not (read & ~real).any() else None


def _is_plain_call(head: HeadModel, given: BackboneInputs) -> bool:
    """Whether modules see each token by itself, and the caller nothing but the head's result."""
    shown = (given.get(name) for name in _SHOWN)
    of_config = (getattr(head.config, name) for name in _SHOWN)
    others = (value for name, value in given.items() if name not in (*_SHOWN, "input_ids", "attention_mask"))
    return (
        head._loss_function is None  # it may read all scores
        and not any(default if value is None else value for value, default in zip(shown, of_config, strict=True))
        and all(value is None for value in others)
        and getattr(head.config, "rope_scaling", None) is None  # tables may depend on the padded length
        and has_own_classes_only(head, "peft.")  # whose modules treat each token by itself
    )
