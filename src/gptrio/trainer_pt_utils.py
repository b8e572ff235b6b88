"""What scripts import from `transformers.trainer_pt_utils`: settings of accelerate, samplers, names of parameters."""

from gptrio.training.accelerator_config import AcceleratorConfig as AcceleratorConfig
from gptrio.training.losses import LabelSmoother as LabelSmoother
from gptrio.training.optimizers import get_parameter_names as get_parameter_names
from gptrio.training.order import LengthGroupedSampler as LengthGroupedSampler
from gptrio.training.order import get_length_grouped_indices as get_length_grouped_indices
