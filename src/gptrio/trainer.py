"""What scripts import from `transformers.trainer`: `Trainer`, its usual callbacks, names of files, the log."""

from gptrio.training.callbacks import DefaultFlowCallback
from gptrio.training.progress import ProgressCallback
from gptrio.training.saving import TRAINER_STATE_NAME as TRAINER_STATE_NAME
from gptrio.training.trainer import Trainer as Trainer
from gptrio.utils import logging

DEFAULT_CALLBACKS = [DefaultFlowCallback]
DEFAULT_PROGRESS_CALLBACK = ProgressCallback
TRAINING_ARGS_NAME = "training_args.bin"  # of Transformers' checkpoints; here none is written or read
OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME = "optimizer.pt", "scheduler.pt", "scaler.pt"  # likewise
logger = logging.get_logger(__name__)
