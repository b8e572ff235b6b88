"""Makes a cache by its name, the value of `cache_implementation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gptrio.cache.dynamic import DynamicCache
from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.protocol import Cache
from gptrio.cache.quantized import QuantizedCache
from gptrio.cache.static import StaticCache
from gptrio.config.base import PretrainedConfig
from gptrio.errors import OptionError

_STATIC, _OFFLOADED_STATIC = ("max_cache_len",), ("max_cache_len", "offload_only_non_sliding")
_OPTIONS: dict[str, tuple[str, ...]] = {  # of each cache, in `cache_config`
    "dynamic": (),
    "dynamic_full": (),
    "static": _STATIC,
    "offloaded": ("offload_only_non_sliding",),
    "offloaded_static": _OFFLOADED_STATIC,
    "quantized": ("backend", "nbits", "axis_key", "axis_value", "q_group_size", "residual_length"),
    "sliding_window": _STATIC,
    "hybrid": _STATIC,
    "hybrid_chunked": _STATIC,
    "offloaded_hybrid": _OFFLOADED_STATIC,
    "offloaded_hybrid_chunked": _OFFLOADED_STATIC,
}


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
    name, given = "dynamic" if name is None else name, dict(options or {})
    known = _OPTIONS.get(name)
    if known is None:
        raise OptionError(f"cache_implementation={name!r} is not known; use one of {', '.join(_OPTIONS)}")
    unknown = [option for option in given if option not in known]
    if unknown:
        takes = ", ".join(known) or "no options"
        raise OptionError(f"cache_config has {', '.join(map(repr, unknown))}, but the {name!r} cache takes {takes}")
    cache: Cache
    if name == "dynamic_full":
        cache = DynamicCache()  # whose sliding-window layers store the whole past too
    elif name in ("dynamic", "offloaded"):
        cache = DynamicCache(config=config, offloading=name == "offloaded", **given)
    elif name == "quantized":
        cache = QuantizedCache(config=config, **{"backend": "native", **given})
    else:
        length, offloading = given.pop("max_cache_len", None) or max_cache_len, name.startswith("offloaded")
        sizes: dict[str, Any] = {"max_batch_size": batch_size, "device": torch.device(device), "dtype": dtype}
        cache = StaticCache(config, length, offloading, **given, **sizes)
    return EncoderDecoderCache(cache, DynamicCache()) if config.add_cross_attention else cache


def cache_names() -> tuple[str, ...]:
    """The names that `make_cache` accepts."""
    return tuple(_OPTIONS)
