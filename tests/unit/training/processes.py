"""Starts processes for tests: they are forked from a server that has imported what takes long."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

_PRELOADED = ["small_run", "trainer_run", "rank_runs"]


def server() -> ForkServerContext:
    """Starts processes that have imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"tests.unit.training.{name}" for name in _PRELOADED])
    return context


def start_ranks(
    function: Callable[..., Any], *args: Any, processes: int = 2, **environment: str
) -> list[tuple[ForkServerProcess, Connection]]:
    """Call a function in several processes as torchrun would; each with where its result comes from."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in map(str, range(processes)):
        receiver, sender = server().Pipe(duplex=False)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes), **environment}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        process = server().Process(target=_call, args=(function, args, variables, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    return started


def results(started: list[tuple[ForkServerProcess, Connection]], seconds: float = 300) -> list[Any]:
    """What each process returned; if one fails, the others end too.

    Raises:
        AssertionError: one failed, or did not return in time; the message has what it raised.
    """
    found: dict[int, Any] = {}
    end = time.monotonic() + seconds
    try:
        while len(found) < len(started):
            waiting = {receiver: i for i, (_, receiver) in enumerate(started) if i not in found}
            for receiver in wait(list(waiting), timeout=max(end - time.monotonic(), 0)) or [None]:
                assert receiver is not None, f"ranks {sorted(waiting.values())} did not return"
                rank = waiting[receiver]
                try:
                    is_result, value = receiver.recv()
                except EOFError:
                    is_result, value = False, "it was killed"
                assert is_result, f"rank {rank} failed: {value}"
                found[rank] = value
    finally:
        for process, _ in started:
            if len(found) < len(started):
                process.kill()
            process.join()
    return [found[rank] for rank in range(len(started))]


def run_ranks(function: Callable[..., Any], *args: Any, processes: int = 2, **environment: str) -> list[Any]:
    """What a function returns on each rank of several processes."""
    return results(start_ranks(function, *args, processes=processes, **environment))


def _call(function: Callable[..., Any], args: Any, variables: dict[str, str], sender: Connection) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # as in a program; else workers start as this process did
    torch.set_num_threads(1)
    try:
        sender.send((True, function(*args)))
    except Exception:
        sender.send((False, traceback.format_exc()))
    if dist.is_initialized():
        dist.destroy_process_group()
