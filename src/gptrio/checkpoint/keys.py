"""Which tensor of a checkpoint belongs to which parameter of a model. Loads no torch.

Files of one model differ in their names: released GPT-2 has no `transformer.` prefix, old files say `gamma` and `beta`
for layer norms, GPT-NeoX's head is `embed_out` or `lm_head`, and causal masks or rotary tables lie among the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gptrio.errors import OptionError

# causal masks and rotary tables, which models compute themselves
IGNORED_BUFFERS = (
    r"(^|\.)(attn|attention|crossattention)\.(masked_)?bias$",
    r"(^|\.)rotary_emb\.inv_freq$",
)
_LEGACY_ENDINGS = ((".gamma", ".weight"), (".beta", ".bias"))
_HEAD_NAMES = ("lm_head.", "embed_out.")


@dataclass
class KeyPlan:
    """Where each parameter comes from.

    Args:
        sources: model key -> checkpoint key.
        missing: model keys that the checkpoint lacks, in the model's order.
        unexpected: checkpoint keys that the model has no place for.
    """

    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def plan_keys(
    model_keys: Iterable[str],
    checkpoint_keys: Iterable[str],
    *,
    base_model_prefix: str = "",
    ignore_unexpected: Iterable[str] = IGNORED_BUFFERS,
    ignore_missing: Iterable[str] = (),
    tied: Mapping[str, str] | None = None,
) -> KeyPlan:
    """Match the names of a checkpoint to those of a model.

    Args:
        model_keys: names in the model's state dict.
        checkpoint_keys: names in the files.
        base_model_prefix: "transformer" or "gpt_neox": a base model's names lack it, a head class's have it. Each loads
            from the other's files.
        ignore_unexpected, ignore_missing: patterns (`re.search`) of names not worth reporting.
        tied: model key -> model key that shares its tensor; either of the two in the files is enough.
    """
    wanted = dict.fromkeys(model_keys)
    plan = KeyPlan()
    unmatched = []
    for key in checkpoint_keys:  # exact names first, so that no spelling takes their place
        if key in wanted:
            plan.sources[key] = key
        else:
            unmatched.append(key)
    for key in unmatched:
        spellings = _spellings(key, base_model_prefix)
        name = next((name for name in spellings if name in wanted and name not in plan.sources), None)
        if name is not None:
            plan.sources[name] = key
        elif not _matches(key, ignore_unexpected):
            plan.unexpected.append(key)
    present = set(plan.sources)
    for one, other in (tied or {}).items():
        if one in present or other in present:
            present |= {one, other}
    plan.missing = [key for key in wanted if key not in present and not _matches(key, ignore_missing)]
    return plan


def renamed(keys: Iterable[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """The names of a checkpoint's tensors after renaming: new name -> name in the files.

    Args:
        keys: names in the files.
        mapping: {regular expression: replacement}, as for `re.sub`; of each name, the first that is found applies.

    Raises:
        OptionError: an expression that is none, or two names become one.
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
            raise OptionError(f"key_mapping {pattern!r}: {replacement!r} is no regular expression: {error}") from error
        if count:
            return new
    return key


def _spellings(key: str, prefix: str) -> Iterator[str]:
    """Yield the names a model may have for a checkpoint's key."""
    for ending, modern in _LEGACY_ENDINGS:
        if key.endswith(ending):
            key = key.removesuffix(ending) + modern
    names = [key]
    names += [other + key.removeprefix(head) for head in _HEAD_NAMES if key.startswith(head) for other in _HEAD_NAMES]
    for name in names:
        yield name
        if prefix:
            yield f"{prefix}.{name}"
            if name.startswith(f"{prefix}."):
                yield name.removeprefix(f"{prefix}.")


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, key) for pattern in patterns)
