"""Assisted generation: check several drafted tokens in one run of the model, and keep those that it would have written.

Sources: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192; Saxena,
"Prompt Lookup Decoding" (2023). Shapes: `B` rows, `n` drafted tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gptrio.errors import OptionError
from gptrio.generation.loop import await_others, choose, draw
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.state import GenerationState, SequenceStatus
from gptrio.generation.strategies.candidates import (
    Draft,
    DraftLengthPolicy,
    LookupDraft,
    ModelDraft,
    TextDraft,
    first_layers,
    relative_cost,
)

ROLLING_BACK = (None, "dynamic", "dynamic_full", "offloaded")  # caches that can forget the end


def assisted_decode(call: GenerationState, draft: Draft, pace: DraftLengthPolicy) -> Tensor | GenerateDecoderOnlyOutput:
    """Append the tokens that plain greedy search or sampling would, several at a time where the draft is right.

    A batch moves on by what all its rows accept. Drafts that prove wrong are made seldom.
    """
    ids, record = call.ids, call.record
    rows = SequenceStatus(call, ids.shape[0])
    limit = call.criteria.max_length
    while True:
        start = ids.shape[1]
        number = pace.next() if limit is None else min(pace.next(), limit - start - 1)
        guess, drawn_from = draft.propose(ids, number) if number > 0 else (ids[:, :0], None)
        number = guess.shape[1]
        longer = torch.cat([ids, guess], dim=1)
        output = call.step(longer, keep=number + 1)
        logits = output.logits[:, -number - 1 :].float()  # (B, n + 1, V)
        scores = _process(call, longer, logits)
        tokens, right = _accept(call, guess, drawn_from, scores)
        if rows.running is not None:
            right = right.masked_fill(~rows.running, number)  # finished rows hold nobody back
        matched = int(right.min())
        for new, part in enumerate(_parts(output, number, matched)):
            record.add(part, logits[:, new], scores[:, new])
            ids = torch.cat([ids, rows.fill(tokens[:, new])[:, None]], dim=1)
            finished = rows.all_finished(ids, record.scores)
            if finished:
                break
        pace.learn(number, matched, ended=finished and new < number)
        new_tokens = ids[:, start:]
        call.put(new_tokens if new_tokens.shape[1] > 1 else new_tokens[:, 0])
        call.step.crop(ids.shape[1] - 1)
        if call.synced_gpus:
            await_others(call.model, ids, finished)
        if finished:
            return call.finish(ids)


def _process(call: GenerationState, ids: Tensor, logits: Tensor) -> Tensor:
    """Scores (B, n + 1, V) of logits after the processors; ids (B, T + n) hold the draft."""
    if not call.processors:
        return logits
    number, start = logits.shape[1] - 1, ids.shape[1] - logits.shape[1] + 1
    return torch.stack([call.processors(ids[:, : start + i], logits[:, i]) for i in range(number + 1)], dim=1)


def _accept(call: GenerationState, guess: Tensor, drawn_from: Tensor | None, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own tokens (B, n + 1), equal to the draft as far as it is accepted, and how far that is (B,).

    Args:
        call: says whether to sample.
        guess: (B, n) the draft.
        drawn_from: (B, n, V) what it was drawn from, or None.
        scores: (B, n + 1, V) of the model.
    """
    if drawn_from is not None and call.config.do_sample:
        return _speculative_sample(call, guess, drawn_from, scores)
    flat = scores.flatten(0, 1)
    if call.config.do_sample and isinstance(call.generators, (list, tuple)):
        owners = [own for own in call.generators for _ in range(scores.shape[1])]
        tokens = choose(flat, True, owners)
    else:
        tokens = choose(flat, call.config.do_sample, call.generators)
    tokens = tokens.view(scores.shape[:2])
    return tokens, _leading(guess == tokens[:, :-1])


def _leading(right: Tensor) -> Tensor:
    """Number of leading True values of each row (B, n): (B,)."""
    return right.long().cumprod(-1).sum(-1)


