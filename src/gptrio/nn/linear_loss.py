"""Cross-entropy of a linear head's scores, without the scores of all positions in memory at once.

Scores of a language model are its largest tensor: 1.6 GB in float32 for 8 rows of 1,024 tokens and GPT-2's vocabulary,
of which the usual loss and its backward pass hold about three. Here they are computed for some rows at a time, and
their gradient becomes that of the states and of the weight while they are there (compare Wijmans et al., 2024, "Cut
Your Losses in Large-Vocabulary Language Models", whose backward pass computes them again).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.kernels.recompute import gradients_of
from gptrio.kernels.widened import is_widened
from gptrio.nn.losses import IGNORE, check_count, divided, no_class_error

CHUNK_BYTES = 7 << 24  # most of one chunk's scores: more saves little time, fewer make the products slower
_CACHED_BYTES = 1 << 21  # of scores in float32 that become their gradient together
_ALIGNED = 32  # MKL writes rows of scores that begin on such a boundary in two thirds of the time


class LossOptions(NamedTuple):
    """What the loss is, beside its inputs.

    Attributes:
        label_smoothing: share of the target that is spread evenly over all classes.
        dtype: of the products; sums are in float32, or in float64 for float64.
    """

    label_smoothing: float
    dtype: torch.dtype

    @property
    def sum_dtype(self) -> torch.dtype:
        """Type of sums and exponentials."""
        return torch.promote_types(self.dtype, torch.float32)


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of `states @ weight.T` against labels: the value and gradients of `losses.token_loss`.

    Products run in the dtype of autocast, if it is on, or of the states. The forward pass takes the gradients too, so
    that no product is computed twice; a second backward pass, or one that is differentiated itself, computes them again
    from all scores at once.

    Args:
        states: (N, C).
        weight: (V, C).
        labels: (N,).
        num_items_in_batch: divide the sum by this count instead of the number of labels.
        ignore_index: the label that does not count.
        label_smoothing: share of the target that is spread evenly over all classes.

    Raises:
        InputError: the numbers of states and labels differ.
        TokenIdError: a label is not a class (on the CPU; on a GPU, torch raises its own error later).
    """
    classes, device = weight.shape[0], states.device.type
    check_count((*states.shape[:-1], classes), labels)
    labels = labels.to(states.device)
    kept = labels != ignore_index
    kept_labels = labels[kept]
    if len(kept_labels) != len(labels):
        states = states[kept]
    if device == "cpu" and len(kept_labels) and not 0 <= kept_labels.min() <= kept_labels.max() < classes:
        raise no_class_error(kept_labels, classes, ignore_index)
    count = len(kept_labels) if num_items_in_batch is None else num_items_in_batch
    is_autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_autocast else torch.promote_types(states.dtype, weight.dtype)
    if is_widened(states, weight):
        dtype = torch.float32
    options = LossOptions(label_smoothing, dtype)
    with torch.autocast(device, enabled=False):
        total = cast(Tensor, _LinearCrossEntropy.apply(states, weight, kept_labels, options))  # type: ignore[no-untyped-call]  # torch's
    return divided(total, count)


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over rows; its backward pass multiplies gradients that the forward pass has taken."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        """Sum of the losses of (N, C) states under a (V, C) weight."""
        ctx.save_for_backward(states, weight, labels)
        ctx.options = options
        total, ctx.gradients = _loss_and_gradients(states, weight, labels, options, ctx.needs_input_grad[:2])
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Gradients of states and weight."""
        (scale,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None  # given away: the sum with other gradients may be in place
        if gradients is None or torch.is_grad_enabled():
            gradients = _differentiable_gradients(ctx, scale)
        elif scale.device.type != "cpu" or scale.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return *gradients, None, None


def _differentiable_gradients(ctx: Any, scale: Tensor) -> list[Tensor | None]:
    """The gradients from all scores at once, by operations that can be differentiated again."""
    states, weight, labels = ctx.saved_tensors
    options = ctx.options
    is_needed = ctx.needs_input_grad[:2]
    is_higher = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [x if is_higher else x.detach().requires_grad_() for x in (states, weight)]
        scores = F.linear(*(x.to(options.dtype) for x in inputs)).to(options.sum_dtype)
        total = F.cross_entropy(scores, labels, reduction="sum", label_smoothing=options.label_smoothing)
    return gradients_of(total, inputs, is_needed, scale, create_graph=is_higher)


def _loss_and_gradients(
    states: Tensor, weight: Tensor, labels: Tensor, options: LossOptions, is_needed: tuple[bool, bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Sum of the losses, and its gradients by states and weight where they are needed."""
    classes = weight.shape[0]
    cast_states, cast_weight = states.to(options.dtype), weight.to(options.dtype)
    most_rows = max(CHUNK_BYTES // (classes * options.dtype.itemsize), 1)
    cached_rows = max(_CACHED_BYTES // (classes * options.sum_dtype.itemsize), 1)
    rows = -(-len(states) // max(-(-len(states) // most_rows), 1)) or 1  # chunks of one size
    total = states.new_zeros((), dtype=options.sum_dtype)
    by_states = torch.empty_like(cast_states) if is_needed[0] else None
    by_weight = torch.empty_like(weight, dtype=options.sum_dtype) if is_needed[1] else None
    buffer = cast_states.new_empty((rows, -(-classes // _ALIGNED) * _ALIGNED))
    for start in range(0, len(states), rows):
        chunk = slice(start, start + rows)
        padded = buffer[: len(states) - start]
        scores = padded[:, :classes]
        _multiply(cast_states[chunk], cast_weight.t(), scores)
        for part, own in zip(torch.split(padded, cached_rows), torch.split(labels[chunk], cached_rows), strict=True):
            wide = part.to(options.sum_dtype)
            total += _loss_to_gradient_(wide, classes, own, options.label_smoothing)
            if wide is not part:
                part.copy_(wide)
        if by_states is not None:
            torch.mm(scores, cast_weight, out=by_states[chunk])
        if by_weight is not None:
            _multiply(scores.t(), cast_states[chunk], by_weight, is_added=start > 0)
    if by_weight is not None and not len(states):
        by_weight.zero_()
    gradients = [by_states, by_weight]
    return total, [
        None if found is None else found.to(x.dtype) for found, x in zip(gradients, (states, weight), strict=True)
    ]


def _multiply(a: Tensor, b: Tensor, out: Tensor, is_added: bool = False) -> None:
    """Write `a @ b` to a result, whose type may be wider, or add it."""
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=int(is_added), out=out)
    elif is_added:
        out += a @ b
    else:
        out.copy_(a @ b)


def _loss_to_gradient_(padded: Tensor, classes: int, labels: Tensor, smoothing: float) -> Tensor:
    """Sum of the losses of scores (N, V), the first columns of what is given; they become their gradient in place."""
    labels, scores = labels[:, None], padded[:, :classes]
    padded[:, classes:] = float("-inf")
    targets = scores.gather(1, labels) * (1 - smoothing)
    if smoothing:
        targets += scores.mean(1, keepdim=True) * smoothing
    most = padded.amax(1, keepdim=True)
    torch.softmax(padded, 1, out=padded)
    log_sum = most - padded.amax(1, keepdim=True).log()  # exact enough: the largest probability is no less than 1 / V
    if smoothing:
        scores -= smoothing / classes
    scores.scatter_(1, labels, scores.gather(1, labels) - (1 - smoothing))
    return (log_sum - targets).sum()
