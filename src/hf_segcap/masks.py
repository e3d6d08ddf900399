# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What one does with masks once a model has predicted them: upscaling, scores, boxes, suppression of doubles, COCO RLE.

Masks and logits have the shape (..., height, width), row 0 at the top. Boxes are xyxy in pixels. Nothing here needs
torchvision or pycocotools. The numbers (20 pixels of the crop edge, strict or not strict comparisons, inclusive boxes) are
those of SAM's released mask generator (Kirillov et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def upscale_masks(
    low_res: torch.Tensor,
    reshaped_size: Sequence[int],
    original_size: Sequence[int],
    image_size: int | Sequence[int],
) -> torch.Tensor:
    """Brings low-resolution mask logits of one image to the size of that image.

    Bilinear to the padded model frame, crop of the padding, bilinear to the original size (align_corners false, no
    antialiasing), as SAM's own predictor does.

    Args:
        low_res: logits (P, M, l, l) of P prompts with M masks each.
        reshaped_size: (height, width) of the image in the model frame, before padding, in pixels.
        original_size: (height, width) of the image itself, in pixels.
        image_size: side of the padded model frame in pixels, or its (height, width).

    Returns:
        float32 logits (P, M, height, width); threshold them at 0.

    Raises:
        ValueError: `low_res` is not four-dimensional.
    """
    if low_res.ndim != 4:
        raise ValueError(f"`low_res` must have the shape (prompts, masks, l, l), got {tuple(low_res.shape)}.")
    frame = (image_size, image_size) if isinstance(image_size, int) else tuple(int(side) for side in image_size)
    height, width = (int(side) for side in original_size)
    if low_res.shape[0] * low_res.shape[1] == 0:
        return low_res.new_zeros(*low_res.shape[:2], height, width, dtype=torch.float32)
    logits = F.interpolate(low_res.float(), frame, mode="bilinear", align_corners=False)
    logits = logits[..., : int(reshaped_size[0]), : int(reshaped_size[1])]
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)


