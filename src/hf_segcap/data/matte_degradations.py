# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""From mattes to training pairs: coarse segmentation labels, cut-out regions, and composites on new backgrounds.

ZIM (Zero-Shot Image Matting for Anything, ICCV 2025) trains its label converter on pairs of a segmentation label and a
matte. The labels are degraded mattes; the paper names the degradations, without their parameters, which are ours. Lengths
are meant for an image whose longer side has 1024 pixels and shrink or grow with it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..masks import MaskRuns, connect_runs
from .alpha import MASK_ALPHA, alpha_box

REFERENCE_SIDE = 1024  # of the lengths below, pixels
THRESHOLDS = (0.1, 0.9)
FACTORS = (2.0, 16.0)
SIGMAS = (1.0, 12.0)
BLUR_THRESHOLDS = (0.3, 0.7)
KERNELS = (3, 31)
STEP_PROBABILITY = 0.5  # of downscaling, blur, and dilation or erosion
HULL_PROBABILITY = 0.1
SGA_PROBABILITY = 0.5
_SGA_SIDES = (0.1, 0.6)  # of the sides of the object's box
_SGA_LEFT = 0.1  # share of the object that must be left
_SGA_TRIES = 20


def training_pair(
    alpha: np.ndarray, rng: np.random.Generator, coarse: bool = False, sga_probability: float = SGA_PROBABILITY
) -> tuple[np.ndarray, np.ndarray]:
    """A segmentation label and the matte a label converter should make of it (ZIM, section 3.1).

    A fine object (hair, plants) gets a degraded label. A coarse one (a car), which needs no detail, has its segmentation as
    label and as target ("selective transformation learning"). Then a region may be cut out of both, see [`cut_region`].

    Args:
        alpha: (H, W) floats in [0, 1]; of a coarse object its segmentation, cut at 0.5.
        rng: source of all decisions.
        coarse: the object needs no detail.
        sga_probability: of the cut.

    Returns:
        label (H, W) bool and matte (H, W) float32.
    """
    if coarse:
        label = alpha > MASK_ALPHA
        matte = label.astype(np.float32)
    else:
        label, matte = degrade_matte(alpha, rng), np.asarray(alpha, dtype=np.float32)
    return cut_region(label, matte, rng, sga_probability)


