# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Colours of an object without its background, from an image and a matte: what cut-outs need, or they carry a halo.

Fast multi-level foreground estimation (Germer, Uelwer, Conrad and Harmeling, ICPR 2020). An image is alpha F + (1 - alpha) B;
of all foregrounds F and backgrounds B that explain it, those are taken that change least between neighbours, and least of
all where alpha changes (their equation for the cost). It is minimised from coarse to fine, pixel by pixel in closed form
with the neighbours of the step before. Here all pixels of a level are updated together, and coarser levels are means over
2 x 2 pixels. Levels are worked on in tiles, which changes no result: memory stays small for images of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .data.alpha import decode_alpha
from .images import load_image

REGULARIZATION = 1e-5  # weight of differences between neighbours of equal alpha
GRADIENT_WEIGHT = 1.0  # what a difference of alpha adds to it
SMALL_SIDE = 32  # levels of at most so many pixels per side count as small
SMALL_STEPS, LARGE_STEPS = 20, 4  # updates of each level
_OWN_WEIGHT = 1e-8  # of the pixel itself among its neighbours: one pixel alone has none
_TILE_SIDE = 256
_HALVED_ROWS = 256  # that are halved together; an even number
_MARGIN = 4  # pixels around the matte that get colours, for viewers that blur a cut-out when they scale it


def estimate_foreground(image: np.ndarray, alpha: np.ndarray, *, tile_side: int = _TILE_SIDE) -> np.ndarray:
    """The colours that an object would have without the background that shines through.

    Args:
        image: uint8 (H, W, 3).
        alpha: (H, W), uint8 0..255, uint16 0..65535 or floats 0..1.
        tile_side: side of what is worked on together, in pixels; bounds memory, changes no result.

    Returns:
        uint8 (H, W, 3): the image where alpha is 1, the estimate elsewhere, also where alpha is 0.

    Raises:
        ValueError: arrays that do not fit together.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"`image` must be uint8 with the shape (H, W, 3), got {image.dtype} {image.shape}.")
    if alpha.shape != image.shape[:2]:
        raise ValueError(f"`alpha` has the shape {alpha.shape}, the image {image.shape[:2]} (height, width).")
    levels = [(image, alpha)]
    while max(levels[-1][1].shape) > 1:
        levels.append(_halved(*levels[-1]))
    colours = _first_guess(levels)
    for pixels, matte in levels[:0:-1]:
        finer = torch.empty(6, *matte.shape)
        for tile in _tiles(matte.shape, tile_side):
            finer[:, *tile] = _solve(pixels, matte, colours, tile)
        colours = finer
    result = image.copy()
    for tile in _tiles(alpha.shape, tile_side):
        part = _to_unit(alpha[tile])
        if bool((part == 1).all()):
            continue
        if bool(((part > 0) & (part < 1)).any()):
            own = _solve(image, alpha, colours, tile)
        else:  # where nothing shines through, any smooth colours will do
            own = _doubled(colours, *tile)
        values = own[:3].mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        covered = (part < 1).numpy()
        result[tile][covered] = values[covered]
    return result


def cut_out(image: Any, alpha: Any) -> Image.Image:
    """An object without its background.

    Args:
        image: in any form that [`~hf_segcap.images.load_image`] takes.
        alpha: its matte, of the size of the image, in any form that [`~hf_segcap.data.alpha.decode_alpha`] takes.

    Returns:
        RGBA picture of the size of the image: estimated foreground colours and the matte with 8 bits. Far from the object it
        is transparent black.

    Raises:
        ValueError, TypeError: an image or a matte that cannot be used, or of different sizes.
    """
    pixels = np.asarray(load_image(image))
    matte = decode_alpha(alpha, size=pixels.shape[:2])
    result = np.zeros((*matte.shape, 4), np.uint8)
    rows, columns = np.flatnonzero(matte.any(axis=1)), np.flatnonzero(matte.any(axis=0))
    if len(rows):
        window = tuple(slice(max(0, line[0] - _MARGIN), line[-1] + 1 + _MARGIN) for line in (rows, columns))
        result[window][..., :3] = estimate_foreground(pixels[window], matte[window])
        result[window][..., 3] = np.rint(matte[window] * 255)
    return Image.fromarray(result)


def _to_unit(values: np.ndarray) -> Tensor:
    """Colours or alpha of any type as float32 0..1."""
    largest = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
    return torch.from_numpy(values.astype(np.float32)).div_(largest)


def _halved(image: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next coarser level, float32: means over 2 x 2 pixels (at odd ends: of what is there)."""
    parts = []
    for top in range(0, len(image), _HALVED_ROWS):
        rows = slice(top, top + _HALVED_ROWS)
        strip = torch.cat([_to_unit(image[rows]), _to_unit(alpha[rows])[..., None]], dim=-1)
        parts.append(F.avg_pool2d(strip.permute(2, 0, 1), 2, ceil_mode=True, count_include_pad=False))
    level = torch.cat(parts, dim=1)
    return level[:3].permute(1, 2, 0).numpy(), level[3].numpy()