def mask_to_box(masks: torch.Tensor) -> torch.Tensor:
    """The box around the set pixels of each mask.

    Args:
        masks: bool (..., height, width).

    Returns:
        int64 (..., 4): first column, first row, last column, last row that hold a set pixel. The last ones are
        *inclusive* indices, as in SAM's records: add 1 for the box that covers the pixels. Empty masks give zeros.
    """
    masks = masks.bool()
    if masks.numel() == 0:
        return torch.zeros(*masks.shape[:-2], 4, dtype=torch.int64, device=masks.device)
    edges = []
    for line in (masks.any(dim=-2), masks.any(dim=-1)):  # columns, then rows, that hold a set pixel
        marks = line.to(torch.uint8)
        edges.append((marks.argmax(dim=-1), line.shape[-1] - 1 - marks.flip(-1).argmax(dim=-1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=-1) * masks.flatten(-2).any(dim=-1, keepdim=True)


def stability_score(logits: torch.Tensor, threshold: float = 0.0, offset: float = 1.0) -> torch.Tensor:
    """How little a mask changes when its threshold moves: IoU of the masks cut at `threshold` + and - `offset`.

    Args:
        logits: (..., height, width).
        threshold: logit value of the mask's border.
        offset: distance of the two cuts from it, in logits.

    Returns:
        float32 (...), in [0, 1]. Where even the lower cut holds no pixel the score is 0 / 0 = **NaN**, as in the official
        generator: `score >= limit` is false there, so that such a mask is dropped.
    """
    # One mask always contains the other, so that counting is enough.
    inner = (logits > threshold + offset).sum(dim=(-2, -1))
    outer = (logits > threshold - offset).sum(dim=(-2, -1))
    return inner.float() / outer.float()


def box_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression: of two boxes that overlap too much, the one with the higher score stays.

    Args:
        boxes: (N, 4) xyxy; areas are (x1 - x0) * (y1 - y0).
        scores: (N,); equal scores keep the order of the input.
        iou_threshold: a box goes if its IoU with a better kept one is *strictly greater*. A pair of boxes without area
            has the IoU 0 / 0 and suppresses nothing.

    Returns:
        int64 (K,) indices of the kept boxes, best first.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"`boxes` must have the shape (N, 4) and `scores` (N,), got {tuple(boxes.shape)} and {tuple(scores.shape)}."
        )
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order] if boxes.is_floating_point() else boxes[order].float()
    areas = (ranked[:, 2:] - ranked[:, :2]).prod(dim=1)
    alive = torch.ones(len(ranked), dtype=torch.bool, device=boxes.device)
    for i in range(len(ranked)):
        if not alive[i]:
            continue
        later = slice(i + 1, None)
        top_left = torch.maximum(ranked[i, :2], ranked[later, :2])
        bottom_right = torch.minimum(ranked[i, 2:], ranked[later, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(dim=1)
        alive[later] &= ~(overlap / (areas[i] + areas[later] - overlap) > iou_threshold)
    return order[alive]


def touches_crop_edge(
    boxes: torch.Tensor,
    crop_box: Sequence[float],
    image_size: Sequence[int],
    tolerance: float = 20.0,
) -> torch.Tensor:
    """Which boxes end at an edge of the crop they were found in, so that their mask is probably cut off there.

    Args:
        boxes: (N, 4) xyxy in the pixels *of the crop*.
        crop_box: xyxy of the crop in the image.
        image_size: (height, width) of the image. An edge of the crop that is also an edge of the image does not count.
        tolerance: a coordinate at most this many pixels away from an edge is at that edge.

    Returns:
        bool (N,).
    """
    height, width = image_size
    crop = torch.tensor([float(edge) for edge in crop_box], device=boxes.device)
    image = torch.tensor([0.0, 0.0, float(width), float(height)], device=boxes.device)
    in_image = boxes.float() + crop[:2].repeat(2)
    at_crop_edge = (in_image - crop).abs() <= tolerance
    at_image_edge = (in_image - image).abs() <= tolerance
    return (at_crop_edge & ~at_image_edge).any(dim=-1)


def build_point_grid(points_per_side: int) -> torch.Tensor:
    """The centres of n x n equal cells of the unit square.

    Returns:
        float64 (n * n, 2) points (x, y) in [0, 1], row by row, x fastest.
    """
    centres = (2 * torch.arange(points_per_side, dtype=torch.float64) + 1) / (2 * points_per_side)
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def encode_rle(mask: np.ndarray | torch.Tensor) -> dict[str, Any]:
    """A mask as COCO's compressed run-length encoding; the bytes are those of pycocotools.

    Args:
        mask: (height, width), non-zero = set.

    Returns:
        `{"size": [height, width], "counts": str}`: fit for JSON.

    Raises:
        ValueError: `mask` is not two-dimensional.
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"`mask` must have the shape (height, width), got {array.shape}: encode masks one by one.")
    pixels = (array != 0).T.reshape(-1)  # COCO runs down the columns
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], borders, [len(pixels)]])
    counts = np.diff(edges)
    if len(pixels) and pixels[0]:
        counts = np.concatenate([[0], counts])  # the first run is of zeros
    return {"size": [int(side) for side in array.shape], "counts": _compress_counts(counts)}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask of a COCO run-length encoding, compressed (str or bytes) or not (a list of run lengths).

    Args:
        rle: `{"size": [height, width], "counts": ...}`.

    Returns:
        bool (height, width).

    Raises:
        ValueError: a damaged encoding, or runs that do not add up to height * width.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"An RLE is a dict with `size` [height, width] and `counts`, got {rle!r:.200}.") from error
    if isinstance(counts, (str, bytes)):
        counts = _expand_counts(counts.encode("latin-1", "replace") if isinstance(counts, str) else counts)
    try:
        counts = np.asarray(counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The `counts` of an RLE are a string or whole numbers, got {counts!r:.200}.") from error
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(
            f"Damaged RLE: its runs must be non-negative and add up to {height} x {width} = {height * width} pixels, "
            f"got {int(counts.sum())}."
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _compress_counts(counts: np.ndarray) -> str:
    """COCO's string of run lengths: from the fourth on, differences to the last but one; 5 bits per character."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters, used = [], []
    more = np.ones(len(values), dtype=bool)
    while more.any():  # once per 5-bit group of the longest number
        used.append(more)
        group = values & 31
        values = values >> 5
        more = more & np.where(group & 16, values != -1, values != 0)
        characters.append(group | (more << 5))
    if not used:
        return ""
    table = np.stack(characters, axis=1)
    return (table[np.stack(used, axis=1)] + 48).astype(np.uint8).tobytes().decode("ascii")


def _expand_counts(code: bytes) -> np.ndarray:
    groups = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) == 0:
        return groups
    last = (groups & 32) == 0
    if groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise ValueError("Damaged RLE: `counts` holds characters that COCO's encoding does not use, or is cut off.")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.append(starts, len(groups)))
    if lengths.max() > 12:
        raise ValueError("Damaged RLE: a run length of `counts` needs more than 60 bits.")
    places = np.arange(len(groups)) - np.repeat(starts, lengths)
    values = np.add.reduceat((groups & 31) << (5 * places), starts)
    negative = (groups[last] & 16) != 0
    values[negative] -= np.int64(1) << (5 * lengths[negative])
    # Undo the differences: each is to the number two places before, from the fourth number on.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
