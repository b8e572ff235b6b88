"""What scripts import from `transformers.trainer_callback`: callbacks, state and control."""

from gptrio.training.callback_handler import CallbackHandler as CallbackHandler
from gptrio.training.callbacks import DefaultFlowCallback as DefaultFlowCallback
from gptrio.training.callbacks import EarlyStoppingCallback as EarlyStoppingCallback
from gptrio.training.callbacks import TrainerCallback as TrainerCallback
from gptrio.training.progress import PrinterCallback as PrinterCallback
from gptrio.training.progress import ProgressCallback as ProgressCallback
from gptrio.training.state import ExportableState as ExportableState
from gptrio.training.state import TrainerControl as TrainerControl
from gptrio.training.state import TrainerState as TrainerState
