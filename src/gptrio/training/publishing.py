"""The part of `Trainer` that writes a model card and uploads to a hub."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from gptrio.training.enums import HubStrategy, SaveStrategy
from gptrio.training.model_card import write_model_card
from gptrio.training.parts import TrainerParts

_log = logging.getLogger(__name__)
_IGNORED = ["_*", ".*", "checkpoint-*"]
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_*")


class PublishingMixin(TrainerParts):
    """Uploads; each method can be overridden."""

    _pushes: list[Any]

    def init_hf_repo(self, token: str | None = None) -> None:
        """Make the repository, unless it is there: `args.hub_model_id`, or one named like the output folder."""
        if not self.is_world_process_zero():
            return
        from huggingface_hub import HfApi

        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        api = HfApi(token=token or self.args.hub_token)
        self.hub_model_id = api.create_repo(name, private=self.args.hub_private_repo, exist_ok=True).repo_id
        self._pushes = []

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` into the output folder: metadata, the last metrics, arguments and the log of the run.

        Args:
            language: of the data, as are the names of `dataset_tags`, `dataset` and `dataset_args`.
            license: of the model.
            tags: added to "generated_from_trainer" and to those of a card that is there.
            model_name: heading; the output folder's name by default.
            finetuned_from: the model that was trained further; `config._name_or_path` by default.
            tasks: what the model is for.
            dataset_tags: ids of data sets on the hub.
            dataset: their names.
            dataset_args: their configurations.
        """
        if self.is_world_process_zero():
            given = {
                "language": language,
                "license": license,
                "tags": tags,
                "base_model": finetuned_from,
                "pipeline_tag": tasks if isinstance(tasks, str) or not tasks else tasks[0],
                "datasets": dataset_tags,
            }
            name = model_name or Path(self.args.output_dir).absolute().name
            write_model_card(self, name, given, dataset, dataset_args)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, write its card, and upload the output folder without its checkpoints.

        Args:
            commit_message: of the upload.
            blocking: return only when it is done.
            token: of the hub; `args.hub_token` by default.
            revision: branch; `args.hub_revision` by default.
            kwargs: of `create_model_card`.

        Returns:
            The commit's address; if not `blocking`, a future of it.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        tags += [tag for tag in getattr(self.model, "model_tags", None) or () if tag not in tags]
        name = kwargs.pop("model_name", None) or (self.args.hub_model_id or "").split("/")[-1] or None
        self.create_model_card(model_name=name, tags=tags, **kwargs)
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        return self._upload(self.args.output_dir, commit_message, token, revision, is_awaited=blocking)

    def _upload(
        self,
        folder: str,
        message: str | None,
        token: str | None,
        revision: str | None,
        is_awaited: bool = False,
        path: str | None = None,
    ) -> Any:
        """Upload a folder; returns the commit's address, or a future of it if it is not awaited."""
        from huggingface_hub import HfApi

        upload: Any = HfApi(token=token).upload_folder  # typed by whether it is awaited
        return upload(
            repo_id=self.hub_model_id,
            folder_path=folder,
            path_in_repo=path,
            commit_message=message,
            revision=revision,
            ignore_patterns=_IGNORED,
            run_as_future=not is_awaited,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Begin to upload what `hub_strategy` asks for after a save, unless an upload is still going on."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        is_busy = any(not push.done() for push in self._pushes)
        if is_busy and not args.hub_always_push:
            return
        folder = Path(args.output_dir)
        for pattern in _MODEL_FILES:
            for file in Path(checkpoint_folder).glob(pattern):
                shutil.copy(file, folder / file.name)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        is_by_steps = args.save_strategy == SaveStrategy.STEPS
        place = f"step {self.state.global_step}" if is_by_steps else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {place}"
        self._pushes = [push for push in self._pushes if not push.done()]
        self._pushes.append(self._upload(args.output_dir, message, args.hub_token, args.hub_revision))
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            path = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            self._pushes.append(
                self._upload(checkpoint_folder, f"{message}, checkpoint", args.hub_token, args.hub_revision, path=path)
            )

    def _finish_current_push(self) -> None:
        """Wait for the uploads that are going on."""
        for push in self.__dict__.get("_pushes", []):
            push.result()
        self._pushes = []
