"""Checkpoint folders with one file changed at random, and a program that uses them in child processes.

`python tests/unit/mutated_folders.py CASES SEED` prints the cases that end in anything but
a GptrioError or a working model, take more than 5 seconds or more than 1 GiB, as JSON on the last line.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import gptrio
from gptrio.errors import GptrioError

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox")
SECONDS, MEBIBYTES = 5.0, 1024
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt_neo": {
        "hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32,
        "attention_types": [[["global", "local"], 1]], "window_size": 4,
    },
    "gpt_neox": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 32,
    },
}  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**9, 2**63, 10**30, 1.5, -0.5, 1e308, float("nan"), float("inf"), "", "abc", "gpt2",
    [], [None], [[]], [1, "a"], {}, {"a": {}}, {"0": 3}, {"type": "linear"}, [[[["a"]]]],
)  # fmt: skip


def write_folder(folder: Path, family: str, weights: str) -> None:
    """Write a tiny checkpoint with every file that loading reads; weights "one", "shards" or "bin"."""
    folder.mkdir(parents=True)
    tokens = [chr(i) for i in range(33, 127)] + ["Ġ", "he", "ll", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\n")
    config = gptrio.AutoConfig.for_model(family, vocab_size=100, bos_token_id=97, eos_token_id=97, **_SIZES[family])
    torch.manual_seed(0)
    model = gptrio.AutoModelForCausalLM.from_config(config)
    if weights == "bin":
        model.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    else:
        model.save_pretrained(folder, max_shard_size="4KB" if weights == "shards" else "1GB")
    tokenizer = gptrio.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_tokens(["<added>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.save_pretrained(folder, legacy_format=True)
    tokenizer.save_pretrained(folder, legacy_format=False)


def mutate(path: Path, chance: random.Random) -> str:
    """Change one file; return what was done."""
    is_json = path.suffix == ".json"
    kinds: list[Callable[[Path, random.Random], None]] = [_flip, _truncate, _empty, _splice, _folder, _loop, _mark]
    kind = chance.choice([_json] * 12 + [_deep] + kinds if is_json else kinds + [_flip] * 3)
    kind(path, chance)
    return kind.__name__


def _flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(min(len(data), chance.choice([16, 400, 1 << 30])))] = chance.randrange(256)
    path.write_bytes(data)


def _truncate(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def _empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def _splice(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    start, length = chance.randrange(len(data)), chance.randint(1, 40)
    path.write_bytes(data[:start] + data[start : start + length] * 3 + data[start:])


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _mark(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xc3"]) + path.read_bytes())


def _deep(path: Path, chance: random.Random) -> None:
    depth = chance.choice([500, 5000, 100_000])
    path.write_text('{"a":' * depth + "1" + "}" * depth)


def _json(path: Path, chance: random.Random) -> None:
    content = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(content)
    top = [place for place in places if place[0] is content]
    node, key = chance.choice(top if chance.random() < 0.6 else places)
    what = chance.random()
    if what < 0.1:
        del node[key]
    elif what < 0.2 and isinstance(node, dict):
        node[chance.choice(list(content))] = node[key]
    elif what < 0.25:
        content = chance.choice(_VALUES)
    else:
        node[key] = chance.choice(_VALUES)
    path.write_text(json.dumps(content))


def use(folder: Path) -> None:
    """Load model and tokenizers, and use each once."""
    problems = []
    for load in (_use_model, _use_fast, _use_slow):
        try:
            load(folder)
        except GptrioError:
            continue
        except BaseException:
            problems.append(f"{load.__name__}: {traceback.format_exc(limit=-6)}")
    if problems:
        raise RuntimeError("\n".join(problems))


def _use_model(folder: Path) -> None:
    model = gptrio.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model(torch.arange(4)[None])
        model.generate(torch.arange(4)[None], max_new_tokens=2)


def _use_fast(folder: Path) -> None:
    _use_tokenizer(gptrio.AutoTokenizer.from_pretrained(folder))


def _use_slow(folder: Path) -> None:
    _use_tokenizer(gptrio.GPT2Tokenizer.from_pretrained(folder))


def _use_tokenizer(tokenizer: Any) -> None:
    tokenizer.decode(tokenizer("hello <added> <turn>")["input_ids"])
    tokenizer.decode([0, 1])
    len(tokenizer)


def in_child(folder: Path) -> str | None:
    """Use the folder in a child process; return what went wrong."""
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        try:
            use(folder)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            said = f"{grown} MiB" if grown > MEBIBYTES else ""
        except BaseException as error:
            said = str(error)
        os.write(writer, said.encode(errors="replace")[:60000])
        os._exit(0)
    os.close(writer)
    said, start = b"", time.monotonic()
    while True:
        left = SECONDS - (time.monotonic() - start)
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            said = b"no end within the time"
            break
        chunk = os.read(reader, 65536)
        if not chunk:
            break
        said += chunk
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if status and said != b"no end within the time":
        return f"process ended with {status}"
    return said.decode(errors="replace") or None


def run(cases: int, seed: int, work: Path) -> list[tuple[int, str, str, str, str]]:
    """Mutate and use `cases` folders; return those that went wrong."""
    sources = []
    for family in FAMILIES:
        for weights in ("one", "shards", "bin"):
            source = work / f"{family}-{weights}"
            write_folder(source, family, weights)
            sources.append(source)
    use(sources[0])
    found = []
    for case in range(seed, seed + cases):
        chance = random.Random(case)
        source = sources[case % len(sources)]
        folder = work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        path = chance.choice(sorted(folder.iterdir()))
        done = mutate(path, chance)
        wrong = in_child(folder)
        if wrong:
            found.append((case, source.name, path.name, done, wrong))
    return found


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), Path(place))))
