"""An adapter merged into the weights of its model, with a proof that the merged model computes the same."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from gptrio.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    GptrioError,
    GptrioWarning,
    OptionError,
)
from gptrio.hub import HubOptions, read_json
from gptrio.interop.folders import check_target, copy_tokenizer, folder_beside, move_folder
from gptrio.models.base.adapters import enable_peft
from gptrio.utils.file_names import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

_FAR = 1e-4  # most that logits in float32 may differ by, of the largest one
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    None: "AutoModelForCausalLM",
}


class Merge(NamedTuple):
    """What was done.

    Attributes:
        files: written into the target.
        difference: of the logits of the adapted and the merged model in float32, over the largest one.
    """

    files: list[Path]
    difference: float


def merge(model: str, adapter: str, target: Path, overwrite: bool = False, max_shard_size: int | str = "5GB") -> Merge:
    """Write a model in float32 with an adapter's weights added to its own, once the files give the adapted logits.

    Args:
        model: folder or hub name of the model that the adapter was trained on.
        adapter: folder or hub name of an adapter as PEFT saves it.
        target: folder, made if need be.
        overwrite: write into a folder that is not empty.
        max_shard_size: bytes, or text such as "500MB".

    Raises:
        CheckpointError: the target is not empty, or the logits differ.
        OptionError: the adapter's method has no merged form, such as prompt tuning.
        MissingDependencyError: PEFT is not installed.
    """
    check_target(target, overwrite)
    enable_peft()
    adapted = load_adapted(model, adapter)
    if not hasattr(adapted, "merge_and_unload"):
        kind = next(iter(adapted.peft_config.values())).peft_type.value
        raise OptionError(f"{adapter!r} is an adapter of {kind}, which no weights can hold; use it beside its model")
    with folder_beside(target) as folder:
        ids = _sample(adapted.config)
        before = _logits(adapted, ids)
        merged = adapted.merge_and_unload()
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        written = type(merged).from_pretrained(folder, dtype="auto").eval()
        after = _logits(written, ids)
        gap = ((after - before).abs().max() / before.abs().max()).item()
        if not gap <= _FAR:
            raise CheckpointError(
                f"the merged files differ from the adapted model by {gap:.1e} of the logits; nothing was kept"
            )
        for source in (adapter, model):
            if HubOptions().find(source, "tokenizer_config.json") is not None:
                copy_tokenizer(source, folder, is_required=False)
                break
        return Merge(move_folder(folder, target), gap)


def load_adapted(model: str, adapter: str) -> Any:
    """A model in float32 with an adapter of PEFT around it, in the class that the adapter's task names.

    Raises:
        CheckpointNotFoundError: there is no adapter.
        CheckpointError: its files are broken, or do not fit the model.
    """
    import peft

    import gptrio

    file = HubOptions().find(adapter, ADAPTER_CONFIG_NAME)
    if file is None:
        raise CheckpointNotFoundError(f"{adapter!r} holds no adapter: there is no adapter_config.json")
    weights = (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME)
    if all(HubOptions().find(adapter, name) is None for name in weights):
        raise CheckpointNotFoundError(f"{adapter!r} holds no weights of an adapter: neither {' nor '.join(weights)}")
    _check_config(file, [kind.value for kind in peft.PeftType])
    with _said_of(f"adapter {adapter!r}"):
        config = peft.PeftConfig.from_pretrained(adapter)
    cls = getattr(gptrio, _CLASSES[getattr(config.task_type, "value", config.task_type)])
    source = (
        adapter if HubOptions().find(adapter, "config.json") is not None else model
    )  # labels of a head that was trained
    brought = "|".join(map(re.escape, getattr(config, "modules_to_save", None) or ()))  # such as a task's head
    with warnings.catch_warnings():
        if brought:
            warnings.filterwarnings("ignore", rf".* drawn at random, .*: ({brought})\b", GptrioWarning)
        base = cls.from_pretrained(model, config=gptrio.AutoConfig.from_pretrained(source), dtype=torch.float32)
    with _said_of(f"adapter {adapter!r} cannot be put on {model!r}"):
        return peft.PeftModel.from_pretrained(base, adapter).eval()


def _check_config(file: Path, methods: list[str]) -> None:
    """Raise CheckpointFormatError unless a file describes an adapter by a method of PEFT, for a task of ours."""
    content = read_json(file)
    method, task = content.get("peft_type"), content.get("task_type")
    if method not in methods:
        raise CheckpointFormatError(f"{file}: peft_type={method!r} is no method of PEFT, such as 'LORA'")
    if task not in _CLASSES:
        known = ", ".join(str(name) for name in _CLASSES)
        raise CheckpointFormatError(f"{file}: task_type={task!r} is not possible; expected one of {known}")


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Turn what PEFT raises, of files that are broken or of another model, into a CheckpointError."""
    try:
        yield
    except GptrioError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{what}: {reason[:300]}{'...' if len(reason) > 300 else ''}") from error


def _sample(config: Any) -> Tensor:
    length = min(config.max_position_embeddings, 32)
    return torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return torch.cat([x.float().flatten() for x in out.to_tuple() if isinstance(x, Tensor)])
