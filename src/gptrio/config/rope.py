"""The rules of `rope_scaling`: how rotary embeddings are stretched past the length of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptrio.config.fields import Rule, has_type, is_number
from gptrio.errors import ConfigError, warn

_SCALE = Rule(lambda value: is_number(value) and value >= 1, "a number >= 1")
_SHARE = Rule(lambda value: is_number(value) and value >= 0, "a number >= 0")
_NUMBER = Rule(is_number, "a number")
_COUNT = Rule(lambda value: has_type(value, int) and value >= 1, "an integer >= 1")
_FACTORS = Rule(lambda value: isinstance(value, (list, tuple)) and all(map(is_number, value)), "a list of numbers")
_SWITCH = Rule(lambda value: isinstance(value, bool), "True or False")

# type -> (required keys, optional keys)
_KEYS: dict[str, tuple[dict[str, Rule], dict[str, Rule]]] = {
    "default": ({}, {}),
    "linear": ({"factor": _SCALE}, {}),
    "dynamic": ({"factor": _SCALE}, {"original_max_position_embeddings": _COUNT}),
    "yarn": (
        {"factor": _SCALE},
        {
            "attention_factor": _SHARE,
            "beta_fast": _NUMBER,
            "beta_slow": _NUMBER,
            "original_max_position_embeddings": _COUNT,
            "mscale": _NUMBER,
            "mscale_all_dim": _NUMBER,
            "truncate": _SWITCH,
        },
    ),
    "longrope": (
        {"short_factor": _FACTORS, "long_factor": _FACTORS},
        {"factor": _SCALE, "attention_factor": _SHARE, "original_max_position_embeddings": _COUNT},
    ),
    "llama3": (
        {
            "factor": _SCALE,
            "original_max_position_embeddings": _COUNT,
            "low_freq_factor": _NUMBER,
            "high_freq_factor": _NUMBER,
        },
        {},
    ),
}


def normalize_rope_scaling(value: object) -> dict[str, Any] | None:
    """Return a copy of `rope_scaling` whose kind is under "rope_type" (also when only the older "type" was given).

    Raises:
        ConfigError: it is neither None nor a dictionary, or names no known kind.
    """
    if value is None:
        return None
    kinds = ", ".join(_KEYS)
    if not isinstance(value, Mapping):
        raise ConfigError(f"rope_scaling={value!r} is not possible; expected None or a dictionary with 'rope_type'")
    scaling = dict(value)
    kind = scaling.get("type", scaling.get("rope_type"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"rope_scaling: rope_type={kind!r} is not possible; expected one of {kinds}")
    return scaling | {"rope_type": kind}


def validate_rope_scaling(scaling: Mapping[str, Any], rotary_width: int) -> None:
    """Check the keys of a normalized `rope_scaling`.

    Args:
        scaling: what `normalize_rope_scaling` returned.
        rotary_width: number of rotated dimensions per head, twice the length of long and short factors.

    Raises:
        ConfigError: a key is missing or its value is impossible.
    """
    kind = scaling["rope_type"]
    owner = f"rope_scaling of type {kind!r}"
    required, optional = _KEYS[kind]
    if missing := sorted(required.keys() - scaling.keys()):
        raise ConfigError(f"{owner} lacks {', '.join(missing)}; it needs {', '.join(required)}")
    if unknown := sorted(scaling.keys() - required.keys() - optional.keys() - {"rope_type", "type"}):
        warn(f"{owner} does not use {', '.join(unknown)}")
    for name, rule in (required | optional).items():
        if name in required or scaling.get(name) is not None:
            rule.check(owner, name, scaling[name])
    _check_order(owner, scaling)
    if kind == "dynamic" and rotary_width <= 2:
        raise ConfigError(f"{owner} needs more than one rotated pair of dimensions; raise rotary_pct or the head width")
    for name in ("short_factor", "long_factor"):
        if name in required and len(scaling[name]) != rotary_width // 2:
            found, pairs = len(scaling[name]), rotary_width // 2
            raise ConfigError(f"{owner}: {name} has {found} numbers; expected {pairs}, one per rotated pair")


def _check_order(owner: str, scaling: Mapping[str, Any]) -> None:
    for low, high, defaults in (("beta_slow", "beta_fast", (1, 32)), ("low_freq_factor", "high_freq_factor", (0, 1))):
        low_value = defaults[0] if scaling.get(low) is None else scaling[low]
        high_value = defaults[1] if scaling.get(high) is None else scaling[high]
        if low_value >= high_value:
            raise ConfigError(f"{owner}: {high}={high_value!r} is not possible; expected more than {low}={low_value!r}")
