"""What scripts import from `transformers.integrations`: callbacks that report runs."""

from gptrio.training.reporting import TensorBoardCallback as TensorBoardCallback
from gptrio.training.reporting import TrackioCallback as TrackioCallback
from gptrio.training.reporting import WandbCallback as WandbCallback
from gptrio.training.reporting import get_available_reporting_integrations as get_available_reporting_integrations
from gptrio.training.reporting import get_reporting_integration_callbacks as get_reporting_integration_callbacks
from gptrio.training.reporting import rewrite_logs as rewrite_logs
