"""Assisted generation: check several draft tokens in one forward, and keep those that the model would choose.

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
from gptrio.generation.loop import drain
from gptrio.generation.outputs import GenerateDecoderOnlyOutput
from gptrio.generation.protocol import CausalLM
from gptrio.generation.sampling import choose, draw
from gptrio.generation.state import GenerationState, SequenceStatus, StepOutput
from gptrio.generation.strategies.candidates import (
    Draft,
    DraftLengthPolicy,
    LookupDraft,
    ModelDraft,
    TextDraft,
    first_layers,
    relative_cost,
)

ROLLING_BACK = (None, "dynamic", "dynamic_full", "offloaded")  # caches that can be cropped


def assisted_steps(state: GenerationState, draft: Draft, policy: DraftLengthPolicy) -> Iterator[StepOutput]:
    """Append the tokens that plain greedy search or sampling would, several at a time if they match the draft.

    A batch advances by the number of tokens that all its rows accept. If most drafts are rejected, few are made. A run
    of accepted tokens is one step, or several if rows finish within it.
    """
    status = SequenceStatus(state, state.ids)
    limit = state.criteria.max_length
    while True:
        ids = status.ids
        start = ids.shape[1]
        number = policy.next() if limit is None else min(policy.next(), limit - start - 1)
        draft_ids, draft_probs = draft.propose(ids, number) if number > 0 else (ids[:, :0], None)
        number = draft_ids.shape[1]
        longer = torch.cat([ids, draft_ids], dim=1)
        output = state.step(longer, keep=number + 1)
        logits = output.logits[:, -number - 1 :].float()  # (B, n + 1, V)
        scores = _process(state, longer, logits)
        tokens, num_accepted = _accept(state, draft_ids, draft_probs, scores)
        if status.running is not None:
            num_accepted = num_accepted.masked_fill(~status.running, number)  # finished rows do not limit the others
        matched = int(num_accepted.min())
        for new, part in enumerate(_parts(output, number, matched)):
            status.record.add(part, logits[:, new], scores[:, new])
            step = status.append(tokens[:, new], scores[:, new], start)
            if step.finished or new == matched:
                start = step.ids.shape[1]
                yield step
            if step.is_last:
                break
        policy.learn(number, matched, ended=step.is_last and new < number)
        state.step.crop(status.ids.shape[1] - 1)
        if step.is_last:
            return


def _process(state: GenerationState, ids: Tensor, logits: Tensor) -> Tensor:
    """Scores (B, n + 1, V) of logits after the processors; ids (B, T + n) hold the draft."""
    if not state.processors:
        return logits
    number, start = logits.shape[1] - 1, ids.shape[1] - logits.shape[1] + 1
    return torch.stack([state.processors(ids[:, : start + i], logits[:, i]) for i in range(number + 1)], dim=1)


def _accept(
    state: GenerationState, draft_ids: Tensor, draft_probs: Tensor | None, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """The model's tokens (B, n + 1), and the number (B,) of draft tokens that they confirm.

    Args:
        state: its options decide whether to sample.
        draft_ids: (B, n) the draft.
        draft_probs: (B, n, V) probabilities that it was drawn from, or None.
        scores: (B, n + 1, V) of the model.
    """
    if draft_probs is not None and state.config.do_sample:
        return _speculative_sample(state, draft_ids, draft_probs, scores)
    flat = scores.flatten(0, 1)
    if state.config.do_sample and isinstance(state.generators, (list, tuple)):
        owners = [own for own in state.generators for _ in range(scores.shape[1])]
        tokens = choose(flat, True, owners)
    else:
        tokens = choose(flat, state.config.do_sample, state.generators)
    tokens = tokens.view(scores.shape[:2])
    return tokens, _num_leading(draft_ids == tokens[:, :-1])


def _num_leading(accepted: Tensor) -> Tensor:
    """Number of leading True values of each row (B, n): (B,)."""
    return accepted.long().cumprod(-1).sum(-1)


def _speculative_sample(
    state: GenerationState, draft_ids: Tensor, draft_probs: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep each token with probability min(1, p / q); after the first that is not kept draw from max(0, p - q)."""
    p, q = scores.softmax(-1), draft_probs
    number = draft_ids.shape[1]
    p_draft, q_draft = (x.gather(2, draft_ids[..., None])[..., 0] for x in (p[:, :-1], q))  # (B, n)
    num_accepted = _num_leading(_uniform(p_draft, state) * q_draft <= p_draft)
    q = torch.nn.functional.pad(q, (0, 0, 0, 1))  # no draft follows the last one
    at = num_accepted[:, None, None].expand(-1, 1, p.shape[-1])
    p_next, q_next = p.gather(1, at)[:, 0], q.gather(1, at)[:, 0]  # (B, V)
    rest = (p_next - q_next).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_next)
    corrected = draw(rest, 1, state.generators)  # (B, 1)
    tokens = torch.cat([draft_ids, corrected], dim=1)
    columns = torch.arange(number + 1, device=draft_ids.device)
    return torch.where(columns == num_accepted[:, None], corrected, tokens), num_accepted


