# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What pipelines that take an image and prompts share: items, lists and datasets, ragged batches, saving."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.pipelines.base import Pipeline
from transformers.utils import logging

from ..hub import HubMixin

logger = logging.get_logger(__name__)

# Longer lists get a progress bar.
_LIST_WITHOUT_BAR = 8


@dataclass(frozen=True)
class _Numbered:
    """An item of a list or dataset with its place there, so that errors can name it."""

    index: int
    item: Any


class _NumberedDataset(Dataset):
    """Makes any sequence, also a `datasets.Dataset`, a dataset that `Pipeline` recognises."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Numbered:
        return _Numbered(index, self.items[index])


def _numbered(items: Iterable[Any]) -> Iterator[_Numbered]:
    for index, item in enumerate(items):
        yield _Numbered(index, item)


def show_progress(wanted: bool) -> bool:
    """Whether to show a bar: wanted, and neither transformers' bars nor its warnings are switched off."""
    return wanted and logging.is_progress_bar_enabled() and logging.get_verbosity() <= logging.WARNING


def pad_prompts(tensors: Sequence[torch.Tensor], value: float | int | bool) -> torch.Tensor:
    """Stacks per-image tensors (1, P_i, ...) of different sizes to (B, max P, ...), filled up with `value`."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors))]
    out = tensors[0].new_full((len(tensors), *shape), value)
    for row, tensor in zip(out, tensors):
        row[tuple(slice(size) for size in tensor.shape[1:])] = tensor[0]
    return out


class PromptedImagePipeline(HubMixin, Pipeline):
    """Base of pipelines whose items are an image with optional prompts.

    An item is an image, or a dict with "image" and any of `prompt_names`; prompts in a dict replace those of the call, but
    `point_labels` of the call hold for points of items that bring no labels.
    A subclass writes `read`, which sees one image, `_forward` and `assemble`, which see one image or a batch alike:
    what an item has besides its pixels travels as an object, never through padding.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    prompt_names: tuple[str, ...] = ("boxes", "points", "point_labels", "masks")

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            raise TypeError(f"Expected one positional argument (the image), got {1 + len(args)}: name the others.")
        progress = show_progress(kwargs.get("progress", self._forward_params.get("progress", True)))
        if isinstance(inputs, (list, tuple)):
            shared = sum(not (isinstance(item, Mapping) and set(item) & set(self.prompt_names)) for item in inputs)
            for name in self.prompt_names:
                given = kwargs.get(name)
                if not isinstance(given, (list, tuple)) or any(isinstance(value, numbers.Number) for value in given):
                    continue  # one point or one box
                if shared > 1 and len(given) == len(inputs):
                    logger.warning_once(
                        f"Every one of {len(inputs)} images gets all {len(given)} `{name}`. For prompts of their own, give "
                        f'items {{"image": ..., "{name}": ...}}.'
                    )
            results = super().__call__(_NumberedDataset(inputs), **kwargs)
            bar = progress and len(inputs) > _LIST_WITHOUT_BAR
            return list(tqdm(results, total=len(inputs), unit="image", desc=self.task, disable=not bar))
        if _is_item(inputs):
            return super().__call__(inputs, **kwargs)
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            return super().__call__(_NumberedDataset(inputs), **kwargs)
        if isinstance(inputs, Iterable):
            return super().__call__(_numbered(inputs), **kwargs)
        raise TypeError(f"Expected an image, a dict, a list, a dataset or a generator, got {type(inputs).__name__}.")

    def split_item(self, item: Any, call_prompts: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The image and the prompts of one item.

        Raises:
            ValueError: a dict without "image" or with unknown names.
        """
        prompts = {name: value for name, value in call_prompts.items() if value is not None}
        if not isinstance(item, Mapping):
            return item, prompts
        unknown = sorted(map(str, set(item) - {"image", *self.prompt_names}))
        if "image" not in item or unknown:
            problem = f"unknown names {unknown}" if unknown else "no 'image'"
            raise ValueError(
                f"An item given as a dict has 'image' and any of {list(self.prompt_names)}; this one has {problem}. "
                "For a dataset with other columns use `dataset.select_columns([...])`."
            )
        own = {name: item[name] for name in self.prompt_names if item.get(name) is not None}
        if "points" in own and "point_labels" in prompts:
            own.setdefault("point_labels", prompts["point_labels"])
        return item["image"], own or prompts

    def preprocess(self, item: Any, **parameters: Any) -> dict[str, Any]:
        if not isinstance(item, _Numbered):
            return self.read(item, **parameters)
        try:
            return self.read(item.item, **parameters)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"Item {item.index} of the input: {error}") from error

    def read(self, item: Any, **parameters: Any) -> dict[str, Any]:
        """One item -> {"pixel_values": (1, 3, S, S), "request": object}."""
        raise NotImplementedError

    def assemble(self, answer: Any, **parameters: Any) -> Any:
        """What `_forward` answered for one image -> the result."""
        raise NotImplementedError

    def postprocess(self, model_outputs: Mapping[str, Any], **parameters: Any) -> Any:
        answer = model_outputs["answers"]
        # A batch has been taken apart by `Pipeline`; a single item still is a list of one.
        return self.assemble(answer[0] if isinstance(answer, list) else answer, **parameters)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model and processor, so that `pipeline(task, model=save_directory)` loads both.

        Unlike transformers' own version for registered pipelines, this copies no code into the folder: loading needs
        this package, but no `trust_remote_code`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _is_item(inputs: Any) -> bool:
    kinds = (str, bytes, bytearray, os.PathLike, Mapping, Image.Image, np.ndarray, torch.Tensor)
    return isinstance(inputs, kinds) or hasattr(inputs, "read")  # an open file is one image, not its lines


def as_list(value: Any) -> list[Any]:
    """The objects of a batch: `Pipeline` hands a list for several items and the bare object for one."""
    return value if isinstance(value, list) else [value]
