"""All that the compiled step takes for granted in a model, as one list; what does not hold goes the plain way.

Every check yields a sentence for what it finds. Checks run in the order of `REQUIREMENTS`, and each may rely on those
before it. What depends on the call rather than on the model (the cache, the rows) is in `CompiledStep.supports`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gptrio.kernels import GROUP_SIZES
from gptrio.kernels.cpu_decode import Reason
from gptrio.kernels.cpu_decode import structs as tables
from gptrio.kernels.formats import UNIT
from gptrio.models.base.backbone import EMBEDDINGS, Backbone
from gptrio.nn.activations import GELUS
from gptrio.nn.attention_interface import function_reason
from gptrio.nn.blocks import DROPOUTS, BlockSpec
from gptrio.nn.fast_call import LayerNorm, hook_reason, is_dispatch_skipped, is_written_in
from gptrio.nn.linear import LowRankUpdate, WeightView, active_adapters, is_known_linear, is_lora, weight_view
from gptrio.nn.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from gptrio.models.base.pretrained import PreTrainedModel

Problems = Iterator[str]

FLOAT_FORMATS = {torch.float32: tables.FLOAT32, torch.bfloat16: tables.BFLOAT16, torch.float16: tables.FLOAT16}
FORMATS = FLOAT_FORMATS | {torch.int8: tables.INT8, torch.uint8: tables.INT4}  # of stored weights
_HOMES = ("gptrio.", "torch.nn.modules.")
_METHODS = frozenset(
    {"forward", "__call__", "_call_impl", "spec", "options", "forward_last", "embed", "rotary_tables"}
    | {"embed_inputs", "run_blocks", "next_positions", "next_logits", "get_input_embeddings", "get_output_embeddings"}
)
_NORMS = (LayerNorm, nn.LayerNorm)


def first_unmet(model: PreTrainedModel) -> Reason | None:
    """Why a model has no compiled step, or None if it has one."""
    for check in REQUIREMENTS:
        for problem in check(model):
            return Reason(problem)
    return None


def activation_of(act: nn.Module) -> int | None:
    """Number of an activation in the compiled step, or None if it has none."""
    if type(act) in GELUS:
        return tables.GELU_TANH if cast(nn.GELU, act).approximate == "tanh" else tables.GELU_ERF
    return {nn.Identity: tables.NONE, nn.ReLU: tables.RELU, nn.SiLU: tables.SILU}.get(type(act))


def _no_autocast(model: PreTrainedModel) -> Problems:
    if torch.is_autocast_enabled("cpu"):
        yield "autocast is on"


def _own_attention(model: PreTrainedModel) -> Problems:
    yield from filter(None, [function_reason(model)])


def _no_hooks(model: PreTrainedModel) -> Problems:
    if not is_dispatch_skipped() and (reason := hook_reason(model)):
        yield reason


def _declaration(module: Any) -> Mapping[str, tuple[type, ...]] | None:
    """`compiled_modules` of a model, backbone or block; of a class outside this package, what that class itself sets.

    A subclass that changes the forward does not inherit what its base says of it.
    """
    kind = type(module)
    if kind.__module__.startswith("gptrio.") or "compiled_modules" in vars(kind):
        found: Mapping[str, tuple[type, ...]] | None = getattr(kind, "compiled_modules", None)
        return found
    return None


def _own_modules(model: PreTrainedModel) -> Problems:
    """Modules of this package, of torch, or of a class that was declared; in evaluation, with no method replaced."""
    declared = {kind for kind in map(type, model.modules()) if is_lora(kind)}
    for part in (model, model.base_model, *model.base_model.blocks):
        declaration = _declaration(part)
        if declaration is not None:
            declared.update((type(part),), *declaration.values())
    for name, module in model.named_modules():
        kind = type(module)
        if module.training:
            yield f"{name or 'the model'} is in training mode"
        if not kind.__module__.startswith(_HOMES) and kind not in declared:
            yield f"{name or 'the model'} is a {kind.__module__}.{kind.__name__}, which does not say what it computes"
        replaced = _METHODS & vars(module).keys()
        if replaced:
            yield f"{name or 'the model'} has a {min(replaced)} of its own"
    for kind in {type(module) for module in model.modules()}:
        homes = ("gptrio.", "torch.nn.", *(each.__module__ for each in kind.__mro__ if kind in declared))
        for method in _METHODS:
            function = getattr(kind, method, None)
            if function is not None and not is_written_in(function, homes):
                yield f"{kind.__name__}.{method} was replaced"


def _one_dtype(model: Any) -> Problems:
    """Parameters of one dtype; those of adapters may have another."""
    dtypes = set()
    lora = [module for module in model.modules() if is_lora(type(module))]
    adapters = {
        parameter for module in lora for parameter in [*module.lora_A.parameters(), *module.lora_B.parameters()]
    }
    for name, parameter in model.named_parameters():
        if parameter in adapters:
            continue
        if type(parameter) is not nn.Parameter or not parameter.is_cpu:
            yield f"{name} is a {type(parameter).__name__} on {parameter.device}"
        dtypes.add(parameter.dtype)
    if len(dtypes) != 1 or not dtypes <= FLOAT_FORMATS.keys():
        yield f"parameters are of {', '.join(sorted(map(str, dtypes))) or 'no dtype'}"


def _known_backbone(model: PreTrainedModel) -> Problems:
    yield from _known_parts("the backbone", model.base_model)


def _known_blocks(model: PreTrainedModel) -> Problems:
    blocks = model.base_model.blocks
    if len(blocks) == 0:
        yield "there are no blocks"
    for i, block in enumerate(blocks):
        if type(block) is not type(blocks[0]):
            yield f"block {i} is a {type(block).__name__}, block 0 a {type(blocks[0]).__name__}"
        yield from _known_parts(f"block {i}", block)


def _known_parts(name: str, module: Any) -> Problems:
    """Modules that are no product of their own in the compiled step are of the classes that were declared."""
    declaration = _declaration(module)
    if declaration is None:
        yield f"{name} is a {type(module).__name__}, which does not say what it computes"
        return
    for path, kinds in declaration.items():
        part = _part(module, path)
        if type(part) not in kinds:
            yield f"{path} of {name} is a {type(part).__name__}"


def _part(module: Any, path: str) -> Any:
    for step in path.split("."):
        module = getattr(module, step, None)
    return module


def _known_attention(model: PreTrainedModel) -> Problems:
    """Heads of one number and width in all blocks, which write to the cache's layer of their own number."""
    first = model.base_model.blocks[0].self_attention
    for i, block in enumerate(model.base_model.blocks):
        own, name = block.self_attention, f"attention of block {i}"
        if own.pruned_heads:
            yield f"{name} has pruned heads"
        if own.layer_idx != i:
            yield f"{name} writes to layer {own.layer_idx} of the cache"
        if (own.all_heads, own.head_dim) != (first.all_heads, first.head_dim):
            yield f"{name} has {own.all_heads} heads of {own.head_dim}, block 0 {first.all_heads} of {first.head_dim}"
        if own.all_heads < 1 or own.head_dim < 1 or own.head_dim % tables.LANES:
            yield f"{name} has {own.all_heads} heads of {own.head_dim}, which is no multiple of {tables.LANES}"
        if not isinstance(own.scale, (int, float)) or not math.isfinite(own.scale):
            yield f"{name} scales scores by {own.scale!r}"
        if own.window is not None and (not isinstance(own.window, int) or own.window < 1):
            yield f"{name} has a window of {own.window!r}"


