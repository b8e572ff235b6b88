"""Pretrain the small GPT-2 that ships with gptrio, on the source of Python's own standard library.

    python examples/pretrain_stdlib.py --out stdlib-gpt2 --compile    # some 95 minutes on one core
    python examples/pretrain_stdlib.py --out stdlib-gpt2 --eval-only  # bits per byte on the held-out modules, beside xz

The text is the running interpreter's standard library, and those of other versions that `--also` names: every .py file
outside its tests, without tables that were generated. A module or package is held out as a whole, by a hash of its name
(about one in twenty). A run that was stopped goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer

from gptrio import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, Trainer, TrainingArguments
from gptrio.trainer_utils import get_last_checkpoint

END = "<|endoftext|>"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
STDLIB = Path(sysconfig.get_path("stdlib"))
BATCH, CONTEXT, STRIDE = 8, 512, 128


def read_modules(roots: Iterable[Path] = ()) -> dict[str, list[bytes]]:
    """Map each top-level module or package of standard libraries to the contents of its files, each content once.

    Args:
        roots: folders of the standard libraries of other versions of Python; the running one's is always read.
    """
    modules: dict[str, list[bytes]] = {}
    seen: set[bytes] = set()
    for root in (STDLIB, *roots):
        for path in sorted(root.rglob("*.py")):
            parts, data = path.relative_to(root).parts, path.read_bytes()
            if data in seen or LEFT_OUT & set(parts) or parts[0].startswith(("_sysconfigdata", "config-")):
                continue
            seen.add(data)
            modules.setdefault(parts[0].removesuffix(".py"), []).append(data)
    return modules


def is_held_out(module: str) -> bool:
    """One module in twenty, by a hash of its name: the same ones on every machine and Python version."""
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % 20 == 0


def texts_to_train_on(modules: dict[str, list[bytes]]) -> list[str]:
    """The files of all modules that are not held out."""
    return [data.decode() for name, files in modules.items() if not is_held_out(name) for data in files]


def files_held_out() -> list[bytes]:
    """The files of the running Python's modules that are held out."""
    return [data for name, files in read_modules().items() if is_held_out(name) for data in files]


def train_tokenizer(texts: list[str], folder: Path) -> GPT2TokenizerFast:
    """Byte-level BPE of 4,096 tokens; as in GPT-2's own vocabulary, the end-of-text token comes last."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=4095, show_progress=False)
    bpe.save_model(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocab, END: len(vocab)}, ensure_ascii=False))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT)


def cut(texts: list[str], tokenizer: GPT2TokenizerFast) -> list[dict[str, torch.Tensor]]:
    """Rows of CONTEXT tokens, from one stream of all texts with an end-of-text token before each."""
    ids = [tokenizer.eos_token_id]
    tokens = torch.tensor([t for text in texts for t in [*ids, *tokenizer(text, verbose=False).input_ids]])
    return [{"input_ids": row, "labels": row} for row in tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)]


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthogonal rows or columns, roughly: singular values between 0.7 and 1.2.

    Five Newton-Schulz iterations, in float32: torch's own Muon takes bfloat16, which most CPUs must emulate.
    """
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Muon(torch.optim.AdamW):
    """Orthogonalized momentum for groups with `orthogonal=True` (Muon, Jordan 2024), AdamW for the others.

    Weights of `Conv1D` are (in, out); query, key and value, which lie side by side, are treated one by one.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Change the parameters by their gradients, and drop the gradients of those that AdamW is not to see."""
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                self._turn(weight, group["lr"], group["weight_decay"])
                weight.grad = None
        super().step(closure)

    def _turn(self, weight: torch.Tensor, rate: float, decay: float) -> None:
        momentum = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
        momentum.lerp_(weight.grad, 0.05)
        rows, columns = weight.shape
        parts = weight.grad.lerp(momentum, 0.95).split(rows if columns == 3 * rows else columns, dim=1)
        turned = [orthogonalized(part) if rows <= part.shape[1] else orthogonalized(part.T).T for part in parts]
        scale = max(1.0, parts[0].shape[1] / rows) ** 0.5
        weight.mul_(1 - rate * decay).sub_(torch.cat(turned, dim=1), alpha=rate * scale)


