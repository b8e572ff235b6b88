"""Translates messages of the library for the command line: `top_p=1.5` becomes `--top-p 1.5`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

# argument in Python -> parameter of a command that sets it
ALIASES = {"stop_strings": "stop", "load_in": "quantize", "learning_rate": "lr"}

# patterns of what is neither an option of the command nor a key of the model's files, and their translations
PHRASES = {
    r"\btoken=(?:\.\.\.|True)": "HF_TOKEN in the environment",
    r"\blocal_files_only=True": "HF_HUB_OFFLINE=1 in the environment",
    r"\bcache_dir=\S+": "HF_HOME in the environment",
    r"pass (model|column)=,": r"pass --\1,",
    r"expected int \| None": "expected a whole number or none",
    r"expected float \| None": "expected a number or none",
    r"expected bool": "expected true or false",
    r"expected int\b": "expected a whole number",
    r"torch\.(float32|float16|bfloat16)": r"\1",
    r"; check variant, subfolder, use_safetensors": "",
    r"Check name and revision": "Check the name",
    r"; or call the tokenizer's own class": "",
    r", or register a function of your own under that name with AttentionInterface\.register": "",
    r" \(or use the family's own class\)": "",
    r"perplexity\(stride=\) scores": "gptrio ppl scores",
    r"; use (?:that family's class|the family's own class) or AutoConfig": "",
    r" \([^()]*\.register adds your own\)": "",
    r"; ([\w.]+)\.from_pretrained\(name\) loads a model by name": "",
}

# where the command has --greedy
_GREEDY = {
    r"do_sample=False": "--greedy",
    r"without do_sample=True": "with --greedy",
    r"with do_sample=True": "without --greedy",
    r"do_sample=True": "no --greedy",
}

_VALUE = r"""=('[^']*'|"[^"]*"|\[[^\]]*\]|[^\s,;:)]+)"""


def option_names(params: list[Any]) -> dict[str, str]:
    """Map the name of each Python argument to the option of a command that sets it."""
    longest = {param.name: max(param.opts, key=len) for param in params if param.opts[0].startswith("-")}
    return longest | {python: longest[name] for python, name in ALIASES.items() if name in longest}


def translate(message: str, options: Mapping[str, str]) -> str:
    """Replace Python arguments in a message of the library by options of a command.

    Args:
        message: error or warning.
        options: Python argument to option, see `option_names`.
    """
    for pattern, words in {**(_GREEDY if "greedy" in options else {}), **PHRASES}.items():
        message = re.sub(pattern, words, message)
    for name, option in options.items():
        message = re.sub(rf"(?<![\w./]){name}{_VALUE}", partial(_with_value, option), message)
        if "_" in name:  # other names are English words too
            message = re.sub(rf"(?<![\w.'\"/-]){name}\b(?!['\".=])", option, message)
    return message


def _with_value(option: str, found: re.Match[str]) -> str:
    """Return an option with its value, as it is typed on a command line."""
    value = found[1]
    if value in ("True", "None"):
        return option
    return f"no {option}" if value == "False" else f"{option} {value.strip(chr(39) + chr(34))}"
