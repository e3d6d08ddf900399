# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows -> one padded batch of images, coarse masks and mattes for the label converter (ZIM, ICCV 2025, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..models.zim.losses import PADDING_ALPHA
from .augmentation import LargeScaleJitter
from .matte_collator import MatteRowCollator, matte_to_frame
from .matte_degradations import SGA_PROBABILITY, training_pair
from .row_collator import check_selection, with_objects


@dataclass
class _Sample:
    """One image as the model sees it (before the processor) with P mattes."""

    image: np.ndarray
    alphas: list[tuple[np.ndarray, bool]] = field(
        default_factory=list
    )  # P of (h, w) float32, and whether it is coarse


class LabelCollator(MatteRowCollator):
    """Turns rows (`{image, image_id, regions: [{alpha, mask}]}`) into the keyword arguments of `ZimLabelConverter`.

    A region with `alpha` is fine: its input is the matte degraded to a coarse mask, its target the matte. A region with
    only a `mask`, or with `coarse: True`, needs no detail: the mask is input and target ("selective transformation
    learning"; mix data sources 1 : 1 for it). In training a rectangle may be cut out of both ("spatial generalization
    augmentation"). See [`~hf_segcap.data.matte_degradations.training_pair`].

    Training: the image is jittered if asked; mattes that cover more than `max_area` of the image or add up to fewer than
    `min_area` pixels are dropped; the rest is visited in random order and cut to `max_masks`; images without a matte are
    left out. Evaluation: order kept, all mattes of usable size, no jitter and no cut, the same degradations every time.
    A batch in which nothing is left keeps one image with a single padded mask: its loss is zero.

    Random decisions: see [`~hf_segcap.data.row_collator.RowCollator`].

    Args:
        processor: a processor called with `images`, such as `ZimLabelConverterProcessor`.
        max_masks: masks kept per training image; `None` keeps all.
        augmentation: a [`LargeScaleJitter`] for training, or `None`.
        train: training or evaluation rules, see above.
        sga_probability: of the cut-out rectangle (the paper: 0.5).
        max_area: share of the image above which mattes are dropped.
        min_area: pixels of the image, after the jitter, below which mattes are dropped.
        seed: of all random decisions.

    Returns (of a call): a dict with `pixel_values` (B, 3, S, S), `coarse_masks` (B, P, S, S) float32 of 0 and 1, `labels`
        (B, P, S, S) float32 in [0, 1] or -1 for padding, and `prompt_mask` (B, P).

    Raises:
        ValueError: a setting or a row is unusable; the message names the row, its image_id and the region.
    """

    def __init__(
        self,
        processor: Any,
        max_masks: int | None = 1,
        augmentation: LargeScaleJitter | None = None,
        train: bool = True,
        sga_probability: float = SGA_PROBABILITY,
        max_area: float = 0.95,
        min_area: int = 16,
        seed: int = 42,
    ) -> None:
        check_selection(max_area, max_masks=max_masks, min_area=min_area)
        super().__init__(processor, augmentation, train, seed, max_area, min_area)
        if not 0 <= sga_probability <= 1:
            raise ValueError(f"sga_probability must be between 0 and 1, got {sga_probability}")
        self.max_masks = max_masks
        self.sga_probability = sga_probability

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rng = self.generator(rows)
        samples = [self._sample(index, row, rng) for index, row in enumerate(rows)]
        if self.train:
            samples = with_objects(samples, lambda sample: sample.alphas)
        processed = self.processor(images=[sample.image for sample in samples])
        frame = self.processor.image_processor.pad_size["height"]
        shape = (len(samples), max(1, *(len(sample.alphas) for sample in samples)), frame, frame)
        masks, labels = torch.zeros(shape), torch.full(shape, PADDING_ALPHA)
        prompt_mask = torch.zeros(shape[:2], dtype=torch.bool)
        sizes = [(int(height), int(width)) for height, width in processed["reshaped_input_sizes"]]
        for i, (sample, (height, width)) in enumerate(zip(samples, sizes)):
            for j, (alpha, coarse) in enumerate(sample.alphas):
                label = matte_to_frame(alpha, (height, width), frame, frame)
                pair = training_pair(
                    label[:height, :width], rng, coarse, sga_probability=self.sga_probability if self.train else 0.0
                )
                label[:height, :width] = pair[1]
                masks[i, j, :height, :width] = torch.from_numpy(pair[0])
                labels[i, j] = torch.from_numpy(label)
                prompt_mask[i, j] = bool(pair[0].any())  # at the resolution of the model nothing may be left of a mask
        return {
            "pixel_values": processed["pixel_values"],
            "coarse_masks": masks,
            "labels": labels,
            "prompt_mask": prompt_mask,
        }

    def _sample(self, index: int, row: Mapping[str, Any], rng: np.random.Generator) -> _Sample:
        name, image, transform = self.open_image(index, row, rng)
        sample = _Sample(image if transform is None else transform.apply_image(image))
        size = (image.shape[0], image.shape[1])
        for region, alpha in self.usable_mattes(row["regions"], name, size, transform, self.max_masks, rng):
            coarse = region.get("coarse")  # None, too, where other rows have the column
            sample.alphas.append((alpha, region.get("alpha") is None if coarse is None else bool(coarse)))
        return sample
