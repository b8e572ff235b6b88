"""Small language models of odd shapes, and changes that people make to models, each at a random place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from gptrio import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from gptrio.nn.linear import Conv1D, Linear
from gptrio.quantization.native import QuantizedLinear

FAMILIES = ("gpt2", "gpt-neo", "gpt-neox")
POSITIONS = 96
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "linear") * 2 + ("tanh",)


def build(family: str, chance: random.Random) -> Any:
    """A model of a family in evaluation, whose weights make every part count."""
    heads, wide = chance.choice((1, 2, 3)), chance.choice((16, 16, 16, 16, 16, 16, 32, 32, 8))
    width, depth, vocabulary = heads * wide, chance.choice((1, 2, 2, 3)), chance.randint(16, 70)
    inner, act = chance.choice((16, 32, 48, 64, 80, 96, 112, 128, 40)), chance.choice(ACTIVATIONS)
    if family == "gpt2":
        sizes = {"n_embd": width, "n_layer": depth, "n_head": heads, "n_inner": inner, "n_positions": POSITIONS}
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, activation_function=act, **sizes))
    elif family == "gpt-neo":
        kinds = [[[chance.choice(("global", "local"))], 1] for _ in range(depth)]
        sizes = {"hidden_size": width, "num_layers": depth, "num_heads": heads, "intermediate_size": inner}
        sizes |= {"window_size": chance.choice((1, 3, 8)), "max_position_embeddings": POSITIONS}
        config = GPTNeoConfig(vocab_size=vocabulary, attention_types=kinds, activation_function=act, **sizes)
        model = GPTNeoForCausalLM(config)
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        sizes |= {"intermediate_size": inner, "rotary_pct": chance.choice((0.25, 0.5, 1.0))}
        sizes |= {"use_parallel_residual": chance.random() < 0.5, "attention_bias": chance.random() < 0.7}
        sizes |= {"tie_word_embeddings": chance.random() < 0.3, "max_position_embeddings": POSITIONS}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocabulary, hidden_act=act, **sizes))
    return randomize(model).eval()


@torch.no_grad()
def randomize(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        elif "bias" in name:
            parameter.normal_(0, 0.3)
        else:
            parameter.normal_(1, 0.3)
    return model


def blocks(model: Any) -> nn.ModuleList:
    found: nn.ModuleList = model.base_model.blocks
    return found


def modules(model: Any, *kinds: type) -> list[tuple[str, Any]]:
    """Modules of some classes inside the blocks, by their paths in the model."""
    prefix = next(name for name, module in model.named_modules() if module is blocks(model))
    return [(name, m) for name, m in model.named_modules() if name.startswith(prefix + ".") and isinstance(m, kinds)]


def put(model: Any, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    module.to(next(model.parameters()).dtype)
    setattr(model.get_submodule(parent), leaf, module)


def replaced(*kinds: type, by: Callable[[Any, random.Random], nn.Module]) -> Callable[[Any, random.Random], None]:
    """A change that puts another module in the place of one of some classes."""

    def change(model: Any, chance: random.Random) -> None:
        path, module = chance.choice(modules(model, *kinds))
        put(model, path, by(module, chance))

    return change


def last_norm(model: Any, chance: random.Random) -> None:
    norm = model.base_model.final_norm
    path = next(name for name, module in model.named_modules() if module is norm)
    put(model, path, other_norm(norm, chance))


def other_norm(norm: nn.Module, chance: random.Random) -> nn.Module:
    width = next(iter(norm.parameters())).shape[0]
    makers = (
        lambda: nn.LayerNorm(width, eps=0.3),
        lambda: nn.LayerNorm(width, bias=False),
        lambda: nn.LayerNorm(width, elementwise_affine=False),
        nn.Identity,
        lambda: nn.RMSNorm(width),
    )
    return chance.choice(makers)()


def other_activation(chance: random.Random) -> nn.Module:
    return chance.choice((nn.ReLU, nn.SiLU, nn.GELU, lambda: nn.GELU("tanh"), nn.Identity, nn.Tanh))()


def other_eps(model: Any, chance: random.Random) -> None:
    chance.choice([*modules(model, nn.LayerNorm), ("", model.base_model.final_norm)])[1].eps = 0.5


def mlp_of(block: Any) -> tuple[Any, str, str]:
    names = ("c_fc", "c_proj") if hasattr(block.mlp, "c_fc") else ("dense_h_to_4h", "dense_4h_to_h")
    return block.mlp, *names


def other_width(model: Any, chance: random.Random) -> None:
    mlp, up, down = mlp_of(chance.choice(list(blocks(model))))
    width, inner = getattr(mlp, up).in_features, chance.choice((16, 80, 256, 1008, 1000))
    kind = type(getattr(mlp, up))
    sizes = ((inner, width), (width, inner)) if kind is Conv1D else ((width, inner), (inner, width))
    for name, size in zip((up, down), sizes, strict=True):
        made = randomize(nn.ModuleList([kind(*size)]))[0]
        setattr(mlp, name, made.to(next(model.parameters()).dtype))


def other_mlp(model: Any, chance: random.Random) -> None:
    block = chance.choice(list(blocks(model)))
    width = model.base_model.get_input_embeddings().weight.shape[1]
    makers = (nn.Identity, lambda: nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)))
    block.mlp = chance.choice(makers)()


def without_bias(model: Any, chance: random.Random) -> None:
    chance.choice(modules(model, Linear, Conv1D, nn.LayerNorm))[1].bias = None


def of_other_dtype(model: Any, chance: random.Random) -> None:
    module = chance.choice(modules(model, Linear, Conv1D, nn.LayerNorm))[1]
    module.to(chance.choice((torch.float64, torch.bfloat16)))


def frozen(model: Any, chance: random.Random) -> None:
    chance.choice(list(model.parameters())).requires_grad_(False)


def shared(model: Any, chance: random.Random) -> None:
    """One module, in two blocks: an MLP, a norm, a projection, or the whole block."""
    here, there = chance.randrange(len(blocks(model))), chance.randrange(len(blocks(model)))
    if chance.random() < 0.2:
        blocks(model)[here] = blocks(model)[there]
        return
    inside = dict(blocks(model)[there].named_modules())
    name = chance.choice([name for name in inside if name and name in dict(blocks(model)[here].named_modules())])
    put(blocks(model)[here], name, inside[name])


def pruned(model: Any, chance: random.Random) -> None:
    heads = blocks(model)[0].self_attention.all_heads
    if heads > 1:
        model.prune_heads({0: [chance.randrange(heads)]})


def resized(model: Any, chance: random.Random) -> None:
    model.resize_token_embeddings(model.config.vocab_size + chance.choice((-3, 1, 16)))


def fewer_blocks(model: Any, chance: random.Random) -> None:
    if len(blocks(model)) > 1:
        del blocks(model)[chance.randrange(len(blocks(model)))]


def blocks_in_other_order(model: Any, chance: random.Random) -> None:
    first = blocks(model)[0]
    blocks(model)[0] = blocks(model)[-1]
    blocks(model)[-1] = first


def other_attention(model: Any, chance: random.Random) -> None:
    attention = chance.choice(list(blocks(model))).self_attention
    name, value = chance.choice((("scale", 0.3), ("window", 3), ("layer_idx", 1), ("float32_scores", True)))
    setattr(attention, name, value)


def other_layout(model: Any, chance: random.Random) -> None:
    """The same weight, stored column after column, or at an odd place of a larger tensor."""
    weight = chance.choice(modules(model, Linear, Conv1D))[1].weight
    if chance.random() < 0.5:
        weight.data = weight.data.t().contiguous().t()
    else:
        larger = torch.empty(weight.numel() + 5, dtype=weight.dtype)
        larger[3 : 3 + weight.numel()] = weight.data.flatten()
        weight.data = larger[3 : 3 + weight.numel()].view(weight.shape)


def plain_linear(layer: Any, _: random.Random) -> nn.Module:
    """torch's own class, with the same weights."""
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    other = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    other.load_state_dict({"weight": weight, **({"bias": layer.bias} if layer.bias is not None else {})})
    return other.to(weight.dtype)


