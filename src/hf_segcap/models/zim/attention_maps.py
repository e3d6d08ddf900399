# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Where on the image a prompt directs attention (ZIM, section 3.3): cells of a box, Gaussians around points.

Maps are float32 (R, g, g) over the g x g feature grid, row by row; `stride` is the side of a cell in pixels of the model
frame. A coordinate's cell is truncated toward zero, as in the official wrapper.
"""

import torch
from torch import Tensor

from ...prompts import PADDING_LABEL
from ..sam.prompt_rows import PromptRows


def point_attention_maps(
    points: Tensor, grid: int, stride: int, sigma: float, present: Tensor | None = None
) -> Tensor:
    """The largest of the Gaussians exp(-d^2 / (2 sigma^2)) around the cells of the points, whatever their labels.

    Args:
        points: (R, n, 2) x y in pixels of the model frame. Points whose cell is not on the grid do not count.
        grid: side g of the grid, in cells.
        stride: side of a cell, in pixels.
        sigma: standard deviation, in cells.
        present: (R, n) bool, False for points that only pad, or None.

    Returns:
        (R, g, g) in [0, 1]; zeros where no point counts.
    """
    cell = torch.trunc(points / stride).float()
    counted = ((cell >= 0) & (cell < grid)).all(-1)
    if present is not None:
        counted = counted & present
    axis = torch.arange(grid, device=points.device, dtype=torch.float32)
    squared = (axis - cell[..., None]).square()  # (R, n, 2, g)
    distance = squared[..., 1, :, None] + squared[..., 0, None, :]
    distance = distance.masked_fill(~counted[..., None, None], float("inf"))
    return torch.exp(distance.amin(1) / (-2 * sigma**2))


def box_attention_maps(boxes: Tensor, grid: int, stride: int, official_slicing: bool = False) -> Tensor:
    """1 in the cells that a box touches, its last cell included, 0 elsewhere.

    Args:
        boxes: (R, 4) x y of two opposite corners in any order, pixels of the model frame.
        grid: side g of the grid, in cells.
        stride: side of a cell, in pixels.
        official_slicing: boxes that end two cells or more left of (or above) the image mark columns (rows) counted from
            the end, as a negative index does in the official wrapper. Otherwise they mark nothing.

    Returns:
        (R, g, g) of {0, 1}.
    """
    corners = boxes.unflatten(-1, (2, 2))
    start = torch.trunc(corners.amin(1) / stride).clamp(min=0)  # (R, 2)
    stop = torch.trunc(corners.amax(1) / stride) + 1
    if official_slicing:
        stop = torch.where(stop < 0, stop + grid, stop)
    axis = torch.arange(grid, device=boxes.device)
    inside = (axis >= start[..., None]) & (axis < stop[..., None])  # (R, 2, g)
    return (inside[:, 1, :, None] & inside[:, 0, None, :]).float()


def prompt_attention_maps(
    rows: PromptRows, grid: int, stride: int, sigma: float, joint: bool = False, official_slicing: bool = False
) -> Tensor:
    """The map of each row: that of its points or of its box; of rows with both, that of the points.

    Args:
        rows: R prompts, each with points, a box, or both.
        grid, stride, sigma, official_slicing: see [`point_attention_maps`] and [`box_attention_maps`].
        joint: rows with points and a box get the larger of both maps.

    Returns:
        (R, g, g) in [0, 1].

    Raises:
        ValueError: `rows` hold neither boxes nor points.
    """
    box_maps = None
    if rows.boxes is not None:
        box_maps = box_attention_maps(rows.boxes, grid, stride, official_slicing)
        if rows.has_box is not None:
            box_maps = box_maps * rows.has_box[:, None, None]
    if rows.points is None or rows.point_labels is None:
        if box_maps is None:
            raise ValueError("No prompt: give input_boxes or input_points.")
        return box_maps
    present = torch.ne(rows.point_labels, PADDING_LABEL)
    maps = point_attention_maps(rows.points, grid, stride, sigma, present)
    if box_maps is None:
        return maps
    if joint:
        return torch.maximum(maps, box_maps)
    return torch.where(present.any(1)[:, None, None], maps, box_maps)


__all__ = ["box_attention_maps", "point_attention_maps", "prompt_attention_maps"]
