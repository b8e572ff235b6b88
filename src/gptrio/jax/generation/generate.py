"""`generate`: reads the arguments, prepares the call, and runs the compiled loop that they select."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.compilation_cache.compilation_cache import reset_cache, set_cache_dir

from gptrio.generation.options.config import GenerationConfig, eos_ids
from gptrio.generation.options.resolve import merge_config
from gptrio.generation.options.schema import GenerationMode
from gptrio.jax.generation.beam import BeamOptions, beam_search
from gptrio.jax.generation.loop import Call, Rules, decode
from gptrio.jax.generation.model import Model
from gptrio.jax.generation.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput
from gptrio.jax.generation.processors.base import Processor
from gptrio.jax.generation.processors.build import build_processors
from gptrio.jax.generation.prompt import BUCKETS, Prompt, bucket, build_prompt, check_buckets, warn_of_unseen_padding
from gptrio.jax.generation.setup import ARGUMENTS, check_supported, settle_max_length
from gptrio.jax.outputs import FlaxModelOutput


def _run(mode: GenerationMode, call: Call, config: GenerationConfig) -> FlaxModelOutput:
    """The result of a mode, with sequences (R, N)."""
    if mode is GenerationMode.GREEDY_SEARCH:
        return FlaxGreedySearchOutput(sequences=decode(call))
    if mode is GenerationMode.SAMPLE:
        return FlaxSampleOutput(sequences=decode(call))
    penalty = np.float32(1.0 if config.length_penalty is None else config.length_penalty)
    options = BeamOptions(penalty, config.num_beams, config.num_return_sequences, config.early_stopping)
    sequences, scores = beam_search(call, options)
    return FlaxBeamSearchOutput(sequences=sequences, scores=scores)


def generate(
    model: Any,
    input_ids: Any,
    generation_config: GenerationConfig | None = None,
    prng_key: Array | None = None,
    trace: bool = True,
    params: Any = None,
    logits_processor: Iterable[Processor] | None = None,
    *,
    buckets: Sequence[int] = BUCKETS,
    compilation_cache: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> FlaxModelOutput:
    """Continue sequences of tokens.

    Args:
        model: a Flax language model of this package.
        input_ids: (B, T) token ids, padded on either side.
        generation_config: the options; the model's own by default.
        prng_key: random key for sampling; that of seed 0 by default.
        trace: compile the loops; otherwise each operation runs alone, slowly, so that it can be looked at.
        params: other parameters than `model.params`.
        logits_processor: processors of scores, applied after those of the options and before those of sampling.
        buckets: widths in columns. A prompt is padded to the next one, and so is the cache; prompts of the same buckets
            run the same compiled code. Beyond the largest, its multiples are used. Under `jit` nothing is padded.
        compilation_cache: folder where JAX keeps compiled code for other processes, from now on, for programs whose
            compilation takes a second or more (`jax_persistent_cache_min_compile_time_secs`).
        **kwargs: options of `GenerationConfig`, which win over the config's, and `attention_mask` (B, T).

    Returns:
        FlaxGreedySearchOutput, FlaxSampleOutput or FlaxBeamSearchOutput, by the mode that the options select.

    Raises:
        OptionError: options are unknown, impossible or contradict each other, or the prompt leaves no room.
        UnsupportedError: an option or a mode that only the PyTorch classes have.
        InputError: arrays do not fit each other.
        TokenIdError: an id outside the vocabulary.
    """
    config, arguments = merge_config(model, generation_config, False, kwargs, ARGUMENTS)
    mode = check_supported(config)
    widths = check_buckets(buckets)
    if compilation_cache is not None:
        _keep_compiled_code(os.fspath(compilation_cache))
    given = build_prompt(input_ids, arguments.get("attention_mask"), model.config)
    if arguments.get("attention_mask") is None:
        warn_of_unseen_padding(given, _pads(config))
    max_length = settle_max_length(config, kwargs, given, model.config)
    if mode is GenerationMode.SAMPLE:
        given = given.repeated(config.num_return_sequences)
    columns = given.ids.shape[1]
    rules = Rules(
        build_processors(config, columns, max_length, logits_processor or ()),
        np.int32(max_length),
        np.array(eos_ids(config), np.int32),
        np.int32(_pad(config)),
        config.do_sample,
    )
    call = Call(
        Model(model.module),
        model.params if params is None else params,
        rules,
        *_arrays(given.aligned(), max_length, widths, _pad(config)),
        np.int32(columns),
        jax.random.PRNGKey(0) if prng_key is None else prng_key,
    )
    with contextlib.nullcontext() if trace else jax.disable_jit():
        result = _run(mode, call if trace else jax.tree.map(jnp.asarray, call), config)
    xp = given.array_module
    new = xp.asarray(result["sequences"])[:, columns:max_length]
    prompts = given.repeated(len(new) // len(given.ids)).ids
    result["sequences"] = jax.device_put(xp.concatenate([prompts, new], axis=1))
    return result


def _keep_compiled_code(folder: str) -> None:
    if jax.config.values["jax_compilation_cache_dir"] != folder:
        reset_cache()  # JAX takes no other folder once it has used one
        set_cache_dir(folder)


def _pads(config: GenerationConfig) -> list[int]:
    return eos_ids(config) if config.pad_token_id is None else [config.pad_token_id]


def _pad(config: GenerationConfig) -> int:
    """Token after the end of a row; without tokens that end a row, there is none to be seen."""
    return next(iter(_pads(config)), 0)


def _arrays(prompt: Prompt, max_length: int, buckets: Sequence[int], pad: int) -> tuple[Any, Any, Any]:
    """Ids (B, P) and mask (B, N) for the model, and ids (B, N) for the loop, with the prompt in the first columns."""
    columns = prompt.ids.shape[1]
    width, capacity = columns, max_length
    if prompt.array_module is np:
        width = bucket(columns, buckets)
        capacity = bucket(width + max_length - columns, buckets)
    read = prompt.padded(width - columns, capacity - width, pad)
    return read.ids[:, :width], read.mask, prompt.padded(0, capacity - columns, pad).ids
