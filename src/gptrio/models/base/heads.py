"""The heads, written once over any backbone; a family's file only names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from gptrio.cache import Cache
from gptrio.errors import InputError
from gptrio.kernels.cpu_decode import Reason
from gptrio.models.base import inputs
from gptrio.models.base.generation_mixin import GenerationMixin
from gptrio.models.base.language_loss import language_loss
from gptrio.models.base.pretrained import PreTrainedModel
from gptrio.models.base.signatures import BackboneInputs, overridable, positional_order
from gptrio.models.base.unpadded import real_tokens
from gptrio.nn.linear import Linear
from gptrio.nn.losses import IGNORE, shifted_labels
from gptrio.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithCrossAttentions,
    CausalLMOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gptrio.config import PretrainedConfig
    from gptrio.generation.options.config import GenerationConfig
    from gptrio.models.base.compiled import CompiledStep

Result = ModelOutput | tuple[Any, ...]


class HeadModel(PreTrainedModel):
    """A backbone with a head.

    Attributes:
        backbone_class: class of the backbone, which is kept under `base_model_prefix`.
    """

    backbone_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        config = self.config  # a configuration of Transformers has become ours
        setattr(self, self.base_model_prefix, self.backbone_class(config))
        self.num_labels = config.num_labels
        self.build_head()
        self.post_init()

    def build_head(self) -> None:
        """Create the parameters of the head."""

    def _run_backbone(self, given: BackboneInputs, **others: Any) -> Any:
        """The backbone's output; hooks of it get the ids by position, as in Transformers."""
        named = {name: value for name, value in given.items() if name != "input_ids"}
        return self.base_model(given.get("input_ids"), **named, **others, return_dict=True)

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Result:
        return output if self._returns_dict(return_dict) else output.to_tuple()


@positional_order(
    "input_ids past_key_values cache_position attention_mask token_type_ids position_ids head_mask inputs_embeds "
    "encoder_hidden_states encoder_attention_mask labels use_cache output_attentions output_hidden_states return_dict "
    "logits_to_keep **loss_kwargs"
)
class CausalLMHead(HeadModel, GenerationMixin):
    """Predicts the next token with a linear layer, tied to the token table if the configuration says so."""

    generation_config: GenerationConfig

    def build_head(self) -> None:
        """Create the linear layer (V, C)."""
        setattr(self, self.head_name, Linear(self.config.hidden_size, self.config.vocab_size, bias=False))

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer (V, C)."""
        return cast(nn.Module, getattr(self, self.head_name, None))

    @overridable
    def forward(
        self,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        logits: bool = True,
        packed: bool = False,
        segment_ids: Tensor | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        **backbone_inputs: Unpack[BackboneInputs],
    ) -> Result:
        """Scores of every next token.

        Args:
            labels: (B, T) the input itself, shifted inside; -100 does not count.
            return_dict: return a `ModelOutput` rather than a tuple.
            logits_to_keep: compute only the last so many positions (0: all), or those at the indices (n,).
            logits: False returns the loss alone, with `logits=None`: by far less memory, and less time (see
                `gptrio.nn.linear_loss`).
            packed: rows hold several sequences; `position_ids` start anew with each. No token attends to another
                sequence, whatever `use_cache` is, and the first label of a sequence does not count.
            segment_ids: (B, T) the same, said by a number for each token that changes with each sequence;
                `position_ids` then start anew by themselves.
            loss_kwargs: other keywords: `num_items_in_batch`, `ignore_index`, `shift_labels` or `label_smoothing` of
                `gptrio.nn.losses.next_token_loss`; further arguments of a caller's own `loss_function`.
            backbone_inputs: see `Backbone.forward`.

        Returns:
            logits (B, T, V), loss if labels were given, and what the backbone returned.
        """
        loss_kwargs = inputs.loss_options(loss_kwargs) if self._loss_function is None else loss_kwargs or {}
        if packed and segment_ids is None:
            segment_ids = inputs.segments_by_position(backbone_inputs.get("position_ids"))
        if not logits and segment_ids is None and logits_to_keep == 0:
            loss = self._loss_of_real_tokens(labels, loss_kwargs, backbone_inputs)
            if loss is not None:
                return self._finish(self._output(BaseModelOutputWithPast(), loss, None), return_dict)
        packing = {} if segment_ids is None else {"segment_ids": segment_ids}
        if labels is not None and segment_ids is not None:
            labels = inputs.without_first_labels(labels, segment_ids, loss_kwargs.get("ignore_index", IGNORE))
        out = self._run_backbone(backbone_inputs, **packing)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states, scores, loss = out.last_hidden_state[..., kept, :], None, None
        if not logits:
            loss = language_loss(self, states, labels, loss_kwargs)
        else:
            scores = self.get_output_embeddings()(states)
            if labels is not None or loss_kwargs.get("shift_labels") is not None:
                loss = self.loss_function(scores, labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        return self._finish(self._output(out, loss, scores), return_dict)

    def _loss_of_real_tokens(
        self, labels: Tensor | None, options: dict[str, Any], given: BackboneInputs
    ) -> Tensor | None:
        """The loss, if no state of padding counts for it; None where the forward has to find it."""
        if labels is None or "shift_labels" in options or is_compiling():
            return None
        ignore_index = options.get("ignore_index", IGNORE)
        targets = shifted_labels(labels, ignore_index)
        real = real_tokens(self, given, targets != ignore_index)
        if real is None:
            return None
        states = self.base_model.forward_real(given["input_ids"], real)
        return language_loss(self, states, None, {**options, "shift_labels": targets[real]})

    def _output(self, out: Any, loss: Tensor | None, scores: Tensor | None) -> ModelOutput:
        fields = (loss, scores, out.past_key_values, out.hidden_states, out.attentions)
        if not self.has_cross_attention:
            return CausalLMOutputWithPast(*fields)
        return CausalLMOutputWithCrossAttentions(*fields, out.get("cross_attentions"))

    def next_logits(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Scores (B, 1, V) of the token after `input_ids` (B, T); see `Backbone.forward_last`."""
        states = self.base_model.forward_last(input_ids, cache)
        return cast(Tensor, self.get_output_embeddings()(states))

    def compiled_step(self, rows: int, left_padding: Tensor | None = None) -> CompiledStep | Reason:
        """A compiled form of `next_logits`, or the reason why this model has none, or none for so many rows.

        Args:
            rows: B of the steps to come.
            left_padding: (B,) columns of padding before each row, or None.
        """
        from gptrio.models.base.compiled import compiled_step

        return compiled_step(self, rows, left_padding)


