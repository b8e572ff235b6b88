"""Detects the green-list watermark: counts green tokens and computes how likely as many are by chance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptrio.errors import InputError
from gptrio.generation.watermark.config import WatermarkingConfig
from gptrio.generation.watermark.greenlist import WatermarkLogitsProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptrio.config.base import PretrainedConfig


@dataclass
class WatermarkDetectorOutput:
    """Results of a detector for each row (B,).

    Args:
        num_tokens_scored: number of scored tokens.
        num_green_tokens: number of green ones among them.
        green_fraction: their fraction.
        z_score: standard deviations above the number expected by chance.
        p_value: probability of at least that score by chance.
        prediction: whether the score is above the threshold.
        confidence: 1 - p_value.
    """

    num_tokens_scored: NDArray[np.float64] | None = None
    num_green_tokens: NDArray[np.float64] | None = None
    green_fraction: NDArray[np.float64] | None = None
    z_score: NDArray[np.float64] | None = None
    p_value: NDArray[np.float64] | None = None
    prediction: NDArray[np.bool_] | None = None
    confidence: NDArray[np.float64] | None = None


class WatermarkDetector:
    """Detector for text that was watermarked by `WatermarkLogitsProcessor` with the same options and kind of device.

    Args:
        model_config: has the vocabulary's size and the `bos_token_id`.
        device: device on which random numbers are drawn.
        watermarking_config: the options that the text was generated with.
        ignore_repeated_ngrams: count each n-gram once only.
        max_cache_size: accepted for compatibility.
    """

    def __init__(
        self,
        model_config: PretrainedConfig,
        device: str | torch.device,
        watermarking_config: WatermarkingConfig | dict[str, Any],
        ignore_repeated_ngrams: bool = False,
        max_cache_size: int = 128,
    ) -> None:
        options = watermarking_config if isinstance(watermarking_config, dict) else watermarking_config.to_dict()
        self.bos_token_id = model_config.bos_token_id
        self.greenlist_ratio = options["greenlist_ratio"]
        self.ignore_repeated_ngrams = ignore_repeated_ngrams
        self.processor = WatermarkLogitsProcessor(model_config.vocab_size, device, **options)

    def __call__(
        self, input_ids: torch.Tensor, z_threshold: float = 3.0, return_dict: bool = False
    ) -> WatermarkDetectorOutput | NDArray[np.bool_]:
        """Return which rows are watermarked.

        Args:
            input_ids: (B, T) token ids of the text, without padding; a first `bos_token_id` is skipped.
            z_threshold: score above which a row counts as watermarked.
            return_dict: return a `WatermarkDetectorOutput` instead of the predictions (B,).

        Raises:
            InputError: the text is too short for a scored token.
        """
        if input_ids[0, 0] == self.bos_token_id:
            input_ids = input_ids[:, 1:]
        if input_ids.shape[-1] <= self.processor.context_width:
            width = self.processor.context_width
            raise InputError(f"{input_ids.shape[-1]} tokens are too few; expected more than context_width={width}")
        scored, green = np.array([self._count(row) for row in input_ids]).T
        ratio = self.greenlist_ratio
        z_score = (green - ratio * scored) / np.sqrt(scored * ratio * (1 - ratio))
        prediction = z_score > z_threshold
        if not return_dict:
            return np.asarray(prediction)
        p_value = _upper_tail(z_score)
        return WatermarkDetectorOutput(scored, green, green / scored, z_score, p_value, prediction, 1 - p_value)

    def _count(self, ids: torch.Tensor) -> tuple[int, int]:
        """Return how many n-grams of ids (T,) are scored, and how many of them end in a green token."""
        selfhash = self.processor.seeding_scheme == "selfhash"
        size = self.processor.context_width + (not selfhash)
        windows = [tuple(window) for window in ids.unfold(0, size, 1).tolist()]
        times = Counter(set(windows) if self.ignore_repeated_ngrams else windows)
        green = 0
        for window, count in times.items():
            ngram = torch.tensor(window, device=ids.device)
            greenlist = self.processor.greenlist(ngram if selfhash else ngram[:-1])
            green += count * bool((greenlist == ngram[-1]).any())
        return times.total(), green


def _upper_tail(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an approximation of the probability that a normal variable exceeds z."""
    return np.asarray(1 - 0.5 * (1 + np.sign(z) * (1 - np.exp(-2 * z**2 / np.pi))))
