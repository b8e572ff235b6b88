"""What scripts import from `transformers.training_args`: `TrainingArguments` and its choices."""

from gptrio.training.arguments import TrainingArguments as TrainingArguments
from gptrio.training.arguments_checks import default_logdir as default_logdir
from gptrio.training.enums import OptimizerNames as OptimizerNames
from gptrio.training.enums import ParallelMode as ParallelMode
