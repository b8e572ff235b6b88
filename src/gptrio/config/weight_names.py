"""What the names of the tensors in a family's checkpoints are, for models of either framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LAYER_NORM_ALIASES: Mapping[str, str] = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}  # in old files


@dataclass(frozen=True)
class WeightNames:
    """How the names in files of a family differ from those of its models.

    Attributes:
        base_model_prefix: the backbone's name inside a model with a head.
        computed_buffers: patterns of names that hold what the model computes itself.
        key_aliases: {pattern of a name in files: replacement}, as for `re.sub`, for names that the model lacks.
        output: name of the layer that predicts tokens.
        token_table: name of the table of tokens in the backbone, which a tied output layer shares.
        split_outputs: names of the linear layers in a block whose outputs tensor parallelism divides among devices.
        split_inputs: names of those whose inputs it divides: each such layer sums what the devices have computed.
        has_conv1d: linear layers are `Conv1D`: exchanged rows and columns, in either framework.
    """

    base_model_prefix: str = "transformer"
    computed_buffers: tuple[str, ...] = ()
    key_aliases: Mapping[str, str] = field(default_factory=lambda: LAYER_NORM_ALIASES)
    output: str = "lm_head"
    token_table: str = "wte"
    split_outputs: tuple[str, ...] = ()
    split_inputs: tuple[str, ...] = ()
    has_conv1d: bool = False
