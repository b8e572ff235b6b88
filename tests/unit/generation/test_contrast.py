"""Contrastive search and DoLa against slow, obvious implementations that run the whole row again for every token."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

import gptrio
from gptrio.errors import OptionError
from gptrio.generation.strategies.dola import early_layers
from gptrio.testing import tiny_config
from tests.parity.generation import random_batch

FAMILIES = ["gpt2", "gpt_neo", "gpt_neox"]


def model_of(family, **overrides):
    torch.manual_seed(0)
    config = tiny_config(family, initializer_range=0.3, **overrides)
    return gptrio.AutoModelForCausalLM.from_config(config).eval()


def slow_contrastive(model, ids, new_tokens, k, alpha):
    """One row: run the model on each candidate and compare its last state with all before it."""
    for _ in range(new_tokens):
        probabilities = model(ids).logits[0, -1].softmax(-1)
        best, best_score = None, -float("inf")
        for probability, token in zip(*probabilities.topk(k), strict=True):
            longer = torch.cat([ids, token.view(1, 1)], dim=1)
            states = model(longer, output_hidden_states=True).hidden_states[-1][0]
            alike = max(float(F.cosine_similarity(states[-1], state, dim=0)) for state in states[:-1])
            score = (1 - alpha) * float(probability) - alpha * alike
            if score > best_score:
                best, best_score = longer, score
        ids = best
    return ids


def slow_dola(model, ids, new_tokens, layers):
    """One row: compare the last layer's distribution with each early one's, and take the one furthest away."""
    head = model.get_output_embeddings()
    for _ in range(new_tokens):
        output = model(ids, output_hidden_states=True)
        final = output.logits[0, -1].softmax(-1)
        furthest, base = -1.0, None
        for layer in layers:
            early = head(output.hidden_states[layer][0, -1]).softmax(-1)
            middle = (final + early) / 2
            divergence = float(((middle * (middle / final).log()) + (middle * (middle / early).log())).sum())
            if divergence > furthest:
                furthest, base = divergence, early
        scores = [
            float(p.log() - q.log()) if p >= 0.1 * final.max() else -float("inf")
            for p, q in zip(final, base, strict=True)
        ]
        ids = torch.cat([ids, torch.tensor([[scores.index(max(scores))]])], dim=1)
    return ids


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_contrastive_search(family, low_memory):
    model = model_of(family)
    for case in range(8):
        rng = random.Random(case)
        batch = random_batch(rng, 257)
        k, alpha = rng.randint(2, 5), rng.choice([0.2, 0.6, 0.9])
        options = {"top_k": k, "penalty_alpha": alpha, "max_new_tokens": 5, "eos_token_id": None}
        results = model.generate(**batch, **options, low_memory=low_memory)
        for row, mask, result in zip(batch["input_ids"], batch["attention_mask"], results, strict=True):
            expected = slow_contrastive(model, row[mask.bool()][None], 5, k, alpha)
            assert torch.equal(result[-expected.shape[1] :], expected[0]), case


@pytest.mark.parametrize("layers", ["low", "high", [1, 3], [0, 2, 3]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_dola(family, layers):
    kinds = {"gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}}
    model = model_of(family, **kinds.get(family, {"num_hidden_layers": 4}))
    chosen = early_layers(model.config, layers)
    for case in range(4):
        batch = random_batch(random.Random(case), 257)
        results = model.generate(**batch, dola_layers=layers, max_new_tokens=5, eos_token_id=None)
        for row, mask, result in zip(batch["input_ids"], batch["attention_mask"], results, strict=True):
            expected = slow_dola(model, row[mask.bool()][None], 5, chosen)
            assert torch.equal(result[-expected.shape[1] :], expected[0]), case


@pytest.mark.parametrize(
    ("number", "tied", "asked", "expected"),
    [
        (12, True, "low", [2, 4]),
        (12, False, "low", [0, 2, 4]),
        (12, True, "high", [6, 8, 10]),
        (2, True, "low", [1]),
        (1, True, "low", [0]),
        (44, True, "low", [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (44, True, "high", [24, 26, 28, 30, 32, 34, 36, 38, 40, 42]),
        (4, True, [1, 9], [1]),
    ],
)
def test_early_layers(number, tied, asked, expected):
    config = tiny_config("gpt2", num_hidden_layers=number, tie_word_embeddings=tied)
    assert early_layers(config, asked) == expected


def test_no_early_layer_is_an_error():
    with pytest.raises(OptionError, match="no layer below the model's last, 2"):
        model_of("gpt2").generate(torch.tensor([[1, 2]]), dola_layers=[2, 5])
