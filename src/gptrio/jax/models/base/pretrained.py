"""What every Flax model has besides its module: parameters, a plain call, a cache, files, casts."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from gptrio.config import PretrainedConfig
from gptrio.config.auto import config_for
from gptrio.config.auto_models import check_auto_class
from gptrio.config.weight_names import WeightNames
from gptrio.errors import InputError
from gptrio.generation.options.config import GenerationConfig
from gptrio.jax.models.base import inputs
from gptrio.jax.models.base.generation_mixin import FlaxGenerationMixin
from gptrio.jax.nn.linear import Dtype
from gptrio.uploads import Pushable

Params = dict[str, Any]  # nested: name of a part -> parts, or name of a parameter -> array
ParamsPath = tuple[str, ...]  # names from the root of `Params` to a parameter


class FlaxPreTrainedModel(FlaxGenerationMixin, Pushable):
    """Base of all Flax models: a Flax Linen module with its parameters.

    `model.module` is the module itself, for `apply`, or as a part of a larger module. `jax.jit`, `grad` and `vmap`
    apply to the module and to calls of the model with `params=...`.

    Args:
        config: the model's configuration, of the class's `config_class`.
        input_shape: (B, T) of the input that shows the module its shapes.
        seed: of new parameters.
        dtype: of the computation; `to_bf16` and `to_fp16` convert parameters.
        _do_init: draw new parameters; if False, the caller keeps the parameters and passes them to every call.
        kwargs: further attributes of the module, such as `gradient_checkpointing`.

    Raises:
        ConfigError: the configuration is of another family.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    module_class: ClassVar[Any]
    weight_names: ClassVar[WeightNames] = WeightNames()
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "flax"
    _auto_class: ClassVar[str | None] = None

    def __init__(
        self,
        config: PretrainedConfig,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        dtype: Dtype = jnp.float32,
        _do_init: bool = True,
        **kwargs: Any,
    ) -> None:
        config = config_for(type(self), config)
        self.config: Any = config
        self.module = self.module_class(config=config, dtype=dtype, **kwargs)
        self.key = jax.random.PRNGKey(seed)
        self.dtype = dtype
        self.input_shape = input_shape
        self.name_or_path = config.name_or_path
        self.generation_config = GenerationConfig.from_model_config(config) if self.can_generate() else None
        self._missing_keys: set[ParamsPath] = set()
        self.params_shape_tree: Params = jax.eval_shape(self._draw, self.key)
        self.required_params: set[ParamsPath] = set(self.flat_shapes)
        self._is_initialized = _do_init
        if _do_init:
            self.params = self.init_weights(self.key, input_shape)

    # parameters -----------------------------------------------------------------------------------------------------

    @property
    def params(self) -> Params:
        """The parameters, nested dictionaries of arrays.

        Raises:
            InputError: the model was built with `_do_init=False`, so that the caller has them; or, on assignment, some
                are missing.
        """
        self._check_holds_params()
        return self._params

    @params.setter
    def params(self, params: Params | FrozenDict[str, Any]) -> None:
        self._check_holds_params()
        tree: Params = unfreeze(params)
        missing = sorted("/".join(path) for path in self.required_params - set(flatten_dict(tree)))
        if missing:
            raise InputError(f"params lack {', '.join(missing[:8])}{', ...' * (len(missing) > 8)}")
        self._params = tree

    @property
    def flat_shapes(self) -> dict[ParamsPath, jax.ShapeDtypeStruct]:
        """Shape and type of each parameter by its path."""
        shapes: dict[ParamsPath, jax.ShapeDtypeStruct] = flatten_dict(self.params_shape_tree)
        return shapes

    def _check_holds_params(self) -> None:
        if not self._is_initialized:
            raise InputError(
                f"this {type(self).__name__} was built with _do_init=False and holds no params; keep those that "
                "from_pretrained or init_weights returned, and pass params=... to every call"
            )

    def init_weights(self, rng: Array, input_shape: tuple[int, int], params: Params | None = None) -> Params:
        """New parameters, or the given ones with new ones where `from_pretrained` has found none.

        Args:
            rng: random key.
            input_shape: (B, T) of the input that shows the module its shapes; of no consequence for these families.
            params: loaded parameters, or None.
        """
        if params is None:
            return jax.jit(self._draw)(rng)
        flat = flatten_dict(unfreeze(params))
        missing, self._missing_keys = self._missing_keys | (self.required_params - set(flat)), set()
        return unflatten_dict(flat | self.draw_some(rng, missing))

    def draw_some(self, rng: Array, paths: set[ParamsPath]) -> dict[ParamsPath, Array]:
        """New parameters of some paths only."""
        if not paths:
            return {}
        names = {"/".join(path): path for path in paths}

        def draw(rng: Array) -> dict[str, Array]:
            drawn = flatten_dict(self._draw(rng), sep="/")
            return {name: drawn[name] for name in names}

        return {names[name]: value for name, value in jax.jit(draw)(rng).items()}

    def _draw(self, rng: Array) -> Params:
        ids = jnp.zeros(self.input_shape, jnp.int32)
        params_rng, dropout_rng = jax.random.split(rng)
        drawn = self.module.init({"params": params_rng, "dropout": dropout_rng}, ids, jnp.ones_like(ids))
        return unfreeze(drawn)["params"]

    def to_bf16(self, params: Params, mask: Any = None) -> Params:
        """A copy of parameters in bfloat16, of those only where a tree `mask` of the same form is True."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Params, mask: Any = None) -> Params:
        """A copy of parameters in float16, of those only where a tree `mask` of the same form is True."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Params, mask: Any = None) -> Params:
        """A copy of parameters in float32, of those only where a tree `mask` of the same form is True."""
        return _cast(params, jnp.float32, mask)

    def enable_gradient_checkpointing(self) -> None:
        """Compute blocks again in the backward pass rather than keep what they computed: less memory, more time."""
        self.module = self.module.clone(gradient_checkpointing=True)

    # the call -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Params | None = None,
        past_key_values: dict[str, Any] | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Apply the module.

        Args:
            input_ids: (B, T). An id outside the vocabulary raises TokenIdError, or gives NaN under `jit`.
            attention_mask: (B, T) 1 for real tokens, 0 for padding; with a cache (B, past + T) or longer.
            position_ids: (B, T); by default columns, which count padding. Needed with a cache.
            params: other parameters than `self.params`.
            past_key_values: a cache of `init_cache`, or of an earlier call; never changed in place.
            dropout_rng: key of dropout, for `train=True`.
            train: with dropout.
            output_attentions: also return the weights of attention, L of (B, H, T, S).
            output_hidden_states: also return L + 1 hidden states (B, T, C).
            return_dict: return an output object rather than a tuple.

        Returns:
            What the module returns; with a cache the new one too, in second place of a tuple.

        Raises:
            InputError: shapes do not fit each other, or the cache is full.
        """
        config, ids = self.config, inputs.as_ids(input_ids)
        inputs.check_ids(input_ids, config)
        mask = None if attention_mask is None else jnp.asarray(attention_mask)
        if mask is not None:
            inputs.check_mask(mask, ids, past_key_values)
        variables: dict[str, Any] = {"params": self.params if params is None else params}
        if past_key_values:
            if position_ids is None:
                raise InputError("position_ids are needed with past_key_values, which do not say how much is padding")
            inputs.check_cache(past_key_values, ids, self.layer_windows)
            variables["cache"] = past_key_values
        inputs.warn_of_left_padding(attention_mask, position_ids)
        positions = np.arange(ids.shape[1])[None] if position_ids is None else position_ids
        inputs.check_positions(positions, ids, config)
        returns_dict = config.return_dict if return_dict is None else return_dict
        result = self.module.apply(
            variables,
            ids,
            mask,
            jnp.broadcast_to(jnp.asarray(positions), ids.shape),
            deterministic=not train,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            return_dict=returns_dict,
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
            mutable=["cache"] if past_key_values else False,
        )
        if not past_key_values:
            return result
        output, changed = result
        cache = unfreeze(changed["cache"])
        if not returns_dict:
            return (output[0], cache, *output[1:])
        output["past_key_values"] = cache
        return output

    def init_cache(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """An empty cache of keys and values.

        Args:
            batch_size: B.
            max_length: most columns, padding included. A layer with a window has no more slots than the window.
        """
        ids = jnp.zeros((batch_size, 1), jnp.int32)
        shapes = jax.eval_shape(lambda: self.module.init(self.key, ids, init_cache=max_length)["cache"])
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), unfreeze(shapes))

    @property
    def layer_windows(self) -> list[int | None]:
        """Most positions that each layer sees, the query's own included; None for all."""
        windows: list[int | None] = getattr(self.config, "layer_windows", [None] * self.config.num_hidden_layers)
        return windows

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "FlaxAutoModel") -> None:
        """Set the auto class that loads this class; see `gptrio.config.auto_models.check_auto_class` for the errors."""
        from gptrio.jax.models.auto import FlaxAuto

        cls._auto_class = check_auto_class(cls, auto_class, FlaxAuto)

    # files ----------------------------------------------------------------------------------------------------------

    @classmethod
    def _from_config(cls, config: PretrainedConfig, **kwargs: Any) -> Any:
        """Build a model with new parameters; arguments as for the class."""
        return cls(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Dtype = jnp.float32,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; see `gptrio.jax.models.base.loading.load_model` for every argument and error."""
        from gptrio.jax.models.base.loading import load_model

        return load_model(cls, pretrained_model_name_or_path, dtype, *model_args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write configuration and parameters; see `gptrio.jax.models.base.saving.save_model` for every argument."""
        from gptrio.jax.models.base.saving import save_model

        save_model(self, save_directory, *args, **kwargs)


class FlaxCausalLM(FlaxPreTrainedModel):
    """What a model that predicts the next token has besides."""

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class predicts the next token: it does."""
        return True

    def prepare_inputs_for_generation(
        self, input_ids: Array, max_length: int, attention_mask: Array | None = None
    ) -> dict[str, Any]:
        """What the first call of a generation gets besides the prompt.

        Args:
            input_ids: (B, T) the prompt.
            max_length: most columns of prompt and answer.
            attention_mask: (B, T) 1 for real tokens.

        Returns:
            An empty cache, a mask (B, max_length) that is 1 beyond the prompt, and positions (B, T), which count real
            tokens only.
        """
        mask = jnp.ones_like(input_ids, dtype=jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
        beyond = jnp.ones((input_ids.shape[0], max_length - input_ids.shape[1]), jnp.int32)
        return {
            "past_key_values": self.init_cache(input_ids.shape[0], max_length),
            "attention_mask": jnp.concatenate([mask, beyond], axis=1),
            "position_ids": mask.cumsum(axis=-1) - 1,
        }

    def update_inputs_for_generation(self, model_outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the next call gets: the new cache, and the positions (B, 1) after the last ones."""
        model_kwargs["past_key_values"] = model_outputs.past_key_values
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        return model_kwargs


def _cast(params: Params, dtype: Dtype, mask: Any) -> Params:
    def cast(value: Any, is_chosen: Any = True) -> Any:
        return value.astype(dtype) if is_chosen and jnp.issubdtype(value.dtype, jnp.floating) else value

    trees = (unfreeze(params),) if mask is None else (unfreeze(params), unfreeze(mask))
    result: Params = jax.tree.map(cast, *trees)
    return result
