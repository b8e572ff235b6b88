"""Fine-tune a Flax model on a text, on all devices that JAX sees; a run that was killed goes on where it was.

    python examples/finetune_flax.py --out tuned                           # on Python's own standard library
    python examples/finetune_flax.py --out tuned --text book.txt --model EleutherAI/gpt-neo-125m --bf16

The text is cut into pieces of `--context` tokens, which every epoch shuffles. A checkpoint is written every `--save`
steps.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptrio import AutoTokenizer, FlaxAutoModelForCausalLM
from gptrio.jax.sharding import shard
from gptrio.jax.training import TrainCheckpoints, TrainState, init_train_state, make_train_step


def read_text(path: Path | None) -> str:
    """The text of a file, or of the standard library's top-level modules."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "\n".join(module.read_text(encoding="utf-8") for module in modules)


def cut(ids: list[int], context: int) -> np.ndarray[Any, Any]:
    """(pieces, context) of a stream of tokens; the rest is left out."""
    return np.array(ids[: len(ids) // context * context], np.int32).reshape(-1, context)


def batch_of(pieces: np.ndarray[Any, Any], step: int, size: int, seed: int) -> np.ndarray[Any, Any]:
    """The batch (B, T) of a step: the same one whenever it is drawn."""
    epoch, place = divmod(step, len(pieces) // size)
    order = np.random.default_rng([seed, epoch]).permutation(len(pieces))
    return pieces[order[place * size : (place + 1) * size]]


def make_optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    """AdamW that decays matrices only; a short warm-up, then a cosine down to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, max(args.steps // 20, 1), args.steps)
    decay = optax.adamw(schedule, weight_decay=0.1, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))
    return optax.chain(optax.clip_by_global_norm(1.0), decay)


def train(model: Any, pieces: np.ndarray[Any, Any], args: argparse.Namespace) -> TrainState:
    """Train until step `args.steps`, from the newest checkpoint if there is one; print loss and speed."""
    optimizer = make_optimizer(args)
    state = init_train_state(model, optimizer, seed=args.seed)
    step = make_train_step(model, optimizer, state, args.accumulate)
    with TrainCheckpoints(args.out / "checkpoints") as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored
            print(f"resumed at step {int(state.step)}", flush=True)
        begun, tokens = time.perf_counter(), 0
        for i in range(int(state.step), args.steps):
            state, metrics = step(state, {"input_ids": batch_of(pieces, i, args.batch, args.seed)})
            tokens += int(metrics["tokens"])
            if (i + 1) % args.log == 0 or i + 1 == args.steps:
                speed = tokens / (time.perf_counter() - begun)
                print(f"step {i + 1:5d}  loss {float(metrics['loss']):.4f}  {speed:.0f} tokens/s", flush=True)
                begun, tokens = time.perf_counter(), 0
            if (i + 1) % args.save == 0 or i + 1 == args.steps:
                checkpoints.save(state)
    return state


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and of the checkpoints")
    parser.add_argument("--text", type=Path, help="UTF-8 file to train on")
    parser.add_argument("--model", default="gptrio/stdlib-gpt2", help="packaged name, folder or hub id")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="rows; a multiple of the devices")
    parser.add_argument("--context", type=int, default=256, help="tokens of a row")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after the other")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak of the schedule")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16")
    parser.add_argument("--remat", action="store_true", help="less memory, more time")
    parser.add_argument("--save", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--log", type=int, default=10, help="steps between lines")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Load, print the plan, train, and write the model."""
    args = parse()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
    model = FlaxAutoModelForCausalLM.from_pretrained(args.model, dtype=jnp.bfloat16 if args.bf16 else jnp.float32)
    shard(model, mesh)
    if args.remat:
        model.enable_gradient_checkpointing()
    pieces = cut(tokenizer(read_text(args.text), verbose=False).input_ids, args.context)
    if len(pieces) < args.batch:
        raise SystemExit(f"the text has {len(pieces)} pieces of {args.context} tokens, fewer than --batch {args.batch}")
    parameters = sum(value.size for value in jax.tree.leaves(model.params))
    print(
        f"{args.model}: {parameters / 1e6:.1f} M parameters on {jax.device_count()} {jax.default_backend()} device(s)\n"
        f"{pieces.size} tokens; {args.steps} steps of {args.batch} x {args.context} tokens, "
        f"{args.steps * args.batch / len(pieces):.2f} epochs",
        flush=True,
    )
    model.params = train(model, pieces, args).params
    model.save_pretrained(args.out, safe_serialization=True)
    tokenizer.save_pretrained(args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
