"""`generate`: read the arguments, make a call ready, and hand it to the decoding mode that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gptrio.cache import Cache, DynamicCache, EncoderDecoderCache
from gptrio.errors import OptionError, UnsupportedError
from gptrio.generation.assisted import assisted_search
from gptrio.generation.beam import beam_search
from gptrio.generation.beam_groups import grouped_beam_search
from gptrio.generation.call import Call, Generators, Record
from gptrio.generation.config import GenerationConfig
from gptrio.generation.constrained import constrained_beam_search
from gptrio.generation.contrastive import contrastive_search
from gptrio.generation.declared import GenerationMode
from gptrio.generation.dola import dola_decode
from gptrio.generation.lengths import last_column, no_more_positions, positions, settle_lengths
from gptrio.generation.loop import decode
from gptrio.generation.options import fits
from gptrio.generation.outputs import GenerateOutput
from gptrio.generation.processors.base import LogitsProcessorList, Processor
from gptrio.generation.processors.build import build_processors
from gptrio.generation.prompt import Prompt, build_prompt, check_cache
from gptrio.generation.settings import merge_config
from gptrio.generation.step import Stepper
from gptrio.generation.stop_strings import Tokenizer
from gptrio.generation.stopping import Criterion, MaxLengthCriteria, StoppingCriteriaList, build_stopping
from gptrio.generation.streamers import Streamer
from gptrio.kernels.linear import packed_inference
from gptrio.nn.lean import lean_calls

Result = Tensor | GenerateOutput


def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Iterable[Processor] | None = None,
    stopping_criteria: Iterable[Criterion] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
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
    trust_remote_code: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Continue sequences of tokens.

    Args:
        model: a language model of this package.
        inputs: (B, T) token ids, padded on the left; also as `input_ids`. `bos_token_id` alone if there are none.
        generation_config: the options; the model's own by default.
        logits_processor: processors of scores, applied after those that the options ask for.
        stopping_criteria: rules that finish rows, besides those that the options ask for.
        prefix_allowed_tokens_fn: (row, ids) to the tokens that may follow.
        synced_gpus: run until all processes of a sharded model have finished.
        assistant_model: a smaller model that drafts tokens for this one to check.
        streamer: is handed the prompt, then the tokens as they come.
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
        trust_remote_code: refused; code from a checkpoint is never run.
        **kwargs: options of `GenerationConfig`, which win over the config's, and arguments of the model's forward such
            as `attention_mask` (B, T), `inputs_embeds`, `past_key_values` (holding the first positions of the prompt).

    Returns:
        (B * num_return_sequences, T) ids, prompt included, or with `return_dict_in_generate` a
        GenerateDecoderOnlyOutput or GenerateBeamDecoderOnlyOutput.

    Raises:
        OptionError: options are unknown, impossible or contradict each other, or the prompt leaves no room.
        InputError: tensors do not fit each other or the model.
        TokenIdError: an id outside the vocabulary.
    """
    if isinstance(custom_generate, str) or trust_remote_code:
        raise UnsupportedError("code from a checkpoint is never run; pass a function as custom_generate")
    config, arguments = merge_config(model, generation_config, use_model_defaults, kwargs)
    seen_by_caller = (logits_processor, stopping_criteria, prefix_allowed_tokens_fn, custom_generate)
    lean = not any(seen_by_caller) and _is_private(model, config, arguments)
    with (
        torch.inference_mode() if lean else torch.no_grad(),
        packed_inference(model),
        lean_calls(model if lean else None),
    ):
        prompt = build_prompt(model, inputs, arguments, config)
        prompt = settle_lengths(model, prompt, config, kwargs, overflow)
        config.validate()
        mode = config.get_generation_mode(assistant_model)
        processors = build_processors(
            config,
            prompt_length=prompt.ids.shape[1],
            vocab_size=model.config.vocab_size,
            device=prompt.ids.device,
            prompt_ids=prompt.ids,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            logits_processor=logits_processor or (),
            model=model,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
        )
        call = make_call(model, prompt, config, mode, processors)
        call.criteria = _criteria(model, prompt, config, stopping_criteria or (), tokenizer)
        call.generators = _generators(seed, generator, call)
        call.streamer, call.synced_gpus = streamer, bool(synced_gpus)
        if streamer is not None:
            streamer.put(call.ids.cpu())
        if mode is GenerationMode.ASSISTED_GENERATION:
            rows = prompt.repeated(config.num_return_sequences)
            result: Result = assisted_search(call, rows, assistant_model, tokenizer, assistant_tokenizer)
        else:
            result = _LOOPS[mode](call)
    if isinstance(result, Tensor):
        return result.clone() if result.is_inference() else result  # a clone can be trained on
    if config.return_legacy_cache and isinstance(result.past_key_values, Cache):
        result.past_key_values = result.past_key_values.to_legacy_cache()
    return result


