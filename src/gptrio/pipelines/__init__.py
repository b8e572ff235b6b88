"""Pipelines: text in, results out, with the tokenizer, the model and batching between them."""

from gptrio.pipelines.base import ChunkPipeline as ChunkPipeline
from gptrio.pipelines.base import Pipeline as Pipeline
from gptrio.pipelines.factory import pipeline as pipeline
from gptrio.pipelines.text_generation import TextGenerationPipeline as TextGenerationPipeline