def _width(model: PreTrainedModel) -> int:
    attention = model.base_model.blocks[0].self_attention
    return int(attention.all_heads * attention.head_dim)


def _known_embeddings(model: PreTrainedModel) -> Problems:
    """Embeddings as wide as the heads together, and rotary tables that fit into a head."""
    backbone, width = model.base_model, _width(model)
    parts = {path: _part(backbone, path) for path in _declaration(backbone) or ()}
    head_dim = backbone.blocks[0].self_attention.head_dim
    for path, part in parts.items():
        if isinstance(part, EMBEDDINGS) and part.weight.shape[1] != width:
            yield f"{path} is {part.weight.shape[1]} wide, where heads are {width} wide together"
        if isinstance(part, RotaryEmbedding) and 2 * part.inv_freq.shape[-1] > head_dim:
            yield f"{2 * part.inv_freq.shape[-1]} dimensions of heads of {head_dim} are rotated"
    is_rotary = any(isinstance(part, RotaryEmbedding) for part in parts.values())
    if not is_rotary and type(backbone).rotary_tables is not Backbone.rotary_tables:
        yield "positions are rotated by tables that are not a RotaryEmbedding's"


def _known_layers(model: PreTrainedModel) -> Problems:
    """Norms, projections, MLPs and head of kinds, sizes and activations that the kernels take."""
    width, parameter = _width(model), next(model.parameters())
    for i, block in enumerate(model.base_model.blocks):
        parts, name = block.spec(), f"of block {i}"
        for norm in parts.norms:
            yield from _known_norm(f"a norm {name}", norm, width)
        yield from _known_block_layers(parts, name, width, parameter.dtype)
    yield from _known_norm("the last norm", model.base_model.final_norm, width)
    head = model.get_output_embeddings()
    yield from _known_linear("the head", head, width, None, parameter.dtype)


