"""Flax models chosen by the `model_type` of a checkpoint's `config.json`."""

from __future__ import annotations

from typing import ClassVar

from gptrio.config.auto_models import AutoModelBase, ModelMapping


class FlaxAuto(AutoModelBase):
    """Base of the classes that choose a Flax model."""

    _package: ClassVar[str] = "gptrio.jax.models"
    _prefix: ClassVar[str] = "Flax"
    _for_the_model: ClassVar[tuple[str, ...]] = ("dtype",)


class FlaxAutoModel(FlaxAuto):
    """Backbones: hidden states without a head."""

    _kind = "base"


class FlaxAutoModelForCausalLM(FlaxAuto):
    """Models that predict the next token."""

    _kind = "causal_lm"


class FlaxAutoModelForSequenceClassification(FlaxAuto):
    """Models that classify sequences."""

    _kind = "sequence_classification"


class FlaxAutoModelForTokenClassification(FlaxAuto):
    """Models that classify tokens."""

    _kind = "token_classification"


class FlaxAutoModelForQuestionAnswering(FlaxAuto):
    """Models that find the span of an answer."""

    _kind = "question_answering"


FLAX_MODEL_MAPPING = ModelMapping(FlaxAutoModel)
FLAX_MODEL_FOR_CAUSAL_LM_MAPPING = ModelMapping(FlaxAutoModelForCausalLM)
FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING = ModelMapping(FlaxAutoModelForSequenceClassification)
FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING = ModelMapping(FlaxAutoModelForTokenClassification)
FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING = ModelMapping(FlaxAutoModelForQuestionAnswering)

FLAX_MODEL_MAPPING_NAMES = FLAX_MODEL_MAPPING.names()
FLAX_MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = FLAX_MODEL_FOR_CAUSAL_LM_MAPPING.names()
FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES = FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.names()
FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES = FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.names()
FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES = FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING.names()
