"""The decision which optimisations a call of `generate` runs with, and why not with the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import nn

from gptrio.cache import DynamicCache, StaticCache
from gptrio.generation.inputs import ModelInputs
from gptrio.generation.protocol import CausalLM
from gptrio.generation.runners.cpu_decode import CpuDecodeRunner
from gptrio.generation.runners.cuda_graph import CudaGraphRunner
from gptrio.generation.runners.eager import own_method
from gptrio.generation.runners.protocol import Step, StepRunner
from gptrio.kernels.cpu_decode import MAX_ROWS_AMX, NOT_INSTALLED, Reason, is_installed
from gptrio.kernels.cpu_decode.compilation import unloaded_reason
from gptrio.kernels.cuda_graph import can_capture
from gptrio.nn.attention_interface import function_reason
from gptrio.nn.fast_call import dispatch_reason, has_package_forward, hook_reason

_log = logging.getLogger("gptrio")


Problems = Iterator[str]
FastPath = Callable[[CausalLM, ModelInputs], Problems]  # gives the sentences that stand against an optimisation


def fast_path(model: CausalLM, call: ModelInputs, path: FastPath) -> Reason | None:
    """Why a call does not run with `shared_prefill`, `next_logits` or `fast_steps`, which is logged; None if it does.

    What the weights must be like for a compiled step is another matter: `model.compiled_step` answers that later.
    """
    problem = next(path(model, call), None)
    if problem is not None:
        _log.info("generate goes on without %s: %s", path.__name__.replace("_", " "), problem)
    return None if problem is None else Reason(problem)


def direct_calls(models: Sequence[nn.Module], **shown: object) -> Reason | None:
    """Why a call of these models looks for hooks and makes tensors fit for autograd; None if the caller sees none.

    `shown` are arguments by which the caller sees tensors of the model.
    """
    name = next((name for name, is_given in shown.items() if is_given), None)
    if name is not None:
        return Reason(f"with {name} the caller sees tensors of the model")
    return next(filter(None, map(hook_reason, models)), None)


def shared_prefill(model: CausalLM, call: ModelInputs) -> Problems:
    """What stands against one prefill for all copies of a prompt."""
    yield from filter(None, [call.hooks])
    yield from _other_cache(call)
    yield from _own_preparation(model)


def next_logits(model: CausalLM, call: ModelInputs) -> Problems:
    """What stands against `next_logits` in place of the forward."""
    yield from _more_than_tokens(model, call)
    if call.prompt.attention_mask is not None:
        yield "the prompts are padded"


def fast_steps(model: CausalLM, call: ModelInputs) -> Problems:
    """What stands against compiled steps over a growing cache, and against a CUDA graph over a static one."""
    if call.config.disable_compile:
        yield "disable_compile is set"
    yield from (
        _against_cuda_graph(model, call) if type(call.cache) is StaticCache else _against_compiled_steps(model, call)
    )


def _against_compiled_steps(model: CausalLM, call: ModelInputs) -> Problems:
    if not is_installed():
        yield NOT_INSTALLED
    yield from _more_than_tokens(model, call)
    if call.rows > MAX_ROWS_AMX:
        yield f"{call.rows} rows are faster by whole matrix products"
    if call.config.guidance_scale not in (None, 1):
        yield "guidance_scale runs the model between the steps, on all threads"
    if not call.prompt.has_left_padding_only:
        yield "padding stands after or between the tokens of a row"
    if call.config.max_length is not None:
        yield from filter(None, [unloaded_reason(call.config.max_length - call.prompt.ids.shape[1])])


def _against_cuda_graph(model: CausalLM, call: ModelInputs) -> Problems:
    device = call.prompt.ids.device
    if not can_capture(device):
        yield f"there are no CUDA graphs on {device.type}"
    if not call.cache.is_compileable:
        yield "the static cache has other layers than its own, or none"
    if model.training or torch.is_autocast_enabled(device.type):
        yield "the model is in training mode, or autocast is on"
    if model.config.add_cross_attention:
        yield "the model has cross-attention"
    yield from filter(None, [call.hooks])
    yield from _own_code(model, call)
    if any(tensor.device != device for tensor in chain(model.parameters(), model.buffers())):
        yield "the model lies on several devices"


def _more_than_tokens(model: CausalLM, call: ModelInputs) -> Problems:
    """What needs more than the tokens' ids and positions, or observes how they are computed."""
    yield from filter(None, [dispatch_reason()])
    yield from _own_code(model, call)
    yield from _other_cache(call)
    prompt = call.prompt
    if not (prompt.position_ids is None and prompt.token_type_ids is None and prompt.embeds is None):
        yield "the prompt has position_ids, token_type_ids or inputs_embeds"


def _own_code(model: CausalLM, call: ModelInputs) -> Problems:
    """Code of others in a step, and arguments that only the forward takes."""
    yield from _own_preparation(model)
    for each in (model, getattr(model, "base_model", model)):
        if not has_package_forward(each):
            yield f"{type(each).__name__} has a forward of its own"
    yield from filter(None, [function_reason(model)])
    for name in call.constants.keys() - {"use_cache"}:
        yield f"the forward needs {name}"


def _own_preparation(model: CausalLM) -> Problems:
    for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation"):
        if own_method(model, name) is not None:
            yield f"{type(model).__name__} has a {name} of its own"


def _other_cache(call: ModelInputs) -> Problems:
    if type(call.cache) is not DynamicCache:
        yield (
            "there is no cache" if call.cache is None else f"the cache is {type(call.cache).__name__}, not DynamicCache"
        )


def choose_runner(model: CausalLM, inputs: ModelInputs, step: Step, last: Reason | None) -> StepRunner | Reason:
    """What runs `step` and those like it if `fast_steps` has nothing against it; logged unless it is `last` again."""
    found = _fast_runner(model, inputs, step)
    if not isinstance(found, Reason):
        _log.info("decoding steps run %s", found)
    elif found != last:
        _log.info("generate goes on without fast steps: %s", found)
    return found


def _fast_runner(model: CausalLM, inputs: ModelInputs, step: Step) -> StepRunner | Reason:
    if type(step.cache) is StaticCache:
        try:
            return CudaGraphRunner(model, inputs, step)
        except RuntimeError as error:  # a kernel that waits for the device, or no memory
            _log.warning("going on without a CUDA graph: %s", error)
            return Reason(f"a CUDA graph cannot be captured: {error}")
    mask = inputs.prompt.attention_mask
    compiled = model.compiled_step(step.new_ids.shape[0], None if mask is None else (~mask).sum(-1))
    return compiled if isinstance(compiled, Reason) else CpuDecodeRunner(compiled)
