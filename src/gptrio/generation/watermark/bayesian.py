"""Find the SynthID watermark in text: a small trained model weighs the bits of every n-gram."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptrio.checkpoint.load import load_into, open_checkpoint
from gptrio.checkpoint.write import save_state_dict
from gptrio.config.base import PretrainedConfig, config_class
from gptrio.errors import CheckpointFormatError, ConfigError
from gptrio.generation.watermark.synthid import SynthIDTextWatermarkLogitsProcessor
from gptrio.hub import HubOptions
from gptrio.outputs import ModelOutput

if TYPE_CHECKING:
    from typing_extensions import Self


@config_class
class BayesianDetectorConfig(PretrainedConfig):
    """Configuration of `BayesianDetectorModel`.

    Args:
        watermarking_depth: D, the number of watermarking keys.
        base_rate: prior probability that a text is watermarked.
        model_name, watermarking_config: what the detector was trained for.
    """

    watermarking_depth: int | None = None
    base_rate: float = 0.5
    model_name: str | None = None
    watermarking_config: dict[str, Any] | None = None

    def set_detector_information(self, model_name: str, watermarking_config: dict[str, Any]) -> None:
        """Record the model and the watermark that the detector was trained for."""
        self.model_name = model_name
        self.watermarking_config = watermarking_config


@dataclass
class BayesianWatermarkDetectorModelOutput(ModelOutput):
    """What the detector's model returns.

    Args:
        loss: training loss, when labels were given.
        posterior_probabilities: (B,) probability that a row is watermarked.
    """

    loss: torch.Tensor | None = None
    posterior_probabilities: torch.Tensor | None = None


class BayesianDetectorWatermarkedLikelihood(nn.Module):
    """Likelihood of each bit in watermarked text: a logistic regression on the bits of the layers before it.

    Args:
        watermarking_depth: D.
    """

    def __init__(self, watermarking_depth: int) -> None:
        super().__init__()
        self.watermarking_depth = watermarking_depth
        self.beta = nn.Parameter(-2.5 + 0.001 * torch.randn(1, 1, watermarking_depth))
        self.delta = nn.Parameter(0.001 * torch.randn(1, 1, watermarking_depth, watermarking_depth))

    def forward(self, g_values: torch.Tensor) -> torch.Tensor:
        """Return P(bit | watermarked) for bits (B, T, D)."""
        earlier = torch.tril(self.delta[0, 0], diagonal=-1)  # (D, D): layer i depends on the layers j < i
        two_candidates = torch.sigmoid(g_values.to(earlier.dtype) @ earlier.T + self.beta)
        return 0.5 * ((g_values + 0.5) * two_candidates + (1 - two_candidates))


class BayesianDetectorModel(nn.Module):
    """Probability that texts are watermarked, from their bits.

    Source: Dathathri et al., "Scalable watermarking for identifying large language model outputs", Nature 634 (2024).

    Args:
        config: `watermarking_depth` and `base_rate`.
    """

    config_class = BayesianDetectorConfig
    base_model_prefix = "model"

    def __init__(self, config: BayesianDetectorConfig) -> None:
        super().__init__()
        if config.watermarking_depth is None:
            raise ConfigError("watermarking_depth is None; expected the number of watermarking keys")
        self.config = config
        self.likelihood_model_watermarked = BayesianDetectorWatermarkedLikelihood(config.watermarking_depth)
        self.prior = nn.Parameter(torch.tensor([config.base_rate]))

    def forward(
        self,
        g_values: torch.Tensor,
        mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        loss_batch_weight: float = 1,
        return_dict: bool = False,
    ) -> BayesianWatermarkDetectorModelOutput | tuple[torch.Tensor, ...]:
        """Return the posterior probabilities (B,), and a loss when labels are given.

        Args:
            g_values: (B, T, D) bits, see `compute_g_values`.
            mask: (B, T) 0 for n-grams that do not count.
            labels: (B,) 1 for watermarked texts.
            loss_batch_weight: weight of the regularisation.
            return_dict: return an object instead of a tuple (probabilities, loss).
        """
        watermarked = self.likelihood_model_watermarked(g_values).clamp(min=1e-30)
        log_odds = (watermarked.log() - torch.full_like(watermarked, 0.5).log()) * mask[..., None]
        prior = self.prior.clamp(1e-5, 1 - 1e-5)
        posterior = torch.sigmoid(prior.logit() + log_odds.sum((1, 2)))
        loss = None
        if labels is not None:
            shrinkage = loss_batch_weight * self.likelihood_model_watermarked.delta.square().sum()
            fit = nn.functional.binary_cross_entropy(posterior.clamp(1e-5, 1 - 1e-5), labels)
            loss = fit + shrinkage
        if return_dict:
            return BayesianWatermarkDetectorModelOutput(loss=loss, posterior_probabilities=posterior)
        return (posterior,) if loss is None else (posterior, loss)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Read a trained detector from a folder or the hub (`kwargs`: see `gptrio.hub.HubOptions`).

        Raises:
            CheckpointNotFoundError: there is no such detector.
            CheckpointFormatError: its weights are incomplete.
        """
        options = HubOptions.pop_from(kwargs)
        config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **options.as_kwargs(), **kwargs)
        model = cls(config)
        report = load_into(model, open_checkpoint(pretrained_model_name_or_path, options=options))
        if report.missing:
            raise CheckpointFormatError(f"{pretrained_model_name_or_path} lacks the weights {report.missing}")
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write configuration and weights into a folder, made if need be."""
        save_state_dict(self.state_dict(), save_directory)
        self.config.save_pretrained(save_directory)


class SynthIDTextWatermarkDetector:
    """Detector for text that was watermarked by `SynthIDTextWatermarkLogitsProcessor`.

    Args:
        detector_module: a trained model.
        logits_processor: a processor with the options that the text was generated with.
        tokenizer: has the end-of-text token.
    """

    def __init__(
        self,
        detector_module: BayesianDetectorModel,
        logits_processor: SynthIDTextWatermarkLogitsProcessor,
        tokenizer: Any,
    ) -> None:
        self.detector_module = detector_module
        self.logits_processor = logits_processor
        self.tokenizer = tokenizer

    def __call__(self, tokenized_outputs: torch.Tensor) -> Any:
        """Return the model's output for token ids (B, T): a tuple of the probabilities (B,)."""
        processor = self.logits_processor
        written = processor.compute_eos_token_mask(tokenized_outputs, self.tokenizer.eos_token_id)
        new = processor.compute_context_repetition_mask(tokenized_outputs)
        mask = new * written[:, processor.ngram_len - 1 :]
        return self.detector_module(processor.compute_g_values(tokenized_outputs), mask)
