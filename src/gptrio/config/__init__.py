"""Configurations of models: one declared, validated class for each family."""

from __future__ import annotations

from gptrio.config.auto import AutoConfig
from gptrio.config.base import PretrainedConfig
from gptrio.config.gpt2 import GPT2Config
from gptrio.config.gpt_neo import GPTNeoConfig
from gptrio.config.gpt_neox import GPTNeoXConfig

__all__ = ["AutoConfig", "GPT2Config", "GPTNeoConfig", "GPTNeoXConfig", "PretrainedConfig"]
