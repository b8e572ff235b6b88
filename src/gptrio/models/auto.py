"""PyTorch models chosen by the `model_type` of a checkpoint's `config.json`."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from gptrio.config.auto_models import AutoModelBase, ModelMapping
from gptrio.config.base import PretrainedConfig
from gptrio.errors import warn
from gptrio.models.base.adapters import load_with_adapter


class TorchAuto(AutoModelBase):
    """Base of the classes that choose a PyTorch model."""

    _package: ClassVar[str] = "gptrio.models"
    _for_the_model: ClassVar[tuple[str, ...]] = (
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "quantization_config",
    )

    @classmethod
    def _load(cls, name_or_path: str | os.PathLike[str], model_args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        load = super()._load
        return load_with_adapter(lambda name: load(name, model_args, kwargs), name_or_path, kwargs)


class AutoModel(TorchAuto):
    """Backbones: hidden states without a head."""

    _kind = "base"


class AutoModelForPreTraining(TorchAuto):
    """Models with the heads of their family's pretraining: of GPT-2 alone, as in Transformers."""

    _kind = "pretraining"


class AutoModelForCausalLM(TorchAuto):
    """Models that predict the next token."""

    _kind = "causal_lm"


class AutoModelForSequenceClassification(TorchAuto):
    """Models that classify sequences."""

    _kind = "sequence_classification"


class AutoModelForTokenClassification(TorchAuto):
    """Models that classify tokens."""

    _kind = "token_classification"


class AutoModelForQuestionAnswering(TorchAuto):
    """Models that find the span of an answer."""

    _kind = "question_answering"


class AutoModelWithLMHead(AutoModelForCausalLM):
    """Earlier name of `AutoModelForCausalLM`; warns that it is one."""

    _EARLIER = "AutoModelWithLMHead is deprecated; use AutoModelForCausalLM instead"

    @classmethod
    def from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """Build a model with new weights."""
        warn(cls._EARLIER, FutureWarning)
        return super().from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint."""
        warn(cls._EARLIER, FutureWarning)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)


MODEL_MAPPING = ModelMapping(AutoModel)
MODEL_FOR_PRETRAINING_MAPPING = ModelMapping(AutoModelForPreTraining)
MODEL_FOR_CAUSAL_LM_MAPPING = ModelMapping(AutoModelForCausalLM)
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING = ModelMapping(AutoModelForSequenceClassification)
MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING = ModelMapping(AutoModelForTokenClassification)
MODEL_FOR_QUESTION_ANSWERING_MAPPING = ModelMapping(AutoModelForQuestionAnswering)
MODEL_WITH_LM_HEAD_MAPPING = ModelMapping(AutoModelWithLMHead)

MODEL_MAPPING_NAMES = MODEL_MAPPING.names()
MODEL_WITH_LM_HEAD_MAPPING_NAMES = MODEL_WITH_LM_HEAD_MAPPING.names()
MODEL_FOR_PRETRAINING_MAPPING_NAMES = MODEL_FOR_PRETRAINING_MAPPING.names()
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = MODEL_FOR_CAUSAL_LM_MAPPING.names()
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.names()
MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.names()
MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES = MODEL_FOR_QUESTION_ANSWERING_MAPPING.names()
