"""Compare all ways of computing logits with an eager forward in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gptrio.errors import OptionError
from gptrio.kernels.cpu_decode import Reason
from gptrio.verification import paths
from gptrio.verification.paths import Path, Prompts, Sample
from gptrio.verification.prompts import make_prompts

# weights -> largest difference allowed, of the largest logit: what rounding leads to in deep models, with room; a wrong
# layout leads to differences of about 1
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 1e-1, "int4": 1e-1, "as stored": 1e-1}
_ROUNDING = 0.5  # bound of what rounding the weights changes
_ALL: dict[str, Path] = {
    "sdpa": paths.forward,
    "cached": paths.cached,
    "static cache": paths.static_cache,
    "batched": paths.batched,
    "padded left": paths.padded_left,
    "padded right": paths.padded_right,
    "packed weights": paths.packed_weights,
    "packed rows": paths.packed_rows,
    "compiled step": paths.compiled_step,
    "generate": paths.generated,
}
_OF_ROUNDED = {name: _ALL[name] for name in ("sdpa", "cached", "packed weights", "compiled step", "generate")}


class Comparison(NamedTuple):
    """One way of computing, compared.

    Attributes:
        weights: a key of `BOUNDS`; "as stored" are those of a quantized checkpoint.
        path: what was compared.
        difference: see `difference`; None if the model has no such way here.
        bound: largest difference allowed.
        skipped: why the model has no such way.
    """

    weights: str
    path: str
    difference: float | None
    bound: float
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it is within its bound, or was not computed."""
        return self.difference is None or self.difference <= self.bound


@dataclass
class Report:
    """What was found.

    Attributes:
        comparisons: one for each way of computing.
        problems: sentences about the checkpoint that make it fail.
        warnings: sentences about what may be meant so.
        loss: mean negative log-probability of the tokens of the prompts, in nats; NaN if these are random ids.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    loss: float = math.nan

    @property
    def passed(self) -> bool:
        """Whether nothing is out of bounds, and the checkpoint has no problem."""
        return not self.problems and all(comparison.passed for comparison in self.comparisons)


class _Variant(NamedTuple):
    """A model with weights of one kind, and the ways to try."""

    weights: str
    paths: dict[str, Path]
    build: Callable[[], Any]


def verify(
    name_or_path: str,
    device: str = "cpu",
    weights: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare all ways of computing logits that a language model has with its eager forward in float64.

    Ways over rounded weights (bfloat16, int8, int4) are compared with the float64 forward over these, and that with the
    one over the weights in full ("rounded"): the first difference is how they are computed, the second their rounding.

    Args:
        name_or_path: folder or hub name of a model.
        device: where the model runs; the forward in float64 runs on the CPU.
        weights: kind of weights to try, a key of `BOUNDS`; all that there are when None.
        progress: called with the numbers of kinds of weights that are done, and of all.

    Raises:
        CheckpointError: it cannot be loaded.
        OptionError: the checkpoint has no such kind of weights; a quantized one has those "as stored" only.
    """
    from gptrio import AutoModelForCausalLM

    model, keys = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    model.eval()
    prompts, problem = make_prompts(name_or_path, model.config)
    report = Report(problems=_missing(keys["missing_keys"]) + _not_finite(model), warnings=[problem] if problem else [])
    if report.problems:
        return report
    kinds = list(_variants(name_or_path, model))
    variants = [one for one in kinds if weights in (None, one.weights)]
    if not variants:
        names = ", ".join(kind.weights for kind in kinds)
        raise OptionError(f"weights={weights!r} is not among the kinds of this checkpoint: {names}")
    full = _Reference(model)
    with torch.no_grad():
        for done, variant in enumerate(variants):
            if progress is not None:
                progress(done, len(variants))
            report.comparisons += _compare(variant, prompts, device, full)
        report.loss = math.nan if problem else _loss(full, prompts)
    guess = math.log(model.config.vocab_size)
    if report.loss > guess - 0.1:
        report.warnings.append(
            f"the loss on text is {report.loss:.2f}, no better than a guess ({guess:.2f}): the model is untrained, the "
            "tokenizer is another model's, or weights are in the wrong places"
        )
    return report


