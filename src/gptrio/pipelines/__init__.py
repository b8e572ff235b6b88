"""Pipelines: text in, results out, with the tokenizer, the model and batching between them."""

from gptrio.pipelines.base import ArgumentHandler as ArgumentHandler
from gptrio.pipelines.base import ChunkPipeline as ChunkPipeline
from gptrio.pipelines.base import Pipeline as Pipeline
from gptrio.pipelines.base import PipelineException as PipelineException
from gptrio.pipelines.entities import AggregationStrategy as AggregationStrategy
from gptrio.pipelines.factory import pipeline as pipeline
from gptrio.pipelines.feature_extraction import FeatureExtractionPipeline as FeatureExtractionPipeline
from gptrio.pipelines.formats import CsvPipelineDataFormat as CsvPipelineDataFormat
from gptrio.pipelines.formats import JsonPipelineDataFormat as JsonPipelineDataFormat
from gptrio.pipelines.formats import PipedPipelineDataFormat as PipedPipelineDataFormat
from gptrio.pipelines.formats import PipelineDataFormat as PipelineDataFormat
from gptrio.pipelines.pt_utils import KeyDataset as KeyDataset
from gptrio.pipelines.question_answering import QuestionAnsweringPipeline as QuestionAnsweringPipeline
from gptrio.pipelines.questions import QuestionAnsweringArgumentHandler as QuestionAnsweringArgumentHandler
from gptrio.pipelines.questions import SquadExample as SquadExample
from gptrio.pipelines.registry import PIPELINE_REGISTRY as PIPELINE_REGISTRY
from gptrio.pipelines.registry import PipelineRegistry as PipelineRegistry
from gptrio.pipelines.registry import check_task as check_task
from gptrio.pipelines.registry import get_supported_tasks as get_supported_tasks
from gptrio.pipelines.text_classification import TextClassificationPipeline as TextClassificationPipeline
from gptrio.pipelines.text_generation import TextGenerationPipeline as TextGenerationPipeline
from gptrio.pipelines.token_classification import NerPipeline as NerPipeline
from gptrio.pipelines.token_classification import (
    TokenClassificationArgumentHandler as TokenClassificationArgumentHandler,
)
from gptrio.pipelines.token_classification import TokenClassificationPipeline as TokenClassificationPipeline
from gptrio.pipelines.zero_shot_classification import (
    ZeroShotClassificationArgumentHandler as ZeroShotClassificationArgumentHandler,
)
from gptrio.pipelines.zero_shot_classification import ZeroShotClassificationPipeline as ZeroShotClassificationPipeline

SUPPORTED_TASKS, TASK_ALIASES = PIPELINE_REGISTRY.supported_tasks, PIPELINE_REGISTRY.task_aliases
