# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The one place where user prompts (boxes, points, masks) are parsed, checked, padded and scaled.

Prompts are in pixels of the original image: x to the right, y down, the top left corner of the image is (0, 0) and its
bottom right corner (width, height). Lists, tuples, numpy arrays and tensors are accepted everywhere. B images have P
prompts each; a prompt is a box, n points, a mask, or several of these together.

How the nesting is read:

| what | one image | any number of images |
| --- | --- | --- |
| boxes | `[x0, y0, x1, y1]` one prompt; `[box, box]` two prompts | `[[box, box], [box]]` = [image][prompt] |
| points | `[x, y]` one prompt; `[[x, y], [x, y]]` two prompts of one point each; `[[[x, y], [x, y]], ...]` = \
[prompt][point] | several images: `[[[x, y], [x, y]], ...]` = [image][point], **one prompt of several points per image**; \
four levels = [image][prompt][point] |
| point labels | as the points, one level less; or always [image][prompt][point] | the same |
| masks | (h, w) one mask; (P, h, w) or a list of masks | a list with one mask or one list of masks per image |

Numbers of prompts per image and of points per prompt may differ; an empty list for an image is an image without prompts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .model_frame import masks_to_frame

# Label of points that only fill up ragged prompts. The model hides such tokens from attention: they change no result.
PADDING_LABEL = -2
# Inside, outside, SAM's "not a point", the token of zeros that is still attended to, absent.
POINT_LABELS = (1, 0, -1, -10, PADDING_LABEL)
# Boxes that leave the image by less than this many pixels are clipped silently: rounding of float32 coordinates.
_ROUNDING = 1e-3
# Logit of a pixel that a binary mask prompt surely contains. SAM only knows logits of earlier predictions as prompts, the
# value is ours.
_MASK_LOGIT = 10.0
_MAX_DEPTH = 6

_BOX_FORMS = "[x0, y0, x1, y1] or [box, ...] for one image, [[box, ...], ...] = [image][prompt] for a batch"
_POINT_FORMS = (
    "[x, y] (one prompt), [[x, y], ...] (one prompt per point) or [prompt][point][x, y] for one image; "
    "[image][point][x, y] (one prompt of several points per image) or [image][prompt][point][x, y] for a batch"
)
_MASK_FORMS = (
    "(h, w), (P, h, w) or a list of such masks for one image; one mask or list of masks per image for a batch"
)


@dataclass(frozen=True)
class RegionPrompts:
    """Checked prompts of B images, padded to P prompts per image and n points per prompt.

    Attributes:
        boxes: float64 (B, P, 4) xyxy pixels, or None. Zeros in padded prompts.
        points: float64 (B, P, n, 2) pixels, or None. Zeros in padded places.
        point_labels: int64 (B, P, n), values of `POINT_LABELS`, or None. `PADDING_LABEL` in padded places.
        masks: one tensor per image, or None: bool (M, height, width) of the image's size, or float32 (M, L, L) logits of an
            earlier prediction. M is the number of prompts of the image, or 1 for a mask that all its prompts share.
        prompt_mask: bool (B, P), False where a prompt is padding.
        has_box, has_mask: bool (B, P), False where a prompt has no box or mask, or None: all have one (if there are any).
        counts: the true number of prompts of each image.
    """

    boxes: torch.Tensor | None
    points: torch.Tensor | None
    point_labels: torch.Tensor | None
    masks: list[torch.Tensor] | None
    prompt_mask: torch.Tensor
    counts: list[int]
    has_box: torch.Tensor | None = None
    has_mask: torch.Tensor | None = None


