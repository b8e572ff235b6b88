"""Makes a cache by its name, the value of `cache_implementation`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gptrio.cache.dynamic import DynamicCache
from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.protocol import Cache
from gptrio.cache.quantized import QuantizedCache
from gptrio.cache.static import StaticCache
from gptrio.config.base import PretrainedConfig
from gptrio.errors import OptionError


@dataclass(frozen=True)
class CacheRequest:
    """The sizes of a cache to make; see `make_cache`."""

    config: PretrainedConfig
    batch_size: int
    max_cache_len: int
    device: torch.device
    dtype: torch.dtype


def make_cache(
    name: str | None,
    config: PretrainedConfig,
    batch_size: int,
    max_cache_len: int,
    device: torch.device | str,
    dtype: torch.dtype,
    options: Mapping[str, Any] | None = None,
) -> Cache:
    """Make the cache that `cache_implementation` names.

    Args:
        name: one of `cache_names()`; None for "dynamic".
        config: the model's configuration; with `add_cross_attention` an `EncoderDecoderCache` is made.
        batch_size: rows.
        max_cache_len: capacity in positions, for caches of a fixed size.
        device: the model's device.
        dtype: dtype of keys and values.
        options: `cache_config`, further arguments of the cache.

    Raises:
        OptionError: there is no such cache, or it has no such option.
    """
    maker = _MAKERS.get("dynamic" if name is None else name)
    if maker is None:
        raise OptionError(f"cache_implementation={name!r} is not known; use one of {', '.join(_MAKERS)}")
    request = CacheRequest(config, batch_size, max_cache_len, torch.device(device), dtype)
    given = dict(options or {})
    known = list(inspect.signature(maker).parameters)[1:]
    unknown = [option for option in given if option not in known]
    if unknown:
        takes = ", ".join(known) or "no options"
        raise OptionError(
            f"cache_config has {', '.join(map(repr, unknown))}, but the {name or 'dynamic'!r} cache takes {takes}"
        )
    cache = maker(request, **given)
    return EncoderDecoderCache(cache, DynamicCache()) if config.add_cross_attention else cache


def cache_names() -> tuple[str, ...]:
    """The names that `make_cache` accepts."""
    return tuple(_MAKERS)


def _dynamic(request: CacheRequest) -> Cache:
    return DynamicCache(config=request.config)


def _dynamic_full(request: CacheRequest) -> Cache:
    """Sliding-window layers store the whole past too."""
    return DynamicCache()


def _offloaded(request: CacheRequest, offload_only_non_sliding: bool = False) -> Cache:
    return DynamicCache(config=request.config, offloading=True, offload_only_non_sliding=offload_only_non_sliding)


def _static(request: CacheRequest, max_cache_len: int | None = None) -> Cache:
    return _fixed(request, max_cache_len, offloading=False)


def _offloaded_static(
    request: CacheRequest, max_cache_len: int | None = None, offload_only_non_sliding: bool = True
) -> Cache:
    return _fixed(request, max_cache_len, offloading=True, offload_only_non_sliding=offload_only_non_sliding)


def _fixed(request: CacheRequest, max_cache_len: int | None, **options: Any) -> Cache:
    return StaticCache(
        request.config,
        max_cache_len or request.max_cache_len,
        max_batch_size=request.batch_size,
        device=request.device,
        dtype=request.dtype,
        **options,
    )


def _quantized(
    request: CacheRequest,
    backend: str = "native",
    nbits: int = 4,
    axis_key: int = 0,
    axis_value: int = 0,
    q_group_size: int = 64,
    residual_length: int = 128,
) -> Cache:
    return QuantizedCache(backend, request.config, nbits, axis_key, axis_value, q_group_size, residual_length)


_MAKERS: dict[str, Callable[..., Cache]] = {
    "dynamic": _dynamic,
    "dynamic_full": _dynamic_full,
    "static": _static,
    "offloaded": _offloaded,
    "offloaded_static": _offloaded_static,
    "quantized": _quantized,
    "sliding_window": _static,
    "hybrid": _static,
    "hybrid_chunked": _static,
    "offloaded_hybrid": _offloaded_static,
    "offloaded_hybrid_chunked": _offloaded_static,
}
