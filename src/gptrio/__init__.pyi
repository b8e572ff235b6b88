# The table of public names: one line each, `from MODULE import NAME as NAME`, sorted by the linter.
# Type checkers read it as a stub; `__init__.py` reads it to find the module behind a name on first use.
from gptrio.errors import CheckpointError as CheckpointError
from gptrio.errors import CheckpointFormatError as CheckpointFormatError
from gptrio.errors import CheckpointNotFoundError as CheckpointNotFoundError
from gptrio.errors import ConfigError as ConfigError
from gptrio.errors import GptrioError as GptrioError
from gptrio.errors import GptrioWarning as GptrioWarning
from gptrio.errors import InputError as InputError
from gptrio.errors import MissingDependencyError as MissingDependencyError
from gptrio.errors import OptionError as OptionError
from gptrio.errors import SizeMismatchError as SizeMismatchError
from gptrio.errors import TokenIdError as TokenIdError
from gptrio.errors import TokenizationError as TokenizationError
from gptrio.errors import UnsafeCheckpointError as UnsafeCheckpointError
from gptrio.errors import UnsupportedError as UnsupportedError
from gptrio.outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
from gptrio.outputs import BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions
from gptrio.outputs import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
from gptrio.outputs import CausalLMOutputWithPast as CausalLMOutputWithPast
from gptrio.outputs import GPT2DoubleHeadsModelOutput as GPT2DoubleHeadsModelOutput
from gptrio.outputs import ModelOutput as ModelOutput
from gptrio.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from gptrio.outputs import SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast
from gptrio.outputs import TokenClassifierOutput as TokenClassifierOutput

__version__: str
