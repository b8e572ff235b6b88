"""Which tensor of a checkpoint belongs to which parameter of a model. Loads no torch.

Files of one model differ in their names: released GPT-2 has no `transformer.` prefix, old files say `gamma` and `beta`
for layer norms, and some files also have causal masks or rotary tables. A family's class declares such differences;
`KeyRules` carries them here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gptrio.errors import OptionError


@dataclass(frozen=True)
class KeyRules:
    """How the names in files of a family become those of a model.

    Args:
        base_model_prefix: "transformer" or "gpt_neox": a base model's names lack it, a head class's have it. Each loads
            from the other's files.
        aliases: {pattern of a name in files: replacement}, as for `re.sub`, for names that the model lacks.
        ignore_unexpected, ignore_missing: patterns (`re.search`) of names not worth reporting.
        tied: model key -> model key that shares its tensor; either of the two in the files is enough.
    """

    base_model_prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignore_unexpected: Iterable[str] = ()
    ignore_missing: Iterable[str] = ()
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass
class KeyPlan:
    """Where each parameter comes from.

    Args:
        sources: model key -> checkpoint key.
        missing: model keys that the checkpoint lacks, in the model's order.
        unexpected: checkpoint keys that the model has no tensor for, as the model would call them.
    """

    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def plan_keys(model_keys: Iterable[str], checkpoint_keys: Iterable[str], rules: KeyRules) -> KeyPlan:
    """Match the names of a checkpoint to those of a model.

    Args:
        model_keys: names in the model's state dict.
        checkpoint_keys: names in the files.
        rules: see `KeyRules`.
    """
    targets = dict.fromkeys(model_keys)
    keys = list(checkpoint_keys)
    names_of = _prefixing(targets, keys, rules.base_model_prefix)
    plan = KeyPlan()
    unmatched = []
    for key in keys:  # exact names first, so that no alias replaces them
        name = next((name for name in names_of(key) if name in targets), None)
        if name is None:
            unmatched.append(key)
        else:
            plan.sources[name] = key
    for key in unmatched:
        candidates = (name for alias in _aliases(key, rules.aliases) for name in names_of(alias))
        name = next((name for name in candidates if name in targets and name not in plan.sources), None)
        if name is not None:
            plan.sources[name] = key
            continue
        name = next(iter(names_of(key)), key)
        if not _matches(name, rules.ignore_unexpected):
            plan.unexpected.append(name)
    present = set(plan.sources)
    for one, other in rules.tied.items():
        if one in present or other in present:
            present |= {one, other}
    plan.missing = [key for key in targets if key not in present and not _matches(key, rules.ignore_missing)]
    return plan


def renamed(keys: Iterable[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """The names of a checkpoint's tensors after renaming: new name -> name in the files.

    Args:
        keys: names in the files.
        mapping: {regular expression: replacement}, as for `re.sub`; of each name, the first that is found applies.

    Raises:
        OptionError: an expression is malformed, or two names become one.
    """
    names: dict[str, str] = {}
    for key in keys:
        new = _renamed(key, mapping) if mapping else key
        if new in names:
            raise OptionError(f"key_mapping gives {names[new]} and {key} of the checkpoint the same name, {new}")
        names[new] = key
    return names


def _renamed(key: str, mapping: Mapping[str, str]) -> str:
    for pattern, replacement in mapping.items():
        try:
            new, count = re.subn(pattern, replacement, key)
        except (re.error, IndexError) as error:
            raise OptionError(
                f"key_mapping {pattern!r}: {replacement!r} is not a regular expression: {error}"
            ) from error
        if count:
            return new
    return key


def _prefixing(model_keys: Iterable[str], keys: list[str], prefix: str) -> Callable[[str], list[str]]:
    """A function from a name in the checkpoint to its possible names in the model, the likeliest first.

    A head may have a part of the same name as one of the backbone's. So names in a checkpoint of a backbone are always
    the backbone's, and a backbone loads from a checkpoint with a head only the names that have the prefix.
    """
    start = f"{prefix}."
    backbone = [key.removeprefix(start) for key in model_keys if prefix and key.startswith(start)]
    has_prefix = bool(prefix) and any(key.startswith(start) for key in keys)
    if backbone and not has_prefix:
        parts = {key.partition(".")[0] for key in backbone}
        return lambda key: [start + key] if key.partition(".")[0] in parts else [start + key, key]
    if has_prefix and not backbone:
        return lambda key: [key.removeprefix(start)] if key.startswith(start) else []
    return lambda key: [key]


def _aliases(key: str, aliases: Mapping[str, str]) -> list[str]:
    """The other names that a checkpoint's key may have in the model."""
    renamed = (re.subn(pattern, replacement, key) for pattern, replacement in aliases.items())
    return [name for name, count in renamed if count]


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, key) for pattern in patterns)
