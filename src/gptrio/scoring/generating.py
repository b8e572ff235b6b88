"""Continuations of many texts up to a stop text, for the lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gptrio.errors import OptionError

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the harness' names, first wins


def generate_all(lm: Any, contexts: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Continue texts with the same options; yields (index, continuation), the longest contexts first.

    Args:
        lm: the harness' model: `model`, `tokenizer`, `max_length`, `max_gen_toks`, `batch_tokens`, `seed`.
        contexts: texts; those that leave no room for the new tokens lose their beginning.
        options: of the harness: `until`, `max_gen_toks` and its synonyms, `do_sample`, `temperature`, and others of
            `generate`.

    Raises:
        OptionError: no context fits beside so many new tokens.
    """
    given = [options.pop(name, None) for name in _LENGTHS]
    new_tokens = int(next((length for length in given if length is not None), lm.max_gen_toks))
    until = options.pop("until", None) or []
    stops = [
        *([until] if isinstance(until, str) else until),
        lm.tok_decode([lm.eot_token_id], skip_special_tokens=False),
    ]
    room = lm.max_length - new_tokens
    if room < 1:
        raise OptionError(
            f"{new_tokens} new tokens leave no room for a context in the model's {lm.max_length}; lower max_gen_toks"
        )
    settings = _sampling(options) | {"max_new_tokens": new_tokens, "stop_strings": [stop for stop in stops if stop]}
    prompts = [lm.tok_encode(context)[-room:] or [lm.prefix_token_id] for context in contexts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while order:
        rows = max(lm.batch_tokens // (len(prompts[order[0]]) + new_tokens), 1)
        batch, order = order[:rows], order[rows:]
        for i, ids in zip(batch, _continue(lm, [prompts[i] for i in batch], settings), strict=True):
            yield i, _cut(lm.tok_decode(ids), stops)


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate`: greedy unless sampling or a temperature above 0 is asked for."""
    temperature = float(options.pop("temperature", 0.0) or 0.0)
    do_sample = options.pop("do_sample", None)
    sampled = temperature > 0 if do_sample is None else bool(do_sample)
    options.pop("max_length", None)  # counts the context too, which is cut to fit already
    heat = {"temperature": temperature} if sampled and temperature > 0 else {}
    return {**options, "do_sample": sampled, **heat}


def _continue(lm: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    """New ids of each prompt, which are padded on the left."""
    length = max(map(len, prompts))
    pad = lm.eot_token_id
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=lm.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=lm.device)
    seed = {} if lm.seed is None else {"seed": lm.seed}
    found = lm.model.generate(ids, attention_mask=mask, tokenizer=lm.tokenizer, pad_token_id=pad, **settings, **seed)
    new: list[list[int]] = found[:, length:].tolist()
    return new


def _cut(text: str, stops: list[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]
