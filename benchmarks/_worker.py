"""One engine, run by its own Python: reads a JSON request a line and answers each with a JSON line.

{"call": "convert", "folder": ..., "dtype": ...}                  -> {"seconds": ...}, once for a checkpoint
{"call": "start", "folder": ...}                                  -> {"seconds": ...}, imports
{"call": "load", "folder": ..., "dtype": ..., "threads": ...}     -> {"seconds": ...}
{"call": "generate", "prompts": [[ids]], "new": count}            -> {"seconds": ..., "tokens": [[ids]]}
{"call": "memory"}                                                -> {"megabytes": ...}, the most so far
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from _engines import CTranslate2Model, TorchModel, VllmModel
from _llamacpp import LlamaCppModel


def engine(peer: str) -> Any:
    """The engine of a name."""
    engines = {"ctranslate2": CTranslate2Model, "llamacpp": LlamaCppModel, "vllm": VllmModel}
    return engines[peer]() if peer in engines else TorchModel(peer.partition("@")[0])


def most_memory() -> int:
    """Megabytes that this process held at most; of Linux alone, as elsewhere the parent's may be counted."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request and time it."""
    call = request.pop("call")
    if call == "memory":
        return {"megabytes": most_memory()}
    begun = time.perf_counter()
    result = getattr(model, call)(**request)
    seconds = {"seconds": time.perf_counter() - begun}
    return {**seconds, "tokens": result} if call == "generate" else seconds


def main() -> None:
    """Answer requests until the input ends; whatever libraries print goes to standard error."""
    os.environ.setdefault("GPTRIO_COMPILE", "wait")  # the step is compiled before anything is measured
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    model = engine(sys.argv[1])
    for line in sys.stdin:
        try:
            reply = answer(model, json.loads(line))
        except Exception as error:  # told to the asking process, which names the peer as missing
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