def _speculative_sample(
    call: GenerationState, guess: Tensor, drawn_from: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep each token with probability min(1, p / q); after the first that is not kept draw from max(0, p - q)."""
    p, q = scores.softmax(-1), drawn_from
    number = guess.shape[1]
    likely, drafted = (x.gather(2, guess[..., None])[..., 0] for x in (p[:, :-1], q))  # (B, n)
    right = _leading(_uniform(likely, call) * drafted <= likely)
    q = torch.nn.functional.pad(q, (0, 0, 0, 1))  # after the last one nothing was drafted
    at = right[:, None, None].expand(-1, 1, p.shape[-1])
    p_next, q_next = p.gather(1, at)[:, 0], q.gather(1, at)[:, 0]  # (B, V)
    rest = (p_next - q_next).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)
    corrected = draw(rest, 1, call.generators)  # (B, 1)
    tokens = torch.cat([guess, corrected], dim=1)
    places = torch.arange(number + 1, device=guess.device)
    return torch.where(places == right[:, None], corrected, tokens), right


def _uniform(like: Tensor, call: GenerationState) -> Tensor:
    """Random numbers of the shape of `like` (B, n)."""
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    if isinstance(call.generators, (list, tuple)):
        return torch.stack([torch.rand(like.shape[1], generator=own, **options) for own in call.generators])
    generator = call.generators if isinstance(call.generators, torch.Generator) else None
    return torch.rand(like.shape, generator=generator, **options)


def _parts(output: Any, number: int, matched: int) -> Iterator[Any]:
    """The output of each accepted token as if the model had run for it alone; the first holds all before it too."""
    attentions, states = getattr(output, "attentions", None), getattr(output, "hidden_states", None)
    for new in range(matched + 1):
        end = new - number if new < number else None
        begin = None if new == 0 else new - number - 1
        yield SimpleNamespace(
            attentions=attentions and tuple(layer[:, :, begin:end, :end] for layer in attentions),
            hidden_states=states and tuple(layer[:, begin:end] for layer in states),
        )


def assisted_search(
    call: GenerationState, assistant_model: Any, tokenizer: Any, assistant_tokenizer: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """Assisted generation with the draft that the options ask for.

    Args:
        call: the call.
        assistant_model: a smaller model, or None.
        tokenizer, assistant_tokenizer: for models of different vocabularies.

    Raises:
        OptionError: options do not go with drafting, or the two models with each other.
    """
    config = call.config
    if not config.use_cache or config.cache_implementation not in ROLLING_BACK:
        given = f"cache_implementation={config.cache_implementation!r}" if config.use_cache else "use_cache=False"
        raise OptionError(f"assisted generation takes tokens back, which {given} does not allow; leave it out")
    if config.guidance_scale not in (None, 1):
        raise OptionError("guidance_scale does not go with assisted generation; leave one out")
    if config.assistant_early_exit is not None:
        shallow = first_layers(call.model, config.assistant_early_exit)
        own = call.model.generation_config
        return _decode(call, _model_draft(call, shallow, config), _pace(call, config, shallow), own)
    if config.prompt_lookup_num_tokens is not None:
        return assisted_decode(
            call, LookupDraft(config), DraftLengthPolicy(config.prompt_lookup_num_tokens, "constant", 0.0)
        )
    own = assistant_model.generation_config
    if assistant_model.config.vocab_size == call.model.config.vocab_size:
        if assistant_tokenizer is not None:
            raise OptionError("both models have the same vocabulary; leave assistant_tokenizer out")
        return _decode(call, _model_draft(call, assistant_model, own), _pace(call, own, assistant_model), own)
    if tokenizer is None or assistant_tokenizer is None:
        raise OptionError(
            f"the draft model has {assistant_model.config.vocab_size} tokens and the model "
            f"{call.model.config.vocab_size}; pass tokenizer= and assistant_tokenizer= to translate between them"
        )
    pace = _pace(call, own, assistant_model)
    if call.ids.shape[0] > 1 or call.ids.shape[1] == 0:
        raise OptionError("a draft model with another tokenizer helps one row of ids at a time; pass one prompt")
    return _decode(call, TextDraft(assistant_model, tokenizer, assistant_tokenizer, own), pace, own)


def _decode(
    call: GenerationState, draft: Draft, pace: DraftLengthPolicy, options: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode; the draft model's `options` remember the number of tokens that their schedule "heuristic" has come to."""
    result = assisted_decode(call, draft, pace)
    if options.num_assistant_tokens_schedule == "heuristic":
        options.num_assistant_tokens = pace.most
    return result


def _model_draft(call: GenerationState, model: Any, options: Any) -> ModelDraft:
    threshold = options.assistant_confidence_threshold or 0.0
    return ModelDraft(model, call.prompt, call.config, call.process, threshold, call.generators)


def _pace(call: GenerationState, options: Any, draft: Any) -> DraftLengthPolicy:
    cost = relative_cost(draft, call.model)
    return DraftLengthPolicy(options.num_assistant_tokens, options.num_assistant_tokens_schedule, cost)
