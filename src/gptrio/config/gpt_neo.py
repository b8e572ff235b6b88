"""Configuration of GPT-Neo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any, ClassVar

from gptrio.config.base import PretrainedConfig, config_class
from gptrio.config.fields import LARGEST_WIDTH, count, divides, flag, has_type, number, probability, text, token_id
from gptrio.config.weight_names import WeightNames
from gptrio.errors import ConfigError

ATTENTION_KINDS = ("global", "local")
WEIGHT_NAMES = WeightNames(
    computed_buffers=(r"(^|\.)attention\.(masked_)?bias$",),  # causal masks
    split_outputs=("q_proj", "k_proj", "v_proj", "c_fc"),
    split_inputs=("out_proj", "c_proj"),
)
_MOST_LAYERS = 1_000_000  # the list has a name for each


@config_class
class GPTNeoConfig(PretrainedConfig):
    """Sizes and switches of a GPT-Neo model; the defaults are the 1.3B model's.

    Args:
        vocab_size: number of tokens `V`.
        max_position_embeddings: longest sequence.
        hidden_size: hidden size `C`, divisible by `num_heads`.
        num_layers: number of blocks (alias `num_hidden_layers`).
        attention_types: kinds of attention in order, each list with how often it repeats: `[[["global", "local"], 12]]`
            for 24 layers. `attention_layers` is the same written out, one per layer; it overrides `attention_types`.
        num_heads: attention heads `H` per block (alias `num_attention_heads`).
        intermediate_size: width of the MLP; 4 * hidden_size when None.
        window_size: how many positions a local layer sees, the query's own included.
        activation_function: of the MLP: "gelu_new", "gelu", "relu", "selu" and others.
        resid_dropout, embed_dropout, attention_dropout, classifier_dropout: dropout of residual branches, embeddings,
            attention weights and the token classifier.
        layer_norm_epsilon: added to the variance in layer norms.
        initializer_range: standard deviation of new weights.
        use_cache: forward returns keys and values unless the call sets it otherwise.
        bos_token_id, eos_token_id: special tokens.
        kwargs: fields of `PretrainedConfig`, aliases, and keys to keep.
    """

    model_type: ClassVar[str] = "gpt_neo"
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    vocab_size: int = count(50257)
    max_position_embeddings: int = count(2048)
    hidden_size: int = count(2048, most=LARGEST_WIDTH)
    num_layers: int = count(24, least=0)
    attention_types: list[Any] = field(default_factory=lambda: [[["global", "local"], 12]])
    num_heads: int = count(16)
    intermediate_size: int | None = count(None, optional=True)
    window_size: int = count(256)
    activation_function: str = text("gelu_new")
    resid_dropout: float = probability(0.0)
    embed_dropout: float = probability(0.0)
    attention_dropout: float = probability(0.0)
    classifier_dropout: float = probability(0.1)
    layer_norm_epsilon: float = number(1e-5, ge=0)
    initializer_range: float = number(0.02, ge=0)
    use_cache: bool = flag(True)
    bos_token_id: int | None = token_id(50256)
    eos_token_id: int | Sequence[int] | None = token_id(50256)

    def validate(self) -> None:
        """Check every field; there must be one kind of attention per layer, and heads must share the hidden size."""
        super().validate()
        divides(self, "num_heads", "hidden_size")
        described = len(self.attention_layers)
        if described != self.num_layers:
            raise ConfigError(
                f"{type(self).__name__}: attention_types={self.attention_types!r} describes {described} layers, but "
                f"num_layers={self.num_layers}; change one of them"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; `attention_types` must be of known kinds."""
        if name == "attention_types":
            self.expand_attention_types_params(value)
        super().__setattr__(name, value)

    @property
    def attention_layers(self) -> list[str]:
        """Kind of attention of each layer, "global" or "local": `attention_types` written out."""
        return self.expand_attention_types_params(self.attention_types)

    @attention_layers.setter
    def attention_layers(self, value: Sequence[str]) -> None:
        if value != self.attention_layers:
            self.attention_types = [[value, 1]]

    @property
    def layer_windows(self) -> list[int | None]:
        """Most positions that each layer sees, the query's own included; None for all."""
        return [self.window_size if kind == "local" else None for kind in self.attention_layers]

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute, `attention_layers` included, with plain values that JSON can hold."""
        return super().to_dict() | {"attention_layers": self.attention_layers}

    @classmethod
    def _override(cls, values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
        if "attention_types" in overrides:
            values = {name: value for name, value in values.items() if name != "attention_layers"}
        return super()._override(values, overrides)

    @staticmethod
    def expand_attention_types_params(attention_types: Sequence[Any]) -> list[str]:
        """Write `[[["global", "local"], 2]]` out as `["global", "local", "global", "local"]`; raises ConfigError."""
        layers: list[str] = []
        try:
            for kinds, repeats in attention_types:
                if (
                    not has_type(repeats, int)
                    or repeats > _MOST_LAYERS
                    or any(kind not in ATTENTION_KINDS for kind in kinds)
                ):
                    raise ValueError
                layers.extend(list(kinds) * repeats)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"attention_types={attention_types!r} is not possible; expected [[[kind, ...], repeats], ...] with "
                f"kinds out of {', '.join(ATTENTION_KINDS)}"
            ) from error
        return layers