def degrade_matte(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A coarse segmentation label as people or models would make it of an object.

    In this order: a threshold from 0.1 to 0.9; with probability 0.5 each a detour over a 2 to 16 times lower resolution, a
    blur with sigma 1 to 12 that is cut again at 0.3 to 0.7, and a dilation or erosion with a disc of 3 to 31 pixels; with
    probability 0.1 the convex hull of each connected part. An erosion that leaves less than half of the object is undone,
    and so is any step that leaves nothing; if the threshold does, it becomes half of the highest alpha.

    Args:
        alpha: (H, W) floats in [0, 1].
        rng: source of all decisions.

    Returns:
        (H, W) bool, empty only if the matte is.
    """
    scale = max(alpha.shape) / REFERENCE_SIDE
    mask = alpha > rng.uniform(*THRESHOLDS)
    if not mask.any():
        mask = alpha > 0.5 * float(alpha.max())
    if not mask.any():
        return mask
    if rng.random() < STEP_PROBABILITY:
        mask = _unless_empty(lower_resolution(mask, max(1.0, rng.uniform(*FACTORS) * scale)), mask)
    if rng.random() < STEP_PROBABILITY:
        sigma, threshold = rng.uniform(*SIGMAS) * scale, rng.uniform(*BLUR_THRESHOLDS)
        mask = _unless_empty(blur_mask(mask, sigma, threshold), mask)
    if rng.random() < STEP_PROBABILITY:
        size = int(rng.integers(KERNELS[0] // 2, KERNELS[1] // 2 + 1)) * 2 + 1
        size = max(3, 2 * round(size * scale / 2 - 0.5) + 1)
        if rng.random() < 0.5:
            mask = dilate_mask(mask, size)
        else:
            smaller = erode_mask(mask, size)
            mask = smaller if 2 * np.count_nonzero(smaller) >= np.count_nonzero(mask) else mask
    if rng.random() < HULL_PROBABILITY:
        mask = convex_hulls(mask)
    return mask


def cut_region(
    mask: np.ndarray, alpha: np.ndarray, rng: np.random.Generator, probability: float = SGA_PROBABILITY
) -> tuple[np.ndarray, np.ndarray]:
    """ "Spatial generalization augmentation": cuts one rectangle out of a label and its matte; the image stays as it is.

    Its centre lies anywhere in the box of the object, its sides have 0.1 to 0.6 times those of the box. It is drawn again
    as long as more than 90 % of the label or of the matte would vanish (20 times, then nothing is cut).

    Args:
        mask: (H, W) bool label.
        alpha: (H, W) float matte in [0, 1].
        rng: source of all decisions.
        probability: of a cut.

    Returns:
        New arrays, label and matte.
    """
    mask, alpha = mask.copy(), alpha.copy()
    box = alpha_box(alpha)
    if rng.random() >= probability or box is None:
        return mask, alpha
    (left, top), (right, bottom) = box[:2], box[2:]
    for _ in range(_SGA_TRIES):
        x, y = rng.uniform(left, right), rng.uniform(top, bottom)
        width, height = rng.uniform(*_SGA_SIDES, 2) * (right - left, bottom - top)
        rows, columns = (
            slice(max(0, round(middle - side / 2)), max(1, round(middle + side / 2)))
            for middle, side in ((y, height), (x, width))
        )
        if _left(mask, rows, columns) >= _SGA_LEFT and _left(alpha, rows, columns) >= _SGA_LEFT:
            mask[rows, columns] = False
            alpha[rows, columns] = 0
            break
    return mask, alpha


# --- single steps -----------------------------------------------------------------------------------------------------


def lower_resolution(mask: np.ndarray, factor: float) -> np.ndarray:
    """A mask (H, W) bool after a detour over sides `factor` times as short: area means, back bilinearly, above one half."""
    height, width = mask.shape
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    small = picture.resize((max(1, round(width / factor)), max(1, round(height / factor))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)) > 127


def blur_mask(mask: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
    """A mask (H, W) bool where its Gaussian blur (sigma in pixels; the border goes on outside) is above the threshold."""
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(float(sigma)))
    return np.asarray(blurred) > 255 * threshold


def dilate_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The pixels of a mask (H, W) bool and all inside a disc of `size` (odd) pixels around one of them."""
    _check_size(size)
    reach = size // 2
    height, width = mask.shape
    sums = np.zeros((height + 2 * reach, width + 2 * reach + 1), dtype=np.int32)
    np.cumsum(np.pad(mask, reach), axis=1, out=sums[:, 1:])
    found = np.zeros((height, width), dtype=bool)
    for y in range(reach + 1):
        x = int(np.sqrt((reach + 0.5) ** 2 - y * y))  # half a line of the disc
        line = sums[:, reach + x + 1 : reach + x + 1 + width] > sums[:, reach - x : reach - x + width]
        found |= line[reach + y : reach + y + height]
        found |= line[reach - y : reach - y + height]
    return found


def erode_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The pixels of a mask (H, W) bool around which it fills a disc of `size` (odd) pixels; outside the image it goes on."""
    return ~dilate_mask(~mask, size)


def convex_hulls(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool with each of its 8-connected parts made convex."""
    runs = MaskRuns.encode(mask[None])
    owner, x, top, bottom = runs.column_runs()
    region = connect_runs(owner, x, top, bottom, runs.size)
    picture = Image.fromarray(mask.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    points = np.stack([np.tile(x, 2), np.concatenate([top, bottom - 1])], axis=1)
    region = np.tile(region, 2)
    order = np.lexsort((points[:, 1], points[:, 0], region))
    starts = np.flatnonzero(np.diff(region[order], prepend=-1))
    for part in np.split(points[order], starts[1:]):
        corners = _hull(part.tolist())
        if len(corners) > 2:
            draw.polygon([value for corner in corners for value in corner], fill=1)
    return np.asarray(picture).astype(bool)


# --- compositing ------------------------------------------------------------------------------------------------------


def composite(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """alpha * foreground + (1 - alpha) * background, rounded.

    Args:
        foreground, background: (H, W, 3), 0..255.
        alpha: (H, W) floats in [0, 1].

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: sizes differ; see [`fit_background`].
    """
    if foreground.shape != background.shape or foreground.shape[:2] != alpha.shape or foreground.ndim != 3:
        raise ValueError(
            f"foreground and background must be (H, W, 3) and alpha (H, W) of one size, got {foreground.shape}, "
            f"{background.shape} and {alpha.shape}"
        )
    under = background.astype(np.float32)
    return np.rint(under + alpha[..., None].astype(np.float32) * (foreground - under)).astype(np.uint8)


def fit_background(
    background: Image.Image, size: tuple[int, int], rng: np.random.Generator | None = None
) -> np.ndarray:
    """A background for a foreground of `size` (height, width): enlarged if it is too small, then cut.

    Args:
        background: RGB picture.
        size: (height, width), pixels.
        rng: of the place of the cut; `None`: at the upper left corner, as Composition-1k is composed.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = size
    ratio = max(width / background.width, height / background.height)
    if ratio > 1:
        sides = (int(np.ceil(background.width * ratio)), int(np.ceil(background.height * ratio)))
        background = background.resize(sides, Image.Resampling.BICUBIC)
    left, top = 0, 0
    if rng is not None:
        left = int(rng.integers(background.width - width + 1))
        top = int(rng.integers(background.height - height + 1))
    return np.asarray(background.crop((left, top, left + width, top + height)))


def _unless_empty(changed: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return changed if changed.any() else mask


def _left(values: np.ndarray, rows: slice, columns: slice) -> float:
    """Share of the sum that is outside a window; 1 for an empty array."""
    total = float(values.sum(dtype=np.float64))
    return 1.0 if total == 0 else 1 - float(values[rows, columns].sum(dtype=np.float64)) / total


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the size of the disc must be an odd number of pixels, got {size}")


def _hull(points: list[list[int]]) -> list[list[int]]:
    """Corners of the convex hull of points (x, y) in lexicographic order (Andrew's monotone chain)."""
    halves = []
    for line in (points, points[::-1]):
        chain: list[list[int]] = []
        for x, y in line:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append([x, y])
        halves += chain[:-1]
    return halves
