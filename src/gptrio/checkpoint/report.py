"""What of a checkpoint was not loaded, and of a model not found. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptrio.errors import SizeMismatchError, warn


@dataclass
class LoadReport:
    """What was not loaded.

    Args:
        missing: model keys that the checkpoint lacks; their tensors were left as they were.
        unexpected: checkpoint keys that the model has no tensor for, as the model would call them.
        mismatched: (model key, shape in the checkpoint, shape in the model); left as they were.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def warn(self, loaded: str) -> None:
        """Warn once of all keys that do not match.

        Args:
            loaded: the model and the checkpoint, for the beginning of the message.
        """
        mismatched = [f"{key} {stored} instead of {expected}" for key, stored, expected in self.mismatched]
        parts = {
            "drawn at random, because the checkpoint lacks them": self.missing,
            "drawn at random, because their shapes differ": mismatched,
            "in the checkpoint but not in the model": self.unexpected,
        }
        clauses = [
            f"{len(keys)} {what}: {', '.join(keys[:8])}{', ...' * (len(keys) > 8)}"
            for what, keys in parts.items()
            if keys
        ]
        if clauses:
            trained = "; train the model before you rely on it" if self.missing or mismatched else ""
            warn(f"{loaded}: {'; '.join(clauses)}{trained}")

    def to_dict(self) -> dict[str, list[str]]:
        """Sorted names under Transformers' keys: what `output_loading_info=True` returns."""
        return {
            "missing_keys": sorted(self.missing),
            "unexpected_keys": sorted(self.unexpected),
            "mismatched_keys": sorted(key for key, _, _ in self.mismatched),
            "error_msgs": [],
        }

    def check_shapes(self) -> None:
        """Raise SizeMismatchError if tensors have other shapes than the model's."""
        if not self.mismatched:
            return
        rows = [
            f"{name}: {stored} in the checkpoint, {expected} in the model" for name, stored, expected in self.mismatched
        ]
        more = "; ..." * (len(rows) > 5)
        raise SizeMismatchError(
            f"{len(rows)} tensors have other shapes than the model's: {'; '.join(rows[:5])}{more}. "
            "Check the configuration, or pass ignore_mismatched_sizes=True to initialise them at random"
        )
