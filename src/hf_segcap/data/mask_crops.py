# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""CLIP image embeddings of masks: what stands in for a text prompt while a model is trained (SAM, appendix D.5).

CLIP puts images and texts in one space, so a model trained with the embedding of what a mask shows can later be prompted
with the embedding of words. Nobody has to name the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..images import load_image
from .row_collator import decode_mask

EVALUATION_MARGIN = 1.5  # the middle of the training range 1 to 2
MIN_AREA = 100 * 100  # pixels; the paper discards smaller masks


@dataclass
class MaskCrops:
    """Crops of P masks, ready for CLIP.

    Attributes:
        pixel_values: (P, 3, S, S) float32, normalised; zeros for masks that are left out.
        inside: (P, n) bool, which of CLIP's n = (S / patch size)^2 patches hold pixels of the mask, row by row.
        kept: (P,) bool, False for masks below the area limit.
    """

    pixel_values: torch.Tensor
    inside: torch.Tensor
    kept: torch.Tensor


def crop_window(mask: np.ndarray, margin: float) -> tuple[int, int, int]:
    """The square window around a mask.

    Args:
        mask: (H, W) bool, not empty.
        margin: the side of the window as a multiple of the longer side of the mask's box.

    Returns:
        left, top, side in whole pixels, centred on the box; the window may leave the image.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    side = max(1, int(np.floor(max(x1 - x0, y1 - y0) * margin + 0.5)))
    return (x0 + x1 - side + 1) // 2, (y0 + y1 - side + 1) // 2, side


def encode_crops(clip: Any, pixel_values: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """CLIP's image embeddings with the class token of the last layer looking at the mask only.

    Differentiable; [`MaskCropEmbedder`] calls it without gradients.

    Args:
        clip: a `CLIPVisionModelWithProjection` or `CLIPModel` with eager or SDPA attention.
        pixel_values: (P, 3, S, S), normalised.
        inside: (P, n) bool, patches the class token may attend to in the last layer, besides itself. Rows without any
            are not masked.

    Returns:
        (P, E), after the final layer norm and the projection, of length 1.
    """
    vision = clip.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixel_values))
    *layers, last = vision.encoder.layers
    for layer in layers:
        hidden = layer(hidden, None)
    shut = F.pad(~inside & inside.any(dim=1, keepdim=True), (1, 0))
    # One row of the mask serves all queries: only the class token's result is read.
    bias = torch.zeros_like(shut, dtype=hidden.dtype).masked_fill(shut, torch.finfo(hidden.dtype).min)
    hidden = last(hidden, bias[:, None, None])
    return F.normalize(clip.visual_projection(vision.post_layernorm(hidden[:, 0])), dim=-1)


class MaskCropEmbedder:
    """Turns masks into CLIP embeddings (SAM, Kirillov et al. 2023, section 7.5 and appendix D.5).

    A mask is shown to CLIP in a square crop around the centre of its box, `u` times as large as the longer side of the
    box, with zeros where the crop leaves the image. In training `u` is drawn from 1 to 2 and, with probability
    `zero_background`, the pixels outside the mask are set to zero; in evaluation `u` is 1.5 and the background stays.

    Args:
        clip: a `CLIPVisionModelWithProjection` (or `CLIPModel`); put into evaluation mode.
        image_processor: gives `image_mean` and `image_std` (of pixels in [0, 1]); default those of OpenAI's CLIP.
        min_area: masks with fewer pixels (of the image as it is) are left out; empty ones always are.
        zero_background: probability in [0, 1], see above.
        noise: length of the random vector that is added to each embedding in training, before it gets length 1 again. The
            embedding of a phrase is only somewhere near those of the crops it is true of: what is learnt for one point of
            CLIP's space holds around it (noise injection, Nukrai et al. 2022).
        batch_size: crops CLIP sees at once.

    Attributes:
        centre: (E,) subtracted from the embeddings, which are brought to length 1 again; zero until
            [`MaskCropEmbedder.measure_centre`]. Images and texts lie apart in CLIP's space: without their centres, the
            embedding of a phrase is nearer to that of its crop.
        memory: (N, E) of length 1, text embeddings of typical phrases, or `None`. In training an embedding is replaced by
            their mean with the weights `softmax(memory_scale * cosine)` (DeCap, Li et al. 2023): what CLIP itself would say
            of the crop, without what no phrase can say. Nobody has to name the masks for this either.
        memory_scale: see `memory`.

    Raises:
        ValueError: a model or a setting that cannot be used.
    """

    def __init__(
        self,
        clip: Any,
        image_processor: Any = None,
        min_area: int = MIN_AREA,
        zero_background: float = 0.5,
        noise: float = 0.0,
        batch_size: int = 64,
    ) -> None:
        config = getattr(clip.config, "vision_config", clip.config)
        if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
            raise ValueError(
                f"CLIP must take square images and patches, got sides {config.image_size} and {config.patch_size}"
            )
        if "flash" in str(config._attn_implementation):
            raise ValueError(
                f"masked attention needs attn_implementation 'sdpa' or 'eager', got {config._attn_implementation!r}"
            )
        if min_area < 0 or batch_size < 1 or not 0 <= zero_background <= 1 or not 0 <= noise < float("inf"):
            raise ValueError(
                "expected min_area >= 0, batch_size >= 1, zero_background in [0, 1] and noise >= 0, got "
                f"{min_area}, {batch_size}, {zero_background} and {noise}"
            )
        self.clip = clip.eval()
        self.side, self.grid = config.image_size, config.image_size // config.patch_size
        self.mean = np.array(getattr(image_processor, "image_mean", OPENAI_CLIP_MEAN), dtype=np.float32)
        self.std = np.array(getattr(image_processor, "image_std", OPENAI_CLIP_STD), dtype=np.float32)
        self.min_area, self.zero_background, self.batch_size = min_area, zero_background, batch_size
        self.noise = noise
        self.centre = torch.zeros(self.width)
        self.memory: torch.Tensor | None = None
        self.memory_scale = 30.0

    @property
    def width(self) -> int:
        """E, the width of the embeddings."""
        return int(self.clip.visual_projection.out_features)

    def crop(
        self, image: np.ndarray, masks: np.ndarray | torch.Tensor, rng: np.random.Generator | None = None
    ) -> MaskCrops:
        """The crops of P masks.

        Args:
            image: (H, W, 3) uint8 RGB, before any padding.
            masks: (P, H, W) bool, in the same pixels.
            rng: source of the training draws; `None`: evaluation.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        image, masks = np.asarray(image), np.asarray(masks)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"`image` must be (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
        if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
            raise ValueError(
                f"`masks` must be (P, {image.shape[0]}, {image.shape[1]}) like the image, got {masks.shape}"
            )
        masks = masks.astype(bool, copy=False)
        count = len(masks)
        margins, zeroed = np.full(count, EVALUATION_MARGIN), np.zeros(count, dtype=bool)
        if rng is not None:
            margins, zeroed = rng.uniform(1, 2, count), rng.random(count) < self.zero_background
        kept = masks.sum(axis=(1, 2)) >= max(self.min_area, 1)
        pixels = np.zeros((count, self.side, self.side, 3), dtype=np.float32)
        inside = torch.zeros(count, self.grid**2, dtype=torch.bool)
        for i in np.flatnonzero(kept):
            window = crop_window(masks[i], float(margins[i]))
            patch, mask = _cut(image, *window), _cut(masks[i], *window)
            if zeroed[i]:
                patch[~mask] = 0
            small = Image.fromarray(patch).resize((self.side, self.side), Image.Resampling.BICUBIC)
            pixels[i] = (np.asarray(small) / np.float32(255) - self.mean) / self.std
            shares = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], self.grid)
            inside[i] = shares.flatten() > 0
        return MaskCrops(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), inside, torch.from_numpy(kept))

    @torch.no_grad()
    def encode(self, crops: MaskCrops, rng: np.random.Generator | None = None) -> torch.Tensor:
        """(P, E) float32 on the CPU, of length 1; zeros for masks that are left out.

        With `rng`, the source of the training draws, after `memory` and `noise`.
        """
        weight = self.clip.visual_projection.weight
        found = torch.zeros(len(crops.kept), self.width)
        chosen = crops.kept.nonzero().flatten()
        for rows in chosen.split(self.batch_size) if len(chosen) else ():
            pixels, inside = crops.pixel_values[rows].to(weight), crops.inside[rows].to(weight.device)
            embeds = encode_crops(self.clip, pixels, inside).float().cpu()
            found[rows] = F.normalize(embeds - self.centre, dim=-1) if self.centre.any() else embeds
        return found if rng is None else self._for_training(found, rng) * crops.kept[:, None]

    def _for_training(self, embeds: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        if self.memory is not None:
            weights = torch.softmax(self.memory_scale * embeds @ self.memory.T, dim=1)
            embeds = F.normalize(weights @ self.memory, dim=-1)
        if self.noise > 0:
            drawn = torch.from_numpy(rng.standard_normal(embeds.shape, dtype=np.float32))
            embeds = F.normalize(embeds + self.noise * F.normalize(drawn, dim=-1), dim=-1)
        return embeds

    def measure_centre(self, rows: Any, count: int = 500, seed: int = 0) -> None:
        """Sets `centre` to the mean embedding of about `count` masks of a data set of rows, cropped by the training rules.

        Raises:
            ValueError: no mask of `rows` is large enough.
        """
        rng = np.random.default_rng(seed)
        self.centre = torch.zeros(self.width)
        found: list[torch.Tensor] = []
        for index in range(len(rows)):
            row = rows[index]
            image = np.asarray(load_image(row["image"], name=f"row {index}"))
            masks = [
                decode_mask(region["mask"], f"row {index}", image.shape[:2])
                for region in row["regions"]
                if region.get("mask") is not None
            ]
            if masks:
                crops = self.crop(image, np.stack(masks), rng)
                found += self.encode(crops)[crops.kept]
            if len(found) >= count:
                break
        if not found:
            raise ValueError(f"no mask of the data has {self.min_area} pixels: lower `min_area`")
        self.centre = torch.stack(found).mean(0)

    def __call__(
        self, image: np.ndarray, masks: np.ndarray | torch.Tensor, rng: np.random.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of P masks of one image; arguments and errors of [`MaskCropEmbedder.crop`].

        Returns:
            Embeddings (P, E) float32 of length 1 and `kept` (P,) bool; the rows that are not kept hold zeros.
        """
        crops = self.crop(image, masks, rng)
        return self.encode(crops, rng), crops.kept

    def embed_images(
        self,
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray | torch.Tensor],
        rng: np.random.Generator | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As calling the embedder for each image with its masks, with the crops of all images in common batches.

        Raises:
            ValueError: as [`MaskCropEmbedder.crop`], naming the image; or not one stack of masks per image.
        """
        if len(images) != len(masks):
            raise ValueError(f"expected one stack of masks per image, got {len(masks)} for {len(images)} images")
        crops = []
        for i, (image, stack) in enumerate(zip(images, masks)):
            try:
                crops.append(self.crop(image, stack, rng))
            except ValueError as error:
                raise ValueError(f"image {i}: {error}") from error
        if not crops:
            return iter(())
        kept = torch.cat([c.kept for c in crops])
        together = MaskCrops(torch.cat([c.pixel_values for c in crops]), torch.cat([c.inside for c in crops]), kept)
        counts = [len(c.kept) for c in crops]
        return zip(self.encode(together, rng).split(counts), kept.split(counts))


def _cut(array: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A copy of a square window of (H, W, ...), zero outside the array."""
    window = np.zeros((side, side, *array.shape[2:]), dtype=array.dtype)
    y0, x0 = max(top, 0), max(left, 0)
    part = array[y0 : max(top + side, 0), x0 : max(left + side, 0)]
    window[y0 - top : y0 - top + part.shape[0], x0 - left : x0 - left + part.shape[1]] = part
    return window
