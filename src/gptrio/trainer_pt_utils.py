"""What scripts import from `transformers.trainer_pt_utils`: settings of accelerate, names of parameters."""

from gptrio.training.accelerator_config import AcceleratorConfig as AcceleratorConfig
from gptrio.training.optimizers import get_parameter_names as get_parameter_names
