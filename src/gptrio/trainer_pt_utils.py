"""What scripts import from `transformers.trainer_pt_utils`: samplers, parameters, nested tensors."""

from gptrio.training.accelerator_config import AcceleratorConfig as AcceleratorConfig
from gptrio.training.arrays import EvalLoopContainer as EvalLoopContainer
from gptrio.training.arrays import find_batch_size as find_batch_size
from gptrio.training.arrays import nested_concat as nested_concat
from gptrio.training.arrays import nested_detach as nested_detach
from gptrio.training.arrays import nested_numpify as nested_numpify
from gptrio.training.losses import LabelSmoother as LabelSmoother
from gptrio.training.optimizers import get_parameter_names as get_parameter_names
from gptrio.training.order import LengthGroupedSampler as LengthGroupedSampler
from gptrio.training.order import get_length_grouped_indices as get_length_grouped_indices
from gptrio.training.parts import get_model_param_count as get_model_param_count
