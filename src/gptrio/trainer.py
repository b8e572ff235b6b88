"""What scripts import from `transformers.trainer`: `Trainer`."""

from gptrio.training.trainer import Trainer as Trainer