def _known_block_layers(parts: BlockSpec, name: str, width: int, dtype: torch.dtype) -> Problems:
    up, act, down = parts.mlp
    outputs = 3 * width // len(parts.projections)
    for layer in parts.projections:
        yield from _known_linear(f"a projection {name}", layer, width, outputs, dtype)
    yield from _known_linear(f"attention's output {name}", parts.output, width, width, dtype)
    yield from _known_linear(f"the MLP's first layer {name}", up, width, None, dtype)
    if activation_of(act) is None:
        yield f"the activation {name} is {type(act).__name__}"
    yield from _known_linear(f"the MLP's last layer {name}", down, weight_view(up).outputs, width, dtype)


def _known_norm(name: str, norm: Any, width: int) -> Problems:
    if type(norm) not in _NORMS:
        yield f"{name} is a {type(norm).__name__}"
    elif tuple(norm.normalized_shape) != (width,):
        yield f"{name} is over {tuple(norm.normalized_shape)}, where heads are {width} wide together"
    elif any(part is not None and part.shape != (width,) for part in (norm.weight, norm.bias)):
        yield f"{name} has a weight or bias that is not ({width},)"


def _known_linear(name: str, layer: Any, inputs: int, outputs: int | None, dtype: torch.dtype) -> Problems:
    """A layer of a known kind, `inputs` to `outputs`, or to any multiple of 16 where a weight is stored (in, out)."""
    if is_lora(type(layer)):
        yield from _known_adapters(name, layer)
    elif not is_known_linear(layer):
        yield f"{name} is a {type(layer).__name__}"
        return
    view = weight_view(layer)
    if view.inputs != inputs or view.outputs != (view.outputs if outputs is None else outputs):
        yield f"{name} maps {view.inputs} to {view.outputs}, not {inputs} to {outputs or 'any'}"
    if view.inputs < 1 or view.outputs < 1 or view.inputs % tables.LANES:
        yield f"{name} maps {view.inputs} to {view.outputs}; inputs must be a multiple of {tables.LANES}"
    if view.outputs % tables.LANES and view.is_in_out:
        yield f"{name}, stored (in, out), has {view.outputs} outputs, which is no multiple of {tables.LANES}"
    if view.scale is not None:
        yield from _known_codes(name, view, view.scale)
    elif view.weight.dtype is not dtype or type(view.weight) not in (nn.Parameter, Tensor):
        yield f"the weight of {name} is a {type(view.weight).__name__} of {view.weight.dtype}"
    if not all(_is_plain(tensor) for tensor in (view.weight, view.scale) if tensor is not None):
        yield f"a weight of {name} does not lie in the CPU's memory row after row"
    if view.bias is not None and (view.bias.shape != (view.outputs,) or not view.bias.is_cpu):
        yield f"the bias of {name} is {tuple(view.bias.shape)}, not ({view.outputs},)"
    for update in view.updates:
        yield from _known_update(name, view, update)


