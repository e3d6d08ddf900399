# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows of mattes -> one padded batch for ZIM (ICCV 2025, implementation details), and the prompts it is trained on.

The paper: boxes from the extent of the matte, their size changed by up to 10 %; random positive and negative points. Numbers
of points and thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..model_frame import masks_to_frame
from ..models.sam.interactive import pixel_centres
from ..models.zim.losses import PADDING_ALPHA
from ..prompts import PADDING_LABEL
from .alpha import alpha_box, decode_alpha
from .augmentation import JitterTransform, LargeScaleJitter
from .row_collator import RowCollator, check_prompt_kinds, check_selection, decode_mask, with_objects

PROMPT_KINDS = ("box", "point")
BOX_JITTER = 0.1  # of the side
POSITIVES, NEGATIVES = (1, 8), (0, 4)
POSITIVE_ALPHA, NEGATIVE_ALPHA = 0.7, 0.05
_NEGATIVE_REACH = 1.5  # sides of the box, enlarged about its centre, in which negative points lie


def jitter_box(
    box: Sequence[float], size: tuple[int, int], rng: np.random.Generator, share: float = BOX_JITTER
) -> np.ndarray:
    """Moves each coordinate of a box by up to `share` of its side, uniformly; clipped to the image.

    Args:
        box: x0, y0, x1, y1, pixels.
        size: (height, width) of the image.
        rng: source of the draws.
        share: below 0.5.

    Returns:
        (4,) float64.
    """
    corners = np.asarray(box, dtype=np.float64)
    sides = np.tile(corners[2:] - corners[:2], 2)
    moved = corners + rng.uniform(-share, share, 4) * sides
    return moved.clip(0, np.tile(np.array(size[::-1], dtype=np.float64), 2))


