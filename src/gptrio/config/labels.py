"""The three ways a configuration names its classes: `num_labels`, `id2label`, `label2id`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptrio.config.fields import has_type
from gptrio.errors import ConfigError, warn

_NAMES = {"num_labels", "id2label", "label2id"}


def names(count: int) -> dict[int, str]:
    """Return default names for `count` classes."""
    if not has_type(count, int) or count < 1:
        raise ConfigError(f"num_labels={count!r} is not possible; expected an integer >= 1")
    return {index: f"LABEL_{index}" for index in range(count)}


def inverse(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """Turn {id: label} into {label: id}, or back; raises ConfigError for what cannot be a key."""
    try:
        return {value: key for key, value in mapping.items()}
    except TypeError as error:
        raise ConfigError(f"{mapping!r} does not map ids and labels to each other; expected plain values") from error


def integer_keys(name: str, mapping: object) -> dict[int, Any]:
    """Return `mapping` with integer keys, which JSON can only hold as strings; raises ConfigError."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{name}={mapping!r} is not possible; expected a dictionary with integer keys")
    try:
        return {int(key): value for key, value in mapping.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}={mapping!r} is not possible; expected integer keys") from error


def reconcile(given: dict[str, Any]) -> dict[str, Any]:
    """Replace `num_labels` by both maps, derived from those that were given."""
    count = given.pop("num_labels", None)
    id2label, label2id = given.get("id2label"), given.get("label2id")
    if label2id is not None and not isinstance(label2id, Mapping):
        raise ConfigError(f"label2id={label2id!r} is not possible; expected a dictionary")
    if id2label is None:
        id2label = inverse(label2id) if label2id is not None else names(2 if count is None else count)
    id2label = integer_keys("id2label", id2label)
    if count is not None and count != len(id2label):
        warn(f"num_labels={count} is ignored: id2label names {len(id2label)} classes; give one of the two")
    return given | {"id2label": id2label, "label2id": inverse(id2label) if label2id is None else dict(label2id)}


def override(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge `overrides` over `values`, so that classes which are overridden one way replace all three ways."""
    count, id2label = overrides.get("num_labels"), overrides.get("id2label")
    replaced = any(overrides.get(name) is not None for name in _NAMES)
    if count is not None and id2label is not None:
        found = len(integer_keys("id2label", id2label))
        if found != count:
            raise ConfigError(f"num_labels={count} and an id2label of {found} classes disagree; give one of them")
    elif count is not None and values.get("id2label") is not None:
        replaced = count != len(integer_keys("id2label", values["id2label"]))  # else the names in the file fit
    return {name: value for name, value in values.items() if not (replaced and name in _NAMES)} | overrides
