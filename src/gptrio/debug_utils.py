"""What scripts import from `transformers.debug_utils`: the choices of `debug`."""

from gptrio.training.enums import DebugOption as DebugOption
