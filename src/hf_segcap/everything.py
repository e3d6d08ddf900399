# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Everything mode: all masks of an image, from a promptable segmentation model on grids of points.

This is SAM's automatic mask generator (Kirillov et al. 2023, section 4 and appendix B, and the released code): filters
by predicted IoU, stability and crop edge, NMS in each crop and between crops, removal of small regions, in that order.
ZIM's generator (its released code) is the same with mattes: the filters look at alpha instead of logits. Nothing here
knows a model: callables encode and segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .masks import (
    MaskRuns,
    box_nms,
    build_point_grid,
    stability_score,
    touches_crop_edge,
    upscale_masks,
    without_padding,
)
from .prompts import scale_points

# Upscaled logits (float32) held at once while masks are tested: on a CPU they should stay in its cache.
_UPSCALED_ON_CPU = 2**22
_UPSCALED_ON_ACCELERATOR = 2**26

# Of alpha, where SAM's generator has 0 of logits.
MATTE_THRESHOLD = 0.5
# What ZIM's generator has instead of SAM's defaults.
MATTE_SETTINGS: Mapping[str, Any] = {"stability_score_thresh": 0.9, "stability_score_offset": 0.1}

Segment = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Encoded = tuple[Segment, tuple[int, int]]
FinishMatte = Callable[[torch.Tensor, tuple[int, int], tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class GeneratorSettings:
    """What everything mode asks for and keeps: the options of SAM's mask generator. Its defaults suit SAM's largest model.

    Args:
        points_per_side: side n of the grid on the whole image, n * n points; None if `point_grids` is given.
        points_per_batch: points per call of the mask decoder; bounds memory, changes no result.
        pred_iou_thresh: masks with a predicted IoU above it stay (0 or less: all stay).
        stability_score_thresh: masks with a stability of at least this stay (0 or less: all stay).
        stability_score_offset: distance of the two cuts that the stability compares from logit 0 (mattes: from alpha 0.5).
        box_nms_thresh: of two masks of a crop whose boxes have a larger IoU than this, the one with the better predicted
            IoU stays.
        crop_n_layers: also looks at overlapping crops: layer i has 2**i x 2**i of them, each encoded by itself.
        crop_nms_thresh: of two masks of different crops whose boxes have a larger IoU, the one of the smaller crop stays.
        crop_overlap_ratio: overlap of the crops of layer 1, as a part of the shorter side of the image.
        crop_n_points_downscale_factor: in layer i the grid has `points_per_side / factor**i` points per side.
        point_grids: one list (n, 2) of points per layer instead of grids, x right and y down in [0, 1] of the crop.
        min_mask_region_area: holes and islands of a mask with fewer pixels are removed. (No mask goes for being small.)

    Raises:
        ValueError: a value that is not usable; the message says what is.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[Any] | None = None
    min_mask_region_area: float = 0

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ValueError(
                "Exactly one of `points_per_side` and `point_grids` must be given, got "
                + ("neither." if self.point_grids is None else "both: set `points_per_side=None` with `point_grids`.")
            )
        least = {"points_per_batch": 1, "crop_n_layers": 0, "crop_n_points_downscale_factor": 1}
        if self.points_per_side is not None:
            least["points_per_side"] = 1
        for name, limit in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < limit:
                raise ValueError(f"`{name}` must be a whole number of at least {limit}, got {value!r}.")
        for name in set(self.names()) - {*least, "points_per_side", "point_grids"}:
            value = getattr(self, name)
            number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise ValueError(f"`crop_overlap_ratio` must be in [0, 1), got {self.crop_overlap_ratio!r}.")
        if self.min_mask_region_area < 0:
            raise ValueError(f"`min_mask_region_area` must not be negative, got {self.min_mask_region_area!r}.")
        if self.point_grids is not None:
            object.__setattr__(self, "point_grids", self._checked_grids(self.point_grids))
        elif self._side(self.crop_n_layers) < 1:
            raise ValueError(
                f"`points_per_side` {self.points_per_side} and `crop_n_points_downscale_factor` "
                f"{self.crop_n_points_downscale_factor} leave no point in crop layer {self.crop_n_layers}."
            )

    def _checked_grids(self, grids: Any) -> tuple[tuple[tuple[float, float], ...], ...]:
        number = len(grids) if isinstance(grids, (list, tuple, np.ndarray)) else 0
        if number != self.crop_n_layers + 1:
            raise ValueError(
                f"`point_grids` needs a list with one grid for the whole image and one per crop layer, "
                f"{self.crop_n_layers + 1} in all, got {number or repr(grids)}."
            )
        checked = []
        for layer, grid in enumerate(grids):
            try:
                points = np.asarray(grid, dtype=np.float64)
            except (TypeError, ValueError):
                points = np.zeros(0)
            if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
                raise ValueError(f"`point_grids[{layer}]` must have the shape (n, 2) with n >= 1, got {points.shape}.")
            if not ((points >= 0) & (points <= 1)).all():
                raise ValueError(
                    f"`point_grids[{layer}]` must hold points in [0, 1], parts of the width and height of the crop."
                )
            checked.append(tuple((x, y) for x, y in points.tolist()))
        return tuple(checked)

    def _side(self, layer: int) -> int:
        return int((self.points_per_side or 0) / self.crop_n_points_downscale_factor**layer)

    def point_grid(self, layer: int) -> torch.Tensor:
        """float64 (n, 2): the points of crop layer `layer`, parts of the width and height of a crop."""
        if self.point_grids is not None:
            return torch.tensor(self.point_grids[layer], dtype=torch.float64)
        return build_point_grid(self._side(layer))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_dicts(cls, *levels: Mapping[str, Any] | None) -> GeneratorSettings:
        """Settings from several sources, of which later ones count more: SAM's defaults, those of a model, of a call.

        Of `points_per_side` and `point_grids` the one that is set last replaces the other.

        Raises:
            ValueError: an unknown name, or as the class.
        """
        values: dict[str, Any] = {}
        for level in levels:
            unknown = sorted(set(level or ()) - set(cls.names()))
            if unknown:
                raise ValueError(f"Unknown generator settings {unknown}, expected any of {list(cls.names())}.")
            if level and level.get("point_grids") is not None:
                values["points_per_side"] = None
            elif level and level.get("points_per_side") is not None:
                values["point_grids"] = None
            values |= level or {}
        return cls(**values)


@dataclass(frozen=True)
class MaskProposals:
    """N masks that passed all filters, in whole-image pixels and in the order of the official generator.

    That is by descending predicted IoU in each crop, smaller crops first, masks without a removed small region first.

    Attributes:
        runs: the masks, run-length coded; `masks` has them as pixels.
        boxes: int64 (N, 4) xyxy of the first and last set column and row (inclusive, as in SAM); zeros if there is none.
        points: float64 (N, 2), the grid point (x, y) that produced each mask.
        predicted_iou: float32 (N,).
        stability_score: float32 (N,), in [0, 1]; NaN where a mask has no pixel and the test was switched off.
        crop_boxes: int64 (N, 4) xyxy (exclusive) of the crop that each mask was found in.
        low_res_mattes: N float32 (l, l) matte logits of the crop in the padded model frame, of mattes; else None. Mattes
            of image size are made from them one by one ([`MaskProposals.matte`]): all at once may not fit into memory.
            They are no single tensor, as `select` and `concat` would copy it.
        reshaped_sizes: int64 (N, 2) (height, width) of that crop in the model frame, of mattes.
    """

    runs: MaskRuns
    boxes: torch.Tensor
    points: torch.Tensor
    predicted_iou: torch.Tensor
    stability_score: torch.Tensor
    crop_boxes: torch.Tensor
    low_res_mattes: tuple[torch.Tensor, ...] | None = None
    reshaped_sizes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def masks(self) -> np.ndarray:
        """bool (N, height, width), decoded on each access."""
        return self.runs.decode()

    def matte(self, index: int, finish: FinishMatte) -> np.ndarray:
        """The matte of one mask, (height, width) of the whole image and 0 outside its crop.

        Args:
            finish: `(low_res_matte, crop_size, reshaped_size) -> matte`: makes a matte of the size of the crop from logits
                (l, l); sizes are (height, width).

        Raises:
            ValueError: masks of a segmentation model, which have no mattes.
        """
        if self.low_res_mattes is None or self.reshaped_sizes is None:
            raise ValueError("These proposals are masks without mattes: generate them with `mattes=True`.")
        x0, y0, x1, y1 = self.crop_boxes[index].tolist()
        height, width = self.reshaped_sizes[index].tolist()
        matte = finish(self.low_res_mattes[index], (y1 - y0, x1 - x0), (height, width))
        if matte.shape == self.runs.size:
            return matte
        result = np.zeros(self.runs.size, matte.dtype)
        result[y0:y1, x0:x1] = matte
        return result

    def select(self, indices: torch.Tensor) -> MaskProposals:
        """The masks at integer indices (K,), in that order."""
        columns = {name: getattr(self, name) for name in _TENSORS}
        chosen: dict[str, Any] = {name: column[indices] for name, column in columns.items() if column is not None}
        if self.low_res_mattes is not None:
            chosen["low_res_mattes"] = tuple(self.low_res_mattes[index] for index in indices.tolist())
        return MaskProposals(self.runs.select(indices), **chosen)

    @classmethod
    def concat(cls, parts: Sequence[MaskProposals], size: tuple[int, int]) -> MaskProposals:
        """All parts, whose masks have the size (height, width), in order."""
        runs = MaskRuns.concat([part.runs for part in parts], size)
        if not parts:
            corners = torch.zeros(0, 4, dtype=torch.int64)
            return cls(runs, corners, torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0), torch.zeros(0), corners)
        columns = {name: [getattr(part, name) for part in parts] for name in _TENSORS}
        joined: dict[str, Any] = {name: torch.cat(column) for name, column in columns.items() if column[0] is not None}
        if parts[0].low_res_mattes is not None:
            joined["low_res_mattes"] = tuple(matte for part in parts for matte in part.low_res_mattes or ())
        return cls(runs, **joined)


_TENSORS = tuple(field.name for field in fields(MaskProposals) if field.name not in ("runs", "low_res_mattes"))


def build_crop_boxes(
    size: tuple[int, int], crop_n_layers: int, crop_overlap_ratio: float
) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    """The crops that everything mode looks at: the whole image, then 2**i x 2**i overlapping ones in each layer i.

    Args:
        size: (height, width) of the image in pixels.
        crop_n_layers: number of layers besides the whole image.
        crop_overlap_ratio: overlap in layer 1 as a part of the shorter side; it halves with each layer.

    Returns:
        xyxy boxes in pixels (left to right in the outer loop, downwards in the inner one) and their layers, from 0.

    Raises:
        ValueError: the image has too few pixels for that many crops.
    """
    height, width = size
    boxes, layers = [(0, 0, width, height)], [0]
    for layer in range(1, crop_n_layers + 1):
        per_side = 2**layer
        overlap = int(crop_overlap_ratio * min(height, width) * (2 / per_side))
        crop_width, crop_height = (math.ceil((overlap * (per_side - 1) + s) / per_side) for s in (width, height))
        lefts = [i * (crop_width - overlap) for i in range(per_side)]
        tops = [i * (crop_height - overlap) for i in range(per_side)]
        if lefts[-1] >= width or tops[-1] >= height:
            raise ValueError(f"An image of {height} x {width} pixels is too small for {crop_n_layers} crop layers.")
        for left in lefts:
            for top in tops:
                boxes.append((left, top, min(left + crop_width, width), min(top + crop_height, height)))
                layers.append(layer)
    return boxes, layers


def generate_masks(
    image: np.ndarray,
    encode_crop: Callable[[np.ndarray], Encoded],
    *,
    image_size: int,
    settings: GeneratorSettings | None = None,
    whole: Encoded | None = None,
    progress: bool = False,
    mattes: bool = False,
) -> MaskProposals:
    """Asks a model for the masks at every point of a grid, in the image and in crops of it, and keeps the good ones.

    Masks are tested at the size of the crop, as in the official generator, but only those that can still pass are ever
    brought to that size, and survivors are kept run-length coded.

    Args:
        image: (height, width, 3) uint8; only crops of it are looked at, so that its content does not matter where
            `whole` is given and `settings.crop_n_layers` is 0.
        encode_crop: runs the image encoder on a crop (h, w, 3) of the image and returns `segment` for it and the
            (height, width) that the crop has in the model frame, before padding.
            `segment(input_points, point_labels) -> (pred_masks, iou_scores)` with input_points float32 (1, P, 1, 2) in
            model-frame pixels and point_labels int64 (1, P, 1) of ones, both on the CPU; pred_masks (1, P, M, l, l)
            low-resolution logits, iou_scores (1, P, M). It is dropped before the next crop is encoded.
        image_size: side of the padded model frame.
        settings: grids and thresholds; SAM's defaults if not given (mattes: with [`MATTE_SETTINGS`]).
        whole: what `encode_crop` would return for the whole image, if that has been encoded already.
        progress: show a bar once the grids have taken longer than three seconds.
        mattes: the logits are of mattes. A mask is then what has an alpha (the sigmoid of a logit) above 0.5, the stability
            compares cuts of alpha, and the proposals keep the logits of their mattes.

    Raises:
        ValueError: an image that is no (height, width, 3) array or too small for the crop layers.
    """
    settings = settings or GeneratorSettings.from_dicts(MATTE_SETTINGS if mattes else None)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"`image` must have the shape (height, width, 3), got {image.shape}.")
    size = (image.shape[0], image.shape[1])
    crops, layers = build_crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
    grids = [settings.point_grid(layer) for layer in range(settings.crop_n_layers + 1)]
    parts = []
    total = sum(len(grids[layer]) for layer in layers)
    with tqdm(total=total, unit="point", desc="everything", delay=3, disable=not progress) as bar:
        for crop, layer in zip(crops, layers):
            x0, y0, x1, y1 = crop
            encoded = whole if whole is not None and layer == 0 else encode_crop(image[y0:y1, x0:x1])
            parts.append(_search_crop(encoded, crop, size, grids[layer], image_size, settings, mattes, bar.update))
            del encoded
    found = MaskProposals.concat(parts, size)
    if len(crops) > 1:
        sides = found.crop_boxes[:, 2:] - found.crop_boxes[:, :2]
        found = found.select(box_nms(found.boxes, 1 / sides.prod(dim=1), settings.crop_nms_thresh))
    if settings.min_mask_region_area > 0:
        found = _without_small_regions(found, settings)
    return found


def _search_crop(
    encoded: Encoded,
    crop: tuple[int, int, int, int],
    full_size: tuple[int, int],
    grid: torch.Tensor,
    image_size: int,
    settings: GeneratorSettings,
    mattes: bool,
    advance: Callable[[int], Any],
) -> MaskProposals:
    """The masks of one crop that pass its filters and its NMS, in whole-image pixels."""
    segment, reshaped_size = encoded
    x0, y0, x1, y1 = crop
    size = (y1 - y0, x1 - x0)
    parts = []
    points = grid * torch.tensor([size[1], size[0]], dtype=torch.float64)
    for batch in points.split(settings.points_per_batch):
        model_points = scale_points(batch, size, reshaped_size).float()[None, :, None]
        pred_masks, iou_scores = segment(model_points, torch.ones(model_points.shape[:3], dtype=torch.int64))
        # Rows are point-major: the M masks of the first point, then those of the second, ...
        low_res, iou = pred_masks[0].flatten(0, 1), iou_scores[0].flatten().float()
        rows = _promising(low_res, iou, reshaped_size, image_size, settings, mattes)
        limit = _UPSCALED_ON_CPU if low_res.device.type == "cpu" else _UPSCALED_ON_ACCELERATOR
        for chunk in rows.split(max(1, limit // max(size[0] * size[1], image_size**2))):
            logits = upscale_masks(low_res[chunk][:, None], reshaped_size, size, image_size)[:, 0]
            at = batch[chunk.cpu() // pred_masks.shape[2]]
            source = (low_res[chunk], reshaped_size) if mattes else None
            parts.append(_test_masks(logits, iou[chunk], at, crop, full_size, settings, source))
        advance(len(batch))
    found = MaskProposals.concat(parts, size)
    found = found.select(box_nms(found.boxes, found.predicted_iou, settings.box_nms_thresh))
    corner = torch.tensor([x0, y0])
    return replace(
        found,
        runs=found.runs.embed(full_size, x0, y0),
        boxes=found.boxes + corner.repeat(2),
        points=found.points + corner,
    )


def _promising(
    low_res: torch.Tensor,
    iou: torch.Tensor,
    reshaped_size: tuple[int, int],
    image_size: int,
    settings: GeneratorSettings,
    mattes: bool,
) -> torch.Tensor:
    """Indices of the masks whose scores and low-resolution logits (K, l, l) do not rule them out."""
    rows = torch.arange(len(iou), device=iou.device)
    if settings.pred_iou_thresh > 0:
        rows = rows[iou > settings.pred_iou_thresh]
    if settings.stability_score_thresh > 0 and len(rows):
        # Interpolation never exceeds its input: without a logit above the higher cut the stability is 0 or 0 / 0.
        peaks = without_padding(low_res[rows], reshaped_size, (image_size, image_size)).float().amax(dim=(-2, -1))
        rounding = 1e-5 * peaks.abs()
        middle = 0.0
        if mattes:
            peaks, middle = peaks.sigmoid(), MATTE_THRESHOLD
        rows = rows[peaks > middle + settings.stability_score_offset - rounding]
    return rows


def _test_masks(
    logits: torch.Tensor,
    iou: torch.Tensor,
    points: torch.Tensor,
    crop: tuple[int, int, int, int],
    full_size: tuple[int, int],
    settings: GeneratorSettings,
    mattes: tuple[torch.Tensor, tuple[int, int]] | None = None,
) -> MaskProposals:
    """Stability and edge filters on the upscaled masks (K, H, W) of a crop; survivors on the CPU.

    `mattes`: their low-resolution logits (K, l, l) and the size of the crop in the model frame, if they are mattes.
    """
    threshold = 0.0
    if mattes is not None:
        logits, threshold = logits.sigmoid_(), MATTE_THRESHOLD
    stability = stability_score(logits, threshold, settings.stability_score_offset)
    kept = torch.arange(len(iou), device=iou.device)
    if settings.stability_score_thresh > 0:
        kept = kept[stability >= settings.stability_score_thresh]  # NaN (an empty mask) fails
    runs = MaskRuns.encode(logits[kept] > threshold)
    kept = kept.cpu()
    boxes = torch.from_numpy(runs.boxes())
    inside = (~touches_crop_edge(boxes, crop, full_size)).nonzero()[:, 0]
    kept = kept[inside]
    found = MaskProposals(
        runs.select(inside),
        boxes[inside],
        points[kept],
        iou.cpu()[kept],
        stability.cpu()[kept],
        torch.tensor([crop], dtype=torch.int64).expand(len(kept), 4),
    )
    if mattes is None:
        return found
    low_res, reshaped_size = mattes
    sizes = torch.tensor([reshaped_size], dtype=torch.int64).expand(len(kept), 2)
    logits = low_res[kept.to(low_res.device)].float().cpu()
    # copies, so that one that is dropped later is freed
    return replace(found, low_res_mattes=tuple(matte.clone() for matte in logits), reshaped_sizes=sizes)


def _without_small_regions(found: MaskProposals, settings: GeneratorSettings) -> MaskProposals:
    """Fills small holes, removes small islands, then NMS that prefers masks which had neither. Scores stay as they are."""
    runs, had_holes = found.runs.remove_small_regions(settings.min_mask_region_area, "holes")
    runs, had_islands = runs.remove_small_regions(settings.min_mask_region_area, "islands")
    untouched = torch.from_numpy(~(had_holes | had_islands)).float()
    boxes = torch.from_numpy(runs.boxes())
    kept = box_nms(boxes, untouched, max(settings.box_nms_thresh, settings.crop_nms_thresh))
    return replace(found, runs=runs, boxes=boxes).select(kept)
