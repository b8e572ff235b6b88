"""How long does one decoding step take with LoRA, unmerged, beside PEFT over Transformers and beside no adapter?

python benchmarks/lora.py --model gpt2 --dtype float32 --rank 8 --layers c_attn,c_proj,c_fc
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import gptrio
from _checkpoints import checkpoint, prompts_for, weights
from _limits import step_limit
from _results import print_table, save
from _runner import HEAD, Comparison, facts, names, options, report, settings
from decode import decode
from machine import limits


def adapter(base: Path, rank: int, layers: Sequence[str]) -> Path:
    """The folder of an adapter of a model with random weights, made on first use; the engines read both."""
    folder = base.with_name(f"{base.name}-lora-{rank}-{'-'.join(layers)}")
    if not (folder / "config.json").exists():
        model = gptrio.AutoModelForCausalLM.from_pretrained(base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT corrects
            config = LoraConfig(r=rank, target_modules=list(layers), task_type="CAUSAL_LM")
            adapted = get_peft_model(model, config)
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(str(folder))
        shutil.copy(base / "config.json", folder)  # last: its presence says that all is there
    return folder


def main() -> None:
    """Print the tables and write the JSON file."""
    parser = options("Decoding speed with LoRA.")
    parser.set_defaults(peers=("transformers",))
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="steps that are timed")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--layers", type=names, default=("c_attn", "c_proj", "c_fc"), help="names of the adapted ones")
    arguments = parser.parse_args()
    base, machine = checkpoint(arguments.model), limits(arguments.threads)
    prompts = prompts_for(base, arguments.batch, arguments.prompt)
    limit = step_limit(weights(base), arguments.dtype, arguments.batch, machine)
    found = {}
    for title, folder in {"without": base, "with LoRA": adapter(base, arguments.rank, arguments.layers)}.items():
        with Comparison(arguments.peers, folder, arguments.dtype, arguments.threads) as comparison:
            outcomes = decode(comparison, prompts, arguments.new, arguments.rounds)
        print(f"{arguments.model} {title}, {arguments.dtype}, batch {arguments.batch}, {arguments.threads} threads")
        print_table(HEAD, report(outcomes, limit, 1e-3, "ms"))
        found[title] = facts(outcomes)
    about = {"settings": settings(arguments), "limits": machine, "limit": limit._asdict()}
    save("lora", {**about, "outcomes": found}, arguments.out)


if __name__ == "__main__":
    main()
