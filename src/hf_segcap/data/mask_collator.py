# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rows of masks -> one padded batch for SAM (Kirillov et al. 2023, appendix A, training)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model_frame import masks_to_frame
from ..models.sam.interactive import BOX_NOISES, add_box_noise, pixel_centres, sample_pixels, target_boxes
from ..prompts import PADDING_LABEL
from .augmentation import LargeScaleJitter
from .row_collator import RowCollator, check_prompt_kinds, check_selection, decode_mask, with_objects

if TYPE_CHECKING:
    from .mask_crops import MaskCropEmbedder

PROMPT_KINDS = ("point", "box", "text")


@dataclass
class _Sample:
    """One image as the model sees it (before the processor) with P masks, and as it was for CLIP."""

    image: np.ndarray
    masks: list[np.ndarray]  # P of (h, w) bool, like `image`
    kinds: np.ndarray  # (P,) prompt kinds
    source_image: np.ndarray
    source_masks: list[np.ndarray]  # P, like `source_image`
    text_embeds: torch.Tensor | None = None  # (P, E)

    def keep(self, index: Sequence[int]) -> None:
        self.masks = [self.masks[i] for i in index]
        self.source_masks = [self.source_masks[i] for i in index]
        self.kinds = self.kinds[list(index)]


class MaskCollator(RowCollator):
    """Turns rows (`{image, image_id, regions: [{mask (COCO RLE)}]}`) into the keyword arguments of
    `SamForPromptableSegmentation`. Regions without a mask are left out, and so are empty masks.

    Training: the image is jittered if asked; masks that cover more than `max_area` of the image or fewer than `min_area`
    pixels are dropped; the rest is visited in random order and cut to `max_masks`; images without a mask are left out.
    Evaluation: order kept, all masks of usable size, no jitter, no noise on boxes, the same prompts every time.
    A batch in which nothing is left keeps one image with a single padded object: its loss is zero.

    Random decisions: see [`RowCollator`].

    Args:
        processor: a processor called with `images`, such as `SamPromptableProcessor`.
        max_masks: masks kept per training image (SAM: 64 per GPU, with one image each); `None` keeps all.
        prompts_per_mask: how often a training mask is asked for, each time with a prompt of its own. The image encoder, most
            of the work, runs once for all of them.
        augmentation: a [`LargeScaleJitter`] for training, or `None`.
        train: training or evaluation rules, see above.
        label_size: side of the labels; `None`: that of the model frame. The loss is computed at this resolution; four
            times the side of the feature grid, the resolution of the predictions, needs the least memory, but places
            borders on the cells of that grid only: finish a training with larger ones.
        max_area: share of the image above which masks are dropped.
        min_area: pixels of the image, after the jitter, below which masks are dropped.
        prompt_kinds: probabilities of "point", "box" and "text", drawn for each mask; `None`: no prompts, the model draws
            points and boxes itself.
        box_noise: of box prompts: "normal", "uniform" or "none", see `add_box_noise`.
        tight_boxes: share of the box prompts of a training that get no noise: from a model that has seen none of them, a
            careful box gets hardly more than a careless one.
        text_embedder: for "text": a [`MaskCropEmbedder`]. It sees the image before the jitter; masks that it leaves out
            are left out here.
        seed: of all random decisions.

    Returns (of a call): a dict with `pixel_values` (B, 3, S, S), `labels` (B, P, h, w) uint8 {0, 1} in the padded model
        frame, `prompt_mask` (B, P), and for `prompt_kinds` of `input_points` (B, P, 1, 2) with `point_labels` (B, P, 1),
        `input_boxes` (B, P, 4), `text_embeds` (B, P, E) what was asked for; `has_box`, `has_text` (B, P) where there are
        several kinds.

    Raises:
        ValueError: a setting or a row is unusable; the message names the row and its image_id.
    """

    def __init__(
        self,
        processor: Any,
        max_masks: int | None = 64,
        prompts_per_mask: int = 1,
        augmentation: LargeScaleJitter | None = None,
        train: bool = True,
        label_size: int | None = None,
        max_area: float = 0.9,
        min_area: int = 1,
        prompt_kinds: Mapping[str, float] | None = None,
        box_noise: str = "normal",
        tight_boxes: float = 0.0,
        text_embedder: MaskCropEmbedder | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(processor, augmentation, train, seed)
        check_selection(
            max_area, max_masks=max_masks, prompts_per_mask=prompts_per_mask, label_size=label_size, min_area=min_area
        )
        if box_noise not in BOX_NOISES:
            raise ValueError(f"box_noise must be one of {BOX_NOISES}, got {box_noise!r}")
        if not 0 <= tight_boxes <= 1:
            raise ValueError(f"tight_boxes must be a share from 0 to 1, got {tight_boxes}")
        self.prompt_kinds = None if prompt_kinds is None else check_prompt_kinds(prompt_kinds, PROMPT_KINDS)
        if self.prompt_kinds is not None and ("text" in self.prompt_kinds) != (text_embedder is not None):
            raise ValueError(
                f'"text" in prompt_kinds and a text_embedder are given together, got {self.prompt_kinds} and '
                f"{type(text_embedder).__name__}"
            )
        if self.prompt_kinds is None and text_embedder is not None:
            raise ValueError('a text_embedder needs prompt_kinds with "text"')
        self.max_masks = max_masks
        self.prompts_per_mask = prompts_per_mask
        self.label_size = label_size
        self.max_area = max_area
        self.min_area = min_area
        self.box_noise = box_noise
        self.tight_boxes = tight_boxes
        self.text_embedder = text_embedder

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rng = self.generator(rows)
        samples = [self._sample(index, row, rng) for index, row in enumerate(rows)]
        if self.text_embedder is not None:
            self._embed(samples, rng)
        if self.train:
            samples = with_objects(samples, lambda sample: sample.masks)
        counts = torch.tensor([len(sample.masks) for sample in samples])
        prompt_mask = torch.arange(max(int(counts.max()), 1))[None] < counts[:, None]

        processed = self.processor(images=[sample.image for sample in samples])
        sizes = [tuple(int(side) for side in size) for size in processed["reshaped_input_sizes"]]
        batch = {
            "pixel_values": processed["pixel_values"],
            "labels": self._labels(samples, prompt_mask, sizes),
            "prompt_mask": prompt_mask,
        }
        if self.prompt_kinds is not None:
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            batch |= self._prompts(samples, prompt_mask, sizes, generator)
        return batch

    def _sample(self, index: int, row: Mapping[str, Any], rng: np.random.Generator) -> _Sample:
        name, source, transform = self.open_image(index, row, rng)
        regions = [region for region in row["regions"] if region.get("mask") is not None]
        limit = self.max_masks if self.train else None
        masks: list[np.ndarray] = []
        source_masks: list[np.ndarray] = []
        for i in rng.permutation(len(regions)) if self.train else range(len(regions)):
            if len(masks) == limit:
                break
            mask = decode_mask(regions[i]["mask"], name, source.shape[:2])
            shown = mask if transform is None else transform.apply_mask(mask)
            if self.min_area <= shown.sum() and max(mask.mean(), shown.mean()) <= self.max_area:
                masks.append(shown)
                source_masks.append(shown if self.text_embedder is None else mask)  # only the embedder reads them
        if self.train:
            masks, source_masks = masks * self.prompts_per_mask, source_masks * self.prompts_per_mask
        kinds = np.array([""] * len(masks))
        if self.prompt_kinds is not None:
            kinds = rng.choice(list(self.prompt_kinds), size=len(masks), p=list(self.prompt_kinds.values()))
        image = source if transform is None else transform.apply_image(source)
        return _Sample(image, masks, kinds, source, source_masks)

    def _embed(self, samples: list[_Sample], rng: np.random.Generator) -> None:
        """Fills `text_embeds` of the masks with text prompts, and drops those that have none."""
        assert self.text_embedder is not None
        texts = [np.flatnonzero(sample.kinds == "text") for sample in samples]
        stacks = [
            np.stack([sample.source_masks[i] for i in index])
            if len(index)
            else np.zeros((0, *sample.source_image.shape[:2]), dtype=bool)
            for sample, index in zip(samples, texts)
        ]
        images = [sample.source_image for sample in samples]
        embedded = self.text_embedder.embed_images(images, stacks, rng if self.train else None)
        for sample, index, (embeds, kept) in zip(samples, texts, embedded):
            every = torch.zeros(len(sample.masks), embeds.shape[-1])
            every[index] = embeds
            dropped = set(index[~kept.numpy()].tolist())
            left = [i for i in range(len(sample.masks)) if i not in dropped]
            sample.keep(left)
            sample.text_embeds = every[left]

    def _labels(self, samples: list[_Sample], prompt_mask: torch.Tensor, sizes: list[tuple[int, ...]]) -> torch.Tensor:
        frame = self.processor.image_processor.pad_size["height"]
        side = frame if self.label_size is None else self.label_size
        labels = torch.zeros(*prompt_mask.shape, side, side, dtype=torch.uint8)
        for i, sample in enumerate(samples):
            for j, mask in enumerate(sample.masks):
                share = masks_to_frame(mask, sizes[i], frame, side)
                # an object smaller than a cell is not lost
                labels[i, j] = torch.from_numpy(share > min(0.5, 0.5 * float(share.max())))
        return labels

    def _prompts(
        self,
        samples: list[_Sample],
        prompt_mask: torch.Tensor,
        sizes: list[tuple[int, ...]],
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        assert self.prompt_kinds is not None
        boxes, points = torch.zeros(*prompt_mask.shape, 4), torch.zeros(*prompt_mask.shape, 1, 2)
        noise = self.box_noise if self.train else "none"
        frame = self.processor.image_processor.pad_size["height"]
        kinds = {kind: torch.zeros_like(prompt_mask) for kind in self.prompt_kinds}
        for i, (sample, (height, width)) in enumerate(zip(samples, sizes)):
            count = len(sample.masks)
            if count == 0:
                continue
            for kind, flags in kinds.items():
                flags[i, :count] = torch.from_numpy(sample.kinds == kind)
            masks = torch.from_numpy(np.stack(sample.masks))
            if "box" in kinds:
                limit = torch.tensor([width, height, width, height])
                tight = target_boxes(masks, (height, width))
                moved = add_box_noise(tight, noise, frame, limit, generator)
                if self.train and self.tight_boxes:
                    kept = torch.rand(count, 1, generator=generator) < self.tight_boxes
                    moved = torch.where(kept, tight, moved)
                boxes[i, :count] = moved
            if "point" in kinds:
                pixels = sample_pixels(masks, generator)
                points[i, :count, 0] = pixel_centres(pixels, masks.shape[1:], (height, width))
        batch: dict[str, torch.Tensor] = {}
        if "point" in kinds:
            labels = torch.where(kinds["point"], 1, PADDING_LABEL)
            batch |= {"input_points": points, "point_labels": labels[..., None]}
        if "box" in kinds:
            batch["input_boxes"] = boxes
        if "text" in kinds:
            width = max(sample.text_embeds.shape[-1] for sample in samples if sample.text_embeds is not None)
            batch["text_embeds"] = torch.zeros(*prompt_mask.shape, width)
            for i, sample in enumerate(samples):
                if sample.text_embeds is not None:
                    batch["text_embeds"][i, : len(sample.masks)] = sample.text_embeds
        if len(kinds) > 1:
            batch |= {f"has_{kind}": kinds[kind] for kind in ("box", "text") if kind in kinds}
        return batch
