"""Training with optax: a jitted step on one or many devices, and checkpoints that survive a kill."""

from gptrio.jax.training.checkpoint import TrainCheckpoints
from gptrio.jax.training.step import TrainState, init_train_state, make_train_step

__all__ = ["TrainCheckpoints", "TrainState", "init_train_state", "make_train_step"]