def parse_prompts(
    image_sizes: Sequence[Sequence[int]],
    boxes: Any = None,
    points: Any = None,
    point_labels: Any = None,
    masks: Any = None,
    *,
    low_res_mask_size: int = 256,
    mixed: bool = False,
    counts: Sequence[int] | None = None,
) -> RegionPrompts | None:
    """Checks the prompts of a batch of images and pads them to common sizes. Coordinates stay in original-image pixels.

    The table at the top of this module says how nesting is read. Boxes, points and masks given together belong to the same
    prompts, so that their numbers per image must agree (a single mask is shared by all prompts of its image).

    Args:
        image_sizes: (height, width) in pixels of each of the B images.
        boxes: xyxy. What lies outside the image is cut off, with a `UserWarning`.
        points: (x, y), inside the image (its border included).
        point_labels: 1 inside the region, 0 outside (default: all 1). SAM's -1 "not a point" and -10 "zero token" are
            accepted too, and `PADDING_LABEL` for points that are not there.
        masks: boolean masks (or integers of {0, 1} or {0, 255}, or PIL images) of the size of their image, at least one
            pixel set; or float masks of exactly `low_res_mask_size` x `low_res_mask_size`: logits of an earlier
            prediction, passed on as they are.
        low_res_mask_size: side L of the model's low-resolution masks.
        mixed: a prompt may lack a kind that others have: None instead of its box or mask, an empty list of points. An image
            without any prompt of a kind lacks it in all of its prompts.
        counts: with `mixed`, the number of prompts of each image as other kinds (text) have it.

    Returns:
        `RegionPrompts`, or None if no prompt argument was given.

    Raises:
        ValueError: wrong nesting or number of values, NaN or infinity, an empty or inverted box or one that lies
            completely outside its image, a point outside, an unknown label, a mask of a wrong size, numbers of prompts
            that disagree. The message names image and prompt.
        TypeError: something that is neither a number nor an array of numbers.
    """
    sizes = check_image_sizes(image_sizes)
    if point_labels is not None and points is None:
        raise ValueError("`point_labels` were given without `points`: pass both, or neither.")
    if boxes is None and points is None and masks is None:
        return None

    box_lists = None if boxes is None else _read_boxes(boxes, sizes, mixed)
    point_lists = None if points is None else _read_points(points, point_labels, sizes)
    mask_lists, masks_present = (None, None) if masks is None else _read_masks(masks, sizes, low_res_mask_size, mixed)
    if mixed:
        _fill_gaps((box_lists, []), (point_lists, ([], [])), (masks_present, False), counts=counts, batch=len(sizes))
    counts = _common_counts(box_lists, point_lists, masks_present)

    batch, width = len(sizes), max(counts, default=0)
    prompt_mask = torch.arange(width)[None, :] < torch.tensor(counts, dtype=torch.int64)[:, None]
    padded_boxes = padded_points = padded_labels = has_box = has_mask = None
    if box_lists is not None:
        padded_boxes = torch.zeros(batch, width, 4, dtype=torch.float64)
        has_box = prompt_mask.clone()
        for i, image_boxes in enumerate(box_lists):
            for j, box in enumerate(image_boxes):
                has_box[i, j] = bool(box)
                padded_boxes[i, j] = torch.tensor(box or [0.0] * 4, dtype=torch.float64)
    if point_lists is not None:
        length = max((len(labels) for prompts in point_lists for _, labels in prompts), default=1)
        if length:
            padded_points = torch.zeros(batch, width, length, 2, dtype=torch.float64)
            padded_labels = torch.full((batch, width, length), PADDING_LABEL, dtype=torch.int64)
        for i, prompts in enumerate(point_lists):
            for j, (coordinates, labels) in enumerate(prompts):
                if padded_points is None or padded_labels is None or not labels:
                    if box_lists is None and mask_lists is None and not mixed:
                        raise ValueError(f"image {i}, prompt {j}: got no point, expected at least one [x, y].")
                    continue
                padded_points[i, j, : len(labels)] = torch.tensor(coordinates, dtype=torch.float64)
                padded_labels[i, j, : len(labels)] = torch.tensor(labels, dtype=torch.int64)
    if mask_lists is not None and masks_present is not None:
        has_mask = prompt_mask.clone()
        for i, present in enumerate(masks_present):  # a single mask is for all prompts of its image
            has_mask[i, : counts[i]] = torch.tensor(present * counts[i] if len(present) == 1 else present)
        mask_lists = [
            stack if len(stack) else stack.new_zeros(len(present), *stack.shape[1:])
            for stack, present in zip(mask_lists, masks_present)
        ]
    has_box, has_mask = (
        None if flags is None or bool(flags[prompt_mask].all()) else flags for flags in (has_box, has_mask)
    )
    return RegionPrompts(
        padded_boxes, padded_points, padded_labels, mask_lists, prompt_mask, counts, has_box, has_mask
    )


