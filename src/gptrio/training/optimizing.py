"""The part of `Trainer` that makes the optimizer and the schedule."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gptrio.errors import OptionError
from gptrio.training.optimizers import (
    get_decay_parameter_names,
    keep_embeddings_wide,
    optimizer_class,
    parameter_groups,
)
from gptrio.training.parts import TrainerParts, get_model_param_count
from gptrio.training.schedules import get_scheduler


class OptimizingMixin(TrainerParts):
    """Optimizer and schedule; each method can be overridden."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Make the optimizer and the schedule, unless they are there."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps, optimizer=self.optimizer)

    def create_optimizer(self) -> Any:
        """Make the optimizer that the arguments name, unless there is one, and return it."""
        if self.optimizer is None:
            decayed = self.get_decay_parameter_names(self.model)
            groups: Any = parameter_groups(self.model, decayed, self.args.weight_decay)
            make, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options = dict(options)
            for other in ("params", "model", "optimizer_dict"):  # names of the groups in optimizers of one's own
                groups = options.pop(other, groups)
            self.optimizer = make(groups, **options)
            if options.get("optim_bits") == 8:
                keep_embeddings_wide(self.model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule that the arguments name, unless there is one, and return it.

        Args:
            num_training_steps: updates in all.
            optimizer: whose rate it sets; the trainer's by default.
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer=self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=self.args.lr_scheduler_kwargs,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay shrinks: all but biases and those of norms."""
        return get_decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The class and the arguments of the optimizer; see `gptrio.training.optimizers.optimizer_class`."""
        return optimizer_class(args)

    def get_num_trainable_parameters(self) -> int:
        """Number of the values that are trained."""
        return get_model_param_count(self.model, trainable_only=True)

    def get_learning_rates(self) -> list[float]:
        """The learning rate of each group of parameters.

        Raises:
            OptionError: there is no optimizer yet.
        """
        return [group["lr"] for group in self._groups()]

    def get_optimizer_group(self, param: nn.Parameter | None = None) -> Any:
        """The optimizer's group of a parameter, or the parameters of every group.

        Raises:
            OptionError: there is no optimizer yet.
        """
        if param is not None:
            for group in self._groups():
                if any(param is member for member in group["params"]):
                    return group
        return [group["params"] for group in self._groups()]

    def _groups(self) -> list[dict[str, Any]]:
        if self.optimizer is None:
            raise OptionError("there is no optimizer yet; call create_optimizer() or train() first")
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def _get_learning_rate(self) -> float:
        """The learning rate of the first group in the next update."""
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            rate = self.optimizer.param_groups[0]["lr"]
        else:
            rate = self.lr_scheduler.get_last_lr()[0]
        return float(rate)
