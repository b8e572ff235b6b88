"""What a Flax model does beyond its numbers: transformations of JAX, types, dropout, caches, and clear errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import gptrio
from gptrio.errors import ConfigError, GptrioWarning, InputError, TokenIdError, UnsupportedError
from gptrio.testing import tiny_config
from tests.flax_models import assert_near, flax_model, padding, positions_of, token_ids

IDS = jnp.asarray(token_ids())
MASK = jnp.asarray(padding("left"))
POSITIONS = jnp.asarray(positions_of(padding("left")))


@pytest.fixture(scope="module")
def model() -> Any:
    return flax_model("FlaxGPTNeoForCausalLM")


@pytest.mark.parametrize(
    ("class_name", "dtype"),
    [
        ("FlaxGPT2LMHeadModel", jnp.float16),
        ("FlaxGPTNeoForCausalLM", jnp.float16),
        pytest.param("FlaxGPTNeoForCausalLM", jnp.bfloat16, marks=pytest.mark.long),  # which generates in other tests
        ("FlaxGPTNeoXForCausalLM", jnp.float16),
    ],
)
def test_half_precision_with_left_padding_is_finite_and_near(class_name: str, dtype: Any) -> None:
    model = flax_model(class_name)
    half = type(model)(model.config, dtype=dtype, _do_init=False)
    params = (model.to_fp16 if dtype == jnp.float16 else model.to_bf16)(model.params)
    logits = half(IDS, MASK, POSITIONS, params=params).logits
    assert logits.dtype == dtype
    assert bool(jnp.isfinite(logits).all())
    expected = model(IDS, MASK, POSITIONS).logits
    assert_near(logits[MASK == 1], expected[MASK == 1], 0.05)


def test_scores_of_gpt_neo_do_not_overflow_in_float16(model: Any) -> None:
    half = type(model)(model.config, dtype=jnp.float16, _do_init=False)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 40 if path[-2].key in ("q_proj", "k_proj") else x, model.params
    )
    assert bool(jnp.isfinite(half(IDS, MASK, POSITIONS, params=half.to_fp16(params)).logits).all())


def test_jit_returns_outputs_and_caches(model: Any) -> None:
    out = jax.jit(lambda ids: model(ids, output_hidden_states=True))(IDS)
    assert type(out) is gptrio.FlaxMaskedLMOutput
    assert_near(out, model(IDS, output_hidden_states=True), 1e-5)
    inputs = model.prepare_inputs_for_generation(IDS, 16, MASK)
    out = jax.jit(lambda ids, inputs: model(ids, **inputs))(IDS, inputs)
    assert int(out.past_key_values["transformer"]["h"]["0"]["attn"]["attention"]["cache_index"]) == 11


def test_vmap_over_parameters(model: Any) -> None:
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), model.params)
    logits = jax.vmap(lambda params: model(IDS, params=params).logits)(both)
    assert_near(logits[0], model(IDS).logits)
    assert_near(logits[1], model(IDS, params=jax.tree.map(lambda x: 2 * x, model.params)).logits)


def test_gradient_checkpointing_computes_blocks_again() -> None:  # the same gradients: see test_training.py
    model = flax_model("FlaxGPTNeoForCausalLM")
    assert "remat" not in str(jax.make_jaxpr(lambda params: model(IDS, params=params).logits)(model.params))
    model.enable_gradient_checkpointing()
    assert "remat" in str(jax.make_jaxpr(lambda params: model(IDS, params=params).logits)(model.params))


def test_the_module_is_a_part_of_a_larger_one(model: Any) -> None:
    class Scaled(nn.Module):
        def setup(self) -> None:
            self.language = model.module.clone()

        def __call__(self, ids: Any) -> Any:
            return 2 * self.language(ids).logits

    variables = {"params": {"language": model.params}}
    assert_near(Scaled().apply(variables, IDS), 2 * model(IDS).logits)


def test_dropout_follows_its_key() -> None:
    model = flax_model("FlaxGPTNeoForCausalLM", attention_dropout=0.2, resid_dropout=0.2, embed_dropout=0.2)
    keys = jax.random.split(jax.random.key(0))
    one, same, other = (model(IDS, dropout_rng=key, train=True).logits for key in (keys[0], keys[0], keys[1]))
    assert_near(one, same, 0)
    assert bool((one != other).any())
    assert_near(model(IDS, dropout_rng=keys[0]).logits, model(IDS).logits, 0)


def test_a_forward_that_makes_its_cache(model: Any) -> None:
    arguments = {"init_cache": 16, "mutable": ["cache"]}
    out, made = model.module.apply({"params": model.params}, IDS, **arguments)
    assert_near(out.logits, model(IDS).logits, 1e-6)
    step_by_step = model(IDS, **model.prepare_inputs_for_generation(IDS, 16))
    assert_near(made["cache"], step_by_step.past_key_values)
    few = model.module.apply({"params": model.params}, IDS, logits_to_keep=1)
    assert_near(few.logits, out.logits[:, -1:], 1e-6)


def test_a_layer_with_a_window_keeps_its_window_only(model: Any) -> None:
    layers = model.init_cache(3, 30)["transformer"]["h"]
    slots = [layers[str(i)]["attn"]["attention"]["cached_key"].shape for i in range(2)]
    assert slots == [(3, 4, 5, 8), (3, 4, 30, 8)]
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(layers))
    started = model.module.init(jax.random.key(0), IDS, init_cache=True)["cache"]
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(started))


def test_tuples_have_the_cache_in_second_place(model: Any) -> None:
    inputs = model.prepare_inputs_for_generation(IDS, 16)
    logits, cache, states = model(IDS, **inputs, output_hidden_states=True, return_dict=False)
    assert (logits.shape, len(states)) == ((2, 11, 61), 3)
    assert jax.tree.structure(cache) == jax.tree.structure(inputs["past_key_values"])


def test_ids_and_positions_outside_their_tables(model: Any) -> None:
    for ids in ([[1, 61]], [[-1, 1]]):
        with pytest.raises(TokenIdError, match="outside the vocabulary of 61 tokens"):
            model(np.array(ids))
        logits = jax.jit(lambda ids: model(ids).logits)(jnp.array(ids))
        assert bool(jnp.isnan(logits).any())
    with pytest.raises(TokenIdError, match="position 32 is beyond max_position_embeddings=32"):
        model(IDS, position_ids=POSITIONS + 22)
    assert bool(jnp.isnan(jax.jit(lambda places: model(IDS, position_ids=places).logits)(POSITIONS + 22)).any())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": np.array([1, 2])}, r"input_ids has shape \(2,\)"),
        ({"input_ids": np.zeros((2, 0), int)}, r"input_ids has shape \(2, 0\)"),
        ({"attention_mask": np.ones((2, 10))}, r"attention_mask has shape \(2, 10\); expected \(2 rows, 11 tokens\)"),
        ({"attention_mask": np.ones((3, 11))}, r"attention_mask has shape \(3, 11\)"),
        ({"position_ids": np.ones((2, 10), int)}, r"position_ids have shape \(2, 10\); input_ids have \(2, 11\)"),
    ],
)
def test_shapes_that_do_not_fit(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(**{"input_ids": IDS, **arguments})


def test_caches_that_do_not_fit(model: Any) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"past_key_values": model.init_cache(2, 16)}, "position_ids are needed with past_key_values"),
        ({"past_key_values": model.init_cache(3, 16), "position_ids": POSITIONS}, "of 3 rows, input_ids of 2"),
        ({"past_key_values": model.init_cache(2, 10), "position_ids": POSITIONS}, "room for 10 tokens, not for 11"),
        ({"past_key_values": {"a": 1}, "position_ids": POSITIONS}, "hold 0 layers, the model has 2"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            model(IDS, **arguments)


@pytest.mark.parametrize(("kinds", "length"), [(["global", "local"], 5), (["local"], 4)], ids=str)
def test_a_full_cache_is_an_error_whatever_the_window(kinds: list[str], length: int) -> None:
    model = flax_model("FlaxGPTNeoModel", attention_types=[[kinds, 2 // len(kinds)]])
    with pytest.raises(InputError, match=f"room for {length} tokens, not for 11"):
        model(IDS, position_ids=POSITIONS, past_key_values=model.init_cache(2, length))


def test_layers_with_a_window_have_no_end() -> None:
    model = flax_model("FlaxGPTNeoModel", attention_types=[[["local"], 2]])
    positions = np.arange(11)[None]
    out = model(IDS[:1], position_ids=positions, past_key_values=model.init_cache(1, 5))
    assert_near(out.last_hidden_state, model(IDS[:1]).last_hidden_state)


def test_left_padding_without_positions_is_warned_of(model: Any) -> None:
    with pytest.warns(GptrioWarning, match="the batch is padded on the left, and position_ids were not given"):
        model(IDS, MASK)


def test_parameters_must_be_complete(model: Any) -> None:
    with pytest.raises(InputError, match="params lack transformer/h/0/"):
        model.params = {"transformer": {}}


def test_a_batch_is_classified_only_where_its_ends_are_known() -> None:
    model = flax_model("FlaxGPTNeoForSequenceClassification")
    assert model(IDS[:1]).logits.shape == (1, 2)
    with pytest.raises(InputError, match=r"without config\.pad_token_id"):
        model(IDS)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="needs a GPTNeoConfig, got GPT2Config"):
        gptrio.FlaxGPTNeoModel(gptrio.GPT2Config())
    with pytest.raises(UnsupportedError, match="has no cross-attention"):
        gptrio.FlaxGPT2Model(tiny_config("gpt2", add_cross_attention=True))
    with pytest.raises(UnsupportedError, match="activation 'wave' is not known"):
        gptrio.FlaxGPTNeoModel(tiny_config("gpt_neo", activation_function="wave"))
