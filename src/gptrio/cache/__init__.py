"""Keys and values of past tokens, kept between calls; a model never knows which cache it holds."""

from gptrio.cache.base import Cache, CacheLayer
from gptrio.cache.dynamic import DynamicCache, DynamicLayer, WindowLayer
from gptrio.cache.encoder_decoder import EncoderDecoderCache
from gptrio.cache.factory import make_cache
from gptrio.cache.static import SlidingWindowLayer, StaticCache, StaticLayer

__all__ = [
    "Cache",
    "CacheLayer",
    "DynamicCache",
    "DynamicLayer",
    "EncoderDecoderCache",
    "SlidingWindowLayer",
    "StaticCache",
    "StaticLayer",
    "WindowLayer",
    "make_cache",
]
