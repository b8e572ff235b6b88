"""Checkpoints of nanoGPT and minGPT: GPT-2 whose matrices are stored (out, in), in a torch file of their own form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gptrio.config.gpt2 import GPT2Config
from gptrio.errors import CheckpointFormatError, OptionError
from gptrio.hub import read_json

WRAPPERS = r"^(?:_orig_mod\.|module\.)+"  # that torch.compile and DistributedDataParallel put before names
_MATRICES = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_MLP = "transformer.h.0.mlp.c_fc.weight"
_NEEDED = ("transformer.h.0.attn.c_attn.weight", _MLP, "transformer.wte.weight", "transformer.wpe.weight")
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh"}  # ours -> torch's name of the approximation


class LinearLayout(NamedTuple):
    """A checkpoint as its file holds it.

    Attributes:
        kind: "nanoGPT" or "minGPT".
        tensors: by their names without wrappers; matrices (out, in), without masks.
        config: as gptrio describes the model.
    """

    kind: str
    tensors: dict[str, Tensor]
    config: GPT2Config

    def converted(self) -> dict[str, Tensor]:
        """The tensors as gptrio names and stores them: matrices (in, out), and zeros for biases that there are not."""
        tensors = {n: x.t().contiguous() if _MATRICES.search(n) else x for n, x in self.tensors.items()}
        for name, weight in list(tensors.items()):
            bias = name.removesuffix("weight") + "bias"
            if bias not in tensors and re.search(r"\.(c_\w+|ln_\w+)\.weight$", name):
                tensors[bias] = weight.new_zeros(weight.shape[-1])
        return tensors

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of ids (B, T) in float64, by the tensors as they are stored."""
        weights = {name: tensor.double() for name, tensor in self.tensors.items()}
        head = weights.get("lm_head.weight", weights["transformer.wte.weight"])
        x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][: ids.shape[1]]
        for layer in range(self.config.n_layer):
            block = f"transformer.h.{layer}"
            x = x + self._attention(weights, f"{block}.attn", _norm(weights, f"{block}.ln_1", x))
            hidden = _linear(weights, f"{block}.mlp.c_fc", _norm(weights, f"{block}.ln_2", x))
            hidden = F.gelu(hidden, approximate=_ACTIVATIONS[self.config.activation_function])
            x = x + _linear(weights, f"{block}.mlp.c_proj", hidden)
        return F.linear(_norm(weights, "transformer.ln_f", x), head)

    def _attention(self, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, self.config.n_head, -1).transpose(1, 2)  # (B, H, T, D)
            for part in _linear(weights, f"{name}.c_attn", x).chunk(3, -1)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        return _linear(weights, f"{name}.c_proj", out.transpose(1, 2).reshape(rows, length, width))


def read_linear_layout(path: Path, heads: int | None = None, activation: str | None = None) -> LinearLayout:
    """Read the file of a nanoGPT or minGPT checkpoint.

    Args:
        path: of the torch file.
        heads: attention heads, where neither the file nor a config.json beside it says so.
        activation: "gelu" or "gelu_new"; None takes what the program uses: nanoGPT the first, minGPT the second.

    Raises:
        CheckpointFormatError: it is another kind of checkpoint.
        OptionError: the number of heads is unknown, or does not divide the width.
    """
    from gptrio.checkpoint.torch_files import read_torch_file, read_torch_value

    stored = read_torch_file(path)
    names = stored.keys()
    tensors = {re.sub(WRAPPERS, "", name): stored.tensor(name) for name in names}
    tensors = {name: x for name, x in tensors.items() if not re.search(r"\.attn\.(masked_)?bias$", name)}
    if lacking := [name for name in _NEEDED if name not in tensors]:
        first = ", ".join(list(tensors)[:3])
        raise CheckpointFormatError(
            f"{path} is no checkpoint of nanoGPT or minGPT: it begins with {first}, and has no {lacking[0]}; give a "
            "folder with a config.json for other models"
        )
    settings = read_torch_value(path, "model_args")
    kind = "nanoGPT" if isinstance(settings, Mapping) else "minGPT"
    beside = path.with_name("config.json")
    known: Any = settings or (read_json(beside) if beside.is_file() else {})
    known = known.get("model", known) if isinstance(known.get("model", known), Mapping) else known
    vocabulary, width = tensors["transformer.wte.weight"].shape
    heads = heads or known.get("n_head")
    if not isinstance(heads, int) or width % heads:
        raise OptionError(
            f"the number of attention heads of {path} is {heads or 'unknown'}; give the right one, a divisor of "
            f"{width}, as in heads=4"
        )
    head = tensors.get("lm_head.weight")
    is_tied = head is None or torch.equal(head, tensors["transformer.wte.weight"])
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.h.")}
    inner = tensors[_MLP].shape[0]
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=tensors["transformer.wpe.weight"].shape[0],
        n_embd=width,
        n_layer=len(layers),
        n_head=heads,
        n_inner=None if inner == 4 * width else inner,
        activation_function=activation or ("gelu" if kind == "nanoGPT" else "gelu_new"),
        tie_word_embeddings=is_tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LinearLayout(kind, tensors, config)


def _linear(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _norm(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights.get(f"{name}.bias"))
