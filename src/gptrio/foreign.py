"""Objects of Transformers, recognised by the names of their classes and read by attribute; it is never imported here.

Code that was written for Transformers may pass its objects. Each room converts them to its own with these functions:
`generation`, `config` and `quantization` from dictionaries, `cache` from the object.
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
    """Return a configuration object of Transformers as plain values, as in its file.

    Args:
        value: the object.
        with_defaults: include values that equal their defaults.
    """
    held = value.to_dict() if with_defaults else value.to_diff_dict()
    return {name: _plain(item) for name, item in held.items()}


def _plain(item: Any) -> Any:
    """Return the value of an enumeration, the dictionary of a nested configuration, and other values unchanged."""
    if type(item).__module__.partition(".")[0] != "transformers":
        return item
    return content_of(item, with_defaults=True) if hasattr(item, "to_dict") else getattr(item, "value", item)
