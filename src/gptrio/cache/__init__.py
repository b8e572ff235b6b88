"""Caches of keys and values of past positions; a model uses all of them through one protocol (`cache.protocol`)."""

from gptrio.cache.dynamic import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, OffloadedCache
from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.factory import cache_names, make_cache
from gptrio.cache.protocol import Cache, CacheLayer
from gptrio.cache.quantized import QuantizedCache
from gptrio.cache.static import OffloadedStaticCache, StaticCache
from gptrio.cache.static_layers import SlidingWindowLayer, StaticLayer

__all__ = [
    "Cache",
    "CacheLayer",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "EncoderDecoderCache",
    "OffloadedCache",
    "OffloadedStaticCache",
    "QuantizedCache",
    "SlidingWindowLayer",
    "StaticCache",
    "StaticLayer",
    "cache_names",
    "make_cache",
]