_LOOPS: dict[GenerationMode, Callable[[Call], Result]] = {
    GenerationMode.GREEDY_SEARCH: decode,
    GenerationMode.SAMPLE: decode,
    GenerationMode.BEAM_SEARCH: beam_search,
    GenerationMode.BEAM_SAMPLE: beam_search,
    GenerationMode.GROUP_BEAM_SEARCH: grouped_beam_search,
    GenerationMode.CONSTRAINED_BEAM_SEARCH: constrained_beam_search,
    GenerationMode.CONTRASTIVE_SEARCH: contrastive_search,
    GenerationMode.DOLA_GENERATION: dola_decode,
}


def make_call(
    model: Any, prompt: Prompt, config: GenerationConfig, mode: GenerationMode, processors: LogitsProcessorList
) -> Call:
    """Join what a decoding loop needs."""
    copies = max(config.num_beams, config.num_return_sequences)
    if mode is GenerationMode.CONTRASTIVE_SEARCH and not config.low_memory:
        copies = config.top_k or 1
    step = Stepper(model, prompt, config, copies, _cache(model, prompt, config, mode, copies))
    ids = prompt.ids.repeat_interleave(copies, dim=0) if copies > 1 else prompt.ids
    ends = config.eos_token_id
    pad = config.pad_token_id
    if pad is None and ends is not None:
        pad = ends if isinstance(ends, int) else ends[0]
    record, count = Record(config), prompt.ids.shape[0]
    return Call(model, config, ids, step, processors, StoppingCriteriaList(), pad, record, count, prompt.padding)


def _is_private(model: Any, config: GenerationConfig, arguments: dict[str, Any]) -> bool:
    """Whether the caller sees no tensor of this call but the ids, so that none of them needs to be fit for autograd."""
    if config.return_dict_in_generate or arguments.get("past_key_values") is not None:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _cache(model: Any, prompt: Prompt, config: GenerationConfig, mode: GenerationMode, copies: int) -> Any:
    """The cache of this call: the caller's, one by name, a dynamic one, or none."""
    given = prompt.cache
    if given is not None:
        if config.cache_implementation is not None:
            raise OptionError(
                f"past_key_values and cache_implementation={config.cache_implementation!r} were both given; pass one"
            )
        if isinstance(given, (tuple, list)):
            kind: Any = EncoderDecoderCache if any(len(layer) > 2 for layer in given) else DynamicCache
            given = prompt.cache = kind.from_legacy_cache(given)
        check_cache(prompt)
        return given
    if not config.use_cache and prompt.embeds is None:
        return None
    name = config.cache_implementation
    if name in (None, "dynamic"):
        rolls_back = mode in (GenerationMode.ASSISTED_GENERATION, GenerationMode.CONTRASTIVE_SEARCH)
        return DynamicCache(config=None if rolls_back else model.config)
    if name == "dynamic_full":
        return DynamicCache()
    from gptrio.cache import make_cache

    length = (config.max_length or 0) - prompt.ids.shape[1] + prompt.length
    rows = prompt.ids.shape[0] * copies
    return make_cache(name, model.config, rows, length, model.device, model.dtype, config.cache_config or {})


def _criteria(
    model: Any,
    prompt: Prompt,
    config: GenerationConfig,
    own: Iterable[Criterion],
    tokenizer: Tokenizer | None,
) -> StoppingCriteriaList:
    """What finishes rows; a length that the model cannot reach is an error where nothing else ends a row."""
    context: int = model.config.max_position_embeddings
    warns = (config.max_length or 0) > context and positions(model) is None
    criteria = build_stopping(
        config,
        stopping_criteria=own,
        tokenizer=tokenizer,
        max_position_embeddings=context if warns else None,
    )
    room = last_column(model, prompt)
    if room is not None and all(type(item) is MaxLengthCriteria for item in criteria):
        needed = (criteria.max_length or room) - 1  # the last token is never fed
        if needed > room:
            raise no_more_positions(model, prompt, needed + 1)
    return criteria


def _generators(seed: int | Sequence[int] | None, generator: Generators, call: Call) -> Generators:
    """Where random numbers come from: one generator for the call, or one for each row."""
    if seed is None and generator is None:
        return None
    if seed is not None and generator is not None:
        raise OptionError("seed and generator were both given; pass one of them")
    if isinstance(generator, torch.Generator):
        return generator
    device = call.ids.device
    if isinstance(seed, int):
        return torch.Generator(device).manual_seed(seed)
    if seed is not None and not fits(seed, list[int]):
        raise OptionError(f"seed={seed!r} must be an integer, or one for each row")
    generator = [torch.Generator(device).manual_seed(own) for own in seed] if seed is not None else generator
    assert generator is not None
    rows = call.ids.shape[0] if call.config.num_beams == 1 else call.prompts
    if len(generator) != rows:
        raise OptionError(
            f"{len(generator)} seeds or generators for {rows} rows; pass one for each row, or one for all"
        )
    return generator
