"""Configuration of GPT-NeoX and Pythia."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gptrio.config.base import PretrainedConfig, config_class
from gptrio.config.fields import LARGEST_WIDTH, count, divides, flag, number, probability, text, token_id
from gptrio.config.rope import normalize_rope_scaling, validate_rope_scaling
from gptrio.config.weight_names import LAYER_NORM_ALIASES, WeightNames
from gptrio.errors import ConfigError

WEIGHT_NAMES = WeightNames(
    base_model_prefix="gpt_neox",
    computed_buffers=(r"(^|\.)attention\.(masked_)?bias$", r"(^|\.)rotary_emb\.inv_freq$"),  # masks, rotary tables
    key_aliases={**LAYER_NORM_ALIASES, r"^lm_head\.": "embed_out."},
    output="embed_out",
    token_table="embed_in",
    split_outputs=("query_key_value", "dense_h_to_4h"),
    split_inputs=("dense", "dense_4h_to_h"),
)


@config_class
class GPTNeoXConfig(PretrainedConfig):
    """Sizes and switches of a GPT-NeoX model; the defaults are the 20B model's.

    Args:
        vocab_size: rows of the embedding `V`, often more than the tokenizer has tokens.
        hidden_size: hidden size `C`, divisible by `num_attention_heads`.
        num_hidden_layers: number of blocks.
        num_attention_heads: attention heads `H` per block.
        intermediate_size: width of the MLP.
        hidden_act: activation of the MLP: "gelu", "gelu_fast", "gelu_new", "relu", "selu" and others.
        rotary_pct: share of each head's dimensions that is rotated (alias `partial_rotary_factor`).
        rotary_emb_base: base of the rotary frequencies (alias `rope_theta`).
        attention_dropout, hidden_dropout, classifier_dropout: dropout of attention weights, of embeddings and branches,
            and of the token classifier.
        max_position_embeddings: longest sequence.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: added to the variance in layer norms.
        use_cache: forward returns keys and values unless the call sets it otherwise.
        bos_token_id, eos_token_id: special tokens.
        tie_word_embeddings: output and input embeddings are one tensor.
        use_parallel_residual: attention and MLP read the same input, rather than one after the other.
        rope_scaling: how to go past `max_position_embeddings`: {"rope_type": "linear", "factor": 2.0}; types are
            "default", "linear", "dynamic", "yarn", "longrope" and "llama3", each with its keys.
        attention_bias: biases in the projections of attention.
        kwargs: fields of `PretrainedConfig`, aliases, and keys to keep.
    """

    model_type: ClassVar[str] = "gpt_neox"
    attribute_map: ClassVar[dict[str, str]] = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}

    vocab_size: int = count(50432)
    hidden_size: int = count(6144, most=LARGEST_WIDTH)
    num_hidden_layers: int = count(44, least=0)
    num_attention_heads: int = count(64)
    intermediate_size: int = count(24576)
    hidden_act: str = text("gelu")
    rotary_pct: float = number(0.25, ge=0, le=1)
    rotary_emb_base: float = number(10000, gt=0)
    attention_dropout: float = probability(0.0)
    hidden_dropout: float = probability(0.0)
    classifier_dropout: float = probability(0.1)
    max_position_embeddings: int = count(2048)
    initializer_range: float = number(0.02, ge=0)
    layer_norm_eps: float = number(1e-5, ge=0)
    use_cache: bool = flag(True)
    bos_token_id: int | None = token_id(0)
    eos_token_id: int | Sequence[int] | None = token_id(2)
    tie_word_embeddings: bool = flag(False)
    use_parallel_residual: bool = flag(True)
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = flag(True)

    def validate(self) -> None:
        """Check every field; heads must share the hidden size, and `rope_scaling` must have the keys of its type."""
        super().validate()
        divides(self, "num_attention_heads", "hidden_size")
        if self.rope_scaling is not None:
            validate_rope_scaling(self.rope_scaling, self._rotary_width())

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; `rope_scaling` is normalised, and checked when it replaces another."""
        if name == "rope_scaling":
            value = normalize_rope_scaling(value)
            if value is not None and name in vars(self):
                validate_rope_scaling(value, self._rotary_width())
        super().__setattr__(name, value)

    def _rotary_width(self) -> int:
        return int(self.hidden_size // self.num_attention_heads * self.rotary_pct)

    def to_dict(self) -> dict[str, Any]:
        """Return every attribute, with plain values; rotary fields under both of their names, as files have them."""
        return super().to_dict() | {alias: getattr(self, alias) for alias in self.attribute_map}

    @classmethod
    def _canonical(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(values)
        rope = given.pop("rope_parameters", None)  # Transformers 5 gathers the rotary fields under this key
        if rope is not None and not isinstance(rope, Mapping):
            raise ConfigError(f"{cls.__name__}: rope_parameters={rope!r} is not possible; expected a dictionary")
        if rope:
            rope = dict(rope)
            own = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
            given |= own if rope.get("rope_type", "default") == "default" else own | {"rope_scaling": rope}
        return super()._canonical(given)
