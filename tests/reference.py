"""The same tiny random model twice: Transformers' with eager attention, which is the oracle, and ours."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import gptrio
from gptrio.testing import assert_close
from tests.sizes import SIZES, SPECIAL_TOKENS


def model_pair(
    class_name: str, attn_implementation: str = "eager", dtype: torch.dtype = torch.float32, **config: Any
) -> tuple[Any, Any]:
    """The oracle and our model of a class, with equal random weights, in evaluation mode.

    Args:
        class_name: such as "GPT2LMHeadModel".
        attn_implementation: our back end.
        dtype: type of both models' weights.
        config: fields that differ from `SIZES`.
    """
    family = next(name for name in SIZES if class_name.startswith(name))
    values = {**SIZES[family], **SPECIAL_TOKENS, **config}
    oracle_class, our_class = getattr(transformers, class_name), getattr(gptrio, class_name)
    oracle = oracle_class(oracle_class.config_class(**values, attn_implementation="eager")).eval()
    ours = our_class(our_class.config_class(**values, attn_implementation=attn_implementation)).eval()
    randomise(oracle)
    ours.load_state_dict(oracle.state_dict())
    return oracle.to(dtype), ours.to(dtype)


@torch.no_grad()
def randomise(model: nn.Module, scale: float = 0.15) -> None:
    """Draw every parameter, biases and norms included, large enough that all of them matter."""
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, scale)
        if "ln_" in name or "layernorm" in name or "layer_norm" in name:
            parameter.add_(1.0 if name.endswith("weight") else 0.0)


def token_ids(rows: int = 2, length: int = 11, vocabulary: int = 59) -> Tensor:
    """(rows, length) random ids, none of which is special."""
    return torch.randint(1, vocabulary, (rows, length))


def padded(mask_rows: list[int], length: int, side: str) -> Tensor:
    """(B, length) attention mask of rows with so many real tokens, the others on a side."""
    places = torch.arange(length)
    real = torch.tensor(mask_rows)[:, None]
    return (places < real if side == "right" else places >= length - real).long()


def positions_of(mask: Tensor) -> Tensor:
    """(B, T) positions that count real tokens only."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def assert_same_output(ours: Any, oracle: Any, limit: float = 1e-5, real: Tensor | None = None) -> None:
    """Check every tensor of two results; with `real` (B, T) those of shape (B, T, ...) at real tokens only."""
    for name, expected in oracle.items():
        if name == "past_key_values":
            continue
        actual = getattr(ours, name)
        pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
        for i, (one, other) in enumerate(pairs):
            if real is not None and one.shape[:2] == real.shape:
                one, other = one[real.bool()], other[real.bool()]
            assert_close(one, other, limit, f"{name}[{i}]")
    assert set(ours) == set(oracle)


def assert_same_gradients(ours: nn.Module, oracle: nn.Module, limit: float = 2e-5) -> None:
    """Check the gradient of every parameter on the scale of its largest value.

    Gradients that are zero in exact arithmetic are rounding alone: the scale is never below a hundredth of the largest
    gradient in the model.
    """
    expected = {name: p.grad for name, p in oracle.named_parameters()}
    actual = {name: p.grad for name, p in ours.named_parameters()}
    assert actual.keys() == expected.keys()
    floor = 1e-2 * max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for name, gradient in expected.items():
        assert (gradient is None) == (actual[name] is None), name
        if gradient is not None:
            difference = float((actual[name] - gradient).abs().max())
            assert difference <= limit * max(float(gradient.abs().max()), floor), f"gradient of {name}: {difference}"


def task_inputs(class_name: str, rows: int = 2, length: int = 11) -> dict[str, Tensor]:
    """Ids and the labels that a class takes (for models of 4 labels), some of which do not count."""
    ids = token_ids(rows, length)
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    if class_name.endswith("DoubleHeadsModel"):
        places = torch.randint(0, length, (1, rows))
        return {"input_ids": ids[None], "labels": labels[None], "mc_token_ids": places, "mc_labels": torch.tensor([1])}
    if class_name.endswith("SequenceClassification"):
        return {"input_ids": ids, "labels": torch.randint(0, 4, (rows,))}
    if class_name.endswith("TokenClassification"):
        return {"input_ids": ids, "labels": labels.clamp(max=3)}
    if class_name.endswith("QuestionAnswering"):
        ends = torch.randint(0, length, (2, rows))
        ends[0, -1] = length + 5  # outside the text
        return {"input_ids": ids, "start_positions": ends[0], "end_positions": ends[1]}
    return {"input_ids": ids, "labels": labels} if "LM" in class_name else {"input_ids": ids}


def assert_same_training_step(ours: Any, oracle: Any, limit: float = 1e-5, **inputs: Any) -> None:
    """Check results, loss and gradients of one call."""
    expected, actual = oracle(**inputs), ours(**inputs)
    assert_same_output(actual, expected, limit)
    for output in (expected, actual):
        loss_of(output).backward()
    assert_same_gradients(ours, oracle)


def loss_of(output: Any) -> Tensor:
    """All losses of a result in one number, or something with a gradient where there are none."""
    if "loss" not in output:
        return output.last_hidden_state.pow(2).mean()
    return output.loss + output.mc_loss if "mc_loss" in output else output.loss


@torch.no_grad()
def run_in_chunks(model: Any, ids: Tensor, chunks: list[int], mask: Tensor | None = None, **inputs: Any) -> Tensor:
    """Logits (B, T, V) of a model that reads its input in pieces over a cache."""
    past, start, logits = None, 0, []
    for size in chunks:
        end = start + size
        extra = {} if mask is None else {"attention_mask": mask[:, :end]}
        if mask is not None:
            extra["position_ids"] = positions_of(mask)[:, start:end]
        out = model(input_ids=ids[:, start:end], past_key_values=past, use_cache=True, **extra, **inputs)
        past, start = out.past_key_values, end
        logits.append(out.logits)
    assert past is not None
    assert past.get_seq_length() == ids.shape[1]
    return torch.cat(logits, dim=1)
