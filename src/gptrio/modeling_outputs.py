"""What scripts import from `transformers.modeling_outputs`: results of models."""

from gptrio.outputs import BaseModelOutput as BaseModelOutput
from gptrio.outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
from gptrio.outputs import BaseModelOutputWithPastAndCrossAttentions as BaseModelOutputWithPastAndCrossAttentions
from gptrio.outputs import CausalLMOutput as CausalLMOutput
from gptrio.outputs import CausalLMOutputWithCrossAttentions as CausalLMOutputWithCrossAttentions
from gptrio.outputs import CausalLMOutputWithPast as CausalLMOutputWithPast
from gptrio.outputs import ModelOutput as ModelOutput
from gptrio.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from gptrio.outputs import SequenceClassifierOutput as SequenceClassifierOutput
from gptrio.outputs import SequenceClassifierOutputWithPast as SequenceClassifierOutputWithPast
from gptrio.outputs import TokenClassifierOutput as TokenClassifierOutput