def sample_points(
    alpha: np.ndarray,
    rng: np.random.Generator,
    positives: tuple[int, int] = POSITIVES,
    negatives: tuple[int, int] = NEGATIVES,
) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels of an object and beside it.

    Positive ones lie where the matte is above 0.7 (of its maximum, if that is lower), negative ones where it is below 0.05
    inside the box of the object enlarged by half; there may be no such place. A pixel may be drawn twice.

    Args:
        alpha: (H, W) floats in [0, 1], not empty.
        rng: source of the draws.
        positives, negatives: least and largest number of points.

    Returns:
        pixels (n, 2) int, column and row, positive ones first; labels (n,) 1 and 0.

    Raises:
        ValueError: an empty matte.
    """
    box = alpha_box(alpha)
    if box is None:
        raise ValueError("the matte is 0 everywhere: it has no point")
    top = float(alpha.max())
    inside = np.flatnonzero(alpha > POSITIVE_ALPHA * (1.0 if top > POSITIVE_ALPHA else top))
    middle, half = np.array(box).reshape(2, 2).mean(axis=0), np.diff(np.array(box).reshape(2, 2), axis=0)[0] / 2
    low = np.floor(middle - _NEGATIVE_REACH * half).clip(0).astype(int)
    high = np.ceil(middle + _NEGATIVE_REACH * half).astype(int)
    rows, columns = np.nonzero(alpha[low[1] : high[1], low[0] : high[0]] < NEGATIVE_ALPHA)
    chosen = inside[rng.integers(0, len(inside), int(rng.integers(positives[0], positives[1] + 1)))]
    count = int(rng.integers(negatives[0], negatives[1] + 1)) if len(rows) else 0
    beside = rng.integers(0, max(len(rows), 1), count)
    ys, xs = np.divmod(chosen, alpha.shape[1])
    pixels = np.concatenate([np.stack([xs, ys], axis=1), np.stack([columns[beside], rows[beside]], axis=1) + low])
    return pixels, np.repeat([1, 0], [len(chosen), count])


def matte_to_frame(alpha: np.ndarray, reshaped: Sequence[int], frame: int, cells: int) -> np.ndarray:
    """A matte in the padded model frame, resized like the image and, if asked, averaged over larger cells.

    Args:
        alpha: (H, W) float32 in [0, 1], of the image.
        reshaped: (height, width) of the image in the model frame, pixels.
        frame: side of the model frame, pixels.
        cells: side of the result.

    Returns:
        (cells, cells) float32 in [0, 1], and -1 in cells that are not completely inside the image: they do not count.
    """
    height, width = reshaped
    values = np.zeros((frame, frame), dtype=np.float32)
    resized = Image.fromarray(alpha).resize((width, height), Image.Resampling.BILINEAR)
    values[:height, :width] = np.asarray(resized)
    if cells != frame:
        values = masks_to_frame(values, (frame, frame), frame, cells)
    values = values.clip(0, 1)
    values[max(1, height * cells // frame) :] = PADDING_ALPHA
    values[:, max(1, width * cells // frame) :] = PADDING_ALPHA
    return values


@dataclass
class _Sample:
    """One image as the model sees it (before the processor) with P mattes and their prompts."""

    image: np.ndarray
    alphas: list[np.ndarray] = field(default_factory=list)  # P of (h, w) float32, like `image`
    boxes: list[np.ndarray | None] = field(default_factory=list)  # P; None: points
    points: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # P of pixels (n, 2) and labels (n,)


class MatteRowCollator(RowCollator):
    """Base of collators of mattes: which ones of a row are used.

    Args:
        processor, augmentation, train, seed: see [`RowCollator`].
        max_area: share of the image above which mattes are dropped.
        min_area: pixels of the image, after the jitter, below which mattes are dropped.
    """

    def __init__(
        self,
        processor: Any,
        augmentation: LargeScaleJitter | None,
        train: bool,
        seed: int,
        max_area: float,
        min_area: int,
    ) -> None:
        super().__init__(processor, augmentation, train, seed)
        self.max_area = max_area
        self.min_area = min_area

    def usable_mattes(
        self,
        regions: Sequence[Mapping[str, Any]],
        name: str,
        size: tuple[int, int],
        transform: JitterTransform | None,
        most: int | None,
        rng: np.random.Generator,
    ) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
        """Regions with their mattes (h, w) as the model sees them: `most` of them in random order in training, else all.

        Args:
            name: of the row, for messages.
            size: (height, width) of the image before the jitter.
            transform: the jitter of the image, or None.
        """
        found = 0
        for i in rng.permutation(len(regions)) if self.train else range(len(regions)):
            if self.train and found == most:
                return
            alpha = region_matte(regions[i], f"{name}, region {i}", size)
            if alpha is None:
                continue
            shown = alpha if transform is None else transform.apply_matte(alpha)
            if shown.sum() >= self.min_area and max(alpha.mean(), shown.mean()) <= self.max_area:
                found += 1
                yield regions[i], shown


class MatteCollator(MatteRowCollator):
    """Turns rows (`{image, image_id, regions: [{alpha, mask}]}`) into the keyword arguments of `ZimForMatting`.

    A region without `alpha` gives its `mask` as a matte of 0 and 1 (an object that needs no detail); regions with neither
    are left out, and so are empty mattes.

    Training: the image is jittered if asked; mattes that cover more than `max_area` of the image or add up to fewer than
    `min_area` pixels are dropped; the rest is visited in random order and cut to `max_mattes`; images without a matte are
    left out. Evaluation: order kept, all mattes of usable size, no jitter, boxes as they are, the same prompts every time.
    A batch in which nothing is left keeps one image with a single padded object: its loss is zero.

    Random decisions: see [`RowCollator`].

    Args:
        processor: a processor called with `images`, such as `ZimProcessor`.
        max_mattes: mattes kept per training image; `None` keeps all.
        augmentation: a [`LargeScaleJitter`] for training, or `None`.
        train: training or evaluation rules, see above.
        label_size: side of the labels; `None`: that of the model frame.
        max_area: share of the image above which mattes are dropped.
        min_area: pixels of the image, after the jitter, below which mattes are dropped.
        prompt_kinds: probabilities of "box" and "point", drawn for each matte.
        box_jitter: of box prompts in training, see [`jitter_box`].
        positives, negatives: least and largest number of points, see [`sample_points`].
        seed: of all random decisions.

    Returns (of a call): a dict with `pixel_values` (B, 3, S, S), `labels` (B, P, h, w) float32 in the padded model frame, in
        [0, 1] or -1 for padding, `prompt_mask` (B, P); where the kind is drawn at all, `input_boxes` (B, P, 4), and `input_points` (B, P, n, 2) with `point_labels`
        (B, P, n) 1, 0 or padding; `has_box` (B, P) where there are both. Prompts are in pixels of the model frame.

    Raises:
        ValueError: a setting or a row is unusable; the message names the row, its image_id and the region.
    """

    def __init__(
        self,
        processor: Any,
        max_mattes: int | None = 16,
        augmentation: LargeScaleJitter | None = None,
        train: bool = True,
        label_size: int | None = None,
        max_area: float = 0.95,
        min_area: int = 4,
        prompt_kinds: Mapping[str, float] | None = None,
        box_jitter: float = BOX_JITTER,
        positives: Sequence[int] = POSITIVES,
        negatives: Sequence[int] = NEGATIVES,
        seed: int = 42,
    ) -> None:
        check_selection(max_area, max_mattes=max_mattes, label_size=label_size, min_area=min_area)
        super().__init__(processor, augmentation, train, seed, max_area, min_area)
        if not 0 <= box_jitter < 0.5:
            raise ValueError(f"box_jitter must be at least 0 and below 0.5 (a share of the side), got {box_jitter}")
        for name, limits, least in (("positives", positives, 1), ("negatives", negatives, 0)):
            if len(limits) != 2 or not least <= limits[0] <= limits[1]:
                raise ValueError(
                    f"{name} must be the least and the largest number of points, {least} or more, got {limits}"
                )
        kinds = dict.fromkeys(PROMPT_KINDS, 1.0) if prompt_kinds is None else prompt_kinds
        self.prompt_kinds = check_prompt_kinds(kinds, PROMPT_KINDS)
        self.max_mattes = max_mattes
        self.label_size = label_size
        self.box_jitter = box_jitter
        self.positives = (positives[0], positives[1])
        self.negatives = (negatives[0], negatives[1])

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rng = self.generator(rows)
        samples = [self._sample(index, row, rng) for index, row in enumerate(rows)]
        if self.train:
            samples = with_objects(samples, lambda sample: sample.alphas)
        counts = torch.tensor([len(sample.alphas) for sample in samples])
        prompt_mask = torch.arange(max(int(counts.max()), 1))[None] < counts[:, None]

        processed = self.processor(images=[sample.image for sample in samples])
        sizes = [(int(height), int(width)) for height, width in processed["reshaped_input_sizes"]]
        frame = self.processor.image_processor.pad_size["height"]
        side = frame if self.label_size is None else self.label_size
        labels = torch.full((*prompt_mask.shape, side, side), PADDING_ALPHA)
        for i, sample in enumerate(samples):
            for j, alpha in enumerate(sample.alphas):
                labels[i, j] = torch.from_numpy(matte_to_frame(alpha, sizes[i], frame, side))
        return {
            "pixel_values": processed["pixel_values"],
            "labels": labels,
            "prompt_mask": prompt_mask,
            **self._prompts(samples, prompt_mask, sizes),
        }

    def _sample(self, index: int, row: Mapping[str, Any], rng: np.random.Generator) -> _Sample:
        name, image, transform = self.open_image(index, row, rng)
        sample = _Sample(image if transform is None else transform.apply_image(image))
        size = (image.shape[0], image.shape[1])
        for _, alpha in self.usable_mattes(row["regions"], name, size, transform, self.max_mattes, rng):
            sample.alphas.append(alpha)
            self._draw_prompt(sample, alpha, rng)
        return sample

    def _draw_prompt(self, sample: _Sample, alpha: np.ndarray, rng: np.random.Generator) -> None:
        kind = str(rng.choice(list(self.prompt_kinds), p=list(self.prompt_kinds.values())))
        box, none = None, (np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64))
        if kind == "box":
            share = self.box_jitter if self.train else 0.0
            box = jitter_box(alpha_box(alpha) or [], (alpha.shape[0], alpha.shape[1]), rng, share)
        sample.boxes.append(box)
        sample.points.append(sample_points(alpha, rng, self.positives, self.negatives) if box is None else none)

    def _prompts(
        self, samples: list[_Sample], prompt_mask: torch.Tensor, sizes: list[tuple[int, int]]
    ) -> dict[str, torch.Tensor]:
        boxes = torch.zeros(*prompt_mask.shape, 4)
        has_box = torch.zeros_like(prompt_mask)
        most = max((len(labels) for sample in samples for _, labels in sample.points), default=0)
        points = torch.zeros(*prompt_mask.shape, max(most, 1), 2)
        point_labels = torch.full(points.shape[:3], PADDING_LABEL)
        for i, (sample, frame) in enumerate(zip(samples, sizes)):
            height, width = sample.image.shape[:2]
            scale = torch.tensor([frame[1] / width, frame[0] / height] * 2)
            for j, (box, (pixels, labels)) in enumerate(zip(sample.boxes, sample.points)):
                if box is not None:
                    boxes[i, j], has_box[i, j] = torch.from_numpy(box).float() * scale, True
                n = len(labels)
                points[i, j, :n] = pixel_centres(torch.from_numpy(pixels), (height, width), frame)
                point_labels[i, j, :n] = torch.from_numpy(labels)
        batch: dict[str, torch.Tensor] = {}
        if "box" in self.prompt_kinds:
            batch["input_boxes"] = boxes
        if "point" in self.prompt_kinds:
            batch |= {"input_points": points, "point_labels": point_labels}
        return batch | {"has_box": has_box} if len(self.prompt_kinds) > 1 else batch


def region_matte(region: Mapping[str, Any], where: str, size: tuple[int, int]) -> np.ndarray | None:
    """The matte of a region (H, W) float32, or its mask as one; None if it has neither.

    Raises:
        ValueError: a matte that is damaged or not of `size`; `where` starts the message.
    """
    if region.get("alpha") is not None:
        return decode_alpha(region["alpha"], where, size)
    if region.get("mask") is None:
        return None
    return decode_mask(region["mask"], where, size).astype(np.float32)
