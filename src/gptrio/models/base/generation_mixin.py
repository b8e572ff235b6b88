"""`generate` as a method of the models, and what a caller's own decoding loop needs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor

from gptrio.memory import gc_disabled

if TYPE_CHECKING:
    from gptrio.generation.outputs import GenerateOutput
    from gptrio.generation.protocol import CausalLM


class GenerationMixin:
    """The methods of a model with a language-model head."""

    @overload
    def generate(
        self,
        inputs: Tensor | None = ...,
        *,
        generation_config: None = ...,
        return_dict_in_generate: Literal[False] = ...,
        **kwargs: Any,
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        inputs: Tensor | None = ...,
        *,
        generation_config: Any,
        return_dict_in_generate: Literal[False] = ...,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput: ...

    @overload
    def generate(
        self, inputs: Tensor | None = ..., *args: Any, return_dict_in_generate: Literal[True], **kwargs: Any
    ) -> GenerateOutput: ...

    @overload
    def generate(self, inputs: Tensor | None = ..., *args: Any, **kwargs: Any) -> Tensor | GenerateOutput: ...

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Continue sequences; see `gptrio.generation.generate.generate` for every argument and error."""
        with gc_disabled():  # importing it makes many long-lived objects
            from gptrio.generation.generate import generate
        return generate(cast("CausalLM", self), inputs, *args, **kwargs)

    def heal_tokens(self, input_ids: Tensor, tokenizer: Any = None) -> Tensor:
        """Replace the last token of each prompt by the likeliest token that begins with the same text.

        Args:
            input_ids: (B, T) ids, from whose text special tokens and white space at the ends are dropped.
            tokenizer: the model's.

        Returns:
            (B, T') ids, padded on the left.

        Raises:
            OptionError: there is no tokenizer.
        """
        from gptrio.generation.options.config import GenerationConfig
        from gptrio.generation.prompt import Prompt
        from gptrio.generation.token_healing import heal

        ids = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "pad_token_id")}
        return heal(cast("CausalLM", self), Prompt(input_ids), tokenizer, GenerationConfig(**ids)).ids

    def compute_transition_scores(self, *args: Any, **kwargs: Any) -> Tensor:
        """Scores of generated tokens; see `gptrio.generation.outputs.compute_transition_scores`."""
        from gptrio.generation.outputs import compute_transition_scores

        return compute_transition_scores(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of the forward for the next step: what the cache lacks, with positions from the mask.

        Args:
            input_ids: (B, S) all tokens so far.
            past_key_values: cache, or None.
            attention_mask: (B, S), or None.
            inputs_embeds: (B, T, C) for a first step from embeddings.
            cache_position: (T,) positions of the new tokens, or None.
            kwargs: returned; with a cache, `position_ids` and `token_type_ids` (B, S) are cut to the new tokens.
        """
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if cache_position is not None and past_key_values is not None:
            new = cache_position.shape[0]
        else:
            new = input_ids.shape[1] - past
        first = inputs_embeds is not None and past == 0
        arguments: dict[str, Any] = {"inputs_embeds": inputs_embeds} if first else {"input_ids": input_ids[:, -new:]}
        length = inputs_embeds.shape[1] if first and inputs_embeds is not None else new
        if attention_mask is not None and attention_mask.dim() == 2 and kwargs.get("position_ids") is None:
            arguments["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        for name in ("position_ids", "token_type_ids"):
            if past_key_values is not None and isinstance(kwargs.get(name), Tensor):
                kwargs[name] = kwargs[name][:, -length:]
        kwargs.pop("labels", None)  # of a batch that was passed whole
        return {
            **kwargs,
            **arguments,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "cache_position": cache_position,
        }

    def _update_model_kwargs_for_generation(
        self,
        outputs: Any,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        """Arguments of `prepare_inputs_for_generation` for the next step of a decoding loop of one's own.

        `generate` calls it after each forward if a subclass overrides it, and hands what that adds on to the next one.

        Args:
            outputs: of the forward.
            model_kwargs: of this step, changed in place: the mask and token types grow by a column.
            is_encoder_decoder: False for all models here.
            num_new_tokens: by which `cache_position` moves on.
        """
        if getattr(outputs, "past_key_values", None) is not None:
            model_kwargs["past_key_values"] = outputs.past_key_values
        if model_kwargs.get("token_type_ids") is not None:
            types = model_kwargs["token_type_ids"]
            model_kwargs["token_type_ids"] = torch.cat([types, types[:, -1:]], dim=-1)
        if model_kwargs.get("attention_mask") is not None:
            mask = model_kwargs["attention_mask"]
            model_kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        positions = model_kwargs["cache_position"]
        new = positions[-1:] + torch.arange(1, num_new_tokens + 1, dtype=positions.dtype, device=positions.device)
        uses_cache = model_kwargs.get("use_cache", True)
        model_kwargs["cache_position"] = new[-1:] if uses_cache else torch.cat([positions, new])
        return model_kwargs

    def _get_initial_cache_position(
        self, seq_length: int, device: torch.device, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Set `cache_position` for the first step of a decoding loop of one's own, unless it is there.

        Args:
            seq_length: T of the prompt.
            device: of the positions.
            model_kwargs: of the first step, changed in place; its past is left out of the positions.
        """
        if model_kwargs.get("cache_position") is None:
            embeds, past = model_kwargs.get("inputs_embeds"), model_kwargs.get("past_key_values")
            start = past[0][0].shape[2] if isinstance(past, tuple) else 0 if past is None else past.get_seq_length()
            end = seq_length if embeds is None else embeds.shape[1]
            model_kwargs["cache_position"] = torch.arange(end, device=device)[start:]
        return model_kwargs

    def _has_unfinished_sequences(
        self, this_peer_finished: bool | Tensor, synced_gpus: bool, device: torch.device
    ) -> bool:
        """Whether a decoding loop of one's own goes on: until all rows of this process are finished."""
        return not this_peer_finished
