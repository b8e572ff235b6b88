"""What every test starts from: one thread, fixed seeds, no network, and the reference data where it is at hand."""

from __future__ import annotations

import gc
import os
import random
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ.pop("CI", None)  # where it is set, both libraries hand their logs on, and each message would be seen twice
os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub at import; no test may depend on a network
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes longer than what is compiled here
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # see `pytest_configure`
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["GPTRIO_COMPILE"] = "wait"  # what a step computes shall not depend on when its code is ready
os.environ["OMP_NUM_THREADS"] = "1"  # also for the programs that tests start

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"

settings.register_profile("gptrio", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gptrio")


def pytest_configure(config: pytest.Config) -> None:
    """What JAX compiles for a test serves later ones, and the programs that they start.

    Each worker has a folder of its own: JAX does not write an entry in one go, and another worker could read a part.
    """
    from gptrio.utils.installed import installed_version

    folder = TemporaryDirectory(prefix="gptrio-tests-jax-")
    config.add_cleanup(folder.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name  # read at the import of JAX
    if (installed_version("jaxlib") or "").startswith("0.10."):  # XLA ends a process with a flag that it does not know
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"  # with them, compiling takes twice as long


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python looks for garbage among the hundreds of thousands of objects of tests neither now nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, which makes its fixtures once, and all tests of JAX to one, which compiles once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "jax" if re.search(r"[/_](jax|flax)[/_.]", path) else path

    config.option.loadscopereorder = False  # files of few tests, which start processes, would come last
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers of two threads each would only wait for each other; the models here are tiny."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files are not flushed to the disk: it takes 10 ms each time, and no test outlives a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # fails for what is not an open file, too
        yield


@pytest.fixture(scope="module", autouse=True)
def nothing_is_collected_twice() -> Iterator[None]:
    """What a file leaves behind, such as compiled code, is not searched for garbage again: that takes a second."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every test, whatever ran before it."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference data (../shared/reference) is not beside this checkout")
    return REFERENCE
