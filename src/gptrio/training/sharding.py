"""Parameters, gradients and the optimizer's state divided among the processes of a run, by torch's FSDP2.

Each block of the model is a group, whose whole weights are there only while it is computed; what lies outside the
blocks, tied tables among it, is one more. In a checkpoint the model is whole, so that `from_pretrained` reads it; of
the optimizer's state each rank writes its own rows, as safetensors by name. torch.distributed.checkpoint is not used:
it keeps what it needs to read in a pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from gptrio.errors import CheckpointError, OptionError, UnsupportedError, counted, nearest, warn
from gptrio.training import ranks
from gptrio.training.enums import BITSANDBYTES_OPTIMIZERS, FSDPOption, OptimizerNames
from gptrio.training.parts import innermost
from gptrio.training.processes import ManyProcesses

_SETTINGS = ("transformer_layer_cls_to_wrap", "reshard_after_forward", "offload_params", "version")
_WITHOUT_EFFECT = (
    "auto_wrap_policy",
    "backward_prefetch",
    "cpu_ram_efficient_loading",
    "forward_prefetch",
    "limit_all_gathers",
    "state_dict_type",
    "sync_module_states",
    "use_orig_params",
)
_HYBRID = (FSDPOption.HYBRID_SHARD, FSDPOption.HYBRID_SHARD_ZERO2, FSDPOption.NO_SHARD)


class ShardedProcesses(ManyProcesses):
    """What `Trainer` needs of accelerate's `Accelerator`, for a model of which each process has a part.

    Args:
        args: `TrainingArguments` with `fsdp`.
        dtype: of matrix products; None is that of the weights.
    """

    is_sharded = True

    def __init__(self, args: Any, dtype: torch.dtype | None = None) -> None:
        super().__init__(args, dtype)
        config = args.fsdp_config
        self._layers = config.get("transformer_layer_cls_to_wrap")
        self._keeps_whole = FSDPOption.SHARD_GRAD_OP in args.fsdp or config.get("reshard_after_forward") is False
        self._is_offloaded = FSDPOption.OFFLOAD in args.fsdp or bool(config.get("offload_params"))

    def shard(self, model: nn.Module) -> None:
        """Divide the parameters of a model, rank 0's, in place; they become new ones, for an optimizer to be made of.

        Raises:
            OptionError: no module has the name of `transformer_layer_cls_to_wrap`.
            UnsupportedError: a parameter is quantized.
        """
        if is_sharded(model):
            return
        if not all(parameter.is_floating_point() for parameter in model.parameters()):
            raise UnsupportedError(
                "quantized weights cannot be divided (fsdp); leave fsdp out, so that each process has them whole"
            )
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        # a view that is changed in place loses a hook of torch's; no loss of these models does that
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor")
        for tensor in [*model.parameters(), *model.buffers()]:
            whole = tensor.data.to(self.device)
            dist.broadcast(whole, src=0)
            tensor.data.copy_(whole)
        mesh = init_device_mesh(self.device.type, (self.num_processes,))
        policy = CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if self._is_offloaded else OffloadPolicy()
        for module in [*_blocks(model, self._layers), model]:
            kind, is_root = type(module), module is model
            reshard = None if is_root else not self._keeps_whole
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
            type(module).__name__ = kind.__name__  # which is written to config.json
        model.register_forward_hook(_reshard_after_evaluation)

    def prepare_model(self, model: Any, evaluation_mode: bool = False) -> Any:
        """The model, divided."""
        self.shard(self.unwrap_model(model))
        self._models.append(model)
        return model

    @contextmanager
    def _without_sync(self, model: Any) -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def no_sync(self, model: Any) -> AbstractContextManager[Any]:
        """The context of a batch that is not the last of its update: gradients are whole, and stay in their process."""
        return self._without_sync(self.unwrap_model(model))

    def clip_grad_norm_(
        self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0, optimizer: Any = None
    ) -> Tensor:
        """Shrink the gradients of all processes to a norm and return the norm that they had."""
        gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(each, norm_type) for each in gradients])
        power = float(torch.linalg.vector_norm(norms, norm_type)) ** norm_type
        norm = torch.tensor(ranks.total(power) ** (1 / norm_type))
        factor = float((max_norm / (norm + 1e-6)).clamp(max=1))
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    def full_state_dict(self, model: nn.Module, keeps: bool) -> dict[str, Tensor]:
        """The whole tensors of a model, put together one after another.

        Args:
            model: divided.
            keeps: return them, on the CPU; other ranks only give their parts.
        """
        found: dict[str, Tensor] = {}
        of_tied: dict[int, Tensor] = {}
        for name, value in self.unwrap_model(model).state_dict(keep_vars=True).items():
            if id(value) not in of_tied:
                whole = value.detach()
                whole = whole.to(self.device).full_tensor() if hasattr(whole, "full_tensor") else whole
                of_tied[id(value)] = whole.cpu() if keeps else whole.new_empty(0)
            found[name] = of_tied[id(value)]
        return found


class SavedRows(NamedTuple):
    """A tensor in a checkpoint, of which each rank has written some rows.

    Attributes:
        name: in every file.
        shape: of the whole.
        files: in the order of the rows.
    """

    name: str
    shape: torch.Size
    files: Sequence[Path]

    def rows(self, start: int, stop: int) -> Tensor:
        """Some of the rows; no others are read.

        Raises:
            CheckpointError: the files have not as many.
        """
        parts, before = [], 0
        for path in self.files:
            with safe_open(path, "pt") as file:
                part = file.get_slice(self.name)
                length = part.get_shape()[0]
                first, last = (min(max(place - before, 0), length) for place in (start, stop))
                parts.append(part[first:last])
            before += length
        if before != self.shape[0]:
            raise CheckpointError(
                f"the files beside {self.files[0]} have {before} of {self.shape[0]} rows of {self.name}"
            )
        return torch.cat(parts)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has only a part of a model's parameters."""
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


