"""The way from one token a row to the next logits, as one compiled call (see `gptrio.kernels.cpu_decode`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from gptrio.cache import Cache, DynamicLayer
from gptrio.kernels import guards
from gptrio.kernels.cpu_decode import MAX_ROWS, MAX_ROWS_AMX, Reason
from gptrio.kernels.cpu_decode import structs as tables
from gptrio.kernels.cpu_decode.compilation import unready_reason
from gptrio.models.base.compiled_requirements import FORMATS, activation_of, first_unmet
from gptrio.nn.blocks import BlockSpec
from gptrio.nn.linear import LowRankUpdate, weight_view

if TYPE_CHECKING:
    from gptrio.kernels.cpu_decode.workspace import Workspace
    from gptrio.models.base.backbone import Backbone
    from gptrio.models.base.pretrained import PreTrainedModel

_SMALL = 1 << 21  # weights of a model that one thread steps through as fast as several
_NO_WINDOW = 1 << 40
_SPARE = 256  # positions by which the workspace for scores grows


def compiled_step(model: PreTrainedModel, rows: int = 1, left_padding: Tensor | None = None) -> CompiledStep | Reason:
    """The compiled step of a language model in inference, or the reason why it has none.

    Args:
        model: a language model.
        rows: B of the steps to come.
        left_padding: (B,) columns of padding before each row, or None.
    """
    reason = unready_reason() or first_unmet(model)
    if reason is not None:
        return reason
    if left_padding is not None and left_padding.shape != (rows,):
        return Reason(f"left_padding is {tuple(left_padding.shape)} for {rows} rows")
    step = CompiledStep(model, left_padding)
    if rows > step.most_rows:
        return Reason(f"{rows} rows are faster by whole matrix products")
    return step


class CompiledStep:
    """Logits after one token a row; everything else goes the model's own way.

    Weights are read where they lie, so edits in place are seen, and the memory where they lay when this was made is
    kept. Norms and biases are read when this is made.

    Attributes:
        most_rows: rows up to which it is faster than whole matrix products.
        threads: that take part.

    Args:
        model: a language model that meets all of `compiled_requirements`.
        left_padding: (B,) columns of padding before each row; None if there are none.
    """

    def __init__(self, model: PreTrainedModel, left_padding: Tensor | None = None) -> None:
        """Write the tables that the compiled step reads."""
        from gptrio.kernels.cpu_decode.thread_pool import team_of

        self.most_rows = MAX_ROWS_AMX
        self._model, self._backbone = model, cast("Backbone", model.base_model)
        self._kept: list[Any] = []  # what the tables hold addresses of
        table = np.zeros(1, tables.MODEL)
        self._table, self._table_address = table[0], int(table.ctypes.data)
        self._workspace_bytes = 0  # most that a product needs
        self._guarded = guards.are_on()
        parts = [block.spec() for block in model.base_model.blocks]
        self._layers = np.zeros(len(parts), tables.LAYER)
        self._slots, self._dropped, self._first = (self._layers[name] for name in ("slot", "dropped", "first"))
        self._describe(parts)
        size = sum(weight.numel() for weight in [*model.parameters(), *model.buffers()])
        self._padding = None if left_padding is None else left_padding.long().contiguous()
        self._most_padding = 0 if self._padding is None else int(self._padding.max())
        self._table["starts"] = 0 if self._padding is None else self._padding.data_ptr()
        self._team = team_of(torch.get_num_threads() if size > _SMALL else 1)
        self.threads = self._team.size
        self._buffers: list[tuple[Any, Any]] = [(None, None)] * len(parts)  # of the cache, that the last step wrote to
        self._next = 0  # positions after the last step
        self._reserved = (0, 0)  # rows and positions that the workspace is for
        self._workspace: Workspace | None = None

    def supports(self, input_ids: Tensor, cache: Cache) -> bool:
        """Whether this is for ids (B, T) and a cache: a token for each known row, and a past that can grow in place.

        The past is one of this package's own growing caches, on the CPU, of the model's dtype and heads, as long in all
        layers, and no shorter than a layer's window.
        """
        shape, layers = tuple(input_ids.shape), cast("list[DynamicLayer]", cache.layers)
        if len(shape) != 2 or shape[1] != 1 or not input_ids.is_cpu or len(layers) != len(self._buffers):
            return False
        return (shape[0] == self._reserved[0] and self._is_unchanged(layers)) or self._supports_cache(layers, shape[0])

    def _is_unchanged(self, layers: list[DynamicLayer]) -> bool:
        """Whether the layers of a cache are as the last step left them."""
        buffers, length = self._buffers, self._next
        for i, layer in enumerate(layers):
            keys, values = buffers[i]
            if not layer.is_unchanged(keys, values, length):
                return False
        return True

    def _supports_cache(self, layers: list[DynamicLayer], rows: int) -> bool:
        """Whether this is for so many rows, and for layers of a cache of any kind."""
        past = layers[0].get_seq_length()
        if not 0 < rows <= MAX_ROWS_AMX:
            return False
        if self._padding is not None and (rows != len(self._padding) or self._most_padding > past):
            return False
        return all(
            layer.can_reserve(rows, *self._heads, self._dtype)
            and layer.get_seq_length() == past
            and getattr(layer, "window", window) >= window
            for layer, window in zip(layers, self._windows.tolist(), strict=True)
        )

    def __call__(self, input_ids: Tensor, cache: Cache) -> Tensor:
        """Scores (B, 1, V) of the token after `input_ids` (B, 1), as `next_logits` gives them, in float32.

        Args:
            input_ids: (B, 1) ids inside the vocabulary.
            cache: what came before, which this step `supports`; grows as it is fed.

        Raises:
            GuardError: guard words are on, and one has changed.
        """
        past, rows = cache.get_seq_length(), input_ids.shape[0]
        embedded, rotary = self._backbone.embed_inputs(input_ids, self._positions(past))
        x = embedded.float().contiguous()
        shape = (rows, 1, self._vocabulary)
        if self._guarded:
            x = guards.guarded_empty(x.shape, torch.float32).copy_(x)
        logits = guards.guarded_empty(shape, torch.float32) if self._guarded else x.new_empty(shape)
        positions = self._reserve(cache, past)
        self._reserve_workspace(rows, positions)
        table = self._table
        table["x"], table["logits"] = x.data_ptr(), logits.data_ptr()
        if rotary is not None:
            cosines, sines = (part[..., : part.shape[-1] // 2].float().contiguous() for part in rotary)
            table["cosines"], table["sines"] = cosines.data_ptr(), sines.data_ptr()
            table["rotated"] = 2 * cosines.shape[-1]
            table["turns"] = len(cosines)
        if self._guarded:
            self._run_guarded(cache, x, logits)
        else:
            self._team.step(self._table_address)
        self._next = past + 1
        return logits

    def _positions(self, past: int) -> Tensor:
        """Position ids (B or 1, 1) of the next token, which do not count left padding."""
        if self._padding is None:
            return self._backbone.next_positions(past, 1, torch.device("cpu"))
        return past - self._padding.unsqueeze(1)

    def _run_guarded(self, cache: Cache, x: Tensor, logits: Tensor) -> None:
        """Run a step, and look at all memory that it must not have changed."""
        layers = cast("list[DynamicLayer]", cache.layers)
        before = [[buffer.clone() for buffer in layer.buffers] for layer in layers]
        self._team.step(self._table_address)
        cast("Workspace", self._workspace).check()
        guards.check(x, "the residual stream")
        guards.check(logits, "the logits")
        for i, (layer, buffers) in enumerate(zip(layers, before, strict=True)):
            slot = int(self._layers["slot"][i])
            for name, old, new in zip(("keys", "values"), buffers, layer.buffers, strict=True):
                guards.check(new, f"the {name} of layer {i}")
                old[:, :, slot] = new[:, :, slot]  # all that a step may write
                found, expected = (part.view(torch.uint8).flatten() for part in (new, old))
                guards.check_same(found, expected, f"the {name} of layer {i}")

    def _reserve(self, cache: Cache, past: int) -> int:
        """Extend the cache by a position and write its addresses; returns the largest number in a layer."""
        slots = []
        for i, layer in enumerate(cast("list[DynamicLayer]", cache.layers)):
            keys, values, slot = layer.reserve(self._guarded)
            slots.append(slot)
            if keys is not self._buffers[i][0] or values is not self._buffers[i][1]:
                self._buffers[i] = keys, values
                row = self._layers[i]
                row["keys"], row["values"], row["capacity"] = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        self._slots[:] = slots
        if self._has_windows:
            self._dropped[:] = past - self._slots
            self._first[:] = np.maximum(self._slots + 1 - self._windows, 0)
        return max(slots) + 1

    def _reserve_workspace(self, rows: int, positions: int) -> None:
        """A workspace for so many rows and positions: with guard words, for no more than those."""
        if rows == self._reserved[0] and positions <= self._reserved[1] and not self._guarded:
            return
        from gptrio.kernels.cpu_decode.workspace import Workspace
        from gptrio.kernels.cpu_decode.workspace import sizes as buffer_sizes

        self._reserved = rows, positions + (0 if self._guarded else _SPARE)
        table = self._table
        table["rows"] = rows
        buffers = buffer_sizes(
            threads=self.threads,
            rows=rows,
            width=int(table["width"]),
            inner=int(self._layers["inner"].max()),
            positions=self._reserved[1],
            workspace_bytes=self._workspace_bytes,
        )
        self._workspace = Workspace(buffers, table)

    def _describe(self, parts: list[BlockSpec]) -> None:
        """Fill the tables with what stays the same from step to step."""
        attention, head = parts[0].attention, self._model.get_output_embeddings()
        table, norm = self._table, cast(Any, self._backbone.final_norm)
        self._heads = attention.all_heads, attention.head_dim
        self._width = attention.all_heads * attention.head_dim
        self._dtype, self._vocabulary = next(self._model.parameters()).dtype, weight_view(head).outputs
        self._windows = np.array([part.attention.window or _NO_WINDOW for part in parts])
        self._has_windows = any(part.attention.window for part in parts)
        table["layers"], table["num_layers"] = self._layers.ctypes.data, len(parts)
        table["head"] = self._products([(head, 0)])
        table["norm_weight"], table["norm_bias"], table["norm_eps"] = self._norm(norm)
        table["heads"], table["head_width"], table["width"] = *self._heads, self._width
        table["k_offset"], table["v_offset"], table["head_stride"] = parts[0].qkv_offsets
        table["cache_format"] = FORMATS[self._dtype]
        for layer, part in zip(self._layers, parts, strict=True):
            self._describe_layer(layer, part)

    def _describe_layer(self, layer: Any, part: BlockSpec) -> None:
        """Fill a row of the table of layers."""
        projections = list(part.projections)
        places = [0, *part.qkv_offsets[:2]][: len(projections)]
        missing = [(projections[-1], 0)] * (3 - len(projections))
        others = [(part.output, 0), (part.mlp[0], 0), (part.mlp[2], 0)]
        layer["products"] = self._products([*zip(projections, places, strict=True), *missing, *others])
        layer["projections"], layer["scale"] = len(projections), part.attention.scale
        layer["inner"], layer["activation"] = weight_view(part.mlp[0]).outputs, activation_of(part.mlp[1])
        layer["parallel"] = part.is_parallel
        for number, own in enumerate(part.norms, 1):
            names = (f"norm{number}_weight", f"norm{number}_bias", f"norm{number}_eps")
            layer[names[0]], layer[names[1]], layer[names[2]] = self._norm(cast(Any, own))

    def _products(self, layers: list[tuple[Any, int]]) -> int:
        """Address of a table of linear layers, each with the place of its first output."""
        from gptrio.kernels.cpu_decode.amx import supports
        from gptrio.kernels.cpu_decode.matmul import workspace_for

        rows = np.zeros(len(layers), tables.PRODUCT)
        self._kept.append(rows)
        for row, (layer, place) in zip(rows, layers, strict=True):
            view = weight_view(layer)
            row["inputs"], row["outputs"], row["offset"] = view.inputs, view.outputs, place
            row["weight"], row["is_in_out"] = self._address(view.weight), view.is_in_out
            row["bias"] = 0 if view.bias is None else self._floats(view.bias)
            row["scale"], row["group"] = 0 if view.scale is None else self._address(view.scale), view.group or 1
            row["format"] = FORMATS[view.weight.dtype]
            row["updates"], row["num_updates"] = self._updates(view.updates), len(view.updates)
            row["tiled"] = supports(row)
            self.most_rows = self.most_rows if row["tiled"] else MAX_ROWS
            self._workspace_bytes = max(self._workspace_bytes, workspace_for(row))
        return int(rows.ctypes.data)

    def _updates(self, updates: tuple[LowRankUpdate, ...]) -> int:
        """Address of a table of low-rank updates."""
        from gptrio.kernels.cpu_decode.low_rank import workspace_for

        rows = np.zeros(len(updates), tables.UPDATE)
        self._kept.append(rows)
        for row, (a, b, scaling) in zip(rows, updates, strict=True):
            row["a"], row["b"], row["format"] = self._address(a), self._address(b), FORMATS[a.dtype]
            row["rank"], row["scaling"] = len(a), scaling
            self._workspace_bytes = max(self._workspace_bytes, workspace_for(len(a)))
        return int(rows.ctypes.data)

    def _norm(self, norm: Any) -> tuple[int, int, float]:
        """Addresses of a norm's weight and bias, which are 1 and 0 where it has none, and its eps."""
        weight = torch.ones(self._width, dtype=torch.float32, device="cpu") if norm.weight is None else norm.weight
        bias = torch.zeros(self._width, dtype=torch.float32, device="cpu") if norm.bias is None else norm.bias
        return self._floats(weight), self._floats(bias), norm.eps

    def _floats(self, vector: Tensor) -> int:
        """Address of a vector in float32."""
        return self._address(vector.detach().float().contiguous())

    def _address(self, tensor: Tensor) -> int:
        """Address of a tensor, whose memory is kept as long as this step, whatever becomes of the tensor."""
        self._kept.append(tensor.detach())
        return int(tensor.data_ptr())
