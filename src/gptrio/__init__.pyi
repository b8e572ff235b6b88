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
from gptrio.errors import FileOptionError as FileOptionError
from gptrio.errors import GptrioError as GptrioError
from gptrio.errors import GptrioWarning as GptrioWarning
from gptrio.errors import GuardError as GuardError
from gptrio.errors import HubUnreachableError as HubUnreachableError
from gptrio.errors import InputError as InputError
from gptrio.errors import KeyMismatchError as KeyMismatchError
from gptrio.errors import MissingDependencyError as MissingDependencyError
from gptrio.errors import OptionError as OptionError
from gptrio.errors import OptionTypeError as OptionTypeError
from gptrio.errors import ProcessLostError as ProcessLostError
from gptrio.errors import SizeMismatchError as SizeMismatchError
from gptrio.errors import TokenIdError as TokenIdError
from gptrio.errors import TokenizationError as TokenizationError
from gptrio.errors import UnknownArgumentError as UnknownArgumentError
from gptrio.errors import UnknownNameError as UnknownNameError
from gptrio.errors import UnknownOptionError as UnknownOptionError
from gptrio.errors import UnknownTaskError as UnknownTaskError
from gptrio.errors import UnsafeCheckpointError as UnsafeCheckpointError
from gptrio.errors import UnsupportedError as UnsupportedError
from gptrio.generation.options.config import GenerationConfig as GenerationConfig
from gptrio.generation.options.schema import CompileConfig as CompileConfig
from gptrio.generation.options.schema import GenerationMode as GenerationMode
from gptrio.generation.outputs import GenerateBeamDecoderOnlyOutput as GenerateBeamDecoderOnlyOutput
from gptrio.generation.outputs import GenerateDecoderOnlyOutput as GenerateDecoderOnlyOutput
from gptrio.generation.processors.base import LogitsProcessor as LogitsProcessor
from gptrio.generation.processors.base import LogitsProcessorList as LogitsProcessorList
from gptrio.generation.processors.base import LogitsWarper as LogitsWarper
from gptrio.generation.processors.forcing import ForcedBOSTokenLogitsProcessor as ForcedBOSTokenLogitsProcessor
from gptrio.generation.processors.forcing import ForcedEOSTokenLogitsProcessor as ForcedEOSTokenLogitsProcessor
from gptrio.generation.processors.forcing import MinLengthLogitsProcessor as MinLengthLogitsProcessor
from gptrio.generation.processors.forcing import MinNewTokensLengthLogitsProcessor as MinNewTokensLengthLogitsProcessor
from gptrio.generation.processors.forcing import PrefixConstrainedLogitsProcessor as PrefixConstrainedLogitsProcessor
from gptrio.generation.processors.forcing import (
    SuppressTokensAtBeginLogitsProcessor as SuppressTokensAtBeginLogitsProcessor,
)
from gptrio.generation.processors.forcing import SuppressTokensLogitsProcessor as SuppressTokensLogitsProcessor
from gptrio.generation.processors.guidance import (
    ClassifierFreeGuidanceLogitsProcessor as ClassifierFreeGuidanceLogitsProcessor,
)
from gptrio.generation.processors.guidance import (
    UnbatchedClassifierFreeGuidanceLogitsProcessor as UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from gptrio.generation.processors.penalties import (
    EncoderRepetitionPenaltyLogitsProcessor as EncoderRepetitionPenaltyLogitsProcessor,
)
from gptrio.generation.processors.penalties import ExponentialDecayLengthPenalty as ExponentialDecayLengthPenalty
from gptrio.generation.processors.penalties import HammingDiversityLogitsProcessor as HammingDiversityLogitsProcessor
from gptrio.generation.processors.penalties import RepetitionPenaltyLogitsProcessor as RepetitionPenaltyLogitsProcessor
from gptrio.generation.processors.sampling import EpsilonLogitsWarper as EpsilonLogitsWarper
from gptrio.generation.processors.sampling import EtaLogitsWarper as EtaLogitsWarper
from gptrio.generation.processors.sampling import InfNanRemoveLogitsProcessor as InfNanRemoveLogitsProcessor
from gptrio.generation.processors.sampling import LogitNormalization as LogitNormalization
from gptrio.generation.processors.sampling import MinPLogitsWarper as MinPLogitsWarper
from gptrio.generation.processors.sampling import TemperatureLogitsWarper as TemperatureLogitsWarper
from gptrio.generation.processors.sampling import TopKLogitsWarper as TopKLogitsWarper
from gptrio.generation.processors.sampling import TopPLogitsWarper as TopPLogitsWarper
from gptrio.generation.processors.sampling import TypicalLogitsWarper as TypicalLogitsWarper
from gptrio.generation.processors.sequences import (
    EncoderNoRepeatNGramLogitsProcessor as EncoderNoRepeatNGramLogitsProcessor,
)
from gptrio.generation.processors.sequences import NoBadWordsLogitsProcessor as NoBadWordsLogitsProcessor
from gptrio.generation.processors.sequences import NoRepeatNGramLogitsProcessor as NoRepeatNGramLogitsProcessor
from gptrio.generation.processors.sequences import SequenceBiasLogitsProcessor as SequenceBiasLogitsProcessor
from gptrio.generation.stopping import ConfidenceCriteria as ConfidenceCriteria
from gptrio.generation.stopping import EosTokenCriteria as EosTokenCriteria
from gptrio.generation.stopping import FinishReason as FinishReason
from gptrio.generation.stopping import MaxLengthCriteria as MaxLengthCriteria
from gptrio.generation.stopping import MaxTimeCriteria as MaxTimeCriteria
from gptrio.generation.stopping import StoppingCriteria as StoppingCriteria
from gptrio.generation.stopping import StoppingCriteriaList as StoppingCriteriaList
from gptrio.generation.stopping import StopStringCriteria as StopStringCriteria
from gptrio.generation.stopping import validate_stopping_criteria as validate_stopping_criteria
from gptrio.generation.strategies.candidates import PromptLookupCandidateGenerator as PromptLookupCandidateGenerator
from gptrio.generation.strategies.constraints import Constraint as Constraint
from gptrio.generation.strategies.constraints import ConstraintListState as ConstraintListState
from gptrio.generation.strategies.constraints import DisjunctiveConstraint as DisjunctiveConstraint
from gptrio.generation.strategies.constraints import PhrasalConstraint as PhrasalConstraint
from gptrio.generation.streamers import AsyncTextIteratorStreamer as AsyncTextIteratorStreamer
from gptrio.generation.streamers import BaseStreamer as BaseStreamer
from gptrio.generation.streamers import BatchTextIteratorStreamer as BatchTextIteratorStreamer
from gptrio.generation.streamers import BatchTextStreamer as BatchTextStreamer
from gptrio.generation.streamers import TextIteratorStreamer as TextIteratorStreamer
from gptrio.generation.streamers import TextStreamer as TextStreamer
from gptrio.generation.watermark.bayesian import BayesianDetectorConfig as BayesianDetectorConfig
from gptrio.generation.watermark.bayesian import BayesianDetectorModel as BayesianDetectorModel
from gptrio.generation.watermark.bayesian import SynthIDTextWatermarkDetector as SynthIDTextWatermarkDetector
from gptrio.generation.watermark.config import SynthIDTextWatermarkingConfig as SynthIDTextWatermarkingConfig
from gptrio.generation.watermark.config import WatermarkingConfig as WatermarkingConfig
from gptrio.generation.watermark.detector import WatermarkDetector as WatermarkDetector
from gptrio.generation.watermark.detector import WatermarkDetectorOutput as WatermarkDetectorOutput
from gptrio.generation.watermark.greenlist import WatermarkLogitsProcessor as WatermarkLogitsProcessor
from gptrio.generation.watermark.synthid import (
    SynthIDTextWatermarkLogitsProcessor as SynthIDTextWatermarkLogitsProcessor,
)
from gptrio.nn.linear import Conv1D as Conv1D
from gptrio.outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
from gptrio.outputs import BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions
from gptrio.outputs import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
from gptrio.outputs import CausalLMOutputWithPast as CausalLMOutputWithPast
from gptrio.outputs import GPT2DoubleHeadsModelOutput as GPT2DoubleHeadsModelOutput
from gptrio.outputs import ModelOutput as ModelOutput
from gptrio.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from gptrio.outputs import SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast
from gptrio.outputs import TokenClassifierOutput as TokenClassifierOutput
from gptrio.quantization import quantize as quantize
from gptrio.quantization.bitsandbytes_config import BitsAndBytesConfig as BitsAndBytesConfig
from gptrio.quantization.config import Int4Config as Int4Config
from gptrio.quantization.config import Int8Config as Int8Config
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
from gptrio.training.arguments import TrainingArguments as TrainingArguments
from gptrio.training.arguments_parser import HfArgumentParser as HfArgumentParser
from gptrio.training.callbacks import DefaultFlowCallback as DefaultFlowCallback
from gptrio.training.callbacks import EarlyStoppingCallback as EarlyStoppingCallback
from gptrio.training.callbacks import TrainerCallback as TrainerCallback
from gptrio.training.enums import IntervalStrategy as IntervalStrategy
from gptrio.training.enums import SchedulerType as SchedulerType
from gptrio.training.progress import PrinterCallback as PrinterCallback
from gptrio.training.progress import ProgressCallback as ProgressCallback
from gptrio.training.results import EvalPrediction as EvalPrediction
from gptrio.training.state import TrainerControl as TrainerControl
from gptrio.training.state import TrainerState as TrainerState
from gptrio.training.trainer import Trainer as Trainer
from gptrio.utils import logging as logging
from gptrio.utils.choices import TensorType as TensorType
from gptrio.utils.file_names import CONFIG_NAME as CONFIG_NAME
from gptrio.utils.installed import is_apex_available as is_apex_available
from gptrio.utils.installed import is_av_available as is_av_available
from gptrio.utils.installed import is_bitsandbytes_available as is_bitsandbytes_available
from gptrio.utils.installed import is_datasets_available as is_datasets_available
from gptrio.utils.installed import is_faiss_available as is_faiss_available
from gptrio.utils.installed import is_flax_available as is_flax_available
from gptrio.utils.installed import is_keras_nlp_available as is_keras_nlp_available
from gptrio.utils.installed import is_matplotlib_available as is_matplotlib_available
from gptrio.utils.installed import is_phonemizer_available as is_phonemizer_available
from gptrio.utils.installed import is_psutil_available as is_psutil_available
from gptrio.utils.installed import is_py3nvml_available as is_py3nvml_available
from gptrio.utils.installed import is_pyctcdecode_available as is_pyctcdecode_available
from gptrio.utils.installed import is_sacremoses_available as is_sacremoses_available
from gptrio.utils.installed import is_safetensors_available as is_safetensors_available
from gptrio.utils.installed import is_scipy_available as is_scipy_available
from gptrio.utils.installed import is_sentencepiece_available as is_sentencepiece_available
from gptrio.utils.installed import is_sklearn_available as is_sklearn_available
from gptrio.utils.installed import is_speech_available as is_speech_available
from gptrio.utils.installed import is_tensorflow_text_available as is_tensorflow_text_available
from gptrio.utils.installed import is_tf_available as is_tf_available
from gptrio.utils.installed import is_timm_available as is_timm_available
from gptrio.utils.installed import is_tokenizers_available as is_tokenizers_available
from gptrio.utils.installed import is_torch_available as is_torch_available
from gptrio.utils.installed import is_torch_hpu_available as is_torch_hpu_available
from gptrio.utils.installed import is_torch_mlu_available as is_torch_mlu_available
from gptrio.utils.installed import is_torch_musa_available as is_torch_musa_available
from gptrio.utils.installed import is_torch_neuroncore_available as is_torch_neuroncore_available
from gptrio.utils.installed import is_torch_npu_available as is_torch_npu_available
from gptrio.utils.installed import is_torch_xla_available as is_torch_xla_available
from gptrio.utils.installed import is_torch_xpu_available as is_torch_xpu_available
from gptrio.utils.installed import is_torchvision_available as is_torchvision_available
from gptrio.utils.installed import is_vision_available as is_vision_available
from gptrio.utils.seed import enable_full_determinism as enable_full_determinism
from gptrio.utils.seed import set_seed as set_seed

__version__: str
from gptrio.cache import Cache as Cache
from gptrio.cache import DynamicCache as DynamicCache
from gptrio.cache import DynamicLayer as DynamicLayer
from gptrio.cache import EncoderDecoderCache as EncoderDecoderCache
from gptrio.cache import OffloadedCache as OffloadedCache
from gptrio.cache import OffloadedStaticCache as OffloadedStaticCache
from gptrio.cache import QuantizedCache as QuantizedCache
from gptrio.cache import SlidingWindowLayer as SlidingWindowLayer
from gptrio.cache import StaticCache as StaticCache
from gptrio.cache import StaticLayer as StaticLayer
from gptrio.config.auto import CONFIG_MAPPING as CONFIG_MAPPING
from gptrio.config.auto_models import get_values as get_values
from gptrio.errors import AbsentMethodError as AbsentMethodError
from gptrio.errors import InputTypeError as InputTypeError
from gptrio.errors import SettingNameError as SettingNameError
from gptrio.errors import TextTypeError as TextTypeError
from gptrio.generation.prefix import PromptPrefix as PromptPrefix
from gptrio.interop.bridge import from_transformers as from_transformers
from gptrio.interop.bridge import to_transformers as to_transformers
from gptrio.jax.generation.outputs import FlaxBeamSearchOutput as FlaxBeamSearchOutput
from gptrio.jax.generation.outputs import FlaxGreedySearchOutput as FlaxGreedySearchOutput
from gptrio.jax.generation.outputs import FlaxSampleOutput as FlaxSampleOutput
from gptrio.jax.generation.processors.base import FlaxLogitsProcessor as FlaxLogitsProcessor
from gptrio.jax.generation.processors.base import FlaxLogitsProcessorList as FlaxLogitsProcessorList
from gptrio.jax.generation.processors.base import FlaxLogitsWarper as FlaxLogitsWarper
from gptrio.jax.generation.processors.forcing import (
    FlaxForcedBOSTokenLogitsProcessor as FlaxForcedBOSTokenLogitsProcessor,
)
from gptrio.jax.generation.processors.forcing import (
    FlaxForcedEOSTokenLogitsProcessor as FlaxForcedEOSTokenLogitsProcessor,
)
from gptrio.jax.generation.processors.forcing import FlaxForceTokensLogitsProcessor as FlaxForceTokensLogitsProcessor
from gptrio.jax.generation.processors.forcing import FlaxMinLengthLogitsProcessor as FlaxMinLengthLogitsProcessor
from gptrio.jax.generation.processors.forcing import (
    FlaxSuppressTokensAtBeginLogitsProcessor as FlaxSuppressTokensAtBeginLogitsProcessor,
)
from gptrio.jax.generation.processors.forcing import (
    FlaxSuppressTokensLogitsProcessor as FlaxSuppressTokensLogitsProcessor,
)
from gptrio.jax.generation.processors.sampling import FlaxTemperatureLogitsWarper as FlaxTemperatureLogitsWarper
from gptrio.jax.generation.processors.sampling import FlaxTopKLogitsWarper as FlaxTopKLogitsWarper
from gptrio.jax.generation.processors.sampling import FlaxTopPLogitsWarper as FlaxTopPLogitsWarper
from gptrio.jax.generation.processors.sequences import (
    FlaxNoRepeatNGramLogitsProcessor as FlaxNoRepeatNGramLogitsProcessor,
)
from gptrio.jax.generation.processors.sequences import (
    FlaxRepetitionPenaltyLogitsProcessor as FlaxRepetitionPenaltyLogitsProcessor,
)
from gptrio.jax.models.auto import FLAX_MODEL_FOR_CAUSAL_LM_MAPPING as FLAX_MODEL_FOR_CAUSAL_LM_MAPPING
from gptrio.jax.models.auto import (
    FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING as FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING,
)
from gptrio.jax.models.auto import (
    FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from gptrio.jax.models.auto import (
    FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING as FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
)
from gptrio.jax.models.auto import FLAX_MODEL_MAPPING as FLAX_MODEL_MAPPING
from gptrio.jax.models.auto import FlaxAutoModel as FlaxAutoModel
from gptrio.jax.models.auto import FlaxAutoModelForCausalLM as FlaxAutoModelForCausalLM
from gptrio.jax.models.auto import FlaxAutoModelForQuestionAnswering as FlaxAutoModelForQuestionAnswering
from gptrio.jax.models.auto import FlaxAutoModelForSequenceClassification as FlaxAutoModelForSequenceClassification
from gptrio.jax.models.auto import FlaxAutoModelForTokenClassification as FlaxAutoModelForTokenClassification
from gptrio.jax.models.base.generation_mixin import FlaxGenerationMixin as FlaxGenerationMixin
from gptrio.jax.models.base.pretrained import FlaxPreTrainedModel as FlaxPreTrainedModel
from gptrio.jax.models.gpt2 import FlaxGPT2ForQuestionAnswering as FlaxGPT2ForQuestionAnswering
from gptrio.jax.models.gpt2 import FlaxGPT2ForSequenceClassification as FlaxGPT2ForSequenceClassification
from gptrio.jax.models.gpt2 import FlaxGPT2ForTokenClassification as FlaxGPT2ForTokenClassification
from gptrio.jax.models.gpt2 import FlaxGPT2LMHeadModel as FlaxGPT2LMHeadModel
from gptrio.jax.models.gpt2 import FlaxGPT2Model as FlaxGPT2Model
from gptrio.jax.models.gpt2 import FlaxGPT2PreTrainedModel as FlaxGPT2PreTrainedModel
from gptrio.jax.models.gpt_neo import FlaxGPTNeoForCausalLM as FlaxGPTNeoForCausalLM
from gptrio.jax.models.gpt_neo import FlaxGPTNeoForQuestionAnswering as FlaxGPTNeoForQuestionAnswering
from gptrio.jax.models.gpt_neo import FlaxGPTNeoForSequenceClassification as FlaxGPTNeoForSequenceClassification
from gptrio.jax.models.gpt_neo import FlaxGPTNeoForTokenClassification as FlaxGPTNeoForTokenClassification
from gptrio.jax.models.gpt_neo import FlaxGPTNeoModel as FlaxGPTNeoModel
from gptrio.jax.models.gpt_neo import FlaxGPTNeoPreTrainedModel as FlaxGPTNeoPreTrainedModel
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXForCausalLM as FlaxGPTNeoXForCausalLM
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXForQuestionAnswering as FlaxGPTNeoXForQuestionAnswering
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXForSequenceClassification as FlaxGPTNeoXForSequenceClassification
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXForTokenClassification as FlaxGPTNeoXForTokenClassification
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXModel as FlaxGPTNeoXModel
from gptrio.jax.models.gpt_neox import FlaxGPTNeoXPreTrainedModel as FlaxGPTNeoXPreTrainedModel
from gptrio.jax.outputs import FlaxBaseModelOutput as FlaxBaseModelOutput
from gptrio.jax.outputs import FlaxBaseModelOutputWithPast as FlaxBaseModelOutputWithPast
from gptrio.jax.outputs import (
    FlaxBaseModelOutputWithPastAndCrossAttentions as FlaxBaseModelOutputWithPastAndCrossAttentions,
)
from gptrio.jax.outputs import FlaxCausalLMOutput as FlaxCausalLMOutput
from gptrio.jax.outputs import FlaxCausalLMOutputWithCrossAttentions as FlaxCausalLMOutputWithCrossAttentions
from gptrio.jax.outputs import FlaxMaskedLMOutput as FlaxMaskedLMOutput
from gptrio.jax.outputs import FlaxQuestionAnsweringModelOutput as FlaxQuestionAnsweringModelOutput
from gptrio.jax.outputs import FlaxSequenceClassifierOutput as FlaxSequenceClassifierOutput
from gptrio.jax.outputs import FlaxTokenClassifierOutput as FlaxTokenClassifierOutput
from gptrio.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING as MODEL_FOR_CAUSAL_LM_MAPPING
from gptrio.models.auto import MODEL_FOR_PRETRAINING_MAPPING as MODEL_FOR_PRETRAINING_MAPPING
from gptrio.models.auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING as MODEL_FOR_QUESTION_ANSWERING_MAPPING
from gptrio.models.auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from gptrio.models.auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING as MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
from gptrio.models.auto import MODEL_MAPPING as MODEL_MAPPING
from gptrio.models.auto import MODEL_WITH_LM_HEAD_MAPPING as MODEL_WITH_LM_HEAD_MAPPING
from gptrio.models.auto import AutoModel as AutoModel
from gptrio.models.auto import AutoModelForCausalLM as AutoModelForCausalLM
from gptrio.models.auto import AutoModelForPreTraining as AutoModelForPreTraining
from gptrio.models.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
from gptrio.models.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
from gptrio.models.auto import AutoModelForTokenClassification as AutoModelForTokenClassification
from gptrio.models.auto import AutoModelWithLMHead as AutoModelWithLMHead
from gptrio.models.base.adapters import enable_peft as enable_peft
from gptrio.models.base.generation_mixin import GenerationMixin as GenerationMixin
from gptrio.models.base.pretrained import PreTrainedModel as PreTrainedModel
from gptrio.models.base.pruning import prune_layer as prune_layer
from gptrio.models.gpt2 import GPT2DoubleHeadsModel as GPT2DoubleHeadsModel
from gptrio.models.gpt2 import GPT2ForQuestionAnswering as GPT2ForQuestionAnswering
from gptrio.models.gpt2 import GPT2ForSequenceClassification as GPT2ForSequenceClassification
from gptrio.models.gpt2 import GPT2ForTokenClassification as GPT2ForTokenClassification
from gptrio.models.gpt2 import GPT2LMHeadModel as GPT2LMHeadModel
from gptrio.models.gpt2 import GPT2Model as GPT2Model
from gptrio.models.gpt2 import GPT2PreTrainedModel as GPT2PreTrainedModel
from gptrio.models.gpt_neo import GPTNeoForCausalLM as GPTNeoForCausalLM
from gptrio.models.gpt_neo import GPTNeoForQuestionAnswering as GPTNeoForQuestionAnswering
from gptrio.models.gpt_neo import GPTNeoForSequenceClassification as GPTNeoForSequenceClassification
from gptrio.models.gpt_neo import GPTNeoForTokenClassification as GPTNeoForTokenClassification
from gptrio.models.gpt_neo import GPTNeoModel as GPTNeoModel
from gptrio.models.gpt_neo import GPTNeoPreTrainedModel as GPTNeoPreTrainedModel
from gptrio.models.gpt_neox import GPTNeoXForCausalLM as GPTNeoXForCausalLM
from gptrio.models.gpt_neox import GPTNeoXForQuestionAnswering as GPTNeoXForQuestionAnswering
from gptrio.models.gpt_neox import GPTNeoXForSequenceClassification as GPTNeoXForSequenceClassification
from gptrio.models.gpt_neox import GPTNeoXForTokenClassification as GPTNeoXForTokenClassification
from gptrio.models.gpt_neox import GPTNeoXLayer as GPTNeoXLayer
from gptrio.models.gpt_neox import GPTNeoXModel as GPTNeoXModel
from gptrio.models.gpt_neox import GPTNeoXPreTrainedModel as GPTNeoXPreTrainedModel
from gptrio.nn.attention_interface import AttentionInterface as AttentionInterface
from gptrio.nn.mask_interface import AttentionMaskInterface as AttentionMaskInterface
from gptrio.pipelines import CsvPipelineDataFormat as CsvPipelineDataFormat
from gptrio.pipelines import FeatureExtractionPipeline as FeatureExtractionPipeline
from gptrio.pipelines import JsonPipelineDataFormat as JsonPipelineDataFormat
from gptrio.pipelines import NerPipeline as NerPipeline
from gptrio.pipelines import PipedPipelineDataFormat as PipedPipelineDataFormat
from gptrio.pipelines import Pipeline as Pipeline
from gptrio.pipelines import PipelineDataFormat as PipelineDataFormat
from gptrio.pipelines import QuestionAnsweringPipeline as QuestionAnsweringPipeline
from gptrio.pipelines import SquadExample as SquadExample
from gptrio.pipelines import TextClassificationPipeline as TextClassificationPipeline
from gptrio.pipelines import TextGenerationPipeline as TextGenerationPipeline
from gptrio.pipelines import TokenClassificationPipeline as TokenClassificationPipeline
from gptrio.pipelines import ZeroShotClassificationPipeline as ZeroShotClassificationPipeline
from gptrio.pipelines import pipeline as pipeline
from gptrio.scoring.choices import Choice as Choice
from gptrio.scoring.choices import Preference as Preference
from gptrio.scoring.choices import choose as choose
from gptrio.scoring.choices import prefer as prefer
from gptrio.scoring.perplexity import Perplexity as Perplexity
from gptrio.scoring.perplexity import perplexity as perplexity
from gptrio.scoring.results import TextScore as TextScore
from gptrio.scoring.results import TopToken as TopToken
from gptrio.scoring.results import Word as Word
from gptrio.scoring.score import score as score
from gptrio.tokenization.auto import TOKENIZER_MAPPING as TOKENIZER_MAPPING
from gptrio.training.adafactor import Adafactor as Adafactor
from gptrio.training.collators import DataCollatorForSeq2Seq as DataCollatorForSeq2Seq
from gptrio.training.collators import DataCollatorForTokenClassification as DataCollatorForTokenClassification
from gptrio.training.collators import DataCollatorWithPadding as DataCollatorWithPadding
from gptrio.training.collators import DefaultDataCollator as DefaultDataCollator
from gptrio.training.collators import default_data_collator as default_data_collator
from gptrio.training.language_collators import DataCollatorForLanguageModeling as DataCollatorForLanguageModeling
from gptrio.training.language_collators import DataCollatorWithFlattening as DataCollatorWithFlattening
from gptrio.training.packing import pack as pack
from gptrio.training.schedules import get_constant_schedule as get_constant_schedule
from gptrio.training.schedules import get_constant_schedule_with_warmup as get_constant_schedule_with_warmup
from gptrio.training.schedules import get_cosine_schedule_with_warmup as get_cosine_schedule_with_warmup
from gptrio.training.schedules import (
    get_cosine_with_hard_restarts_schedule_with_warmup as get_cosine_with_hard_restarts_schedule_with_warmup,
)
from gptrio.training.schedules import (
    get_cosine_with_min_lr_schedule_with_warmup as get_cosine_with_min_lr_schedule_with_warmup,
)
from gptrio.training.schedules import get_inverse_sqrt_schedule as get_inverse_sqrt_schedule
from gptrio.training.schedules import get_linear_schedule_with_warmup as get_linear_schedule_with_warmup
from gptrio.training.schedules import (
    get_polynomial_decay_schedule_with_warmup as get_polynomial_decay_schedule_with_warmup,
)
from gptrio.training.schedules import get_scheduler as get_scheduler
from gptrio.training.schedules import get_wsd_schedule as get_wsd_schedule
from gptrio.training.text_datasets import LineByLineTextDataset as LineByLineTextDataset
from gptrio.training.text_datasets import TextDataset as TextDataset
from gptrio.utils.file_names import WEIGHTS_NAME as WEIGHTS_NAME
from gptrio.utils.installed import is_comet_available as is_comet_available
from gptrio.utils.installed import is_optuna_available as is_optuna_available
from gptrio.utils.installed import is_ray_available as is_ray_available
from gptrio.utils.installed import is_sigopt_available as is_sigopt_available
from gptrio.utils.installed import is_tensorboard_available as is_tensorboard_available
from gptrio.utils.installed import is_trackio_available as is_trackio_available
from gptrio.utils.installed import is_wandb_available as is_wandb_available
