"""What scripts import from `transformers.trainer`: `Trainer`, its usual callbacks, the name of its state's file."""

from gptrio.training.callbacks import DefaultFlowCallback
from gptrio.training.progress import ProgressCallback
from gptrio.training.saving import TRAINER_STATE_NAME as TRAINER_STATE_NAME
from gptrio.training.trainer import Trainer as Trainer

DEFAULT_CALLBACKS = [DefaultFlowCallback]
DEFAULT_PROGRESS_CALLBACK = ProgressCallback
