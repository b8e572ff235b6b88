"""Names that subclasses and callbacks for Transformers' Trainer use, and the trainer itself does not need."""

from __future__ import annotations

import os
from typing import Any

from gptrio.errors import OptionError, warn
from gptrio.training.arrays import nested_numpify
from gptrio.training.checkpoint import PREFIX_CHECKPOINT_DIR, sorted_checkpoints
from gptrio.training.evaluation import EvaluationMixin
from gptrio.training.preparing import neftune_post_forward_hook


class NamesMixin(EvaluationMixin):
    """Switches of what there is not here, and steps that can be taken by themselves.

    Attributes:
        neftune_noise_alpha: of the noise on embeddings in training; None leaves it out.
    """

    is_deepspeed_enabled = is_tp_enabled = is_model_parallel = use_apex = False
    is_fsdp_xla_enabled = is_fsdp_xla_v1_enabled = is_fsdp_xla_v2_enabled = False
    deepspeed = None

    @property
    def is_fsdp_enabled(self) -> bool:
        """Whether weights are divided among the processes."""
        return bool(self.accelerator.is_sharded)

    @property
    def use_cpu_amp(self) -> bool:
        """Whether matrix products have another format than the weights, on a processor."""
        return bool(self.accelerator.native_amp and self.accelerator.device.type == "cpu")

    def get_tp_size(self) -> int:
        """Processes that share each layer: 1."""
        return 1

    def _activate_neftune(self, model: Any) -> Any:
        """Add noise to a model's embeddings in training (see `neftune_noise_alpha`), and return the model."""
        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings()
        embeddings.neftune_noise_alpha = self.neftune_noise_alpha
        self.neftune_hook_handle = embeddings.register_forward_hook(neftune_post_forward_hook)
        return model

    def _deactivate_neftune(self, model: Any) -> None:
        """End the noise.

        Raises:
            OptionError: it was not begun.
        """
        if self.neftune_hook_handle is None:
            raise OptionError("there is no noise on embeddings to be ended; call _activate_neftune(model) first")
        self.neftune_hook_handle.remove()
        self.neftune_hook_handle = None
        del self.accelerator.unwrap_model(model).get_input_embeddings().neftune_noise_alpha

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of keys that a load that is not strict missed or did not expect; tied weights are not missed."""
        model = self.accelerator.unwrap_model(self.model)
        is_tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
        tied = (is_tied and getattr(model, "_tied_weights_keys", None)) or ()
        missing = [name for name in load_result.missing_keys if name not in tied]
        for names, what in (missing, "lacks"), (load_result.unexpected_keys, "has, unlike the model,"):
            if names:
                warn(f"the checkpoint {what} {', '.join(names)}")
        if hasattr(model, "tie_weights"):
            model.tie_weights()

    def _gather_and_numpify(self, tensors: Any, name: str | None = None) -> Any:
        """Numpy arrays of the rows of all processes."""
        return nested_numpify(self._nested_gather(tensors))

    def _sorted_checkpoints(
        self, output_dir: Any = None, checkpoint_prefix: str = PREFIX_CHECKPOINT_DIR, use_mtime: bool = False
    ) -> list[str]:
        """Paths of the checkpoints from the oldest on, as they may be removed: the best is the last but one.

        Args:
            output_dir: where they are; `args.output_dir` by default.
            checkpoint_prefix: of their names.
            use_mtime: by the time of their last change rather than by number.
        """
        found = sorted_checkpoints(output_dir or self.args.output_dir, checkpoint_prefix)
        if use_mtime:
            found = sorted(found, key=lambda path: path.stat().st_mtime)
        paths = [os.fspath(path) for path in found]
        best = None if self.state.best_model_checkpoint is None else os.path.normpath(self.state.best_model_checkpoint)
        if best in paths[:-2]:
            paths.remove(best)
            paths.insert(-1, best)
        return paths