def placed(value: Any, like: Any) -> Any:
    """A value of a checkpoint as a parameter has it: this rank's rows of a tensor, or the whole.

    Args:
        value: a tensor or `SavedRows` of the parameter's shape; anything else is returned as it is.
        like: the parameter.
    """
    is_rows, shape = isinstance(value, SavedRows), getattr(value, "shape", None)
    if not hasattr(like, "to_local") or shape != like.shape:
        return value.rows(0, value.shape[0]) if is_rows else value
    from torch.distributed.tensor import DTensor

    size = -(-shape[0] // ranks.world_size())
    start, stop = (min(place * size, shape[0]) for place in (ranks.rank(), ranks.rank() + 1))
    rows = value.rows(start, stop) if is_rows else value[start:stop].clone()
    mesh, placements = like.device_mesh, like.placements
    rows = rows.to(like.to_local().device)
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def check_sharding(args: Any, trainer: Any) -> None:
    """Refuse what does not go with parameters that are divided.

    Raises:
        OptionError: there is one process, or an optimizer of the whole parameters.
        UnsupportedError: an option or setting that is not built here; the message has the way out.
    """
    if args.world_size == 1:
        raise OptionError(
            f"fsdp={_named(args.fsdp)!r} divides parameters among processes, but there is one; start the script by "
            "`torchrun --nproc-per-node N`, or leave fsdp out"
        )
    if trainer.optimizer is not None:
        raise OptionError(
            "with fsdp, the optimizer is made after the parameters are divided; pass optimizer_cls_and_kwargs in place "
            "of optimizers"
        )
    _check_settings(args.fsdp_config)
    bad = BITSANDBYTES_OPTIMIZERS | {OptimizerNames.ADAFACTOR}
    refused = {
        f"fsdp={_named(args.fsdp)!r}": ("full_shard", any(option in args.fsdp for option in _HYBRID)),
        "fsdp_config={'min_num_params': ...}": ("no size: each block is a group", args.fsdp_config["min_num_params"]),
        "fsdp_config={'activation_checkpointing': True}": (
            "gradient_checkpointing=True",
            args.fsdp_config.get("activation_checkpointing"),
        ),
        f"optim={args.optim.value!r}": ("adamw_torch", args.optim in bad),
        "fp16=True": ("bf16=True", args.fp16),
        "save_on_each_node=True": ("an output_dir that all machines share", args.save_on_each_node),
        "bf16_full_eval=True or fp16_full_eval=True": ("bf16=True", args.bf16_full_eval or args.fp16_full_eval),
        "torch_compile=True": ("no compilation", args.torch_compile),
    }
    for name, (instead, is_asked) in refused.items():
        if is_asked:
            raise UnsupportedError(f"{name} does not go with parameters that are divided (fsdp); use {instead}")
    from torch.distributed import fsdp

    if not hasattr(fsdp, "fully_shard"):
        raise UnsupportedError(f"fsdp needs torch 2.6 or newer, and this is {torch.__version__}")


def _check_settings(config: dict[str, Any]) -> None:
    given = [name for name, value in config.items() if value]
    refused = ("min_num_params", "activation_checkpointing")
    unknown = [name for name in given if name not in (*_SETTINGS, *_WITHOUT_EFFECT, *refused)]
    if unknown:
        hint = nearest(unknown[0], _SETTINGS) or f"known are {', '.join(_SETTINGS)}"
        raise OptionError(f"fsdp_config has no setting {unknown[0]!r}; {hint}")
    idle = [name for name in given if name in _WITHOUT_EFFECT]
    if idle and ranks.is_first():
        warn(f"fsdp_config's {', '.join(idle)} has no effect: torch's fully_shard divides by blocks, and needs no more")


def _named(options: Sequence[Any]) -> str:
    return " ".join(option.value for option in options)


def _blocks(model: nn.Module, names: Sequence[str] | None) -> list[nn.Module]:
    wanted = set(names or getattr(innermost(model), "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in wanted]
    if names and not found:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise OptionError(
            f"transformer_layer_cls_to_wrap={list(names)} is none of the {counted(len(kinds), 'class')} of the model's "
            f"modules, which are {', '.join(kinds)}"
        )
    return found


def _local(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _reshard_after_evaluation(module: Any, *_: Any) -> None:
    """Without gradients, no backward pass frees the whole weights of the last group."""
    if not torch.is_grad_enabled():
        module.reshard()
