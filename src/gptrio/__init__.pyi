# The table of public names: one line each, `from MODULE import NAME as NAME`, sorted by the linter.
# Type checkers read it as a stub; `__init__.py` reads it to find the module behind a name on first use.
from gptrio.config import AutoConfig as AutoConfig
from gptrio.config import GPT2Config as GPT2Config
from gptrio.config import GPTNeoConfig as GPTNeoConfig
from gptrio.config import GPTNeoXConfig as GPTNeoXConfig
from gptrio.config import PretrainedConfig as PretrainedConfig
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
from gptrio.tokenization.auto import AutoTokenizer as AutoTokenizer
from gptrio.tokenization.base import PreTrainedTokenizerBase as PreTrainedTokenizerBase
from gptrio.tokenization.batch_encoding import BatchEncoding as BatchEncoding
from gptrio.tokenization.batch_encoding import CharSpan as CharSpan
from gptrio.tokenization.batch_encoding import TokenSpan as TokenSpan
from gptrio.tokenization.fast import PreTrainedTokenizerFast as PreTrainedTokenizerFast
from gptrio.tokenization.gpt2 import GPT2Tokenizer as GPT2Tokenizer
from gptrio.tokenization.gpt2 import GPT2TokenizerFast as GPT2TokenizerFast
from gptrio.tokenization.gpt_neox import GPTNeoXTokenizerFast as GPTNeoXTokenizerFast
from gptrio.tokenization.slow import PreTrainedTokenizer as PreTrainedTokenizer
from gptrio.tokenization.special_tokens import AddedToken as AddedToken
from gptrio.tokenization.special_tokens import SpecialTokensMixin as SpecialTokensMixin

__version__: str
