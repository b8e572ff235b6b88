"""One contender, run by its own Python: reads a JSON request a line and answers each with a JSON line.

{"call": "load", "folder": ..., "dtype": ..., "threads": ...}      -> {"seconds": ...}
{"call": "generate", "prompts": [[ids]], "new": count}            -> {"seconds": ..., "tokens": [[ids]]}
{"call": "memory"}                                                -> {"megabytes": ...}, the most so far
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any


class TorchModel:
    """gptrio or transformers: the same code, as it is meant to be."""

    def __init__(self, library: str) -> None:
        self.library = library

    def load(self, folder: str, dtype: str, threads: int) -> None:
        import torch

        module = __import__(self.library)
        torch.set_num_threads(threads)
        options: dict[str, Any] = {"dtype": dtype}
        if dtype in ("int8", "int4"):
            options = {"dtype": "float32", "quantization_config": getattr(module, dtype.capitalize() + "Config")()}
        self.model = module.AutoModelForCausalLM.from_pretrained(folder, **options)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        import torch

        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        return out[:, ids.shape[1] :].tolist()


class CTranslate2Model:
    """CTranslate2, from a copy of the checkpoint in its own format (made beside the checkpoint on first use)."""

    def load(self, folder: str, dtype: str, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        target = Path(folder).with_name(f"{Path(folder).name}-ctranslate2-{dtype}")
        if not target.exists():
            TransformersConverter(folder).convert(str(target), quantization=dtype)
            self.began = time.perf_counter()
        self.model = ctranslate2.Generator(str(target), device="cpu", intra_threads=threads, inter_threads=1)

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        tokens = [[f"t{number}" for number in prompt] for prompt in prompts]
        results = self.model.generate_batch(
            tokens, max_length=new, min_length=new, beam_size=1, sampling_topk=1, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]


def contender(peer: str) -> Any:
    """The contender of a name."""
    return CTranslate2Model() if peer == "ctranslate2" else TorchModel(peer)


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request and time it."""
    model.began = time.perf_counter()
    call = request.pop("call")
    if call == "memory":
        return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if call == "load":
        model.load(**request)
        return {"seconds": time.perf_counter() - model.began}
    tokens = model.generate(**request)
    return {"seconds": time.perf_counter() - model.began, "tokens": tokens}


def main() -> None:
    """Answer requests until the input ends; whatever libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    model = contender(sys.argv[1])
    for line in sys.stdin:
        try:
            reply = answer(model, json.loads(line))
        except Exception as error:  # told to the asking process, which names the peer as missing
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