def _first_guess(levels: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    """(6, 1, 1): mean colours of what is surely foreground and surely background, on a small level."""
    image, alpha = next((i, a) for i, a in levels if max(a.shape) <= SMALL_SIDE)
    weights = (share.square() + 1e-6 for share in (_to_unit(alpha), 1 - _to_unit(alpha)))  # never none at all
    means = [(_to_unit(image) * w[..., None]).sum((0, 1)) / w.sum() for w in weights]
    return torch.cat(means)[:, None, None]


def _tiles(size: tuple[int, ...], side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an image of `size` = (height, width)."""
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            yield slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))


def _doubled(coarse: Tensor, rows: slice, columns: slice) -> Tensor:
    """These rows and columns of the next finer level, each pixel as four."""
    part = coarse[:, rows.start // 2 : (rows.stop + 1) // 2, columns.start // 2 : (columns.stop + 1) // 2]
    part = part.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, rows.start % 2 :, columns.start % 2 :]
    return part[:, : rows.stop - rows.start, : columns.stop - columns.start]


def _solve(image: np.ndarray, alpha: np.ndarray, coarse: Tensor, tile: tuple[slice, slice]) -> Tensor:
    """Foreground above background (6, h, w) of a tile of a level, from those of the next coarser level.

    Each update looks one pixel further: the tile is worked on with as many pixels more on each side as there are updates.
    """
    steps = SMALL_STEPS if max(alpha.shape) <= SMALL_SIDE else LARGE_STEPS
    wide = tuple(slice(max(0, a.start - steps), min(size, a.stop + steps)) for a, size in zip(tile, alpha.shape))
    colours = _update(_to_unit(image[wide]).permute(2, 0, 1), _to_unit(alpha[wide]), _doubled(coarse, *wide), steps)
    inner = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(tile, wide))
    return colours[:, *inner]


def _update(image: Tensor, alpha: Tensor, colours: Tensor, steps: int) -> Tensor:
    """Minimises the cost of each pixel `steps` times, neighbours held fixed.

    With M and N the weighted means of the neighbours' foregrounds and backgrounds, W the sum of the weights and
    t = (I - alpha M - (1 - alpha) N) / (alpha^2 + (1 - alpha)^2 + W), the minimum is F = M + alpha t, B = N + (1 - alpha) t.
    """
    down = REGULARIZATION + GRADIENT_WEIGHT * (alpha[1:] - alpha[:-1]).abs()
    right = REGULARIZATION + GRADIENT_WEIGHT * (alpha[:, 1:] - alpha[:, :-1]).abs()
    weights = (down, down, right, right)
    total = torch.full_like(alpha, _OWN_WEIGHT)
    for part, weight in zip(_with_neighbour(total), weights):
        part += weight
    shares = [weight / part for weight, part in zip(weights, _with_neighbour(total))]
    own_share, rest = _OWN_WEIGHT / total, 1 - alpha
    factor = 1 / (alpha.square() + rest.square() + total)
    for _ in range(steps):
        means = colours * own_share
        for part, source, share in zip(_with_neighbour(means), _neighbours(colours), shares):
            part.addcmul_(source, share)
        missed = (image - alpha * means[:3]).addcmul_(rest, means[3:], value=-1).mul_(factor)
        means[:3].addcmul_(alpha, missed)
        means[3:].addcmul_(rest, missed)
        colours = means.clamp_(0, 1)
    return colours


def _with_neighbour(values: Tensor) -> tuple[Tensor, ...]:
    """Views (..., h, w) of the pixels that have a neighbour above, below, to the left and to the right."""
    return values[..., 1:, :], values[..., :-1, :], values[..., 1:], values[..., :-1]


def _neighbours(values: Tensor) -> tuple[Tensor, ...]:
    """Views (..., h, w) of these neighbours."""
    return values[..., :-1, :], values[..., 1:, :], values[..., :-1], values[..., 1:]


__all__ = ["cut_out", "estimate_foreground"]
