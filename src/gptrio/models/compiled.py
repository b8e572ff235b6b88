"""The way from one token a row to the next logits, as one compiled call (see `gptrio.kernels.compiled`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gptrio.cache import Cache, DynamicLayer
from gptrio.kernels.compiled import MOST_ROWS, MOST_ROWS_BY_TILES, tables
from gptrio.nn.blocks import BlockParts
from gptrio.nn.lean import LayerNorm
from gptrio.nn.linear import Conv1D, Linear
from gptrio.quantization.native import QuantizedLinear

if TYPE_CHECKING:
    from gptrio.models.backbone import Backbone

_SMALL = 1 << 21  # weights of a model that one thread steps through as fast as several
_NO_WINDOW = 1 << 40
_SPARE = 256  # positions by which the room for scores grows
_FORMS = {torch.float32: tables.FLOAT32, torch.bfloat16: tables.BFLOAT16, torch.float16: tables.FLOAT16}


def compiled_step(model: Any, rows: int = 1, left_padding: Tensor | None = None) -> CompiledStep | None:
    """The compiled step of a language model in inference, or None if it has parts that the step does not know.

    Args:
        model: a language model.
        rows: B of the steps to come; None is returned where so many are faster by whole matrix products.
        left_padding: (B,) columns of padding before each row, or None.
    """
    if torch.is_autocast_enabled("cpu") or not _is_plain(model):
        return None
    parts = [block.parts() for block in model.base_model.blocks]
    fits = all(_fits(part) for part in parts) and _is_known(model.get_output_embeddings())
    step = CompiledStep(model, parts, left_padding) if fits else None
    return step if step is not None and rows <= step.most_rows else None


def _is_plain(model: nn.Module) -> bool:
    """Whether all is as this package built it: in evaluation, on the CPU, of one dtype."""
    for module in model.modules():
        home = type(module).__module__
        if module.training or not home.startswith(("gptrio.", "torch.nn.modules.")) or "forward" in module.__dict__:
            return False
    parameters = list(model.parameters())
    dtypes = {parameter.dtype for parameter in parameters}
    plain = all(type(parameter) is nn.Parameter and parameter.is_cpu for parameter in parameters)
    return plain and len(dtypes) == 1 and dtypes <= _FORMS.keys()


def _fits(parts: BlockParts) -> bool:
    up, act, down = parts.mlp
    return (
        not parts.attention.pruned_heads
        and parts.attention.head_dim % tables.LANES == 0
        and all(_is_known(layer) for layer in (*parts.projections, parts.output, up, down))
        and all(type(norm) is LayerNorm and norm.bias is not None for norm in parts.norms)
        and _activation(act) is not None
    )


def _is_known(layer: Any) -> bool:
    """Whether a linear layer is of a kind and size that the compiled products take."""
    if type(layer) not in (Linear, Conv1D, QuantizedLinear) or not layer.weight.is_contiguous():
        return False
    inputs, outputs = _sizes(layer)
    return inputs % tables.LANES == 0 and (outputs % tables.LANES == 0 or type(layer) is not Conv1D)


def _sizes(layer: Any) -> tuple[int, int]:
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


def _activation(act: nn.Module) -> int | None:
    """Number of an activation in the compiled step, or None if it has none."""
    if type(act) is nn.GELU:
        return tables.GELU_TANH if act.approximate == "tanh" else tables.GELU_ERF
    return {nn.Identity: tables.NONE, nn.ReLU: tables.RELU, nn.SiLU: tables.SILU}.get(type(act))


class CompiledStep:
    """Logits after one token a row; everything else goes the model's own way.

    Weights are read where they lie, so edits in place are seen. Norms and biases are read when this is made. Torch is
    left with one thread after a step; whoever steps sets it right in the end (`keep_threads`).

    Attributes:
        most_rows: rows up to which it is faster than whole matrix products.

    Args:
        model: a language model.
        parts: of its blocks.
        left_padding: (B,) columns of padding before each row; None if there are none.
    """

    def __init__(self, model: Any, parts: list[BlockParts], left_padding: Tensor | None = None) -> None:
        """Write the tables that the compiled step reads."""
        from gptrio.kernels.compiled.team import team_of

        self.most_rows = MOST_ROWS_BY_TILES
        self._model, self._backbone = model, cast("Backbone", model.base_model)
        self._kept: list[Any] = []  # what the tables hold addresses of
        self._table = np.zeros(1, tables.MODEL)
        self._layers = np.zeros(len(parts), tables.LAYER)
        self._describe(parts)
        size = sum(weight.numel() for weight in [*model.parameters(), *model.buffers()])
        self._padding = None if left_padding is None else left_padding.long()
        self._table["starts"] = 0 if self._padding is None else self._padding.data_ptr()
        self._team = team_of(torch.get_num_threads() if size > _SMALL else 1)
        self._room = (0, 0)  # rows and positions that the working memory is for

    def takes(self, input_ids: Tensor, cache: Cache) -> bool:
        """Whether this is for ids (B, T) and a cache: a token for each known row, a past of this dtype that can grow.

        If it is not, torch is given its threads for what will be done instead.
        """
        fits = (
            input_ids.shape[1] == 1 and len(input_ids) <= MOST_ROWS_BY_TILES and len(cache.layers) == len(self._layers)
        )
        known = (isinstance(layer, DynamicLayer) and layer.dtype is self._dtype for layer in cache.layers)
        taken = fits and all(known)
        self._let_torch_use(1 if taken else self._team.size)
        return taken

    def __call__(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Scores (B, 1, V) of the token after `input_ids` (B, 1), as `next_logits` gives them, in float32.

        Args:
            input_ids: (B, 1) ids inside the vocabulary.
            cache: what came before, which this step `takes`; grows as it is fed.
        """
        past, rows = cache.get_seq_length(), input_ids.shape[0]
        x, rotary = self._backbone.enter(input_ids, past, self._padding)
        x = x.float().contiguous()
        self._reserve(cache, past)
        self._make_room(rows, past + 1)
        logits = torch.empty(rows, 1, self._vocabulary)
        table = self._table[0]
        table["x"], table["logits"] = x.data_ptr(), logits.data_ptr()
        if rotary is not None:
            cosines, sines = (part.float().contiguous() for part in rotary)
            table["cosines"], table["sines"] = cosines.data_ptr(), sines.data_ptr()
            table["rotated"] = 2 * cosines.shape[-1]
            table["turns"] = len(cosines)
        self._team.step(self._table)
        return logits

    def _let_torch_use(self, threads: int) -> None:
        """Set torch's threads: after work they wait for more, busily, where the threads of this step want to run."""
        if self._team.size > 1 and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def _reserve(self, cache: Cache, past: int) -> None:
        """Make room in the cache and tell where it is."""
        places = [cast(DynamicLayer, layer).reserve() for layer in cache.layers]
        self._layers["keys"] = [keys.data_ptr() for keys, _, _ in places]
        self._layers["values"] = [values.data_ptr() for _, values, _ in places]
        self._layers["room"] = [keys.shape[2] for keys, _, _ in places]
        self._layers["slot"] = slots = np.array([slot for _, _, slot in places])
        self._layers["dropped"] = past - slots
        self._layers["first"] = np.maximum(slots + 1 - self._windows, 0)

    def _make_room(self, rows: int, positions: int) -> None:
        """Working memory for so many rows and positions."""
        if rows == self._room[0] and positions <= self._room[1]:
            return
        self._room = rows, positions + _SPARE
        table, threads = self._table[0], self._team.size
        table["rows"], table["most"] = self._room
        width = int(table["width"])
        sizes = {
            "normed": (threads, 2, rows, width),
            "qkv": (rows, 3 * width),
            "attended": (rows, width),
            "hidden": (rows, int(table["inner"])),
            "scores": (threads, self._room[1]),
            "room": (threads, int(table["room_bytes"]) // 4),
        }
        self._memory = {name: torch.empty(size) for name, size in sizes.items()}
        for name, memory in self._memory.items():
            table[name] = memory.data_ptr()

    def _describe(self, parts: list[BlockParts]) -> None:
        """Fill the tables with what stays the same from step to step."""
        first, norm = parts[0], cast(LayerNorm, self._backbone.final_norm)
        attention, head = first.attention, self._model.get_output_embeddings()
        table = self._table[0]
        self._dtype, self._vocabulary = norm.weight.dtype, _sizes(head)[1]
        self._windows = np.array([part.attention.window or _NO_WINDOW for part in parts])
        table["layers"], table["depth"] = self._layers.ctypes.data, len(parts)
        table["head"] = self._products([(head, 0)])
        table["norm_weight"], table["norm_bias"] = self._norm(norm)
        table["eps"] = norm.eps
        table["heads"], table["head_width"] = attention.all_heads, attention.head_dim
        table["width"], table["inner"] = attention.all_heads * attention.head_dim, _sizes(first.mlp[0])[1]
        table["k_place"], table["v_place"], table["head_stride"] = first.places
        table["parallel"], table["activation"] = first.parallel, _activation(first.mlp[1])
        table["cache_form"] = _FORMS[self._dtype]
        for layer, part in zip(self._layers, parts, strict=True):
            projections = list(part.projections)
            places = [0, *part.places[:2]][: len(projections)]
            missing = [(projections[-1], 0)] * (3 - len(projections))
            others = [(part.output, 0), (part.mlp[0], 0), (part.mlp[2], 0)]
            layer["products"] = self._products([*zip(projections, places, strict=True), *missing, *others])
            layer["projections"], layer["scale"] = len(projections), part.attention.scale
            for number, own in enumerate(part.norms, 1):
                layer[f"norm{number}_weight"], layer[f"norm{number}_bias"] = self._norm(cast(LayerNorm, own))

    def _products(self, layers: list[tuple[Any, int]]) -> int:
        """Address of a table of linear layers, each with the place of its first output."""
        from gptrio.kernels.compiled.products import room_for
        from gptrio.kernels.compiled.tiles import takes

        rows = np.zeros(len(layers), tables.PRODUCT)
        self._kept.append(rows)
        for row, (layer, place) in zip(rows, layers, strict=True):
            row["inputs"], row["outputs"] = _sizes(layer)
            row["place"], row["by_columns"] = place, isinstance(layer, Conv1D)
            row["weight"] = layer.weight.data_ptr()
            row["bias"] = 0 if layer.bias is None else self._floats(layer.bias)
            if isinstance(layer, QuantizedLinear):
                row["form"] = tables.INT8 if layer.group is None else tables.INT4
                row["scale"], row["group"] = layer.weight_scale.data_ptr(), layer.group or 1
            else:
                row["form"] = _FORMS[layer.weight.dtype]
            row["tiled"] = takes(row)
            self.most_rows = self.most_rows if row["tiled"] else MOST_ROWS
            self._table["room_bytes"] = np.maximum(self._table["room_bytes"], room_for(row))
        return int(rows.ctypes.data)

    def _norm(self, norm: LayerNorm) -> tuple[int, int]:
        return self._floats(norm.weight), self._floats(norm.bias)

    def _floats(self, vector: Tensor) -> int:
        """Address of a vector in float32."""
        self._kept.append(vector.detach().float().contiguous())
        return int(self._kept[-1].data_ptr())