def _known_adapters(name: str, layer: Any) -> Problems:
    """LoRA in its first form around a known layer: what the layer adds is what its view says."""
    if not is_known_linear(layer.base_layer):
        yield f"{name} adapts a {type(layer.base_layer).__name__}"
    if layer.merged and layer.disable_adapters:
        yield f"adapters of {name} are merged and disabled: its next call takes them out of the weight"
    for adapter in active_adapters(layer):
        if adapter in layer.lora_variant:
            yield f"the adapter {adapter!r} of {name} is a {type(layer.lora_variant[adapter]).__name__}"
        pair = layer.lora_A[adapter], layer.lora_B[adapter]
        if any(type(part) is not nn.Linear or part.bias is not None for part in pair):
            yield f"the adapter {adapter!r} of {name} has a bias, or parts that are no plain nn.Linear"
        if type(layer.lora_dropout[adapter]) not in DROPOUTS:
            yield f"the dropout of the adapter {adapter!r} of {name} is a {type(layer.lora_dropout[adapter]).__name__}"


def _known_update(name: str, view: WeightView, update: LowRankUpdate) -> Problems:
    """A and B of one dtype of floats, which fit the weight and each other."""
    (a, b, scaling), rank = update, len(update.a)
    if (tuple(a.shape), tuple(b.shape)) != ((rank, view.inputs), (view.outputs, rank)):
        yield f"an adapter of {name} has A {tuple(a.shape)} and B {tuple(b.shape)}"
    if a.dtype is not b.dtype or a.dtype not in FLOAT_FORMATS or not (_is_plain(a) and _is_plain(b)):
        yield f"an adapter of {name} has weights of {a.dtype} and {b.dtype}, or they do not lie row after row"
    if any(type(tensor) is not nn.Parameter for tensor in (a, b)) or not isinstance(scaling, (int, float)):
        yield f"an adapter of {name} has weights of {type(a).__name__} and {type(b).__name__}, scaled by {scaling!r}"


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor lies in the CPU's memory row after row."""
    plain = tensor.is_cpu and tensor.layout is torch.strided and tensor.is_contiguous()
    return plain and tensor.data_ptr() % tensor.element_size() == 0 and not tensor.is_neg()


def _known_codes(name: str, view: WeightView, scale: Tensor) -> Problems:
    """Codes and scales of the types and shapes that the kernels read."""
    group = view.group
    if group is not None and (group not in GROUP_SIZES or view.inputs % max(group, UNIT)):
        yield f"{name} has {view.inputs} inputs in groups of {group}"
        return
    codes, scales = (torch.int8, torch.float32) if group is None else (torch.uint8, torch.bfloat16)
    expected = (view.outputs,) if group is None else (view.outputs, view.inputs // group)
    if (view.weight.dtype, scale.dtype, tuple(scale.shape)) != (codes, scales, expected):
        yield f"{name} has codes of {view.weight.dtype} and scales {tuple(scale.shape)} of {scale.dtype}"


REQUIREMENTS: tuple[Callable[[Any], Problems], ...] = (
    _no_autocast,
    _own_attention,
    _no_hooks,
    _own_modules,
    _one_dtype,
    _known_backbone,
    _known_blocks,
    _known_attention,
    _known_embeddings,
    _known_layers,
)
