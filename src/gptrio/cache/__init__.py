"""Keys and values of past tokens, kept between calls; a model never knows which cache it holds."""

from gptrio.cache.base import Cache, CacheLayer
from gptrio.cache.dynamic import DynamicCache, DynamicLayer, WindowLayer
from gptrio.cache.encoder_decoder import EncoderDecoderCache

__all__ = ["Cache", "CacheLayer", "DynamicCache", "DynamicLayer", "EncoderDecoderCache", "WindowLayer"]
