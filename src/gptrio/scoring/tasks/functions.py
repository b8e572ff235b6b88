"""What the harness calls for a document of a local task: its results by the name of a metric."""

from __future__ import annotations

from typing import Any


def accuracy_by_paradigm(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Whether the good sentence is the likelier one, for all pairs and for those of its paradigm."""
    (good, _), (bad, _) = results
    is_right = float(good > bad)
    return {"acc": is_right, f"acc_{doc['UID']}": is_right}


def perplexities(doc: dict[str, Any], results: list[float]) -> dict[str, tuple[float, int]]:
    """Log-probability of a document with the number of its words or bytes."""
    (log_prob,) = results
    words, size = len(doc["text"].split()), len(doc["text"].encode())
    return {
        "word_perplexity": (log_prob, words),
        "byte_perplexity": (log_prob, size),
        "bits_per_byte": (log_prob, size),
    }
