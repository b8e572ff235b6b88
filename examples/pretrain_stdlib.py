"""Pretrain the small GPT-2 that ships with gptrio, on the source of Python's own standard library.

    python examples/pretrain_stdlib.py --out stdlib-gpt2 --compile    # the shipped model: some 40 minutes on one core
    python examples/pretrain_stdlib.py --out stdlib-gpt2 --eval-only  # bits per byte on the held-out modules, beside xz

Everything comes from the running interpreter's standard library: every .py file outside its tests, without tables that
were generated. A module or package is held out as a whole, by a hash of its name (about one in twenty).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import lzma
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from torch.optim.lr_scheduler import OneCycleLR

from gptrio import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

END = "<|endoftext|>"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
BATCH, CONTEXT, STRIDE = 4, 512, 128


def read_modules() -> dict[str, list[bytes]]:
    """Map each top-level module or package of the standard library to the contents of its files."""
    root = Path(sysconfig.get_path("stdlib"))
    modules: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not LEFT_OUT & set(parts) and not parts[0].startswith(("_sysconfigdata", "config-")):
            modules.setdefault(parts[0].removesuffix(".py"), []).append(path.read_bytes())
    return modules


def is_held_out(module: str) -> bool:
    """One module in twenty, by a hash of its name: the same ones on every machine and Python version."""
    return int(hashlib.sha256(module.encode()).hexdigest(), 16) % 20 == 0


def split(modules: dict[str, list[bytes]]) -> tuple[list[str], list[bytes]]:
    """Return the texts to train on and the files held out."""
    train = [data.decode() for name, files in modules.items() if not is_held_out(name) for data in files]
    held_out = [data for name, files in modules.items() if is_held_out(name) for data in files]
    return train, held_out


def train_tokenizer(texts: list[str], folder: Path) -> GPT2TokenizerFast:
    """Byte-level BPE of 4,096 tokens; as in GPT-2's own vocabulary, the end-of-text token comes last."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=4095, show_progress=False)
    bpe.save_model(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocab, END: len(vocab)}, ensure_ascii=False))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CONTEXT)


def draw_batches(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Endless batches (B, T): each epoch cuts the stream at a new offset and shuffles the pieces."""
    while True:
        start = int(torch.randint(CONTEXT, ()))
        pieces = tokens[start : start + (len(tokens) - start) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        yield from (batch for batch in pieces[torch.randperm(len(pieces))].split(BATCH) if len(batch) == BATCH)


def make_optimizer(model: GPT2LMHeadModel, args: argparse.Namespace) -> tuple[torch.optim.AdamW, OneCycleLR]:
    """AdamW that decays matrices and leaves biases and norms alone; a short warm-up, then a cosine down to zero."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    return optimizer, OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.03, cycle_momentum=False)


def train(model: GPT2LMHeadModel, tokens: torch.Tensor, args: argparse.Namespace) -> None:
    """Train for `args.steps` batches; write the model now and then and at the end."""
    optimizer, schedule = make_optimizer(model, args)
    begun = time.time()
    for step, batch in zip(range(1, args.steps + 1), draw_batches(tokens), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.time() - begun:.0f} s", flush=True)
        if step % 1000 == 0 or step == args.steps:  # bfloat16, as it ships
            copy.deepcopy(model).to(torch.bfloat16).save_pretrained(args.out)


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
    parser.add_argument("--steps", type=int, default=6600, help=f"batches of {BATCH} x {CONTEXT} tokens")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="faster, where a C++ compiler is at hand")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model in --out")
    args = parser.parse_args()
    texts, held_out = split(read_modules())
    if not args.eval_only:
        args.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        tokenizer = train_tokenizer(texts, args.out)
        tokenizer.save_pretrained(args.out)
        end = tokenizer.eos_token_id
        tokens = torch.tensor([t for text in texts for t in [end, *tokenizer(text, verbose=False).input_ids]])
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=256, n_layer=4, n_head=4, bos_token_id=end,
            eos_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        if args.compile:
            model.compile()
        train(model, tokens, args)
    evaluate(args.out, texts, held_out)


if __name__ == "__main__":
    main()
