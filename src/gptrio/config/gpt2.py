"""Configuration of GPT-2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from gptrio.config.base import PretrainedConfig, config_class
from gptrio.config.fields import LARGEST_WIDTH, choice, count, divides, flag, number, probability, text, token_id
from gptrio.config.weight_names import WeightNames

WEIGHT_NAMES = WeightNames(
    computed_buffers=(r"(^|\.)(attn|crossattention)\.(masked_)?bias$",),  # causal masks
    split_outputs=("c_attn", "c_fc"),
    split_inputs=("c_proj",),
    has_conv1d=True,
)


@config_class
class GPT2Config(PretrainedConfig):
    """Sizes and switches of a GPT-2 model; the defaults are the 124M model's.

    Args:
        vocab_size: number of tokens `V`.
        n_positions: longest sequence (alias `max_position_embeddings`).
        n_embd: hidden size `C` (alias `hidden_size`), divisible by `n_head`.
        n_layer: number of blocks (alias `num_hidden_layers`).
        n_head: attention heads `H` per block (alias `num_attention_heads`).
        n_inner: width of the MLP; 4 * n_embd when None.
        activation_function: of the MLP: "gelu_new", "gelu", "relu", "silu", "tanh" and others.
        resid_pdrop, embd_pdrop, attn_pdrop: dropout of residual branches, embeddings and attention weights.
        layer_norm_epsilon: added to the variance in layer norms.
        initializer_range: standard deviation of new weights.
        summary_type: the token that the multiple-choice head reads: "last", "first", "mean" or "cls_index".
        summary_use_proj: project what it reads.
        summary_activation: "tanh" or None, after the projection.
        summary_proj_to_labels: project to `num_labels` rather than to `hidden_size`.
        summary_first_dropout: dropout before the projection.
        scale_attn_weights: divide scores by the square root of the head width.
        use_cache: forward returns keys and values unless the call sets it otherwise.
        bos_token_id, eos_token_id: special tokens.
        scale_attn_by_inverse_layer_idx: also divide scores by layer index + 1.
        reorder_and_upcast_attn: compute attention scores in float32.
        kwargs: fields of `PretrainedConfig`, aliases, and keys to keep.
    """

    model_type: ClassVar[str] = "gpt2"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = count(50257)
    n_positions: int = count(1024)
    n_embd: int = count(768, most=LARGEST_WIDTH)
    n_layer: int = count(12, least=0)
    n_head: int = count(12)
    n_inner: int | None = count(None, optional=True)
    activation_function: str = text("gelu_new")
    resid_pdrop: float = probability(0.1)
    embd_pdrop: float = probability(0.1)
    attn_pdrop: float = probability(0.1)
    layer_norm_epsilon: float = number(1e-5, ge=0)
    initializer_range: float = number(0.02, ge=0)
    summary_type: str = choice("cls_index", ("last", "first", "mean", "cls_index"))
    summary_use_proj: bool = flag(True)
    summary_activation: str | None = text(None, optional=True)
    summary_proj_to_labels: bool = flag(True)
    summary_first_dropout: float = probability(0.1)
    scale_attn_weights: bool = flag(True)
    use_cache: bool = flag(True)
    bos_token_id: int | None = token_id(50256)
    eos_token_id: int | Sequence[int] | None = token_id(50256)
    scale_attn_by_inverse_layer_idx: bool = flag(False)
    reorder_and_upcast_attn: bool = flag(False)

    def validate(self) -> None:
        """Check every field; the heads must share the hidden size evenly."""
        super().validate()
        divides(self, "n_head", "n_embd")