def quantized_layer(layer: Any, chance: random.Random) -> nn.Module:
    group = chance.choice((None, 32))
    return QuantizedLinear(layer, group if layer.in_features % 64 == 0 else None)


def other_head(model: Any, chance: random.Random) -> None:
    head = model.get_output_embeddings()
    rows, width = head.weight.shape
    makers = (lambda: nn.Linear(width, rows), lambda: nn.Sequential(nn.Linear(width, rows)), lambda: Linear(width, 19))
    model.set_output_embeddings(randomize(nn.ModuleList([chance.choice(makers)()]))[0])


def in_training(model: Any, chance: random.Random) -> None:
    chance.choice(modules(model, nn.Module))[1].train()


def hooked(model: Any, chance: random.Random) -> None:
    chance.choice(modules(model, nn.Module))[1].register_forward_hook(lambda *_: None)


def own_forward(model: Any, chance: random.Random) -> None:
    module = chance.choice(modules(model, Linear, Conv1D, nn.LayerNorm))[1]
    forward = module.forward
    module.forward = lambda *given, **named: 0.5 * forward(*given, **named)


def other_dropout(model: Any, chance: random.Random) -> None:
    width = model.base_model.get_input_embeddings().weight.shape[1]
    path, _ = chance.choice([(n, m) for n, m in modules(model, nn.Dropout) if "attn_dropout" not in n])
    put(model, path, chance.choice((nn.Identity, lambda: nn.Linear(width, width)))())


