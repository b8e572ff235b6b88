"""What scripts import from `transformers.trainer_utils`: results, strategies, seeds, the last checkpoint."""

from gptrio.training.arguments_process import is_main_process as is_main_process
from gptrio.training.arrays import denumpify_detensorize as denumpify_detensorize
from gptrio.training.checkpoint import PREFIX_CHECKPOINT_DIR as PREFIX_CHECKPOINT_DIR
from gptrio.training.checkpoint import get_last_checkpoint as get_last_checkpoint
from gptrio.training.enums import EvaluationStrategy as EvaluationStrategy
from gptrio.training.enums import FSDPOption as FSDPOption
from gptrio.training.enums import HPSearchBackend as HPSearchBackend
from gptrio.training.enums import HubStrategy as HubStrategy
from gptrio.training.enums import IntervalStrategy as IntervalStrategy
from gptrio.training.enums import SaveStrategy as SaveStrategy
from gptrio.training.enums import SchedulerType as SchedulerType
from gptrio.training.order import has_length as has_length
from gptrio.training.preparing import neftune_post_forward_hook as neftune_post_forward_hook
from gptrio.training.results import EvalLoopOutput as EvalLoopOutput
from gptrio.training.results import EvalPrediction as EvalPrediction
from gptrio.training.results import PredictionOutput as PredictionOutput
from gptrio.training.results import TrainOutput as TrainOutput
from gptrio.training.results import speed_metrics as speed_metrics
from gptrio.training.search import BestRun as BestRun
from gptrio.training.search import default_compute_objective as default_compute_objective
from gptrio.training.search import default_hp_space_optuna as default_hp_space_optuna
from gptrio.utils.seed import enable_full_determinism as enable_full_determinism
from gptrio.utils.seed import set_seed as set_seed