def scale_prompts(
    prompts: RegionPrompts, original_sizes: Sequence[Sequence[int]], reshaped_sizes: Sequence[Sequence[int]]
) -> RegionPrompts:
    """Moves boxes and points from original-image pixels to pixels of the model frame.

    x is multiplied by new width / width, y by new height / height: the ratios of the *rounded* sizes, as in SAM. Float64, no
    rounding. Masks are left alone, see `masks_to_low_res_logits`.

    Args:
        prompts: result of `parse_prompts`.
        original_sizes: (height, width) of each image.
        reshaped_sizes: (height, width) of each image in the model frame, before padding.
    """
    old = torch.tensor(check_image_sizes(original_sizes), dtype=torch.float64)
    new = torch.tensor(check_image_sizes(reshaped_sizes), dtype=torch.float64)
    if not len(old) == len(new) == len(prompts.counts):
        raise ValueError(
            f"Got prompts of {len(prompts.counts)} images, but {len(old)} original and {len(new)} new sizes."
        )
    ratio = (new / old).flip(-1)  # (B, 2): x, y
    return replace(
        prompts,
        boxes=None if prompts.boxes is None else prompts.boxes * ratio.repeat(1, 2)[:, None],
        points=None if prompts.points is None else prompts.points * ratio[:, None, None],
    )


def scale_points(points: torch.Tensor, original_size: tuple[int, int], reshaped_size: tuple[int, int]) -> torch.Tensor:
    """Points (..., 2) of one image, from its pixels to those of the model frame; sizes are (height, width)."""
    ratio = [reshaped_size[1] / original_size[1], reshaped_size[0] / original_size[0]]
    return points * torch.tensor(ratio, dtype=points.dtype)


def masks_to_low_res_logits(
    prompts: RegionPrompts, reshaped_sizes: Sequence[Sequence[int]], image_size: int, low_res_mask_size: int
) -> torch.Tensor:
    """Mask prompts as the logits that SAM's prompt encoder expects.

    Float masks are such logits already. A boolean mask is resized by area to the padded model frame at L x L (each cell holds
    the fraction m of its area that the mask covers; the padding counts as outside) and becomes (2 m - 1) * 10. SAM itself
    defines no binary mask prompts: this conversion is ours.

    Args:
        prompts: result of `parse_prompts`, with masks.
        reshaped_sizes: (height, width) of each image in the model frame, before padding.
        image_size: side of the padded model frame in pixels.
        low_res_mask_size: side L of the result.

    Returns:
        float32 (B, P, L, L), or (B, 1, L, L) if no image has more than one mask. Zeros in padded prompts.
    """
    masks = prompts.masks or []
    shared = all(len(image_masks) <= 1 for image_masks in masks)
    width = 1 if shared else prompts.prompt_mask.shape[1]
    logits = torch.zeros(len(masks), width, low_res_mask_size, low_res_mask_size)
    for i, (image_masks, size) in enumerate(zip(masks, reshaped_sizes, strict=True)):
        if len(image_masks) == 0:
            continue
        if image_masks.dtype == torch.bool:
            shares = [masks_to_frame(mask, size, image_size, low_res_mask_size) for mask in image_masks.numpy()]
            image_masks = (2 * torch.from_numpy(np.stack(shares)) - 1) * _MASK_LOGIT
        # A single mask is repeated for all prompts of its image.
        logits[i, : 1 if shared else prompts.counts[i]] = image_masks
    return logits


