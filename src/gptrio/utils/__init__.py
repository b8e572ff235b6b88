"""Small things that scripts take from `transformers.utils`: verbosity, seeds, and what is installed."""

from gptrio.outputs import ModelOutput as ModelOutput
from gptrio.utils import logging as logging
from gptrio.utils.installed import is_accelerate_available as is_accelerate_available
from gptrio.utils.installed import is_bitsandbytes_available as is_bitsandbytes_available
from gptrio.utils.installed import is_datasets_available as is_datasets_available
from gptrio.utils.installed import is_flash_attn_2_available as is_flash_attn_2_available
from gptrio.utils.installed import is_flax_available as is_flax_available
from gptrio.utils.installed import is_matplotlib_available as is_matplotlib_available
from gptrio.utils.installed import is_numba_available as is_numba_available
from gptrio.utils.installed import is_peft_available as is_peft_available
from gptrio.utils.installed import is_psutil_available as is_psutil_available
from gptrio.utils.installed import is_safetensors_available as is_safetensors_available
from gptrio.utils.installed import is_scipy_available as is_scipy_available
from gptrio.utils.installed import is_sentencepiece_available as is_sentencepiece_available
from gptrio.utils.installed import is_sklearn_available as is_sklearn_available
from gptrio.utils.installed import is_tf_available as is_tf_available
from gptrio.utils.installed import is_tokenizers_available as is_tokenizers_available
from gptrio.utils.installed import is_torch_available as is_torch_available
from gptrio.utils.installed import is_torch_cuda_available as is_torch_cuda_available
from gptrio.utils.installed import is_torch_sdpa_available as is_torch_sdpa_available
from gptrio.utils.installed import is_torch_xla_available as is_torch_xla_available
from gptrio.utils.installed import is_torchvision_available as is_torchvision_available
from gptrio.utils.installed import is_vision_available as is_vision_available
from gptrio.utils.seed import set_seed as set_seed
