"""Fine-tune GPT-2 on a text of your own on a Ray cluster, with the weights divided among the workers.

    pip install 'gptrio[train]' 'ray[train]'
    python examples/finetune_ray.py my_text.txt --out /shared/my-model --workers 4 --gpu

The function that trains is the one that torchrun would call: Ray starts it on each worker, with the same variables.
Checkpoints go to the output folder, which all workers must share; a run that is started again goes on from the newest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def train(settings: dict[str, Any]) -> None:
    """Train on one worker; each calls this."""
    from gptrio import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator, pack

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="float32")
    texts = Path(settings["text"]).read_text(encoding="utf-8").split("\n\n")
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts if text.strip()]
    arguments = TrainingArguments(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        per_device_train_batch_size=2,
        learning_rate=5e-4,
        logging_steps=5,
        save_steps=settings["save_every"],
        save_total_limit=2,
        fsdp="full_shard" if settings["workers"] > 1 else "",
        use_cpu=not settings["gpu"],
        report_to="none",
    )
    rows = pack(ids, length=settings["length"])
    trainer = Trainer(model, arguments, default_data_collator, train_dataset=rows)
    trainer.train(resume_from_checkpoint=any(Path(settings["out"]).glob("checkpoint-*")) or None)
    trainer.save_model()


def main() -> None:
    """Start the workers."""
    import ray
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--model", default="gptrio/stdlib-gpt2")
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    settings = vars(parser.parse_args())
    settings |= {name: str(Path(settings[name]).absolute()) for name in ("text", "out")}
    ray.init()
    scaling = ScalingConfig(num_workers=settings["workers"], use_gpu=settings["gpu"])
    TorchTrainer(train, train_loop_config=settings, scaling_config=scaling).fit()


if __name__ == "__main__":
    main()
