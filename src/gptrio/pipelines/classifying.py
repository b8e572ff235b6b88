"""What pipelines over classifiers share: the length of a text, the call of the model, scores."""

from __future__ import annotations

import enum
import inspect
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import InputError
from gptrio.generation.options.max_length import positions
from gptrio.models.base.heads import SequenceClassificationHead
from gptrio.nn.fast_call import hook_reason
from gptrio.tokenization.options import LARGE_INTEGER


class ClassificationFunction(str, enum.Enum):
    """What turns logits into scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"

    def __call__(self, logits: Tensor) -> Tensor:
        """Scores (..., labels) of logits (..., labels)."""
        if self is ClassificationFunction.NONE:
            return logits
        return logits.sigmoid() if self is ClassificationFunction.SIGMOID else logits.softmax(-1)


def most_tokens(tokenizer: Any, model: Any) -> int | None:
    """Most tokens of a text: of the tokenizer, or of the model if that has fewer positions; None without limit."""
    limit = tokenizer.model_max_length
    limits = [limit if limit and 0 < limit <= LARGE_INTEGER else None, positions(model)]
    return min((int(given) for given in limits if given is not None), default=None)


def check_has_tokens(row: Any, text: Any) -> None:
    """Raise InputError for a text without tokens, for which a model computes nothing."""
    if row["input_ids"].shape[-1] == 0:
        raise InputError(f"the text {text!r} has no tokens, so the model has nothing to read; leave it out")


def classifier_logits(model: Any, inputs: dict[str, Tensor]) -> Any:
    """Result of a sequence classifier for a row or a batch padded on the right: `logits` (B, labels).

    Rows are told from their padding by `config.pad_token_id`, as the model does. A model without one takes the last
    token of each row; its head then sees nothing else, or a hooked or wrapped model one row at a time.
    """
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    ids = inputs["input_ids"]
    if len(ids) == 1 or model.config.pad_token_id is not None:
        return model(**inputs, **options)
    lengths = inputs["attention_mask"].sum(-1)
    if isinstance(model, SequenceClassificationHead) and hook_reason(model) is None:
        states = model.base_model(**inputs, **options)[0]  # (B, T, C)
        return {"logits": model.score(states[torch.arange(len(ids), device=ids.device), lengths - 1])}
    rows = ({name: value[i : i + 1, :length] for name, value in inputs.items()} for i, length in enumerate(lengths))
    return {"logits": torch.cat([model(**row, **options)["logits"] for row in rows])}