def check_image_sizes(image_sizes: Any) -> list[tuple[int, int]]:
    """(height, width) pairs of positive whole numbers, from lists, arrays or tensors; a single pair is one image.

    Raises:
        ValueError: anything else.
    """
    sizes = _to_nested(image_sizes, "image sizes")
    if _depth(sizes) == 1:
        sizes = [sizes]
    if not isinstance(sizes, list) or not sizes:
        raise ValueError(f"Image sizes: got {_short(image_sizes)}, expected one [height, width] per image.")
    for i, size in enumerate(sizes):
        pair = isinstance(size, list) and len(size) == 2 and all(isinstance(side, (int, float)) for side in size)
        if not pair or not all(math.isfinite(side) and side >= 1 and side == int(side) for side in size):
            raise ValueError(
                f"image {i}: got the size {_short(size)}, expected [height, width] in pixels, whole numbers of at least 1."
            )
    return [(int(height), int(width)) for height, width in sizes]


# --- boxes ------------------------------------------------------------------------------------------------------------


def _read_boxes(boxes: Any, sizes: list[tuple[int, int]], mixed: bool) -> list[list[list[float]]]:
    """[image][prompt] of boxes; a prompt without a box (`mixed`) has an empty list."""
    nested = _to_nested(boxes, "boxes", allow_none=mixed)
    depth = _depth(nested)
    if not (depth == 2 and _no_prompts(nested, len(sizes))) and depth in (1, 2) and len(sizes) == 1:
        nested = [nested] if depth == 2 or nested == [] else [[nested]]
    _check_image_level(nested, len(sizes), "boxes", _BOX_FORMS)
    clipped: list[str] = []
    result = []
    for i, image_boxes in enumerate(nested):
        checked = []
        for j, box in enumerate(image_boxes):
            if mixed and box == []:
                checked.append(box)
                continue
            _check_numbers(box, 4, f"image {i}, prompt {j}", "box", "[x0, y0, x1, y1] in pixels", _BOX_FORMS)
            checked.append(_clip_box(box, sizes[i], f"image {i}, prompt {j}", clipped))
        result.append(checked)
    if clipped:
        warnings.warn("Boxes reach beyond their image and were clipped: " + "; ".join(clipped), stacklevel=4)
    return result


def _clip_box(box: list[float], size: tuple[int, int], where: str, clipped: list[str]) -> list[float]:
    height, width = size
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ValueError(
            f"{where}: got the empty or inverted box {box}, expected x0 < x1 and y0 < y1. Boxes are [x0, y0, x1, y1], not "
            "[x, y, width, height]."
        )
    inside = [max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))]
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        raise ValueError(
            f"{where}: the box {box} lies completely outside its image of {width} x {height} (width x height) pixels. "
            "Coordinates are pixels of the original image, not fractions."
        )
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING:
        clipped.append(f"{where}: {box} -> {inside} ({width} x {height} pixels)")
    return inside


# --- points -----------------------------------------------------------------------------------------------------------

_Prompt = tuple[list[list[float]], list[int]]  # points and labels


def _read_points(points: Any, point_labels: Any, sizes: list[tuple[int, int]]) -> list[list[_Prompt]]:
    nested = _to_nested(points, "points")
    depth = _depth(nested)
    labels = None if point_labels is None else _to_nested(point_labels, "point labels", allow_bool=True)
    if not _no_prompts(nested, len(sizes)) and not (depth == 3 and _no_numbers(nested)):
        if depth in (1, 2) and len(sizes) == 1:
            prompts = [nested] if depth == 1 and nested else nested
            nested = [[[point] if point != [] else [] for point in prompts]]
        elif depth == 3 and len(sizes) == 1:
            nested = [nested]
        elif depth == 3:
            nested = [[image_points] if image_points else [] for image_points in nested]
        elif depth != 4:
            raise _nesting_error("points", f"{depth} level(s) of lists", len(sizes), _POINT_FORMS)
    _check_image_level(nested, len(sizes), "points", _POINT_FORMS)
    if labels is not None:
        labels = _labels_per_image(labels, depth, len(sizes))
    result = []
    for i, image_points in enumerate(nested):
        if labels is not None and (not isinstance(labels[i], list) or len(labels[i]) != len(image_points)):
            raise ValueError(
                f"image {i}: got {len(image_points)} point prompts but point labels {_short(labels[i])}: expected the "
                "nesting of the points, one level less."
            )
        prompts = []
        for j, prompt in enumerate(image_points):
            prompts.append(_check_prompt(prompt, None if labels is None else labels[i][j], sizes[i], i, j))
        result.append(prompts)
    return result


