# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows of region data -> one padded batch for the models that describe regions (SCA, CVPR 2024, data pipeline)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model_frame import masks_to_frame
from ..models.sam_caption.configuration_sam_caption import TASKS
from ..prompts import RegionPrompts, scale_prompts
from .augmentation import LargeScaleJitter
from .row_collator import RowCollator, check_prompt_kinds, decode_mask, with_objects
from .sources import check_box

if TYPE_CHECKING:
    from ..training.features import FeatureCache

PROMPT_KINDS = ("box", "point")
_MIN_SIDE = 1e-5  # pixels; smaller boxes are not trained on


@dataclass
class _Sample:
    """One image with the regions that are left of it, in the frame of `image`."""

    image: np.ndarray
    boxes: np.ndarray
    task: int
    phrases: list[str] = field(default_factory=list)
    masks: list[np.ndarray | None] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


class RegionCollator(RowCollator):
    """Turns rows (`{image, image_id, regions: [{box, phrases, mask}]}`) into the keyword arguments of the model.

    Training: the image is jittered if asked, boxes are clipped to it, those with a side of at most 1e-5 pixels are
    dropped, the rest is visited in random order and cut to `max_regions`, one of a region's phrases is drawn.
    Evaluation: first phrase, order kept, nothing removed, no jitter.

    Images with different numbers of regions are padded (`prompt_mask` False, labels -100); in training, images
    without a usable region are left out. A batch in which none is left keeps one image with a single padded region: its
    loss and gradients are zero, so that every process of a distributed run takes part in the step.

    Every random decision of a batch comes from one generator, seeded by `seed`, the epoch ([`RegionCollator.set_epoch`],
    which `SegCapTrainer` calls) and the batch's content: the same for any number of workers and after a resume.
    Without `set_epoch` the number of batches seen takes its place.

    Args:
        processor: a processor called with `images` and `text`, such as `SamCaptionProcessor`.
        max_regions: regions kept per training image; `None` keeps all.
        augmentation: a [`LargeScaleJitter`] for training, or `None`.
        train: training or evaluation rules, see above.
        with_masks: adds `target_masks` (B, P, l, l) float {0, 1}, in the padded model frame at the resolution of mask
            predictions; NaN for regions that have no mask.
        prompt_kinds: probability of each kind of prompt, "box" and "point" (one point inside the mask, or inside the
            box if there is none); one kind is drawn per batch. A training image that has regions with masks is
            trained on these alone when points are drawn.
        features: a feature cache: `image_embeddings` (B, C, g, g) take the place of `pixel_values`.
        task: "caption" or "recognition" for rows without a `task` of their own.
        seed: of all random decisions.

    Returns (of a call): a dict with `pixel_values` (B, 3, S, S) or `image_embeddings`, `input_boxes` (B, P, 4) or
        `input_points` (B, P, 1, 2) and `point_labels` (B, P, 1) in model-frame pixels, `prompt_mask` (B, P),
        `input_ids`, `attention_mask`, `labels` (B, P, L), `task` (B,) long, 0 recognition, 1 caption.

    Raises:
        ValueError: a setting or a row is unusable; the message names the row, its image_id and the region.
    """

    def __init__(
        self,
        processor: Any,
        max_regions: int | None = 16,
        augmentation: LargeScaleJitter | None = None,
        train: bool = True,
        with_masks: bool = False,
        prompt_kinds: Mapping[str, float] | None = None,
        features: FeatureCache | None = None,
        task: str = "caption",
        seed: int = 42,
    ) -> None:
        if max_regions is not None and max_regions < 1:
            raise ValueError(f"max_regions must be at least 1 (or None for all regions), got {max_regions}")
        if features is not None and augmentation is not None:
            raise ValueError(
                "large-scale jitter changes every image, so features stored once per image cannot be used with it: "
                "drop either augmentation or features"
            )
        super().__init__(processor, augmentation, train, seed)
        self.max_regions = max_regions
        self.with_masks = with_masks
        self.prompt_kinds = check_prompt_kinds({"box": 1.0} if prompt_kinds is None else prompt_kinds, PROMPT_KINDS)
        self.features = features
        self.task = task
        _task_index(task, "the collator's task")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rng = self.generator(rows)
        kinds = list(self.prompt_kinds)
        kind = kinds[int(rng.choice(len(kinds), p=list(self.prompt_kinds.values())))]
        samples = [self._sample(index, row, kind, rng) for index, row in enumerate(rows)]
        if self.train:
            samples = with_objects(samples, lambda sample: sample.phrases)

        counts = [len(sample.phrases) for sample in samples]
        width = max(max(counts), 1)
        prompt_mask = torch.arange(width)[None] < torch.tensor(counts)[:, None]

        batch = self._images_and_text(samples)
        original_sizes = batch.pop("original_sizes").tolist()
        reshaped_sizes = batch.pop("reshaped_input_sizes").tolist()
        batch["labels"] = batch["labels"].masked_fill(~prompt_mask[..., None], -100)
        batch |= self._prompts(samples, kind, prompt_mask, original_sizes, reshaped_sizes, rng)
        batch["prompt_mask"] = prompt_mask
        batch["task"] = torch.tensor([sample.task for sample in samples])
        if self.with_masks:
            batch["target_masks"] = self._target_masks(samples, prompt_mask, reshaped_sizes)
        return batch

    def _sample(self, index: int, row: Mapping[str, Any], kind: str, rng: np.random.Generator) -> _Sample:
        name, image, transform = self.open_image(index, row, rng)
        regions = list(row["regions"])
        boxes = np.array(
            [check_box(region["box"], f"{name}, region {i}") for i, region in enumerate(regions)]
        ).reshape(-1, 4)
        task = _task_index(row.get("task") or self.task, name)
        kept = list(range(len(regions)))
        masks_needed = self.with_masks or "point" in self.prompt_kinds
        source_size = image.shape[:2]

        if transform is not None:
            image = transform.apply_image(image)
            # Boxes of integer data sets are truncated by the official jitter, others keep their fractions.
            boxes = transform.apply_boxes(boxes.astype(np.int64) if (boxes == np.rint(boxes)).all() else boxes)
        height, width = image.shape[:2]
        boxes = np.clip(boxes.astype(np.float64), 0, [width, height, width, height])

        if self.train:
            sides = boxes[:, 2:] - boxes[:, :2]
            usable = np.flatnonzero((sides > _MIN_SIDE).all(axis=1))
            with_mask = [i for i in usable if regions[i].get("mask") is not None]
            if kind == "point" and with_mask:  # a point inside a box alone does not say which region is meant
                usable = np.array(with_mask)
            kept = rng.permutation(usable)[: self.max_regions].tolist()

        sample = _Sample(image, boxes[kept], task)
        for i in kept:
            phrases = regions[i]["phrases"]
            if isinstance(phrases, str) or len(phrases) == 0:
                raise ValueError(f"{name}, region {i}: phrases must be a list of at least one text, got {phrases!r}")
            sample.phrases.append(phrases[int(rng.integers(len(phrases))) if self.train else 0])
            mask = regions[i].get("mask") if masks_needed else None
            mask = None if mask is None else decode_mask(mask, f"{name}, region {i}", source_size)
            sample.masks.append(mask if mask is None or transform is None else transform.apply_mask(mask))
        return sample

    def _images_and_text(self, samples: list[_Sample]) -> dict[str, torch.Tensor]:
        text = [sample.phrases for sample in samples]
        if not any(text):
            text = [[""] for _ in samples]  # for the shape; the labels are masked
        if self.features is None:
            return dict(self.processor(images=[sample.image for sample in samples], text=text))
        batch = dict(self.processor(original_sizes=[sample.size for sample in samples], text=text))
        batch["image_embeddings"] = torch.stack([self.features.get(sample.image) for sample in samples]).float()
        return batch

    def _prompts(
        self,
        samples: list[_Sample],
        kind: str,
        prompt_mask: torch.Tensor,
        original_sizes: list[list[int]],
        reshaped_sizes: list[list[int]],
        rng: np.random.Generator,
    ) -> dict[str, torch.Tensor]:
        # Built directly, not parsed: in evaluation degenerate boxes stay, one answer is due for every region.
        boxes = points = labels = None
        if kind == "box":
            boxes = torch.zeros(*prompt_mask.shape, 4, dtype=torch.float64)
            for i, sample in enumerate(samples):
                boxes[i, : len(sample.boxes)] = torch.from_numpy(sample.boxes)
        else:
            points = torch.zeros(*prompt_mask.shape, 1, 2, dtype=torch.float64)
            for i, sample in enumerate(samples):
                for j, (box, mask) in enumerate(zip(sample.boxes, sample.masks)):
                    points[i, j, 0] = torch.from_numpy(_point_inside(box, mask, rng))
            labels = torch.ones(*prompt_mask.shape, 1, dtype=torch.int64)
        counts = [len(sample.boxes) for sample in samples]
        prompts = RegionPrompts(boxes, points, labels, None, prompt_mask, counts)
        prompts = scale_prompts(prompts, original_sizes, reshaped_sizes)
        found = {"input_boxes": prompts.boxes, "input_points": prompts.points, "point_labels": labels}
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in found.items()
            if value is not None
        }

    def _target_masks(
        self, samples: list[_Sample], prompt_mask: torch.Tensor, reshaped_sizes: list[list[int]]
    ) -> torch.Tensor:
        image_processor = self.processor.image_processor
        frame, side = image_processor.pad_size["height"], image_processor.mask_pad_size["height"]
        targets = torch.full((*prompt_mask.shape, side, side), float("nan"))
        for i, sample in enumerate(samples):
            for j, mask in enumerate(sample.masks):
                # A region whose mask was cropped away has nothing to learn from, like one without a mask.
                if mask is not None and mask.any():
                    targets[i, j] = torch.from_numpy(masks_to_frame(mask, reshaped_sizes[i], frame, side) > 0.5)
        return targets


def _task_index(task: str, name: str) -> int:
    if task not in TASKS:
        raise ValueError(f"{name}: task must be one of {list(TASKS)}, got {task!r}")
    return TASKS[task]


def _point_inside(box: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """A random point (x, y), pixels: of the mask if it is not empty, else of the box."""
    if mask is not None and mask.any():
        ys, xs = np.nonzero(mask)
        choice = int(rng.integers(len(xs)))
        return np.array([xs[choice], ys[choice]], dtype=np.float64)
    return rng.uniform(box[:2], np.maximum(box[:2], box[2:]))
