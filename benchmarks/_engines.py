"""Each engine's own calls, for its own Python: load a checkpoint, continue prompts greedily by a number of tokens.

`start` imports what the library needs for a checkpoint; `convert` writes a copy in the library's format, once.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

Ids = list[list[int]]


class TorchModel:
    """gptrio or transformers: the same code, as it is meant to be."""

    def __init__(self, library: str) -> None:
        self.library = library

    def start(self, folder: str) -> None:
        """Import the library and the class of a checkpoint's model."""
        self.module = importlib.import_module(self.library)
        self.model_class = getattr(self.module, _config(folder)["architectures"][0])

    def load(self, folder: str, dtype: str, threads: int) -> None:
        """Load a model in a dtype, or quantized; of an adapter's folder, its base and then the adapter, by PEFT."""
        import torch

        torch.set_num_threads(threads)
        options: dict[str, Any] = {"dtype": dtype}
        if dtype in ("int8", "int4"):
            settings = getattr(self.module, dtype.capitalize() + "Config")()
            options = {"dtype": "bfloat16", "quantization_config": settings}  # of all but weights; attention is faster
        adapter = Path(folder) / "adapter_config.json"
        if adapter.exists():
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            model = self.model_class.from_pretrained(base, **options)
            self.model = importlib.import_module("peft").PeftModel.from_pretrained(model, folder)
        else:
            self.model = self.model_class.from_pretrained(folder, **options)
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: Ids, new: int) -> Ids:
        """New tokens, greedily."""
        import torch

        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        return [[int(token) for token in row] for row in out[:, ids.shape[1] :].tolist()]


class CTranslate2Model:
    """CTranslate2, which reads a copy of the checkpoint in its own format and takes tokens as text."""

    def start(self, folder: str) -> None:
        """Import the library."""
        self.library = importlib.import_module("ctranslate2")

    def convert(self, folder: str, dtype: str) -> None:
        """Make the copy beside the checkpoint."""
        target = self._copy(folder, dtype)
        if not target.exists():
            converters = importlib.import_module("ctranslate2.converters")
            converters.TransformersConverter(folder).convert(str(target), quantization=dtype)

    def load(self, folder: str, dtype: str, threads: int) -> None:
        """Load the copy."""
        target = str(self._copy(folder, dtype))
        self.model = self.library.Generator(
            target, device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1
        )

    def generate(self, prompts: Ids, new: int) -> Ids:
        """New tokens, greedily."""
        tokens = [[f"t{number}" for number in prompt] for prompt in prompts]
        results = self.model.generate_batch(
            tokens, max_length=new, min_length=new, beam_size=1, sampling_topk=1, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    @staticmethod
    def _copy(folder: str, dtype: str) -> Path:
        return Path(folder).with_name(f"{Path(folder).name}-ctranslate2-{dtype}")


class VllmModel:
    """vLLM's engine for CPUs in this process, without prompts kept from earlier calls."""

    def start(self, folder: str) -> None:
        """Import the library."""
        self.library = importlib.import_module("vllm")

    def load(self, folder: str, dtype: str, threads: int) -> None:
        """Load a model and make the engine."""
        self.model = self.library.LLM(
            model=folder, dtype=dtype, skip_tokenizer_init=True, enable_prefix_caching=False, max_num_seqs=32
        )

    def generate(self, prompts: Ids, new: int) -> Ids:
        """New tokens, greedily."""
        sampling = self.library.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self.model.generate(given, sampling, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


def _config(folder: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return config