def _labels_per_image(labels: Any, point_depth: int, num_images: int) -> list[Any]:
    """Point labels as [image][prompt][point]."""
    depth = _depth(labels)
    if depth != 3 and not _no_prompts(labels, num_images):
        if point_depth == 1 and depth <= 1:
            labels = [[labels if depth else [labels]] if labels != [] else []]
        elif point_depth == 2 and depth == 1:
            labels = [[[label] for label in labels]]
        elif point_depth == 3 and depth == 2 and num_images == 1:
            labels = [labels]
        elif point_depth == 3 and depth == 2:
            labels = [[image_labels] if image_labels else [] for image_labels in labels]
    if not isinstance(labels, list) or len(labels) != num_images:
        raise ValueError(
            f"Point labels {_short(labels)} do not fit the points: expected the nesting of the points, one level less, or "
            f"[image][prompt][point] for {num_images} image(s)."
        )
    return labels


def _check_prompt(points: Any, labels: Any, size: tuple[int, int], i: int, j: int) -> _Prompt:
    where = f"image {i}, prompt {j}"
    if not isinstance(points, list):
        raise ValueError(
            f"{where}: got {_short(points)}, expected a list of points [x, y]. Points are {_POINT_FORMS}."
        )
    if labels is None:
        labels = [1] * len(points)
    elif not isinstance(labels, list) or len(labels) != len(points):
        raise ValueError(
            f"{where}: got {len(points)} point(s) but labels {_short(labels)}, expected one label per point."
        )
    height, width = size
    kept: _Prompt = ([], [])
    for k, (point, label) in enumerate(zip(points, labels, strict=True)):
        if isinstance(label, list) or label not in POINT_LABELS:
            raise ValueError(
                f"{where}: point {k} has the label {_short(label)}, expected 1 (inside the region) or 0 (outside); -1 and "
                f"-10 as in SAM, {PADDING_LABEL} for no point."
            )
        if label == PADDING_LABEL:
            continue
        _check_numbers(point, 2, where, f"point {k}", "[x, y] in pixels", _POINT_FORMS)
        if label in (0, 1) and not (0 <= point[0] <= width and 0 <= point[1] <= height):
            raise ValueError(
                f"{where}: point {k} at {point} lies outside its image of {width} x {height} (width x height) pixels. "
                "Coordinates are (x, y) pixels of the original image."
            )
        kept[0].append(point)
        kept[1].append(int(label))
    return kept


# --- masks ------------------------------------------------------------------------------------------------------------


def _read_masks(
    masks: Any, sizes: list[tuple[int, int]], low_res_mask_size: int, mixed: bool
) -> tuple[list[torch.Tensor], list[list[bool]]]:
    """Masks of each image, and which of them were given; the others (`mixed`) are zeros."""
    nested = _to_masks(masks, allow_none=mixed)
    if isinstance(nested, np.ndarray):
        nested = [nested]
    objects = any(isinstance(item, np.ndarray) for item in nested) or (len(nested) > 1 and not any(nested))
    if len(sizes) == 1 and (not nested or objects):
        nested = [nested]
    nested = [[item] if isinstance(item, np.ndarray) else item for item in nested]
    _check_image_level(nested, len(sizes), "masks", _MASK_FORMS)
    result, present = [], []
    for i, image_masks in enumerate(nested):
        present.append([not (mixed and isinstance(mask, list) and not mask) for mask in image_masks])
        checked = [
            _check_mask(mask, sizes[i], low_res_mask_size, f"image {i}, prompt {j}")
            for j, mask in enumerate(image_masks)
            if present[i][j]
        ]
        if len({mask.dtype for mask in checked}) > 1:
            raise ValueError(
                f"image {i}: boolean masks and float logits cannot be mixed among the masks of one image."
            )
        stacked = torch.stack(checked) if checked else torch.zeros(0, *sizes[i], dtype=torch.bool)
        if len(checked) < len(image_masks):
            places = torch.tensor(present[i])
            stacked = stacked.new_zeros(len(image_masks), *stacked.shape[1:]).index_put((places,), stacked)
        result.append(stacked)
    return result, present


