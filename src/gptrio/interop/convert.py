"""Checkpoints of other forms into folders as gptrio and Transformers write them, with a proof that nothing changed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptrio.errors import CheckpointError, CheckpointFormatError
from gptrio.hub import HubOptions
from gptrio.interop.linear_layout import WRAPPERS, LinearLayout, read_linear_layout

_COPIED = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja"),
)
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
) -> Conversion:
    """Write a checkpoint as safetensors with a config.json, once the written files give the logits of the source.

    Args:
        source: folder or hub name of a model of any names and formats that gptrio loads, or the torch file of a nanoGPT
            or minGPT checkpoint.
        target: folder, made if need be.
        overwrite: write into a folder that is not empty.
        max_shard_size: bytes, or text such as "500MB".
        heads, activation: see `read_linear_layout`.

    Raises:
        CheckpointError: the target is not empty, the source lacks tensors, or the logits differ.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not overwrite):
        raise CheckpointError(f"{target} exists and is not empty; give another folder, or overwrite=True")
    path = Path(source)
    is_file = path.is_file() and path.suffix in _TORCH_SUFFIXES
    layout = read_linear_layout(path, heads, activation) if is_file else None
    model = _load(source) if layout is None else _build(layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        gap = _prove(model, layout, folder)
        for name in () if is_file else _COPIED:
            found = HubOptions().find(source, name)
            if found is not None:
                shutil.copyfile(found, Path(folder, name))
        files = _move(Path(folder), target)
    return Conversion(model.config.model_type if layout is None else layout.kind, files, gap)


def _load(source: str) -> Any:
    """A model by its own names, without those that torch's wrappers put before them."""
    import gptrio

    config = gptrio.AutoConfig.from_pretrained(source)
    cls = getattr(gptrio, (config.architectures or [""])[0], gptrio.AutoModelForCausalLM)
    model, keys = cls.from_pretrained(source, dtype="auto", key_mapping={WRAPPERS: ""}, output_loading_info=True)
    if keys["missing_keys"]:
        raise CheckpointFormatError(f"{source} lacks tensors of {type(model).__name__}: {keys['missing_keys'][:4]}")
    return model.eval()


def _build(layout: LinearLayout) -> Any:
    from gptrio import GPT2LMHeadModel

    tensors = layout.converted()
    model = GPT2LMHeadModel(layout.config).to(tensors["transformer.wte.weight"].dtype)
    tensors.setdefault("lm_head.weight", tensors["transformer.wte.weight"])
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def _prove(model: Any, layout: LinearLayout | None, folder: str) -> float:
    """Compare the logits of the written files with those of the source; return their relative difference."""
    written = type(model).from_pretrained(folder, dtype="auto").eval()
    length = min(model.config.max_position_embeddings, 32)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    if layout is None:
        if not all(map(torch.equal, _outputs(model, ids), _outputs(written, ids))):
            raise CheckpointError(f"the written files give other results than {model.name_or_path}; nothing was kept")
        return 0.0
    expected = layout.logits(ids)
    gap = ((written.double()(ids).logits - expected).abs().max() / expected.abs().max()).item()
    if not gap <= _FAR:
        raise CheckpointError(f"the written files differ from the source by {gap:.1e} of the logits; nothing was kept")
    return float(gap)


def _outputs(model: Any, ids: Tensor) -> list[Tensor]:
    return [x for x in model(ids, use_cache=False, return_dict=True).to_tuple() if isinstance(x, Tensor)]


def _move(folder: Path, target: Path) -> list[Path]:
    """Move files into the target, and remove weights there that are no longer part of the checkpoint."""
    target.mkdir(exist_ok=True)
    new = sorted(path.name for path in folder.iterdir())
    for stale in [*target.glob("model*.safetensors*")]:
        if stale.name not in new:
            stale.unlink()
    return [(folder / name).replace(target / name) for name in new]
