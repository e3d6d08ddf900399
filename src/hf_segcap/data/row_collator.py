# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the collators share: reproducible draws, the jitter, masks in the model frame."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging

from ..images import load_image
from ..masks import decode_rle
from .augmentation import JitterTransform, LargeScaleJitter

logger = logging.get_logger(__name__)

Collator = TypeVar("Collator", bound="RowCollator")
Sample = TypeVar("Sample")


class RowCollator:
    """Base of callables that turn rows (see `sources.py`) into a batch.

    Every random decision of a batch comes from one generator, seeded by `seed`, the epoch ([`RowCollator.set_epoch`],
    which `SegCapTrainer` calls) and the batch's content: the same for any number of workers and after a resume.
    Without `set_epoch` the number of batches seen takes its place.
    """

    def __init__(self, processor: Any, augmentation: LargeScaleJitter | None, train: bool, seed: int) -> None:
        self.processor = processor
        self.augmentation = augmentation
        self.train = train
        self.seed = seed
        self._calls = 0
        # In shared memory: workers that outlive an epoch must see the next one.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Makes the draws a function of (seed, epoch, batch content): call it before each epoch."""
        self._epoch.fill_(epoch)

    def for_evaluation(self: Collator) -> Collator:
        """A copy of this collator that follows the evaluation rules."""
        other = copy.copy(self)
        other.train = False
        return other

    def generator(self, rows: Sequence[Mapping[str, Any]]) -> np.random.Generator:
        """The source of all random decisions of a batch.

        Raises:
            ValueError: `rows` is empty.
        """
        if len(rows) == 0:
            raise ValueError("the collator got an empty list of rows, expected at least one")
        epoch = int(self._epoch) if self.train else 0
        if epoch < 0:
            worker = get_worker_info()
            self._calls += 1
            return np.random.default_rng([self.seed, 0 if worker is None else worker.seed, self._calls])
        content = [(_identity(row), [region.get("box") for region in row["regions"]]) for row in rows]
        return np.random.default_rng([self.seed, epoch, zlib.crc32(str(content).encode())])

    def open_image(
        self, index: int, row: Mapping[str, Any], rng: np.random.Generator
    ) -> tuple[str, np.ndarray, JitterTransform | None]:
        """A name of the row for messages, its image (H, W, 3) uint8, and the jitter drawn for it in training."""
        name = f"row {index} of the batch (image_id={row.get('image_id')})"
        image = np.array(load_image(row["image"], name=name))
        if not self.train or self.augmentation is None:
            return name, image, None
        return name, image, self.augmentation.draw((image.shape[0], image.shape[1]), rng)


def _identity(row: Mapping[str, Any]) -> Any:
    """What tells the image of a row from others: its id, or else its path or its pixels."""
    if row.get("image_id") is not None:
        return row["image_id"]
    image = row.get("image")
    if image is None or isinstance(image, (str, os.PathLike)):
        return str(image)
    return zlib.crc32(np.asarray(load_image(image)).tobytes())


def decode_mask(mask: Any, name: str, size: Sequence[int]) -> np.ndarray:
    """The mask of a region, (H, W) bool.

    Raises:
        ValueError: it is no run-length code, or one of another size than `size`, (height, width) of its image; the message
            begins with `name`, the place of the region.
    """
    try:
        decoded = np.asarray(decode_rle(mask)).astype(bool)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{name}: a mask is no run-length code ({error})") from error
    if decoded.shape != tuple(size):
        raise ValueError(
            f"{name}: a mask has {decoded.shape[0]} x {decoded.shape[1]} (height x width) pixels, the image "
            f"{size[0]} x {size[1]}"
        )
    return decoded


def with_objects(samples: list[Sample], objects: Callable[[Sample], list]) -> list[Sample]:
    """The samples of a training batch that have objects; one of them if none has, with a warning."""
    left = [sample for sample in samples if objects(sample)]
    if not left:
        logger.warning_once(
            "a batch has no object to train on (phrases, or a mask or matte of a size between min_area and max_area, as the "
            "task needs it): its loss is 0"
        )
    return left or samples[:1]


def check_selection(max_area: float, **least_one: int | None) -> None:
    """Checks the settings that choose regions: a share of the image, and numbers of which None means no limit.

    Raises:
        ValueError: a number below 1, or a share that is none.
    """
    for name, value in least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < max_area <= 1:
        raise ValueError(f"max_area must be above 0 and at most 1 (a share of the image), got {max_area}")


def check_prompt_kinds(kinds: Mapping[str, float], allowed: Sequence[str]) -> dict[str, float]:
    """Probabilities that add up to 1, without kinds of probability 0.

    Raises:
        ValueError: an unknown kind, a negative number, or nothing above 0.
    """
    total = float(sum(kinds.values()))
    if set(kinds) - set(allowed) or total <= 0 or min(kinds.values()) < 0:
        raise ValueError(f"prompt_kinds must give probabilities for {tuple(allowed)}, got {dict(kinds)}")
    return {kind: value / total for kind, value in kinds.items() if value > 0}
