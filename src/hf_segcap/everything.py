# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Everything mode: region proposals from a promptable segmentation model on a grid of points.

The filters and their order are those of SAM's automatic mask generator (Kirillov et al. 2023, appendix B and the released
code): predicted IoU, stability, crop edge, then box NMS. Nothing here knows a model: `propose_masks` asks a callable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .masks import box_nms, build_point_grid, mask_to_box, stability_score, touches_crop_edge, upscale_masks
from .prompts import scale_points

# Upscaled logits held at once while masks are tested (float32 elements, 128 MiB).
_MAX_UPSCALED_ELEMENTS = 2**25

Segment = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class ProposalSettings:
    """What everything mode proposes and keeps. The defaults are SAM's, tuned for its largest model.

    Args:
        points_per_side: side n of the grid; n * n points are asked.
        points_per_batch: points per call of the mask decoder; bounds memory, changes no result.
        pred_iou_thresh: masks with a predicted IoU above it stay (0 or less: all stay).
        stability_score_thresh: masks with a stability of at least this stay (0 or less: all stay).
        stability_score_offset: logit distance between the two cuts that the stability compares.
        box_nms_thresh: of two masks whose boxes have a larger IoU than this, the one with the better predicted IoU stays.

    Raises:
        ValueError: a count below 1, or a value that is not a finite number.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        for name in self.names()[2:]:
            value = getattr(self, name)
            number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            if not number or not np.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}.")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in order."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class MaskProposals:
    """N masks that survived all filters, by descending predicted IoU.

    Attributes:
        masks: bool (N, H, W) numpy array in original-image pixels.
        boxes: (N, 4) xyxy of the first and last set column and row (inclusive pixel indices, as in SAM).
        points: float64 (N, 2), the grid point (x, y) in original-image pixels that produced each mask.
        predicted_iou: float32 (N,).
        stability_score: float32 (N,), in [0, 1]; NaN where a mask has no pixel and the test was switched off.
    """

    masks: np.ndarray
    boxes: torch.Tensor
    points: torch.Tensor
    predicted_iou: torch.Tensor
    stability_score: torch.Tensor

    def __len__(self) -> int:
        return len(self.masks)


def propose_masks(
    segment: Segment,
    *,
    original_size: tuple[int, int],
    reshaped_size: tuple[int, int],
    image_size: int,
    settings: ProposalSettings | None = None,
    point_grid: np.ndarray | torch.Tensor | None = None,
    crop_box: tuple[int, int, int, int] | None = None,
    full_size: tuple[int, int] | None = None,
    progress: bool = False,
) -> MaskProposals:
    """Asks a model for the masks at every point of a grid and keeps the good, distinct ones.

    Masks are tested at the original image size, as the official generator does, but only those that pass the test of
    the predicted IoU are ever brought to that size.

    Args:
        segment: `segment(input_points, point_labels) -> (pred_masks, iou_scores)` for one image with input_points
            float32 (1, P, 1, 2) in model-frame pixels, point_labels int64 (1, P, 1) of ones, both on the CPU;
            pred_masks (1, P, M, l, l) low-resolution logits, iou_scores (1, P, M).
        original_size: (height, width) of the image in pixels.
        reshaped_size: (height, width) of the image in the model frame, before padding.
        image_size: side of the padded model frame.
        settings: grid and thresholds; SAM's defaults if not given.
        point_grid: (n, 2) points in [0, 1] (x right, y down) instead of the regular grid of `points_per_side`.
        crop_box: xyxy of the image inside a larger one, when it is a crop of that. Masks cut off by an edge of the crop
            that is no edge of the larger image are dropped. Results stay in the coordinates of the crop.
        full_size: (height, width) of that larger image; needed with `crop_box`.
        progress: show a bar once the grid has taken longer than three seconds.

    Raises:
        ValueError: `crop_box` without `full_size`, or a grid of the wrong shape.
    """
    settings = settings or ProposalSettings()
    if (crop_box is None) != (full_size is None):
        raise ValueError("`crop_box` and `full_size` belong together: got one without the other.")
    grid = torch.as_tensor(
        build_point_grid(settings.points_per_side) if point_grid is None else point_grid, dtype=torch.float64
    )
    if grid.ndim != 2 or grid.shape[1] != 2 or len(grid) == 0:
        raise ValueError(f"`point_grid` must have the shape (n, 2) with n >= 1, got {tuple(grid.shape)}.")

    height, width = original_size
    points = grid * torch.tensor([width, height], dtype=torch.float64)
    bar = tqdm(total=len(points), unit="point", desc="proposals", delay=3, disable=not progress)
    found = []
    with bar:
        for batch in points.split(settings.points_per_batch):
            model_points = scale_points(batch, original_size, reshaped_size).float()[None, :, None]
            pred_masks, iou_scores = segment(model_points, torch.ones(model_points.shape[:3], dtype=torch.int64))
            # Rows are point-major: the M masks of the first point, then those of the second, ...
            low_res, iou = pred_masks[0].flatten(0, 1).float(), iou_scores[0].flatten().float()
            row_points = batch.repeat_interleave(pred_masks.shape[2], dim=0)
            if settings.pred_iou_thresh > 0:
                keep = iou > settings.pred_iou_thresh
                low_res, iou, row_points = low_res[keep], iou[keep], row_points[keep.cpu()]
            rows_at_once = max(1, _MAX_UPSCALED_ELEMENTS // max(height * width, image_size**2))
            for rows in torch.arange(len(iou), device=iou.device).split(rows_at_once):
                if len(rows):
                    logits = upscale_masks(low_res[rows][:, None], reshaped_size, original_size, image_size)[:, 0]
                    kept_points = row_points[rows.cpu()]
                    found.append(_test_masks(logits, iou[rows], kept_points, settings, crop_box, full_size))
            bar.update(len(batch))

    if not found or not sum(len(part["iou"]) for part in found):
        empty = torch.zeros(0)
        return MaskProposals(
            np.zeros((0, height, width), bool), empty.view(0, 4), empty.view(0, 2).double(), empty, empty
        )
    columns = {name: torch.cat([part[name] for part in found]) for name in ("boxes", "points", "iou", "stability")}
    bits = np.concatenate([part["bits"] for part in found])
    kept = box_nms(columns["boxes"].float(), columns["iou"], settings.box_nms_thresh)
    masks = np.unpackbits(bits[kept.numpy()], axis=1, count=height * width).view(bool).reshape(-1, height, width)
    return MaskProposals(masks, *(columns[name][kept] for name in ("boxes", "points", "iou", "stability")))


def _test_masks(
    logits: torch.Tensor,
    iou: torch.Tensor,
    points: torch.Tensor,
    settings: ProposalSettings,
    crop_box: tuple[int, int, int, int] | None,
    full_size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Stability and edge filters on K masks of full size (K, H, W); survivors on the CPU, masks as packed bits."""
    stability = stability_score(logits, threshold=0.0, offset=settings.stability_score_offset)
    if settings.stability_score_thresh > 0:
        keep = stability >= settings.stability_score_thresh  # NaN (an empty mask) fails
    else:
        keep = torch.ones_like(stability, dtype=torch.bool)
    masks = logits[keep] > 0.0
    boxes = mask_to_box(masks)
    if crop_box is not None and full_size is not None:
        inside = ~touches_crop_edge(boxes, crop_box, full_size)
        keep[keep.clone()] = inside
        masks, boxes = masks[inside], boxes[inside]
    return {
        "bits": np.packbits(masks.flatten(1).cpu().numpy(), axis=1),
        "boxes": boxes.cpu(),
        "points": points[keep.cpu()],
        "iou": iou[keep].cpu(),
        "stability": stability[keep].cpu(),
    }