@positional_order(
    "input_ids past_key_values attention_mask token_type_ids position_ids head_mask inputs_embeds labels use_cache "
    "output_attentions output_hidden_states return_dict"
)
class SequenceClassificationHead(HeadModel):
    """Classifies a sequence by the state of its last token that is not padding."""

    def build_head(self) -> None:
        """Create the linear layer (num_labels, C)."""
        self.score = Linear(self.config.hidden_size, self.num_labels, bias=False)

    @overridable
    def forward(
        self, labels: Tensor | None = None, return_dict: bool | None = None, **backbone_inputs: Unpack[BackboneInputs]
    ) -> Result:
        """Scores of every label.

        Args:
            labels: (B,) class ids or values, or (B, num_labels); the loss follows `config.problem_type`.
            return_dict: return a `ModelOutput` rather than a tuple.
            backbone_inputs: see `Backbone.forward`.

        Returns:
            logits (B, num_labels), loss if labels were given, and what the backbone returned.

        Raises:
            InputError: several rows without a `pad_token_id`, by which the end of each is found.
        """
        found = self._scores_of_real_tokens(backbone_inputs)
        if found is not None:
            (scores, logits), out = found, BaseModelOutputWithPast()
        else:
            out = self._run_backbone(backbone_inputs)
            scores = self.score(out.last_hidden_state)  # (B, T, num_labels)
            last = self._last_tokens(backbone_inputs.get("input_ids"), len(scores))
            logits = scores[torch.arange(len(scores), device=scores.device), last]  # (B, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=scores, labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutputWithPast(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
        return self._finish(output, return_dict)

    def _scores_of_real_tokens(self, given: BackboneInputs) -> tuple[Tensor, Tensor] | None:
        """Scores of all real tokens and of the last in each row, where that is all there is to compute."""
        ids = given.get("input_ids")
        if ids is None or ids.dim() != 2 or self.config.pad_token_id is None or is_compiling():
            return None
        last = F.one_hot(cast(Tensor, self._last_tokens(ids, len(ids))), ids.shape[1]).bool()
        real = real_tokens(self, given, last)
        if real is None:
            return None
        scores = self.score(self.base_model.forward_real(ids, real))  # (N, num_labels)
        return scores, scores[last[real]]

    def _last_tokens(self, input_ids: Tensor | None, rows: int) -> Tensor | int:
        """Index (B,) of the last token of each row that is not padding."""
        pad = self.config.pad_token_id
        if pad is None and rows > 1:
            raise InputError(
                f"a batch of {rows} rows cannot be classified without config.pad_token_id, which shows where each row "
                "ends; set it, or classify one row at a time"
            )
        if pad is None:
            return -1
        if input_ids is None:
            inputs.warn_once(
                "padding cannot be recognised in inputs_embeds, so the last position of each row is classified; pass "
                "input_ids, or rows of one length"
            )
            return -1
        positions = torch.arange(input_ids.shape[-1], device=input_ids.device)
        last: Tensor = (positions * (input_ids != pad)).argmax(-1)
        return last


