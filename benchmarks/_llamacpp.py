"""llama.cpp at its best: its C interface, one batch for all rows, greedy choice from the last logits in numpy."""

from __future__ import annotations

import ctypes
import importlib
import json
from pathlib import Path
from typing import Any

FILE_TYPES = {"float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
BATCH = 2048  # tokens that one call takes


class LlamaCppModel:
    """llama.cpp, from a GGUF copy of the checkpoint."""

    context: Any = None
    room = (0, 0)  # rows, tokens a row

    def start(self, folder: str) -> None:
        """Import the library."""
        self.library = importlib.import_module("llama_cpp")
        self.numpy = importlib.import_module("numpy")

    def convert(self, folder: str, dtype: str) -> None:
        """Make the copy beside the checkpoint: float32 by our writer, other types from it by llama.cpp's quantizer."""
        source, target = _copy(folder, "float32"), _copy(folder, dtype)
        if not source.exists():
            importlib.import_module("_gguf").write_gguf(Path(folder), source)
        if target.exists():
            return
        self.start(folder)
        options = self.library.llama_model_quantize_default_params()
        options.ftype = getattr(self.library, f"LLAMA_FTYPE_{FILE_TYPES[dtype]}")
        partial = target.with_suffix(".partial")
        if self.library.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp cannot write {dtype}")
        partial.rename(target)

    def load(self, folder: str, dtype: str, threads: int) -> None:
        """Load the copy."""
        self.library.llama_backend_init()
        options = self.library.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = self.library.llama_model_load_from_file(str(_copy(folder, dtype)).encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load its copy")
        self.vocabulary = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        self.threads = threads

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """New tokens, greedily."""
        ids = self.numpy.array(prompts)  # (B, T)
        self._make_room(len(prompts), ids.shape[1] + new)
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        tokens = [self.feed(ids, 0)]
        for past in range(ids.shape[1], ids.shape[1] + new - 1):
            tokens.append(self.feed(tokens[-1][:, None], past))
        return [[int(token) for token in row] for row in zip(*tokens, strict=True)]

    def feed(self, ids: Any, past: int) -> Any:
        """Append ids (B, T) behind `past` tokens of each row; the likeliest token (B,) after the last."""
        return self.numpy.array([int(row.argmax()) for row in self.logits(ids, past)])

    def logits(self, ids: Any, past: int) -> list[Any]:
        """Append ids (B, T) behind `past` tokens of each row; for each row the logits (V,) of its last position."""
        length = ids.shape[1]
        flat, found = ids.reshape(-1), []
        for begin in range(0, flat.size, BATCH):
            places = self.numpy.arange(begin, min(begin + BATCH, flat.size))
            column = places % length
            self._fill(flat[places], past + column, places // length, column == length - 1)
            if self.library.llama_decode(self.context, self.batch):
                raise RuntimeError("llama.cpp cannot take the batch")
            for index in self.numpy.flatnonzero(column == length - 1):
                pointer = self.library.llama_get_logits_ith(self.context, int(index))
                row = self.numpy.ctypeslib.as_array(pointer, (self.vocabulary,))
                found.append(row if flat.size <= BATCH else row.copy())  # the next call overwrites it
        return found

    def _fill(self, ids: Any, positions: Any, rows: Any, wanted: Any) -> None:
        """Describe the tokens of a call: id, position, row, and whether its logits are wanted."""
        count = len(ids)
        self.batch.n_tokens = count
        self.fields["token"][:count] = ids
        self.fields["pos"][:count] = positions
        self.fields["n_seq_id"][:count] = 1
        self.fields["logits"][:count] = wanted
        for place, row in enumerate(rows.tolist()):
            self.batch.seq_id[place][0] = row

    def _make_room(self, rows: int, tokens: int) -> None:
        """A context with a cache that holds so much; it stays until more, or another number of rows, is asked for."""
        if self.context is not None:
            if self.room[0] == rows and self.room[1] >= tokens:
                return
            self.library.llama_free(self.context)
        else:
            self.batch = self.library.llama_batch_init(BATCH, 0, 1)
            as_array = self.numpy.ctypeslib.as_array
            names = ("token", "pos", "n_seq_id", "logits")
            self.fields = {name: as_array(getattr(self.batch, name), (BATCH,)) for name in names}
        options = self.library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = rows * (-(-tokens // 256) * 256), BATCH, rows
        options.n_threads = options.n_threads_batch = self.threads
        self.context, self.room = self.library.llama_init_from_model(self.model, options), (rows, tokens)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {rows} rows of {tokens} tokens")


def _copy(folder: str, dtype: str) -> Path:
    return Path(folder).with_name(f"{Path(folder).name}-{dtype}.gguf")
