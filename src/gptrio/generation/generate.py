"""`generate`: reads the arguments, prepares the call, and runs the decoding mode that they select."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gptrio.cache import Cache
from gptrio.cache.transformers import as_given
from gptrio.errors import UnsupportedError
from gptrio.generation.columns import align
from gptrio.generation.loop import decode, stream
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.options.max_length import settle_lengths
from gptrio.generation.options.resolve import merge_config
from gptrio.generation.options.schema import GenerationMode
from gptrio.generation.outputs import GenerateOutput
from gptrio.generation.processors.base import Processor
from gptrio.generation.prompt import build_prompt, keep_last
from gptrio.generation.protocol import CausalLM
from gptrio.generation.runners.select import direct_calls
from gptrio.generation.sampling import Generators
from gptrio.generation.setup import GenerateArguments, prepare_generation
from gptrio.generation.state import GenerationState
from gptrio.generation.step import OnStep
from gptrio.generation.stopping import Criterion, OnFinish, Tokenizer
from gptrio.generation.strategies.assisted import assisted_search
from gptrio.generation.strategies.beam import beam_search
from gptrio.generation.strategies.constrained_beam import constrained_beam_search
from gptrio.generation.strategies.contrastive import contrastive_search
from gptrio.generation.strategies.dola import dola_decode
from gptrio.generation.strategies.group_beam import grouped_beam_search
from gptrio.generation.streamers import Streamer
from gptrio.generation.token_healing import heal
from gptrio.kernels.cpu_decode.compilation import compile_mode
from gptrio.kernels.linear import packed_inference
from gptrio.nn.fast_call import has_own_classes_only, skip_hook_dispatch

Result = Tensor | GenerateOutput

_LOOPS: dict[GenerationMode, Callable[[GenerationState], Result]] = {
    GenerationMode.GREEDY_SEARCH: decode,
    GenerationMode.SAMPLE: decode,
    GenerationMode.BEAM_SEARCH: beam_search,
    GenerationMode.BEAM_SAMPLE: beam_search,
    GenerationMode.GROUP_BEAM_SEARCH: grouped_beam_search,
    GenerationMode.CONSTRAINED_BEAM_SEARCH: constrained_beam_search,
    GenerationMode.CONTRASTIVE_SEARCH: contrastive_search,
    GenerationMode.DOLA_GENERATION: dola_decode,
}


def generate(
    model: CausalLM,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Iterable[Processor] | None = None,
    stopping_criteria: Iterable[Criterion] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: CausalLM | None = None,
    streamer: Streamer | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    use_model_defaults: bool | None = None,
    custom_generate: Callable[..., Any] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    assistant_tokenizer: Tokenizer | None = None,
    seed: int | Sequence[int] | None = None,
    generator: Generators = None,
    overflow: str = "error",
    on_finish: OnFinish | None = None,
    on_step: OnStep | None = None,
    trust_remote_code: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Continue sequences of tokens.

    Args:
        model: a language model of this package.
        inputs: (B, T) token ids, padded anywhere; also as `input_ids`. `bos_token_id` alone if there are none.
        generation_config: the options; the model's own by default.
        logits_processor: processors of scores, applied after those of the options.
        stopping_criteria: rules that finish rows, besides those of the options.
        prefix_allowed_tokens_fn: (row, ids) to the tokens that may follow.
        synced_gpus: run until all processes of a sharded model have finished.
        assistant_model: a smaller model that drafts tokens for this one to check.
        streamer: receives the prompt, then the new tokens of each step.
        negative_prompt_ids, negative_prompt_attention_mask: (B, U) what `guidance_scale` leads away from.
        use_model_defaults: options left at their default in `generation_config` are the model's own; True unless the
            model's file is older than such files' 4.50.
        custom_generate: a decoding loop, called as `loop(model, ids, logits_processor=..., stopping_criteria=...,
            generation_config=..., synced_gpus=..., streamer=..., **arguments of the model)`.
        tokenizer: the model's, for stop strings, token healing and drafts of another vocabulary.
        assistant_tokenizer: the draft model's, if it is another one.
        seed: makes this call reproducible without touching global state; a list has one seed for each row, whose
            sample then depends on nothing else in the batch.
        generator: torch generator, or one for each row, in place of seeds.
        overflow: "error", or "truncate_left" to drop the first tokens of a prompt that leaves no room in the context.
        on_finish: called with row, `FinishReason` and number of new tokens when a row is finished; at the end of a beam
            search for each row that is returned.
        on_step: called with the number of new tokens and the most there can be, whenever the model has run.
        trust_remote_code: accepted; code from a checkpoint is never run.
        **kwargs: options of `GenerationConfig`, which win over the config's, and arguments of the model's forward such
            as `attention_mask` (B, T), `inputs_embeds`, `past_key_values` (holding the first positions of the prompt).
            Ids may also be the tokens alone that follow a cache, where `attention_mask` counts the cache's positions
            too, or `cache_position` (T,) starts after them; lengths and the result then count from these tokens on.

    Returns:
        (B * num_return_sequences, T) ids, prompt included, or with `return_dict_in_generate` a
        GenerateDecoderOnlyOutput or GenerateBeamDecoderOnlyOutput.

    Raises:
        OptionError: options are unknown, impossible or contradict each other, or the prompt leaves no room.
        InputError: tensors do not fit each other or the model.
        TokenIdError: an id outside the vocabulary.
    """
    if isinstance(custom_generate, str):
        raise UnsupportedError("code from a checkpoint is never run; pass a function as custom_generate")
    compile_mode()  # an unknown one is refused before anything runs
    config, forward_arguments = merge_config(model, generation_config, use_model_defaults, kwargs)
    extras = GenerateArguments(
        logits_processor or (),
        stopping_criteria or (),
        prefix_allowed_tokens_fn,
        negative_prompt_ids,
        negative_prompt_attention_mask,
        tokenizer,
        seed,
        generator,
        streamer,
        bool(synced_gpus),
        on_finish,
        on_step,
    )
    models = [cast(nn.Module, each) for each in (model, assistant_model) if each is not None]
    reason = direct_calls(
        models,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        past_key_values=forward_arguments.get("past_key_values") is not None,
        custom_generate=custom_generate,
        return_dict_in_generate=config.return_dict_in_generate,
    )
    is_private = reason is None and all(has_own_classes_only(each) for each in models)
    with (
        torch.inference_mode() if is_private else torch.no_grad(),
        packed_inference(models[0], may_compile=not config.disable_compile),
        skip_hook_dispatch(unless=reason),
    ):
        prompt = build_prompt(model, inputs, forward_arguments, config)
        if custom_generate is None:
            prompt = align(prompt)
        if config.token_healing:
            prompt = heal(model, prompt, tokenizer, config)
        prompt, config = settle_lengths(model, prompt, config, kwargs, overflow)
        mode = config.get_generation_mode(assistant_model)
        state = prepare_generation(model, prompt, config, mode, extras)
        given = prompt.ids if prompt.moved is None else prompt.moved.ids
        stream(state, given.repeat_interleave(config.num_return_sequences, dim=0))
        if custom_generate is not None:
            return _run_own_loop(custom_generate, state)
        if mode is GenerationMode.ASSISTED_GENERATION:
            result: Result = assisted_search(state, assistant_model, tokenizer, assistant_tokenizer)
        else:
            result = _LOOPS[mode](state)
    if prompt.moved is not None:
        result = prompt.moved.restore(result)
    if isinstance(result, Tensor):
        return result.clone() if result.is_inference() else result  # a clone can be trained on
    if config.return_legacy_cache and isinstance(result.past_key_values, Cache):
        result.past_key_values = result.past_key_values.to_legacy_cache()
    result.past_key_values = as_given(result.past_key_values)
    return result


def _run_own_loop(loop: Callable[..., Any], state: GenerationState) -> Any:
    """Call the caller's decoding loop as upstream does."""
    prompt = state.prompt
    length, mask = prompt.length, prompt.attention_mask
    arguments = {
        "attention_mask": state.ids.new_ones(state.ids.shape[0], length) if mask is None else mask.long(),
        "past_key_values": state.step.cache,
        "use_cache": state.step.cache is not None,
        **keep_last(state.model),
        "inputs_embeds": prompt.embeds,
        "position_ids": prompt.position_ids,
        "token_type_ids": prompt.token_type_ids,
        **prompt.constants,
    }
    return loop(
        state.model,
        state.ids,
        logits_processor=state.processors,
        stopping_criteria=state.criteria,
        generation_config=state.config,
        synced_gpus=state.synced_gpus,
        streamer=state.streamer,
        **{name: value for name, value in arguments.items() if value is not None},
    )