def _uniform(like: Tensor, state: GenerationState) -> Tensor:
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    if isinstance(state.generators, (list, tuple)):
        return torch.stack([torch.rand(like.shape[1], generator=own, **options) for own in state.generators])
    generator = state.generators if isinstance(state.generators, torch.Generator) else None
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
    state: GenerationState, assistant_model: CausalLM | None, tokenizer: Any, assistant_tokenizer: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """Assisted generation with the kind of draft that the options select.

    Args:
        state: the call.
        assistant_model: a smaller model, or None.
        tokenizer, assistant_tokenizer: for models of different vocabularies.

    Raises:
        OptionError: options cannot be combined with drafts, or the two models with each other.
    """
    config = state.config
    if not config.use_cache or config.cache_implementation not in ROLLING_BACK:
        given = f"cache_implementation={config.cache_implementation!r}" if config.use_cache else "use_cache=False"
        raise OptionError(
            f"assisted generation removes rejected tokens from the cache, which {given} does not allow; leave it out"
        )
    if config.guidance_scale not in (None, 1):
        raise OptionError("guidance_scale does not go with assisted generation; leave one out")
    if config.prompt_lookup_num_tokens is not None and config.assistant_early_exit is None:
        policy = DraftLengthPolicy(config.prompt_lookup_num_tokens, "constant", 0.0)
        return drain(state, assisted_steps(state, LookupDraft(config), policy))
    if config.assistant_early_exit is not None:
        assistant_model, options = first_layers(state.model, config.assistant_early_exit), state.model.generation_config
        draft: Draft = _model_draft(state, assistant_model, options)
    else:
        assert assistant_model is not None
        options = assistant_model.generation_config
        draft = _assistant_draft(state, assistant_model, tokenizer, assistant_tokenizer)
    cost = relative_cost(assistant_model, state.model)
    policy = DraftLengthPolicy(options.num_assistant_tokens, options.num_assistant_tokens_schedule, cost)
    result = drain(state, assisted_steps(state, draft, policy))
    if options.num_assistant_tokens_schedule == "heuristic":
        options.num_assistant_tokens = policy.most  # the next call starts from it
    return result


def _assistant_draft(state: GenerationState, model: CausalLM, tokenizer: Any, assistant_tokenizer: Any) -> Draft:
    """The draft of a smaller model, whose vocabulary may be another one."""
    options, sizes = model.generation_config, (model.config.vocab_size, state.model.config.vocab_size)
    if sizes[0] == sizes[1]:
        if assistant_tokenizer is not None:
            raise OptionError("both models have the same vocabulary; leave assistant_tokenizer out")
        return _model_draft(state, model, options)
    if tokenizer is None or assistant_tokenizer is None:
        raise OptionError(
            f"the draft model has {sizes[0]} tokens and the model {sizes[1]}; pass tokenizer= and "
            "assistant_tokenizer= to translate between them"
        )
    if state.ids.shape[0] > 1 or state.ids.shape[1] == 0:
        raise OptionError("a draft model with another tokenizer helps one row of ids at a time; pass one prompt")
    return TextDraft(model, tokenizer, assistant_tokenizer, options)


def _model_draft(state: GenerationState, model: CausalLM, options: Any) -> ModelDraft:
    threshold = options.assistant_confidence_threshold or 0.0
    return ModelDraft(model, state.prompt, state.config, state.process, threshold, state.generators)