@positional_order(
    "input_ids past_key_values attention_mask token_type_ids position_ids head_mask inputs_embeds labels use_cache "
    "output_attentions output_hidden_states return_dict"
)
class TokenClassificationHead(HeadModel):
    """Classifies every token."""

    def build_head(self) -> None:
        """Create dropout and the linear layer (num_labels, C)."""
        rates = (getattr(self.config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.classifier = Linear(self.config.hidden_size, self.num_labels)

    @overridable
    def forward(
        self,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        logits: bool = True,
        **backbone_inputs: Unpack[BackboneInputs],
    ) -> Result:
        """Scores of every label for every token.

        Args:
            labels: (B, T) class ids; -100 does not count.
            return_dict: return a `ModelOutput` rather than a tuple.
            logits: False returns the loss alone, with `logits=None`, for which nothing need compute padding.
            backbone_inputs: see `Backbone.forward`.

        Returns:
            logits (B, T, num_labels), loss if labels were given, and what the backbone returned.
        """
        found = None if logits else self._states_of_real_tokens(labels, backbone_inputs)
        out = self._run_backbone(backbone_inputs) if found is None else found
        scores = self.classifier(self.dropout(out.last_hidden_state))
        loss = None if labels is None else self.loss_function(scores, labels, self.config)
        shown = scores if logits else None
        return self._finish(TokenClassifierOutput(loss, shown, out.hidden_states, out.attentions), return_dict)

    def _states_of_real_tokens(self, labels: Tensor | None, given: BackboneInputs) -> BaseModelOutputWithPast | None:
        """States (B, T, C) of the real tokens, and zeros, where those are all there is to compute."""
        if labels is None:
            raise inputs.missing_labels()
        real = real_tokens(self, given, labels != IGNORE)
        if real is None:
            return None
        states = self.base_model.forward_real(given["input_ids"], real)
        return BaseModelOutputWithPast(states.new_zeros(*real.shape, states.shape[-1]).index_put((real,), states))


@positional_order(
    "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds start_positions end_positions "
    "output_attentions output_hidden_states return_dict"
)
class QuestionAnsweringHead(HeadModel):
    """Finds the first and the last token of an answer."""

    def build_head(self) -> None:
        """Create the linear layer (2, C)."""
        self.qa_outputs = Linear(self.config.hidden_size, 2)

    @overridable
    def forward(
        self,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **backbone_inputs: Unpack[BackboneInputs],
    ) -> Result:
        """Scores of every token as first and as last of the answer.

        Args:
            start_positions: (B,) first tokens; outside the sequence does not count.
            end_positions: (B,) last tokens, likewise.
            return_dict: return a `ModelOutput` rather than a tuple.
            backbone_inputs: see `Backbone.forward`.

        Returns:
            start_logits and end_logits (B, T), loss if both positions were given, and what the backbone returned.
        """
        out = self._run_backbone(backbone_inputs)
        start, end = (logits.contiguous() for logits in self.qa_outputs(out.last_hidden_state).unbind(-1))  # (B, T)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start, end, start_positions, end_positions)
        return self._finish(
            QuestionAnsweringModelOutput(loss, start, end, out.hidden_states, out.attentions), return_dict
        )
