"""One decoding step, run by a team of threads that meet at barriers, in one call that holds no interpreter lock.

README.md beside this file argues that the threads do no harm, wherever one of them is held up.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import carray, types

from gptrio.kernels.cpu_decode.amx import is_available
from gptrio.kernels.cpu_decode.arrays import floats
from gptrio.kernels.cpu_decode.compilation import keep_code_in
from gptrio.kernels.cpu_decode.llvm_intrinsics import add_and_get, features, get, kernel, make_view, pause, put, replace
from gptrio.kernels.cpu_decode.low_rank import linear
from gptrio.kernels.cpu_decode.ops import activate, attend, layer_norm
from gptrio.kernels.cpu_decode.structs import (
    ATTENTION_OUTPUT,
    LAYER,
    MLP_DOWN,
    MLP_UP,
    MODEL,
    NUM_PRODUCTS,
    PRODUCT,
    QKV,
)

# Places in the team's control block, 64 bytes apart so that threads do not disturb each other.
COUNTER, FLOOR, MODEL_AT, ACTIVE, WORKERS = 0, 64, 128, 192, 256  # of each worker: its state, and its rank 8 bytes on
SLEEPING, READY, CLAIMED, AT_WORK, WAKING = range(5)
_SPINS = 3000  # checks of a value that another thread writes, before the thread yields its processor
_IDLE = 20000  # checks for work before a worker sleeps

_models, _layers, _products = (make_view(numba.from_dtype(table)) for table in (MODEL, LAYER, PRODUCT))
_let_others_run = types.ExternalFunction("sched_yield", types.int32())


@kernel()
def _barrier(control, phase, threads):
    """Wait until all threads have come to the end of a phase of this step."""
    goal = get(control + FLOOR) + phase * threads
    if add_and_get(control + COUNTER, 1) == goal:
        return
    looks = 0
    while get(control + COUNTER) < goal:
        pause()
        looks += 1
        if looks > _SPINS:
            _let_others_run()


@kernel()
def _run(control, model, thread, threads):
    """A thread's share of a step; returns the phases that it took."""
    m = carray(_models(model), (1,))[0]
    layers = carray(_layers(m.layers), (m.num_layers,))
    rows, width = m.rows, m.width
    line, workspace = 4 * width, m.workspace + m.workspace_stride * thread
    normed = m.normed + m.normed_stride * thread
    also = normed + rows * line  # input of the MLP, in a parallel block too
    phase = 0
    for i in range(m.num_layers):
        layer = layers[i]
        p = carray(_products(layer.products), (NUM_PRODUCTS,))
        layer_norm(m.x, normed, layer.norm1_weight, layer.norm1_bias, layer.norm1_eps, rows, width)
        if layer.parallel:
            layer_norm(m.x, also, layer.norm2_weight, layer.norm2_bias, layer.norm2_eps, rows, width)
        for k in range(layer.projections):
            linear(p[QKV + k], normed, line, m.qkv, 3 * line, rows, False, workspace, thread, threads)
        phase += 1
        _barrier(control, phase, threads)
        attend(m, layer, thread, threads)
        phase += 1
        _barrier(control, phase, threads)
        linear(p[ATTENTION_OUTPUT], m.attended, line, m.x, line, rows, True, workspace, thread, threads)
        if not layer.parallel:
            phase += 1
            _barrier(control, phase, threads)
            layer_norm(m.x, also, layer.norm2_weight, layer.norm2_bias, layer.norm2_eps, rows, width)
        start, end = linear(p[MLP_UP], also, line, m.hidden, 4 * layer.inner, rows, False, workspace, thread, threads)
        for r in range(rows):
            activate(layer.activation, floats(m.hidden + 4 * (r * layer.inner + start), end - start))
        phase += 1
        _barrier(control, phase, threads)
        linear(p[MLP_DOWN], m.hidden, 4 * layer.inner, m.x, line, rows, True, workspace, thread, threads)
        phase += 1
        _barrier(control, phase, threads)
    layer_norm(m.x, normed, m.norm_weight, m.norm_bias, m.norm_eps, rows, width)
    head = carray(_products(m.head), (1,))[0]
    linear(head, normed, line, m.logits, 4 * head.outputs, rows, False, workspace, thread, threads)
    phase += 1
    _barrier(control, phase, threads)
    return phase


@kernel()
def _run_leader(control, workers, model, spin_limit):
    """Run a step with all workers that are ready; `spin_limit` is how often to look for those that are waking up.

    Returns:
        The threads that took part.
    """
    put(control + MODEL_AT, model)
    put(control + FLOOR, get(control + COUNTER))
    threads = 1
    for worker in range(workers):
        state = control + WORKERS + 64 * worker
        looks = 0
        while get(state) == AT_WORK or (get(state) == WAKING and spin_limit > 0):
            pause()
            spin_limit -= 1
            looks += 1
            if looks > _SPINS:
                _let_others_run()
        if replace(state, READY, CLAIMED):
            put(state + 8, threads)
            threads += 1
    put(control + ACTIVE, threads)
    for worker in range(workers):
        replace(control + WORKERS + 64 * worker, CLAIMED, AT_WORK)
    _run(control, model, 0, threads)
    return threads


@kernel()
def _worker_loop(control, worker):
    """Take part in steps until there has been nothing to do for a while; returns the steps taken part in."""
    state = control + WORKERS + 64 * worker
    put(state, READY)
    looks = steps = 0
    while looks < _IDLE or not replace(state, READY, SLEEPING):
        pause()
        looks += 1
        now = get(state)
        if now == CLAIMED and looks > _SPINS:
            _let_others_run()
        if now == AT_WORK:
            _run(control, get(control + MODEL_AT), get(state + 8), get(control + ACTIVE))
            put(state, READY)
            looks = 0
            steps += 1
    return steps


def _entry(has_tiles: bool | None) -> Callable[[int, int, int, int, int], int]:
    """The compiled function; numba keeps its code under the values that it encloses, `has_tiles` among them."""

    @kernel()
    def enter(control, worker, workers, model, spin_limit):
        if has_tiles is None:
            return -1
        if worker < 0:
            return _run_leader(control, workers, model, spin_limit)
        return _worker_loop(control, worker)

    return enter


enter: Any = _entry(is_available())


def prepare(folder: Path, may_compile: bool) -> None:
    """Read the step's code from a folder; or compile it for this processor, and write it there.

    Args:
        folder: where the code is kept.
        may_compile: compile what is not there.

    Raises:
        LookupError: the code is not there, and may not be compiled.
        RuntimeError: the processor cannot convert float16, for which LLVM has nothing else here.
    """
    if platform.machine() in ("x86_64", "AMD64") and "+f16c" not in features():
        raise RuntimeError("the processor has no F16C instructions")
    signature = (types.int64,) * 5
    if signature in enter.overloads:
        return
    keep_code_in(folder, enter, may_compile)
    enter.compile(signature)
