# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Large-scale jitter: the training augmentation of SCA (CVPR 2024), equal to the official one pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

_MEAN = np.array(IMAGENET_DEFAULT_MEAN, dtype=np.float64)
_STD = np.array(IMAGENET_DEFAULT_STD, dtype=np.float64)

RandomSource = np.random.Generator | np.random.RandomState


@dataclass(frozen=True)
class JitterTransform:
    """One drawn jitter for one image size: flip, resize, then a fixed-size crop with padding at the right and bottom.

    Attributes:
        source_size: (height, width) of the images this transform accepts, pixels.
        resized: (height, width) after the resize.
        offset: (y, x) of the crop inside the resized image, pixels.
        image_size: side of the square result, pixels.
        flip: mirrored left to right before the resize.
    """

    source_size: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    image_size: int
    flip: bool

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> (image_size, image_size, 3) uint8; the part outside the image has the mean colour."""
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image must be (h, w, 3) uint8, got shape {image.shape} and type {image.dtype}")
        self._check_size(image.shape[:2], "the image")
        # The padding is 0 in the normalised image, hence the detour over float64: truncating to uint8 afterwards
        # makes the last bit visible, so the order of operations is part of the definition.
        resized = self._resize((image / 255 - _MEAN) / _STD, "bilinear")
        return ((self._crop(resized) * _STD + _MEAN) * 255).astype(np.uint8)

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(n, 4) xyxy pixels -> (n, 4), neither clipped nor filtered. Integer boxes are truncated after the resize
        (as the official code does), float boxes keep their fractions."""
        boxes = np.array(boxes).reshape(-1, 4)
        (height, width), (new_height, new_width), (y, x) = self.source_size, self.resized, self.offset
        if self.flip:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        scaled = boxes * np.array([new_width / width, new_height / height] * 2)
        return scaled.astype(boxes.dtype) - np.array([x, y, x, y], dtype=boxes.dtype)

    def apply_mask(self, mask: np.ndarray) -> np.ndarray:
        """(h, w) bool -> (image_size, image_size) bool, nearest pixel; False outside the image."""
        self._check_size(mask.shape, "the mask")
        return self._crop(self._resize(mask[..., None].astype(np.uint8), "nearest"))[..., 0].astype(bool)

    def apply_matte(self, alpha: np.ndarray) -> np.ndarray:
        """(h, w) float32 0..1 -> (image_size, image_size), bilinear like the image; 0 outside the image."""
        self._check_size(alpha.shape, "the matte")
        return self._crop(self._resize(alpha[..., None], "bilinear"))[..., 0]

    def _check_size(self, size: tuple[int, ...], what: str) -> None:
        if tuple(size) != self.source_size:
            raise ValueError(f"{what} is {size} (height, width), this jitter was drawn for {self.source_size}")

    def _resize(self, array: np.ndarray, mode: str) -> np.ndarray:
        if self.flip:
            array = array[:, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
        # No antialiasing, although the scale may be 0.1: that is what the published models were trained with.
        align = False if mode == "bilinear" else None
        return F.interpolate(tensor, size=self.resized, mode=mode, align_corners=align)[0].permute(1, 2, 0).numpy()

    def _crop(self, array: np.ndarray) -> np.ndarray:
        y, x = self.offset
        piece = array[y : y + self.image_size, x : x + self.image_size]
        out = np.zeros((self.image_size, self.image_size, array.shape[-1]), dtype=array.dtype)
        out[: piece.shape[0], : piece.shape[1]] = piece
        return out


class LargeScaleJitter:
    """Random flip, random scale, random crop to a square, before the normal image processor.

    The image is mirrored with probability `flip_probability`, resized so that it fits into a square of
    `r * image_size` pixels with r ~ U(min_scale, max_scale), then cropped (if larger) or padded at the right and
    bottom (if smaller) to `image_size`. One number places the crop along both axes.

    Args:
        image_size: side of the result in pixels, the image size of the model.
        min_scale, max_scale: range of r. The paper uses 0.1-2.0 and 1.0-2.0.
        flip_probability: in [0, 1].

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> jitter = LargeScaleJitter(1024)
        >>> image, boxes = jitter(image, boxes, np.random.default_rng(0))
    """

    def __init__(
        self, image_size: int, min_scale: float = 0.1, max_scale: float = 2.0, flip_probability: float = 0.5
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"expected 0 < min_scale <= max_scale, got min_scale={min_scale}, max_scale={max_scale}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must be between 0 and 1, got {flip_probability}")
        self.image_size = image_size
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.flip_probability = flip_probability

    def draw(self, size: tuple[int, int], rng: RandomSource) -> JitterTransform:
        """Draws flip, scale and crop, in this order, for an image of `size` (height, width) pixels."""
        height, width = size
        flip = bool(rng.uniform(0, 1) < self.flip_probability)
        side = self.image_size * rng.uniform(self.min_scale, self.max_scale)
        position = rng.uniform(0, 1)
        scale = min(side / height, side / width)
        # round() is banker's rounding, as numpy's; a sliver of an image keeps at least one pixel.
        resized = max(round(height * scale), 1), max(round(width * scale), 1)
        y, x = (round(max(extent - self.image_size, 0) * position) for extent in resized)
        return JitterTransform(size, resized, (y, x), self.image_size, flip)

    def __call__(self, image: np.ndarray, boxes: np.ndarray, rng: RandomSource) -> tuple[np.ndarray, np.ndarray]:
        """Draws once and transforms an image (h, w, 3) uint8 and its boxes (n, 4) xyxy, pixels. For masks use
        [`LargeScaleJitter.draw`]."""
        transform = self.draw((image.shape[0], image.shape[1]), rng)
        return transform.apply_image(image), transform.apply_boxes(boxes)
