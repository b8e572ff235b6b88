"""The Flax examples of the Transformers documentation, and its guide for causal language modelling, on tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from flax import jax_utils, traverse_util
from flax.training import train_state
from flax.training.common_utils import shard

from gptrio import (
    AutoTokenizer,
    FlaxAutoModelForCausalLM,
    FlaxGPTNeoForCausalLM,
    FlaxGPTNeoModel,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)
from gptrio.testing import byte_tokenizer, tiny_config
from tests.flax_models import assert_near

TEXT = "Hello, my dog is cute"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as most are: of PyTorch, in safetensors."""
    folder = tmp_path_factory.mktemp("gpt-neo")
    GPTNeoForCausalLM(tiny_config("gpt_neo", max_position_embeddings=128)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return FlaxGPTNeoForCausalLM.from_pretrained(checkpoint)


def oracle(name: str, checkpoint: Path, **inputs: Any) -> Any:
    """What the reference's class gives for the same checkpoint."""
    inputs = {key: np.asarray(value) for key, value in inputs.items()}
    return getattr(transformers, name).from_pretrained(checkpoint, from_pt=True)(**inputs)


def test_hidden_states(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = FlaxGPTNeoModel.from_pretrained(checkpoint)
    inputs = tokenizer(TEXT, return_tensors="jax")
    assert all(isinstance(value, jax.Array) for value in inputs.values())
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state
    assert_near(last_hidden_states, oracle("FlaxGPTNeoModel", checkpoint, **inputs).last_hidden_state)


def test_next_token_logits(checkpoint: Path, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(TEXT, return_tensors="np")
    assert all(type(value) is np.ndarray for value in inputs.values())
    outputs = model(**inputs)
    next_token_logits = outputs.logits[:, -1]
    assert_near(next_token_logits, oracle("FlaxGPTNeoForCausalLM", checkpoint, **inputs).logits[:, -1])


def test_generated_candidates(checkpoint: Path, model: Any) -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
    found = []
    for kind in ("jax", "np"):
        input_ids = tokenizer("The dog", return_tensors=kind).input_ids
        outputs = model.generate(input_ids=input_ids, max_length=16, top_k=30, do_sample=True)
        assert outputs.sequences.shape == (1, 16)
        found.append(tokenizer.batch_decode(outputs.sequences, skip_special_tokens=True))
    assert found[0][0].startswith("The dog")
    assert found[0] == found[1]


def test_other_types_of_parameters(model: Any) -> None:
    flat = traverse_util.flatten_dict(model.params)
    mask = traverse_util.unflatten_dict({path: path[-2:] != ("ln_f", "scale") for path in flat})
    for cast, dtype in ((model.to_bf16, jnp.bfloat16), (model.to_fp16, jnp.float16)):
        cast_all, cast_most = cast(model.params), cast(model.params, mask)
        assert {leaf.dtype for leaf in jax.tree.leaves(cast_all)} == {jnp.dtype(dtype)}
        kept = [path for path, leaf in traverse_util.flatten_dict(cast_most).items() if leaf.dtype == jnp.float32]
        assert kept == [("transformer", "ln_f", "scale")]
    back = model.to_fp32(cast_all)
    assert_near(back, model.params, 1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype(jnp.float32)}


def test_files_and_configurations(checkpoint: Path, tmp_path: Path) -> None:
    model = FlaxAutoModelForCausalLM.from_pretrained(checkpoint, output_attentions=True)
    assert type(model) is FlaxGPTNeoForCausalLM
    assert model.config.output_attentions
    model.save_pretrained(tmp_path / "saved_model")
    assert_near(FlaxGPTNeoForCausalLM.from_pretrained(tmp_path / "saved_model").params, model.params, 0)
    GPTNeoForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "pt_model", safe_serialization=False)
    config = GPTNeoConfig.from_json_file(tmp_path / "pt_model" / "config.json")
    path = tmp_path / "pt_model" / "pytorch_model.bin"
    loaded = FlaxGPTNeoForCausalLM.from_pretrained(path, from_pt=True, config=config)
    assert_near(loaded.params, model.params, 0)
    fresh = FlaxAutoModelForCausalLM.from_config(config, seed=3, dtype=jnp.bfloat16, _do_init=False)
    assert fresh.dtype == jnp.bfloat16
    np.testing.assert_array_equal(fresh.key, jax.random.PRNGKey(3))


# the guide for causal language modelling: what its script asks of a model


class GuideState(train_state.TrainState):
    """The state of the guide's training."""

    dropout_rng: Any


def decays(params: Any) -> Any:
    """Which parameters decay, by the names that the guide knows."""
    flat = traverse_util.flatten_dict(params)
    norms = [("ln_1", "scale"), ("ln_2", "scale"), ("ln_f", "scale")]
    return traverse_util.unflatten_dict({path: path[-1] != "bias" and path[-2:] not in norms for path in flat})


def token_losses(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels[:, 1:]).mean()


def trained(model: Any, batches: np.ndarray[Any, Any]) -> tuple[Any, list[float], float]:
    """Parameters and losses of training as in the guide: `apply_fn` of the model in a step of `pmap`; the last loss."""
    schedule = optax.linear_schedule(5e-3, 0.0, 10)
    optimizer = optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, mask=decays)
    key = jax.random.PRNGKey(0)
    state = GuideState.create(apply_fn=model.__call__, params=model.params, tx=optimizer, dropout_rng=key)

    def step(state: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        rng, next_rng = jax.random.split(state.dropout_rng)

        def loss_of(params: Any) -> Any:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = state.apply_fn(**inputs, params=params, dropout_rng=rng, train=True)[0]
            return token_losses(logits, batch["labels"])

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        gradients = jax.lax.pmean(gradients, "batch")
        return state.apply_gradients(grads=gradients, dropout_rng=next_rng), jax.lax.pmean(loss, "batch")

    p_step = jax.pmap(step, "batch", donate_argnums=(0,))
    state, losses = jax_utils.replicate(state), []
    for ids in batches:
        batch = shard({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids})
        state, loss = p_step(state, batch)
        losses.append(float(jax_utils.unreplicate(loss)))
    params = jax.device_get(jax_utils.unreplicate(state.params))
    return params, losses, float(token_losses(model(ids, params=params, train=False)[0], jnp.asarray(ids)))


def trained_in_pytorch(model: Any, batches: np.ndarray[Any, Any]) -> tuple[list[float], float]:
    """The same of a PyTorch model."""
    named = dict(model.named_parameters())
    kept = {name for name in named if name.endswith("bias") or ".ln_" in name}
    groups = [{"params": [named[name] for name in named if name not in kept], "weight_decay": 0.01}]
    groups.append({"params": [named[name] for name in kept], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 10)
    losses = []
    for ids in map(torch.tensor, batches.astype(np.int64)):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model(ids, labels=ids).loss.item()


def test_the_guide_trains_as_the_reference_in_pytorch(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer((TEXT + ". ") * 12).input_ids
    batches = np.array(ids[: 3 * 4 * 16], np.int32).reshape(3, 4, 16)
    oracle = transformers.GPTNeoForCausalLM.from_pretrained(checkpoint, attn_implementation="eager")
    losses, final = trained_in_pytorch(oracle, batches)
    params, our_losses, our_final = trained(model, batches)
    assert our_losses == pytest.approx(losses, rel=1e-5)
    assert our_final == pytest.approx(final, rel=1e-4)
    assert math.exp(our_final) < 0.8 * math.exp(losses[0])  # perplexity
    model.save_pretrained(tmp_path, params=params)
    tokenizer.save_pretrained(tmp_path)
    assert_near(FlaxAutoModelForCausalLM.from_pretrained(tmp_path).params, params, 0)
