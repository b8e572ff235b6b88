"""Token healing: replace the last token of a prompt that ends inside a word by a longer token with that beginning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gptrio.config.fields import as_list
from gptrio.errors import OptionError
from gptrio.generation.options.config import GenerationConfig
from gptrio.generation.prompt import Prompt, keep_last
from gptrio.generation.protocol import CausalLM

BONUS = 1.0  # added to the score of the original token


def heal(model: CausalLM, prompt: Prompt, tokenizer: Any, config: GenerationConfig) -> Prompt:
    """Replace the last token of each row by the likeliest token that begins with the same text.

    White space at both ends of a prompt is removed, because it would become a separate token. As in Transformers, a row
    of one token follows the beginning of a text if a longer row is beside it, and is left as it is if none is.

    Args:
        model: the language model.
        prompt: rows of ids.
        tokenizer: the model's.
        config: its special tokens are used.

    Raises:
        OptionError: there is no tokenizer, or the prompt has embeddings or a cache.
    """
    if tokenizer is None:
        raise OptionError("token_healing needs the model's tokenizer; pass tokenizer=...")
    if prompt.embeds is not None or prompt.cache is not None:
        raise OptionError("token_healing changes the prompt's ids; it does not go with inputs_embeds or a cache")
    vocabulary = tokenizer.get_vocab()
    real = torch.ones_like(prompt.ids, dtype=torch.bool) if prompt.attention_mask is None else prompt.attention_mask
    rows: list[list[int]] = []
    for ids, mask in zip(prompt.ids, real, strict=True):
        text = tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        rows.append(tokenizer.encode(text.strip()) or ids[mask].tolist())
    bos = as_list(config.bos_token_id) if max(map(len, rows)) > 1 else []
    return _padded(prompt, [_healed(model, tokens, vocabulary, tokenizer, bos) for tokens in rows], config)


def _healed(
    model: CausalLM, tokens: list[int], vocabulary: dict[str, int], tokenizer: Any, bos: list[int]
) -> list[int]:
    if not tokens:
        return tokens
    *before, last = tokens
    beginning = tokenizer.convert_ids_to_tokens(last)
    longer = [token for text, token in vocabulary.items() if text.startswith(beginning)]
    context = before or bos
    if len(longer) < 2 or not context:
        return tokens
    output = model(input_ids=torch.tensor([context], device=model.device), use_cache=False, **keep_last(model))
    scores = output.logits[0, -1].float()
    scores[last] += BONUS
    choices = torch.tensor(longer, device=scores.device)
    return [*before, int(choices[scores[choices].argmax()])]


def _padded(prompt: Prompt, rows: list[list[int]], config: GenerationConfig) -> Prompt:
    """Return the prompt with other rows, padded on the left."""
    length = max(len(row) for row in rows)
    fill = config.pad_token_id or 0
    ids = torch.tensor([[fill] * (length - len(row)) + row for row in rows], dtype=torch.long)
    ids = ids.to(prompt.ids.device)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    is_real: Tensor | None = torch.arange(length, device=ids.device) >= length - lengths[:, None]
    if min(len(row) for row in rows) == length:
        is_real = None
    return replace(prompt, ids=ids, attention_mask=is_real, position_ids=None, token_type_ids=None, moved=None)
