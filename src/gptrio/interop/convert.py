"""Checkpoints of other forms into folders as gptrio and Transformers write them, with a proof that nothing changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    GptrioWarning,
    OptionError,
    warn,
)
from gptrio.interop.folders import check_target, copy_tokenizer, folder_beside, move_folder
from gptrio.interop.linear_layout import WRAPPERS, LinearLayout, read_linear_layout

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_FAR = 1e-9  # most that two forwards in float64 differ by, of the largest logit


class Conversion(NamedTuple):
    """What was done.

    Attributes:
        kind: "nanoGPT", "minGPT", or the family of a folder with a config.json.
        files: written into the target.
        difference: of the logits before and after, over the largest one; 0 for a folder, whose logits are equal.
    """

    kind: str
    files: list[Path]
    difference: float


def convert(
    source: str,
    target: Path,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    heads: int | None = None,
    activation: str | None = None,
    tokenizer: str | None = None,
) -> Conversion:
    """Write a checkpoint as safetensors with a config.json, once the written files give the logits of the source.

    Args:
        source: folder or hub name of a model of any names and formats that gptrio loads, or the torch file of a nanoGPT
            or minGPT checkpoint.
        target: folder, made if need be.
        overwrite: write into a folder that is not empty.
        max_shard_size: bytes, or text such as "500MB".
        heads, activation: see `read_linear_layout`; of a torch file only.
        tokenizer: folder or hub name of the tokenizer to copy; the source's if None. A torch file has none.

    Raises:
        CheckpointError: the target is not empty, the source lacks tensors, or the logits differ.
        OptionError: an option has no effect on the source.
    """
    _check(source, target, overwrite, heads, activation)
    is_file = Path(source).is_file()
    layout = read_linear_layout(Path(source), heads, activation) if is_file else None
    model = _load(source) if layout is None else _build(layout)
    copied = tokenizer or (None if is_file else source)
    with folder_beside(target) as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        gap = _prove(model, layout, folder)
        if copied is not None:
            copy_tokenizer(copied, folder, is_required=tokenizer is not None)
        files = move_folder(folder, target)
    return Conversion(model.config.model_type if layout is None else layout.kind, files, gap)


def _check(source: str, target: Path, overwrite: bool, heads: int | None, activation: str | None) -> None:
    """Refuse what cannot be converted before anything is read."""
    path = Path(source)
    check_target(target, overwrite)
    if path.is_file() and path.suffix not in _TORCH_SUFFIXES:
        raise CheckpointNotFoundError(
            f"{source!r} is no torch file of nanoGPT or minGPT ({', '.join(_TORCH_SUFFIXES)}); for other models give "
            "the folder that holds the file, or the name of a hub repository"
        )
    if not path.is_file() and (heads is not None or activation is not None):
        name = "heads" if heads is not None else "activation"
        raise OptionError(
            f"{name}={heads or activation} has no effect on {source!r}: its config.json says so; leave it out"
        )


def _load(source: str) -> Any:
    """A model by its own names, without those that torch's wrappers put before them, in the types of its files."""
    import gptrio

    config = gptrio.AutoConfig.from_pretrained(source)
    config.dtype = None  # of the files, which the configuration may contradict
    cls = getattr(gptrio, (config.architectures or [""])[0], gptrio.AutoModelForCausalLM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* drawn at random, ", GptrioWarning)  # an error here
        model, keys = cls.from_pretrained(
            source, config=config, dtype="auto", key_mapping={WRAPPERS: ""}, output_loading_info=True
        )
    if keys["missing_keys"]:
        raise CheckpointFormatError(f"{source} lacks tensors of {type(model).__name__}: {keys['missing_keys'][:4]}")
    if keys["unexpected_keys"]:
        warn(f"{type(model).__name__} has no tensors {keys['unexpected_keys'][:4]} of {source}; they are left out")
    return model.eval()


def _build(layout: LinearLayout) -> Any:
    from gptrio import GPT2LMHeadModel

    tensors = layout.converted()
    model = GPT2LMHeadModel(layout.config).to(tensors["transformer.wte.weight"].dtype)
    tensors.setdefault("lm_head.weight", tensors["transformer.wte.weight"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # names or shapes
        raise CheckpointFormatError(f"the file does not hold a whole {layout.kind} model: {error}") from error
    return model.eval()


@torch.no_grad()
def _prove(model: Any, layout: LinearLayout | None, folder: Path) -> float:
    """Compare the logits of the written files with those of the source; return their relative difference."""
    written = type(model).from_pretrained(folder, dtype="auto").eval()
    length = min(model.config.max_position_embeddings, 32)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    if layout is None:
        before = _outputs(model, ids)
        if not all(bool(x.isfinite().all()) for x in before):
            raise CheckpointError(
                f"{model.name_or_path} gives results that are no finite numbers, which prove nothing; nothing was "
                "kept. gptrio verify names tensors with such values"
            )
        if not all(map(torch.equal, before, _outputs(written, ids))):
            raise CheckpointError(f"the written files give other results than {model.name_or_path}; nothing was kept")
        return 0.0
    expected = layout.logits(ids)
    gap = ((written.double()(ids).logits - expected).abs().max() / expected.abs().max()).item()
    if not gap <= _FAR:
        raise CheckpointError(f"the written files differ from the source by {gap:.1e} of the logits; nothing was kept")
    return float(gap)


def _outputs(model: Any, ids: Tensor) -> list[Tensor]:
    return [x for x in model(ids, use_cache=False, return_dict=True).to_tuple() if isinstance(x, Tensor)]
