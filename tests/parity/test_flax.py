"""The Flax models against Transformers' Flax models: numbers, gradients, caches, fresh weights, names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import gptrio
from tests.cases import first
from tests.flax_models import VOCABULARY, assert_near, flax_pair, padding, positions_of, token_ids

LANGUAGE_MODELS = ["FlaxGPTNeoForCausalLM", "FlaxGPT2LMHeadModel"]
BACKBONES = ["FlaxGPTNeoModel", "FlaxGPT2Model"]


@pytest.fixture(scope="module", params=LANGUAGE_MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return flax_pair(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_states_and_attentions(pair: tuple[Any, Any], side: str) -> None:
    oracle, ours = pair
    ids, mask = token_ids(), padding(side)
    arguments = {"position_ids": positions_of(mask), "output_hidden_states": True, "output_attentions": True}
    expected, actual = (model(ids, mask, **arguments) for model in (oracle, ours))
    assert list(actual) == list(expected) == ["logits", "hidden_states", "attentions"]
    real = mask == 1
    assert_near(actual.logits[real], expected.logits[real], name="logits")
    assert_near([x[real] for x in actual.hidden_states], [x[real] for x in expected.hidden_states], name="states")
    for one, other in zip(actual.attentions, expected.attentions, strict=True):
        assert_near(one.swapaxes(1, 2)[real], other.swapaxes(1, 2)[real], name="attentions")


@pytest.mark.parametrize("class_name", BACKBONES)
def test_backbones_and_tuples(class_name: str) -> None:
    oracle, ours = flax_pair(class_name)
    arguments = {"output_hidden_states": True, "output_attentions": True, "return_dict": False}
    assert_near(ours(token_ids(), **arguments), oracle(token_ids(), **arguments))


@pytest.mark.parametrize("chunks", first([(6, 3, 1, 1), (3, 8), (11,)]), ids=str)
def test_a_cache_in_any_chunks(pair: tuple[Any, Any], chunks: tuple[int, ...]) -> None:
    oracle, ours = pair
    ids, mask = token_ids(), padding("left")
    positions = positions_of(mask)
    whole = np.concatenate([mask, np.ones((2, 5), np.int32)], axis=1)  # the cache is longer than the input
    expected = oracle(ids, mask, positions).logits
    logits = []
    cache, at = ours.init_cache(2, whole.shape[1]), 0
    for length in chunks:
        part = slice(at, at + length)
        out = ours(ids[:, part], whole, positions[:, part], past_key_values=cache)
        cache, at = out.past_key_values, at + length
        logits.append(out.logits)
    assert_near(jnp.concatenate(logits, axis=1)[mask == 1], expected[mask == 1])


def test_the_inputs_of_generation(pair: tuple[Any, Any]) -> None:
    ids, mask = jnp.asarray(token_ids()), jnp.asarray(padding("left"))
    for arguments in ({}, {"attention_mask": mask}):
        expected, actual = (model.prepare_inputs_for_generation(ids, 16, **arguments) for model in pair)
        assert actual.keys() == expected.keys()
        for name in ("attention_mask", "position_ids"):
            np.testing.assert_array_equal(actual[name], expected[name])
    outputs = [model(ids, **model.prepare_inputs_for_generation(ids, 16)) for model in pair]
    held = [
        model.update_inputs_for_generation(out, {"position_ids": jnp.asarray(positions_of(padding("none")))})
        for model, out in zip(pair, outputs, strict=True)
    ]
    np.testing.assert_array_equal(held[1]["position_ids"], held[0]["position_ids"])
    assert held[1]["past_key_values"] is outputs[1].past_key_values


def test_gradients(pair: tuple[Any, Any]) -> None:
    ids, mask = jnp.asarray(token_ids()), jnp.asarray(padding("right"))

    def loss_of(model: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model(ids, mask, params=params).logits[:, :-1]
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], -1)[..., 0]
            return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()

        return loss

    expected, actual = (jax.jit(jax.grad(loss_of(model)))(model.params) for model in pair)
    assert_near(actual, expected, 2e-5)


@pytest.mark.parametrize("class_name", first([*LANGUAGE_MODELS, *BACKBONES], 2))
def test_a_seed_gives_the_same_weights(class_name: str) -> None:
    ours, theirs = getattr(gptrio, class_name), getattr(transformers, class_name)
    config: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "max_position_embeddings": 16}
    if "GPTNeo" in class_name:
        config |= {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    else:
        config |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    drawn = ours(ours.config_class(**config), seed=5)
    oracle = theirs(theirs.config_class(**config), seed=5)
    assert drawn.required_params == oracle.required_params
    assert jax.tree.structure(drawn.params_shape_tree) == jax.tree.structure(oracle.params_shape_tree)
    assert_near(drawn.params, oracle.params, 1e-6)


def test_casts_with_masks(pair: tuple[Any, Any]) -> None:
    oracle, ours = pair
    params = ours.params
    mask = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    for name in ("to_fp16", "to_bf16", "to_fp32"):
        for arguments in ((params,), (params, mask)):
            actual, expected = (getattr(model, name)(*arguments) for model in (ours, oracle))
            assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(lambda x: x.dtype, expected)
            assert_near(actual, expected, 0)


def test_every_name_of_the_reference_is_here(pair: tuple[Any, Any]) -> None:
    oracle, ours = pair
    private = {name for name in dir(oracle) if name.startswith("_")}
    not_for_users = {"load_flax_weights", "load_flax_sharded_weights", "register_for_auto_class"}
    assert set(dir(oracle)) - set(dir(ours)) - private - not_for_users == set()


def test_every_output_class_has_the_fields_of_the_reference() -> None:
    from transformers import modeling_flax_outputs
    from transformers.generation import flax_utils

    modules = vars(flax_utils) | vars(modeling_flax_outputs)
    names = [name for name in gptrio.__all__ if name.startswith("Flax") and "Output" in name]
    assert len(names) > 5
    for name in names:
        ours = list(getattr(gptrio, name).__dataclass_fields__)
        theirs = list(modules[name].__dataclass_fields__)
        assert ours[: len(theirs)] == theirs
        assert set(ours) - set(theirs) <= {"past_key_values"}