def _variants(name_or_path: str, model: Any) -> Iterator[_Variant]:
    """The kinds of weights to try; those of a quantized checkpoint only as they are stored."""
    from gptrio import AutoModelForCausalLM

    if getattr(model, "is_quantized", False):
        yield _Variant("as stored", _ALL, lambda: model)
        return
    yield _Variant("float32", {"eager": _eager, **_ALL}, lambda: model)
    yield _Variant("bfloat16", _OF_ROUNDED, lambda: copy.deepcopy(model).bfloat16())
    for bits in ("int8", "int4"):
        load = partial(AutoModelForCausalLM.from_pretrained, name_or_path, dtype=torch.float32, load_in=bits)
        yield _Variant(bits, _OF_ROUNDED, load)


def _eager(model: Any, prompts: Prompts) -> list[Sample] | Reason:
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    return paths.forward(other, prompts)


def _compare(variant: _Variant, prompts: Prompts, device: str, full: _Reference) -> Iterator[Comparison]:
    """Run all ways of one kind of weights; `full` is the forward over the weights in full."""
    model = variant.build().eval()
    is_rounded = variant.paths is _OF_ROUNDED
    reference = _Reference(model) if is_rounded else full
    if is_rounded:
        rounded = max(difference(reference(ids), full(ids)) for ids in prompts)
        yield Comparison(variant.weights, "rounded", rounded, _ROUNDING)
    model, bound = model.to(device), BOUNDS[variant.weights]
    for name, path in variant.paths.items():
        found = path(model, prompts)
        if isinstance(found, Reason):
            yield Comparison(variant.weights, name, None, bound, str(found))
        else:
            worst = max(difference(sample.logits, reference(sample.ids)[sample.start :]) for sample in found)
            yield Comparison(variant.weights, name, worst, bound)


class _Reference:
    """The eager forward in float64 of a model's weights, on the CPU, without a cache."""

    def __init__(self, model: Any) -> None:
        plain = copy.deepcopy(model).cpu()
        if getattr(plain, "is_quantized", False):
            plain = plain.dequantize()
        self._model = plain.double().eval()
        self._model.set_attn_implementation("eager")
        self._known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits (T, V) of a row."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._model(torch.tensor([key]), use_cache=False).logits[0]
        return self._known[key]


def difference(logits: Tensor, expected: Tensor) -> float:
    """Largest difference of logits over the largest expected logit; infinite if any is not a number.

    Both are counted from the mean of their position, so that log-probabilities can be compared with logits.

    Args:
        logits: (T, V) logits or log-probabilities.
        expected: the same shape.
    """
    one, other = logits.detach().cpu().double(), expected.double()
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    gap = ((one - other).abs().max() / other.abs().max()).item()
    return gap if math.isfinite(gap) else math.inf


def _missing(names: list[str]) -> list[str]:
    """A sentence if tensors of the model are not in its files."""
    return [f"the files lack {len(names)} of the model's tensors: {_first(names)}"] if names else []


def _not_finite(model: Any) -> list[str]:
    """A sentence if weights are infinite or not numbers."""
    names = [n for n, x in model.named_parameters() if x.is_floating_point() and not bool(x.isfinite().all())]
    return [f"{len(names)} tensors hold values that are infinite or not numbers: {_first(names)}"] if names else []


def _first(names: list[str]) -> str:
    return ", ".join([*names[:4], *["..."] * (len(names) > 4)])


def _loss(reference: _Reference, prompts: Prompts) -> float:
    """Mean negative log-probability of all tokens after the first of each prompt."""
    losses = [cross_entropy(reference(ids)[:-1], torch.tensor(list(ids[1:])), reduction="none") for ids in prompts]
    return torch.cat(losses).mean().item()
