"""Objects of Transformers, recognised by the names of their classes and read by attribute; it is never imported here.

Code that was written for Transformers passes its objects on. Each room turns them into its own at its edge, with what
these functions read: `generation` and `config` from dictionaries, `quantization` likewise, `cache` from the object.
"""

from __future__ import annotations

from typing import Any

CONFIGURATION = ("PretrainedConfig", "PreTrainedConfig")  # until 4.x, and from 5 on
GENERATION_CONFIG = ("GenerationConfig",)
QUANTIZATION_CONFIG = ("QuantizationConfigMixin",)
CACHE = ("Cache",)
CROSS_CACHE = ("EncoderDecoderCache",)
MODEL = ("PreTrainedModel",)
TOKENIZER = ("PreTrainedTokenizerBase",)


def is_foreign(value: object, names: tuple[str, ...]) -> bool:
    """Whether the class of `value`, or one that it derives from, is a class of Transformers with one of the names."""
    return any(
        base.__name__ in names and base.__module__.partition(".")[0] == "transformers" for base in type(value).__mro__
    )


def content_of(value: Any, with_defaults: bool = False) -> dict[str, Any]:
    """What a configuration object of Transformers holds: plain values, as its file would hold them.

    Args:
        value: the object.
        with_defaults: also what is as it is by default.
    """
    held = value.to_dict() if with_defaults else value.to_diff_dict()
    return {name: _plain(item) for name, item in held.items()}


def _plain(item: Any) -> Any:
    """Enumerations by their values, nested configurations as dictionaries."""
    if type(item).__module__.partition(".")[0] != "transformers":
        return item
    return content_of(item, with_defaults=True) if hasattr(item, "to_dict") else getattr(item, "value", item)