def other_embedding(model: Any, chance: random.Random) -> None:
    table = model.get_input_embeddings()
    made = nn.Embedding(*table.weight.shape, max_norm=chance.choice((None, 1.0)))
    model.set_input_embeddings(made)


def other_heads(model: Any, chance: random.Random) -> None:
    attention = chance.choice(list(blocks(model))).self_attention
    attention.head_dim, attention.all_heads = attention.head_dim // 2, attention.all_heads * 2


def normed_weight(model: Any, chance: random.Random) -> None:
    layer = chance.choice(modules(model, Linear, Conv1D))[1]
    nn.utils.parametrizations.weight_norm(layer)


def other_residual(model: Any, chance: random.Random) -> None:
    block = chance.choice(list(blocks(model)))
    if hasattr(block, "use_parallel_residual"):
        block.use_parallel_residual = not block.use_parallel_residual


def unused_part(model: Any, chance: random.Random) -> None:
    chance.choice(list(blocks(model))).adapter = nn.Linear(3, 3)


def activation(model: Any, chance: random.Random) -> None:
    for block in chance.sample(list(blocks(model)), 1 + chance.randrange(len(blocks(model)))):
        block.mlp.act = other_activation(chance)


def adapted(model: Any, chance: random.Random) -> None:
    """LoRA around one linear layer or all, by one adapter or two, in one of the states that PEFT knows."""
    names = [name for name, _ in modules(model, Linear, Conv1D)]
    targets = names if chance.random() < 0.5 else [chance.choice(names)]
    kinds: tuple[dict[str, Any], ...] = ({}, {}, {}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"lora_bias": True})
    options = chance.choice((*kinds, {"use_dora": True}))
    adapters = ["first", "second"][: chance.choice((1, 1, 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT corrects
        for name in adapters:
            rank = chance.choice((1, 2, 3, 8, 16, 17))
            model.add_adapter(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, **options), name)
    dtype = chance.choice((None, None, torch.float32, torch.bfloat16, torch.float64))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter).mul_(0.3 * parameter.shape[-1] ** -0.5).to(dtype)
    model.set_adapter(adapters[: chance.choice((1, 2))])
    state = chance.choice(("on", "on", "on", "off", "merged", "merged and off", "scaled"))
    for layer in (module for module in model.modules() if hasattr(module, "lora_A")):
        if "merged" in state:
            layer.merge()
        if "off" in state:
            layer.enable_adapters(False)
        if state == "scaled":
            layer.scale_layer(0.5)


CHANGES: tuple[Callable[[Any, random.Random], None], ...] = (
    activation,
    last_norm,
    replaced(nn.LayerNorm, by=other_norm),
    replaced(Linear, Conv1D, by=plain_linear),
    replaced(Linear, Conv1D, by=quantized_layer),
    other_eps,
    other_width,
    other_mlp,
    without_bias,
    of_other_dtype,
    frozen,
    shared,
    pruned,
    resized,
    fewer_blocks,
    blocks_in_other_order,
    other_attention,
    other_layout,
    other_head,
    in_training,
    hooked,
    own_forward,
    other_dropout,
    other_embedding,
    other_heads,
    normed_weight,
    other_residual,
    unused_part,
    adapted,
    adapted,  # whose states are many
)