def _to_masks(value: Any, depth: int = 0, allow_none: bool = False) -> Any:
    """Nested lists of two-dimensional numpy arrays from arrays, tensors, PIL images and nested lists of numbers."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"`masks` are nested too deeply. Masks are {_MASK_FORMS}.")
    if isinstance(value, torch.Tensor):
        value = _tensor_to_numpy(value, "masks")
    elif isinstance(value, Image.Image):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, np.ndarray):
        if value.ndim < 2 or value.ndim > 4:
            raise ValueError(f"Got masks of shape {value.shape}. Masks are {_MASK_FORMS}.")
        return value if value.ndim == 2 else [_to_masks(item, depth + 1) for item in value]
    if value is None and (depth == 1 or (allow_none and depth == 2)):
        return []
    if isinstance(value, (list, tuple)):
        if _is_grid_of_numbers(value):
            try:
                return np.array(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"A mask given as lists must have rows of equal length. Masks are {_MASK_FORMS}."
                ) from error
        return [_to_masks(item, depth + 1, allow_none) for item in value]
    raise TypeError(f"`masks`: expected arrays, tensors, PIL images or lists, got {type(value).__name__}.")


def _is_grid_of_numbers(value: Sequence[Any]) -> bool:
    row = value[0] if len(value) else None
    return isinstance(row, (list, tuple)) and len(row) > 0 and isinstance(row[0], (bool, int, float, np.generic))


def _check_mask(mask: Any, size: tuple[int, int], low_res_mask_size: int, where: str) -> torch.Tensor:
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"{where}: got {_short(mask)} instead of a mask. Masks are {_MASK_FORMS}.")
    low_res = (low_res_mask_size, low_res_mask_size)
    if mask.dtype.kind == "f":
        if mask.shape != low_res:
            raise ValueError(
                f"{where}: got a float mask of {mask.shape}, but float masks are low-resolution logits of an earlier "
                f"prediction, {low_res}. Pass a boolean mask of the size of the image, {size} (height, width), instead."
            )
        logits = torch.from_numpy(mask.astype(np.float64)).float()
        if not logits.isfinite().all():
            raise ValueError(f"{where}: the mask logits hold NaN or infinity, expected finite float32 numbers.")
        if logits.any() and ((logits == 0) | (logits == 1)).all():
            raise ValueError(
                f"{where}: got a float mask of zeros and ones alone. Float masks are logits, of which a 1 says little: pass a "
                f"boolean mask of the size of the image, {size} (height, width), instead."
            )
        return logits
    if mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1) if mask.max(initial=0) <= 1 else (0, 255)).all():
        raise ValueError(
            f"{where}: got a mask of type {mask.dtype}, expected booleans, or integers of {{0, 1}} or {{0, 255}}."
        )
    if mask.shape != size:
        raise ValueError(
            f"{where}: got a mask of {mask.shape}, expected the (height, width) of its image, {size} (or float logits of "
            f"{low_res})."
        )
    if not mask.any():
        raise ValueError(f"{where}: the mask is empty, expected at least one set pixel.")
    return torch.from_numpy(mask != 0)


# --- nesting ----------------------------------------------------------------------------------------------------------


def _to_nested(value: Any, name: str, allow_bool: bool = False, depth: int = 0, allow_none: bool = False) -> Any:
    """Nested lists of Python numbers from any mixture of lists, tuples, numpy arrays and tensors."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"`{name}` are nested too deeply.")
    if isinstance(value, torch.Tensor):
        value = _tensor_to_numpy(value, name)
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_to_nested(item, name, allow_bool, depth + 1, allow_none) for item in value]
    if value is None and (depth == 1 or (allow_none and depth == 2)):
        return []  # an image without prompts, or (mixed) a prompt without this kind
    if isinstance(value, (int, float)) and (allow_bool or not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    raise TypeError(f"`{name}`: expected numbers in lists, arrays or tensors, got {type(value).__name__}.")


def _tensor_to_numpy(tensor: torch.Tensor, name: str) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
    ) as error:  # meta, sparse, quantised, complex with conjugation
        raise ValueError(
            f"`{name}`: a tensor of type {tensor.dtype} on {tensor.device} cannot be read: {error}"
        ) from error


