# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What a repository on the Hub gets besides the checkpoint.

A checkpoint saved in a folder needs `import hf_segcap` before transformers can load it. A pushed one also carries

- `segcap_auto.py`, one line that imports the classes from this package, and `auto_map` entries that point to it: with
  `trust_remote_code=True` the Auto classes find them by themselves, and name `pip install hf_segcap` where it is missing;
- `pipeline_tag` and `library_name` in the model card, from which `pipeline(model=repo_id)` learns its task.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import transformers
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

AUTO_MODULE = "segcap_auto"
_PACKAGE = __name__.partition(".")[0]
_PROCESSOR_CONFIG = "processor_config.json"

_GENERATED_CARD = "This model card has been automatically generated."
_CARD_TEXT = """
# {name}

A model of `{package}` (`pip install {package}`).

```python
import {package}
from transformers import pipeline

pipe = pipeline("{task}", model="{repo_id}")
```
"""


def registered_classes(config_class: type[PreTrainedConfig]) -> dict[str, type]:
    """The classes that transformers' Auto classes know for a configuration class, by the name of the Auto class.

    For example `{"AutoConfig": SamCaptionConfig, "AutoModelForImageTextToText": SamCaptionForRegionCaptioning,
    "AutoProcessor": SamCaptionProcessor}`.
    """
    classes: dict[str, type] = {"AutoConfig": config_class}
    for name in sorted(n for n in dir(transformers) if n.startswith("AutoModel")):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) or {}
        if config_class in mapping:
            classes[name] = mapping[config_class]
    if config_class in PROCESSOR_MAPPING:
        classes["AutoProcessor"] = PROCESSOR_MAPPING[config_class]
    return classes


def auto_map_files(config_class: type[PreTrainedConfig]) -> dict[str, str | dict[str, str]]:
    """The one-line module and the `auto_map` entries of a repository.

    Args:
        config_class: configuration class of this package, registered with the Auto classes.

    Returns:
        `{"segcap_auto.py": source, "config.json": auto_map, "processor_config.json": auto_map}`
    """
    classes = registered_classes(config_class)
    names = ", ".join(sorted({cls.__name__ for cls in classes.values()}))
    auto_map = {auto: f"{AUTO_MODULE}.{cls.__name__}" for auto, cls in classes.items()}
    files: dict[str, str | dict[str, str]] = {
        f"{AUTO_MODULE}.py": f"from {_PACKAGE} import {names}  # noqa: F401\n",
        "config.json": auto_map,
    }
    if "AutoProcessor" in auto_map:
        files[_PROCESSOR_CONFIG] = {"AutoProcessor": auto_map["AutoProcessor"]}
    return files


def add_hub_files(
    folder: str | os.PathLike, config_class: type[PreTrainedConfig], repo_id: str, task: str | None = None
) -> None:
    """Turns a saved model, processor or both into what should be uploaded; changes the files in `folder`.

    Args:
        folder: holds what `save_pretrained` wrote.
        config_class: configuration class of the model.
        repo_id: the repository, for the example in its model card.
        task: name of the pipeline, for the model card.
    """
    folder = Path(folder)
    for name, content in auto_map_files(config_class).items():
        path = folder / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**saved, "auto_map": content}, indent=2) + "\n", encoding="utf-8")
    if task is not None and (folder / "README.md").exists():
        _complete_card(folder / "README.md", repo_id, task)


def _complete_card(path: Path, repo_id: str, task: str) -> None:
    """Adds what is missing to a model card; replaces the text that transformers generates for want of another."""
    card = ModelCard.load(path)
    card.data.library_name = card.data.library_name or "transformers"
    card.data.pipeline_tag = card.data.pipeline_tag or task
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), _PACKAGE]))
    if _GENERATED_CARD in card.text:
        name = repo_id.rpartition("/")[2]
        card.text = _CARD_TEXT.format(name=name, package=_PACKAGE, repo_id=repo_id, task=task)
    card.save(path)


class CompleteCheckpointMixin:
    """For models whose answers look like answers even if a part of their weights is random; stands before
    `PreTrainedModel`."""

    incomplete_checkpoint_hint: ClassVar[str] = ""
    """What to do instead of loading a checkpoint that lacks weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: if weights are missing from the checkpoint (the answers of random weights look like answers), or
                their file is damaged.
        """
        want_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} are damaged or incomplete, fetch them again ({error})"
            ) from error
        missing = sorted(info["missing_keys"])
        if pretrained_model_name_or_path is not None and missing:
            raise ValueError(
                f"{pretrained_model_name_or_path} is not a complete {cls.__name__} checkpoint: {len(missing)} weights "
                f"are missing, e.g. {', '.join(missing[:3])}. {cls.incomplete_checkpoint_hint}"
            )
        return (model, info) if want_info else model


class HubMixin:
    """For configurations, models, processors and pipelines of this package; stands before transformers' base class.

    Whatever is uploaded by `push_to_hub` or `save_pretrained(..., push_to_hub=True)` gets the files of
    [`add_hub_files`]; `save_pretrained` into a folder writes none of them.
    """

    hub_task: ClassVar[str | None] = None
    """Name of the pipeline that the model card should name."""

    def _hub_config_class(self) -> type[PreTrainedConfig]:
        if isinstance(self, PreTrainedConfig):
            return type(self)
        model = getattr(self, "model", None)  # of a pipeline
        config = getattr(self, "config", None) or getattr(model, "config", None)
        if config is not None:
            return type(config)
        for config_class, processor_class in PROCESSOR_MAPPING._extra_content.items():
            if processor_class is type(self):
                return config_class
        raise ValueError(
            f"{type(self).__name__} cannot be pushed: no configuration class is registered with it. "
            f"Call AutoProcessor.register(config_class, {type(self).__name__}) first."
        )

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # every way of pushing ends here
        task = self.hub_task or getattr(self, "task", None)
        add_hub_files(working_dir, self._hub_config_class(), repo_id, task)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing: the code of this package is installed, and never copied next to a checkpoint.

        transformers calls this on a class found through `auto_map`; it would make every later `save_pretrained` copy
        single files of the package.
        """
