"""How training arguments say that parameters are sharded over processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gptrio.errors import OptionError, UnsupportedError, warn
from gptrio.hub import read_json
from gptrio.training.enums import FSDPOption

if TYPE_CHECKING:
    from gptrio.training.arguments import TrainingArguments

_XLA = ("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt")
_ONLY_SHARDED = ("min_num_params", "transformer_layer_cls_to_wrap")


def check_fsdp(args: TrainingArguments) -> None:
    """Set `fsdp` to a list of options and `fsdp_config` to a dictionary.

    Raises:
        OptionError: options or settings that contradict each other.
        UnsupportedError: FSDP of XLA.
    """
    args.fsdp = _options(args.fsdp or _of_launcher())
    config = _settings(args.fsdp_config)
    config["min_num_params"] = max(config.get("min_num_params", 0), args.fsdp_min_num_params)
    layers = config.get("transformer_layer_cls_to_wrap")
    layers = [layers] if isinstance(layers, str) else layers
    if args.fsdp_transformer_layer_cls_to_wrap is not None:
        layers = [*(layers or ()), args.fsdp_transformer_layer_cls_to_wrap]
    if layers is not None:
        config["transformer_layer_cls_to_wrap"] = layers
    config |= {name: config.get(name, False) for name in _XLA}
    _check(bool(args.fsdp), config)
    args.fsdp_config = config


def _options(value: Any) -> list[FSDPOption]:
    if isinstance(value, bool):
        value = "full_shard" if value else ""
    options = [FSDPOption(name) for name in (value.split() if isinstance(value, str) else value or ())]
    if options == [FSDPOption.OFFLOAD]:
        raise OptionError("fsdp='offload' says how, but not what; use 'full_shard offload' or 'shard_grad_op offload'")
    if FSDPOption.FULL_SHARD in options and FSDPOption.SHARD_GRAD_OP in options:
        raise OptionError("fsdp has both full_shard and shard_grad_op; expected one of them")
    return options


def _of_launcher() -> str:
    """What `accelerate launch --use_fsdp` asks for."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return ""
    is_kept = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "false"
    is_offloaded = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
    return f"{'shard_grad_op' if is_kept else 'full_shard'}{' offload' if is_offloaded else ''}"


def _settings(value: Any) -> dict[str, Any]:
    """The settings without the prefix `fsdp_`, which accelerate's files have."""
    content = read_json(value, OptionError) if isinstance(value, str) else value or {}
    return {name.removeprefix("fsdp_"): setting for name, setting in content.items()}


def _check(is_sharded: bool, config: dict[str, Any]) -> None:
    if any(config[name] for name in _XLA):
        raise UnsupportedError("fsdp_config asks for XLA; TPUs are used through JAX: see gptrio.jax.training")
    given = [name for name in _ONLY_SHARDED if config.get(name)]
    if given and not is_sharded:
        warn(f"fsdp_config has {' and '.join(given)}, but nothing is sharded; set fsdp='full_shard', or leave it out")
    if len(given) == len(_ONLY_SHARDED) and is_sharded:
        raise OptionError(f"fsdp_config has {' and '.join(given)}; expected one of them")
    is_synced = str(config.get("sync_module_states", "true")).lower() == "true"
    if str(config.get("cpu_ram_efficient_loading", "false")).lower() == "true" and not is_synced:
        raise OptionError(
            "fsdp_config has cpu_ram_efficient_loading=True, so that one process alone loads the weights; "
            "sync_module_states must be True, too"
        )