def _depth(nested: Any) -> int:
    return 1 + max(map(_depth, nested), default=0) if isinstance(nested, list) else 0


def _no_prompts(nested: Any, num_images: int) -> bool:
    """Whether this is one empty list per image."""
    return isinstance(nested, list) and len(nested) == num_images and all(item == [] for item in nested)


def _no_numbers(nested: Any) -> bool:
    """Whether these are empty lists alone, however nested."""
    return isinstance(nested, list) and all(map(_no_numbers, nested))


def _check_image_level(nested: Any, num_images: int, name: str, forms: str) -> None:
    if not isinstance(nested, list) or len(nested) != num_images:
        got = f"{len(nested)} item(s) at the outermost level" if isinstance(nested, list) else "a single number"
        raise _nesting_error(name, got, num_images, forms)
    for i, item in enumerate(nested):
        if not isinstance(item, list):
            raise _nesting_error(name, f"{_short(item)} for image {i}", num_images, forms)


def _nesting_error(name: str, got: str, num_images: int, forms: str) -> ValueError:
    own = f' Images of a pipeline that have prompts of their own are items {{"image": ..., "{name}": ...}}.'
    return ValueError(
        f"Wrong nesting of `{name}`: got {got}, but there are {num_images} image(s). Expected {forms}."
        + (own if num_images == 1 else "")
    )


def _check_numbers(values: Any, count: int, where: str, what: str, expected: str, forms: str) -> None:
    if not isinstance(values, list) or len(values) != count or any(isinstance(value, list) for value in values):
        raise ValueError(f"{where}: {what} is {_short(values)}, expected {expected}. Nesting: {forms}.")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{where}: {what} is {values}, expected finite numbers.")


def _fill_gaps(*kinds: tuple[Any, Any], counts: Sequence[int] | None, batch: int) -> None:
    """Writes gaps into the lists [image][prompt] of kinds (list or None, its gap) where an image has none of a kind."""
    known = list(counts) if counts is not None and len(counts) == batch else [0] * batch
    for i, count in enumerate(known):
        count = max([count, *(len(lists[i]) for lists, _ in kinds if lists)])
        for lists, gap in kinds:
            if lists and not lists[i]:
                lists[i] = [gap] * count


def _common_counts(
    boxes: list[list[list[float]]] | None, points: list[list[_Prompt]] | None, masks: list[list[bool]] | None
) -> list[int]:
    """The number of prompts of each image, on which everything that was given must agree."""
    given = {"boxes": boxes, "point prompts": points, "masks": masks}
    lengths = {name: [len(item) for item in items] for name, items in given.items() if items is not None}
    first, counts = next(iter(lengths.items()))
    for name, other in lengths.items():
        for i, (count, expected) in enumerate(zip(other, counts, strict=True)):
            if count != expected and not (name == "masks" and count == 1):
                raise ValueError(
                    f"image {i}: got {expected} {first} but {count} {name}. Boxes, points and masks given together describe "
                    "the same prompts: pass as many of each (or one mask for all prompts of an image)."
                )
    return counts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
