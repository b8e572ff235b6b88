"""A prompt that many continuations share: computed once, stored once, and saved to a file on request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptrio.cache.dynamic import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from gptrio.cache.protocol import Cache, CacheLayer, check_fit, concat, cropped_length, windows_of
from gptrio.config.base import PretrainedConfig
from gptrio.errors import CheckpointFormatError, CheckpointNotFoundError, InputError
from gptrio.hub import replace_file
from gptrio.kernels.linear import packed_inference

if TYPE_CHECKING:
    from gptrio.models.base.pretrained import PreTrainedModel

METADATA_KEY = "gptrio_prefix"
# fields whose names contain one of these do not affect keys and values
_IRRELEVANT = ("drop", "initializer", "use_cache", "token_id", "summary", "tie_word")


class PromptPrefix:
    """Keys and values of a prompt, which several caches share.

    Example:
        >>> prefix = PromptPrefix.compute(model, prompt_ids)
        >>> prompts = torch.cat([prefix.input_ids.expand(8, -1), questions], dim=1)
        >>> model.generate(prompts, past_key_values=prefix.new_cache(8))

    Attributes:
        input_ids: (1, P) the prompt.
        layers: (keys, values) of each layer, (1, H, P, D); of sliding-window layers the last positions only.
        model: configuration, dtype and a sample of the weights of the model, see `identify`.
    """

    def __init__(
        self, input_ids: Tensor, layers: list[tuple[Tensor, Tensor]], windows: list[int | None], model: dict[str, str]
    ) -> None:
        """Store what `compute` or `load` returns."""
        self.input_ids = input_ids
        self.layers = layers
        self.model = model
        self._windows = windows

    @classmethod
    def compute(cls, model: PreTrainedModel, input_ids: Tensor) -> PromptPrefix:
        """Run the model over a prompt.

        Args:
            model: a model of this package, with or without a head.
            input_ids: (1, P).

        Raises:
            InputError: there is not exactly one row, or it is empty.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
            raise InputError(
                f"a prefix is one row of one token or more; got input_ids of shape {tuple(input_ids.shape)} (for rows "
                "that differ, compute a prefix of each, or of what they share)"
            )
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), packed_inference(model):
            model.base_model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        layers = [(keys.clone(), values.clone()) for keys, values in cache.to_legacy_cache()]
        return cls(input_ids, layers, windows_of(model.config), identify(model))

    def __len__(self) -> int:
        """Positions P."""
        return self.input_ids.shape[1]

    def new_cache(self, batch_size: int = 1) -> Cache:
        """Return a cache of `batch_size` rows that all start with the prefix.

        Rows share keys and values of the prefix; an update concatenates them with those of the rows. A single row, and
        sliding-window layers, which are small, copy them into a buffer instead, which is faster.
        """
        pairs = zip(self.layers, self._windows, strict=True)
        return Cache(self._layer(keys, values, window, batch_size) for (keys, values), window in pairs)

    def _layer(self, keys: Tensor, values: Tensor, window: int | None, rows: int) -> CacheLayer:
        if window is None:
            return PrefixLayer(keys, values, rows)
        layer = DynamicSlidingWindowLayer(window)
        layer.set_states(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
        layer.set_seq_length(len(self))
        return layer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file; an existing one is replaced when the new one is complete."""
        from safetensors.torch import save_file

        tensors = {"input_ids": self.input_ids.contiguous()}
        for i, (keys, values) in enumerate(self.layers):
            tensors |= {f"layers.{i}.keys": keys.contiguous(), f"layers.{i}.values": values.contiguous()}
        with replace_file(path) as temporary:
            save_file(tensors, temporary, {"format": "pt", METADATA_KEY: json.dumps(self.model)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: PreTrainedModel) -> PromptPrefix:
        """Read what `save` wrote, for the model that computed it, onto the model's device.

        Raises:
            CheckpointNotFoundError: there is no such file.
            CheckpointFormatError: it is not a complete file of a prefix.
            InputError: another model computed it, or this one with other weights or in another dtype.
        """
        tensors, found = _read(Path(path), model.device)
        expected = identify(model)
        for part, text in expected.items():
            if found.get(part) != text:
                raise InputError(
                    f"the prefix in {path} was computed by another model: its {part} is {found.get(part)}, this "
                    f"model's is {text}; load it with the model that computed it, or compute it again"
                )
        windows = windows_of(model.config)
        try:
            layers = [(tensors[f"layers.{i}.keys"], tensors[f"layers.{i}.values"]) for i in range(len(windows))]
            return cls(tensors["input_ids"], layers, windows, found)
        except KeyError as error:
            raise CheckpointFormatError(f"{path} is not a complete prefix: {error.args[0]} is missing") from error


class PrefixLayer(CacheLayer):
    """The past of one layer: positions that all rows share, stored once, then each row's own positions.

    Args:
        keys: (1, H, P, D), never changed.
        values: (1, H, P, D), never changed.
        rows: B.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int = 1) -> None:
        """Start with the shared positions only."""
        self._shared: tuple[Tensor, Tensor] | None = (keys, values)
        self._rows = rows
        self._own = DynamicLayer()

    @property
    def keys(self) -> Tensor | None:
        """(B, H, S, D), or None after a reset."""
        return self._show(0, self._own.keys)

    @property
    def values(self) -> Tensor | None:
        """(B, H, S, D), or None after a reset."""
        return self._show(1, self._own.values)

    def _show(self, which: int, own: Tensor | None) -> Tensor | None:
        if self._shared is None:
            return own
        shared = self._shared[which].expand(self._rows, -1, -1, -1)
        return shared if own is None else concat(shared, own)

    def update(self, keys: Tensor, values: Tensor, cache_kwargs: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) and return the whole past."""
        if self._shared is None:
            return self._own.update(keys, values)
        shared = self._shared[0].expand(self._rows, -1, -1, -1), self._shared[1].expand(self._rows, -1, -1, -1)
        check_fit(shared[0], keys)
        if self._rows == 1 and not self._own.get_seq_length():
            self._own.set_states(*self._shared)
            self._shared = None
            return self._own.update(keys, values)
        own = self._own.update(keys, values)
        return concat(shared[0], own[0]), concat(shared[1], own[1])

    def _shared_length(self) -> int:
        return 0 if self._shared is None else self._shared[0].shape[-2]

    def get_seq_length(self) -> int:
        """Number of positions: the prefix and the rows' own."""
        return self._shared_length() + self._own.get_seq_length()

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the rows' own past by `function` of it; the prefix is the same in every row."""
        self._rows = len(function(torch.arange(self._rows, device="cpu")))
        self._own.map_batch(function)

    def crop(self, max_length: int) -> None:
        """Remove all positions from `max_length` on; a negative number removes that many from the end."""
        length = cropped_length(max_length, self.get_seq_length())
        self._own.crop(max(length - self._shared_length(), 0))
        if self._shared is not None:
            self._shared = self._shared[0][:, :, :length], self._shared[1][:, :, :length]

    def reset(self) -> None:
        """Remove all positions, the prefix included."""
        self._shared = None
        self._own.reset()


def identify(model: PreTrainedModel) -> dict[str, str]:
    """Return what keys and values depend on: the configuration's fields, dtype, and a hash of samples of weights."""
    config: PretrainedConfig = model.config
    common = {field.name for field in dataclasses.fields(PretrainedConfig)}
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in common and not any(part in field.name for part in _IRRELEVANT)
    }
    weights = hashlib.sha256()
    for name, tensor in sorted(model.base_model.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        weights.update(flat[:: max(len(flat) // 64, 1)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    described = json.dumps({"model_type": config.model_type, **fields}, sort_keys=True, default=str)
    return {"configuration": described, "dtype": str(model.dtype), "weight sample": weights.hexdigest()[:32]}


def _read(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a prefix's file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointNotFoundError(f"there is no file {path}; expected what PromptPrefix.save wrote")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            found = json.loads((file.metadata() or {})[METADATA_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, dict(found)  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointFormatError(f"{path} is not a file of a prefix: {error}") from error
