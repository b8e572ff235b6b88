"""What every model can do besides its forward: be built, loaded, saved, moved, tied and asked about itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from gptrio.config import PretrainedConfig
from gptrio.config.auto import as_own_config
from gptrio.errors import ConfigError, InputError
from gptrio.generation.config import GenerationConfig
from gptrio.kernels.packing import release_packs
from gptrio.models.adapters import AdaptersMixin, load_with_adapter
from gptrio.models.checkpointing import CheckpointingMixin
from gptrio.models.garbage import paused_collection
from gptrio.models.generating import GenerationMixin
from gptrio.models.inputs import spread_head_mask
from gptrio.models.placement import execution_device
from gptrio.models.pruning import prune
from gptrio.models.trees import register_trees
from gptrio.nn.attention import check_implementation
from gptrio.nn.linear import Conv1D

Model = TypeVar("Model", bound="PreTrainedModel")
register_trees()


class PreTrainedModel(AdaptersMixin, CheckpointingMixin, GenerationMixin):
    """Base of all models.

    Args:
        config: the model's configuration, of the class's `config_class`.

    Raises:
        ConfigError: the configuration is of another family.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    main_input_name: ClassVar[str] = "input_ids"
    is_parallelizable: ClassVar[bool] = False
    _no_split_modules: ClassVar[list[str]] = []
    _tied_weights_keys: ClassVar[list[str]] = []
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = []
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = []
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa: ClassVar[bool] = True
    _supports_flash_attn: ClassVar[bool] = True
    has_cross_attention: ClassVar[bool] = False

    def __init__(self, config: PretrainedConfig, *inputs: Any, **kwargs: Any) -> None:
        """Remember the configuration; a family's class builds its parts and then calls `post_init`."""
        super().__init__()
        config = as_own_config(config)
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, got {type(config).__name__}; "
                f"{type(self).__name__}.from_pretrained(name) loads a model by name"
            )
        self.config: Any = config
        self.name_or_path = config.name_or_path
        self.warnings_issued: dict[str, bool] = {}
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None

    # building -------------------------------------------------------------------------------------------------------

    def post_init(self) -> None:
        """Prune, initialise and tie what the class has built."""
        if self.config.pruned_heads:
            prune(self.base_model, self.config.pruned_heads)
        self.init_weights()
        self.obey_checkpointing_key()

    def init_weights(self) -> None:
        """Draw all weights anew, unless they have no storage, and tie what is tied."""
        if not next(self.parameters()).is_meta:
            self.apply(self._init_weights)
        self.tie_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of one module: normal, zero biases, unit norms (GPT-2; Radford et al., 2019)."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, Conv1D)):
            module.weight.normal_(0.0, std * getattr(module, "init_gain", 1.0))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()

    @classmethod
    def _from_config(cls: type[Model], config: PretrainedConfig, **kwargs: Any) -> Model:
        """Build a model with new weights; `dtype`, `torch_dtype` and `attn_implementation` as in `from_pretrained`."""
        from gptrio.models.loading import build

        return build(cls, config, **kwargs)

    # files ----------------------------------------------------------------------------------------------------------

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[Model, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see `gptrio.models.loading.load_model` for every argument and error.

        A saved adapter is loaded into the model that it names; `adapter_name` and `adapter_kwargs`: see `load_adapter`.
        """
        with paused_collection():
            from gptrio.models.loading import load_model

            return load_with_adapter(
                lambda name: load_model(cls, name, *model_args, **kwargs), pretrained_model_name_or_path, kwargs
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write configuration and weights; see `gptrio.models.saving.save_model` for every argument and error."""
        from gptrio.models.saving import save_model

        save_model(self, save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push configuration and weights to a hub repository (options of `gptrio.hub.push_folder`)."""
        from gptrio.hub import save_and_push

        return save_and_push(self.save_pretrained, repo_id, **kwargs)

    # parts ----------------------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Any:
        """The backbone: this model itself, or the part that a head stands on."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter; of a model whose parameters accelerate keeps elsewhere, where it computes."""
        device = next(self.parameters()).device
        return device if device.type != "meta" else execution_device(self) or device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """A small batch (3, 5) that any forward takes."""
        rows = [[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]]
        return {"input_ids": torch.tensor(rows, device=self.device) % self.config.vocab_size}

    @property
    def framework(self) -> str:
        """The tensor library: "pt"."""
        return "pt"

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters, shared ones once.

        Args:
            only_trainable: leave out those without gradient.
            exclude_embeddings: leave out tables of tokens and positions.
        """
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        counted = (p for p in self.parameters() if id(p) not in tables)
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of parameters, and of buffers unless told otherwise."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def prune_heads(self, heads_to_prune: dict[int, list[int]]) -> None:
        """Remove attention heads for good.

        Args:
            heads_to_prune: {layer: [heads]}, numbered as in the unpruned model; layer -1 is the last one.

        Raises:
            InputError: no such layer or head, or no head would be left.
        """
        for layer, heads in prune(self.base_model, heads_to_prune).items():
            pruned = set(self.config.pruned_heads.get(layer, ())) | set(heads)
            self.config.pruned_heads = {**self.config.pruned_heads, layer: sorted(pruned)}

    # switches -------------------------------------------------------------------------------------------------------

    @property
    def attn_implementation(self) -> str:
        """Attention back end in use: the configuration's, or sdpa."""
        return self.config._attn_implementation or "sdpa"

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Choose the attention back end: "eager", "sdpa" or "flash_attention_2".

        Raises:
            UnsupportedError: no such back end.
        """
        self.config._attn_implementation = check_implementation(attn_implementation)

    def get_head_mask(
        self, head_mask: Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Tensor | list[None]:
        """A head mask with an axis for everything that attention weights have.

        Args:
            head_mask: (H,) or (L, H), 1 keeps a head and 0 removes it; or None.
            num_hidden_layers: L.
            is_attention_chunked: add an axis for chunks at the end.

        Returns:
            (L, 1, H, 1, 1) in the model's dtype; a list of L None if no mask was given.
        """
        if head_mask is None:
            return [None] * num_hidden_layers
        mask = spread_head_mask(head_mask, num_hidden_layers).to(self.dtype)
        return mask.unsqueeze(-1) if is_attention_chunked else mask

    def invert_attention_mask(self, encoder_attention_mask: Tensor) -> Tensor:
        """What to add to scores for a mask (B, S) or (B, T, S): 0 where it is 1, the least number where it is 0.

        Returns:
            (B, 1, 1 or T, S) in the model's dtype.

        Raises:
            InputError: the mask has another number of axes.
        """
        if encoder_attention_mask.dim() not in (2, 3):
            raise InputError(f"a mask must be (B, S) or (B, T, S); got shape {tuple(encoder_attention_mask.shape)}")
        wide = (
            encoder_attention_mask[:, None, None]
            if encoder_attention_mask.dim() == 2
            else encoder_attention_mask[:, None]
        )
        return (1.0 - wide.to(self.dtype)) * torch.finfo(self.dtype).min

    def train(self: Model, mode: bool = True) -> Model:
        """Switch between training and evaluation; packed copies of the weights are freed for training."""
        if mode:
            release_packs(self)
        return super().train(mode)

    def _apply(self: Model, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        release_packs(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.use_return_dict if return_dict is None else return_dict)