def make_optimizer(model: GPT2LMHeadModel) -> Muon:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and norms; only matrices decay."""
    named = list(model.named_parameters())
    blocks = [p for name, p in named if ".h." in name and p.ndim == 2]
    embeddings = [p for name, p in named if ".h." not in name and p.ndim == 2]
    vectors = [p for _, p in named if p.ndim == 1]
    groups = [
        {"params": blocks, "orthogonal": True, "lr": 0.02, "weight_decay": 0.1},
        {"params": embeddings, "orthogonal": False, "weight_decay": 0.1},
        {"params": vectors, "orthogonal": False, "weight_decay": 0.0},
    ]
    return Muon(groups, lr=3e-3, betas=(0.9, 0.95))


def train(model: GPT2LMHeadModel, rows: list[dict[str, torch.Tensor]], args: argparse.Namespace) -> None:
    """Train for `args.steps` updates, from the newest checkpoint if there is one; write the model in bfloat16."""
    checkpoints = args.out.with_name(f"{args.out.name}-checkpoints")
    settings = TrainingArguments(
        str(checkpoints), max_steps=args.steps, per_device_train_batch_size=BATCH, seed=args.seed,
        lr_scheduler_type="linear", warmup_ratio=0.03, torch_compile=args.compile, logging_steps=50, save_steps=250,
        save_total_limit=2, report_to="none",
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=rows, optimizers=(make_optimizer(model), None))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    model.to(torch.bfloat16).save_pretrained(args.out)


@torch.inference_mode()
def count_bits(model: GPT2LMHeadModel, ids: list[int]) -> float:
    """Bits that the model needs for `ids[1:]`: a window slides by STRIDE tokens and scores those not yet scored."""
    nats = 0.0
    for start in range(0, max(len(ids) - 1 - CONTEXT + STRIDE, 1), STRIDE):
        window = torch.tensor(ids[start : start + CONTEXT + 1])
        seen = 0 if start == 0 else CONTEXT - STRIDE
        logits = model(window[None, :-1]).logits[0, seen:]  # (T - seen, V)
        nats += F.cross_entropy(logits.float(), window[1 + seen :], reduction="sum").item()
    return nats / math.log(2)


def xz_size(data: bytes) -> int:
    """Bytes that `xz -9` makes of `data`."""
    return len(lzma.compress(data, preset=9))


def evaluate(folder: Path, texts: list[str], files: list[bytes]) -> None:
    """Print bits per byte of the saved model on whole files, end-of-text included, and of xz -9 on the same bytes."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder).eval(), GPT2TokenizerFast.from_pretrained(folder)
    end, stream, seen = tokenizer.eos_token_id, b"".join(files), "".join(texts).encode()
    ids = [[end, *tokenizer(data.decode(), verbose=False).input_ids, end] for data in files]
    bits, tokens = sum(count_bits(model, row) for row in ids), sum(len(row) - 1 for row in ids)
    print(f"{len(files)} files held out, {len(stream)} bytes; {bits * math.log(2) / tokens:.4f} nats for each token")
    print("bits per byte:")
    print(f"{bits / len(stream):.4f}  the model")
    print(f"{8 * xz_size(stream) / len(stream):.4f}  xz -9, one stream")
    print(f"{8 * sum(map(xz_size, files)) / len(stream):.4f}  xz -9, file by file")
    print(f"{8 * (xz_size(seen + stream) - xz_size(seen)) / len(stream):.4f}  xz -9, after the text trained on")


def main() -> None:
    """Parse the options, train unless told not to, evaluate what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="standard libraries of other Python versions")
    parser.add_argument("--steps", type=int, default=1900, help=f"updates by {BATCH} x {CONTEXT} tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="faster, where a C++ compiler is at hand")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model in --out")
    args = parser.parse_args()
    texts = texts_to_train_on(read_modules(args.also))
    print(f"{len(texts)} files to train on, {sum(len(text.encode()) for text in texts):,} bytes")
    if not args.eval_only:
        args.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        tokenizer = train_tokenizer(texts, args.out)
        tokenizer.save_pretrained(args.out)
        end = tokenizer.eos_token_id
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=256, n_layer=4, n_head=4, bos_token_id=end,
            eos_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.1, bos_token_id=end, eos_token_id=end
        )  # text that looks like code; the likeliest tokens alone soon repeat themselves
        train(model, cut(texts, tokenizer), args)
    evaluate(args.out, texts, files_held_out())


if __name__ == "__main__":
    main()
