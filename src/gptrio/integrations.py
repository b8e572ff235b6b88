"""What scripts import from `transformers.integrations`: callbacks that report runs."""

from gptrio.training.reporting import TensorBoardCallback as TensorBoardCallback
from gptrio.training.reporting import TrackioCallback as TrackioCallback
from gptrio.training.reporting import WandbCallback as WandbCallback
from gptrio.training.reporting import get_available_reporting_integrations as get_available_reporting_integrations
from gptrio.training.reporting import get_reporting_integration_callbacks as get_reporting_integration_callbacks
from gptrio.training.reporting import rewrite_logs as rewrite_logs
from gptrio.utils.installed import is_comet_available as is_comet_available
from gptrio.utils.installed import is_optuna_available as is_optuna_available
from gptrio.utils.installed import is_ray_available as is_ray_available
from gptrio.utils.installed import is_sigopt_available as is_sigopt_available
from gptrio.utils.installed import is_tensorboard_available as is_tensorboard_available
from gptrio.utils.installed import is_trackio_available as is_trackio_available
from gptrio.utils.installed import is_wandb_available as is_wandb_available
