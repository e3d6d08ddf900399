# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What one does with masks once a model has predicted them: upscaling, scores, boxes, suppression of doubles, small
regions, run-length codes.

Masks and logits have the shape (..., height, width), row 0 at the top. Boxes are xyxy in pixels. Nothing here needs
torchvision, OpenCV or pycocotools. The numbers (20 pixels of the crop edge, strict or not strict comparisons, inclusive boxes) are
those of SAM's released mask generator (Kirillov et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    scale = frame[0] / low_res.shape[-2], frame[1] / low_res.shape[-1]
    low_res = without_padding(low_res, reshaped_size, frame).float()
    if all(factor.is_integer() for factor in scale):
        logits = F.interpolate(low_res, scale_factor=scale, mode="bilinear", align_corners=False)
    else:
        logits = F.interpolate(low_res, frame, mode="bilinear", align_corners=False)
    logits = logits[..., : int(reshaped_size[0]), : int(reshaped_size[1])]
    return F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)


def without_padding(low_res: torch.Tensor, reshaped_size: Sequence[int], frame: Sequence[int]) -> torch.Tensor:
    """The part of low-resolution logits (..., l, l) that upscaling to the image looks at; the rest sees padding only.

    Args:
        low_res: logits of the padded model frame.
        reshaped_size: (height, width) of the image in the model frame, before padding, in pixels.
        frame: (height, width) of the model frame. Unless both are multiples of l, everything is returned.
    """
    if frame[0] % low_res.shape[-2] or frame[1] % low_res.shape[-1]:
        return low_res
    # Bilinear interpolation reaches half a cell past the last pixel: one more row and column.
    rows = -(-int(reshaped_size[0]) * low_res.shape[-2] // frame[0]) + 1
    columns = -(-int(reshaped_size[1]) * low_res.shape[-1] // frame[1]) + 1
    return low_res[..., :rows, :columns]


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
    inner = _count_set(logits > threshold + offset)
    outer = _count_set(logits > threshold - offset)
    return inner.float() / outer.float()


def _count_set(masks: torch.Tensor) -> torch.Tensor:
    """Set pixels of each mask (..., height, width); numpy counts booleans several times faster than a sum."""
    if masks.device.type != "cpu":
        return masks.sum(dim=(-2, -1))
    flat = masks.flatten(-2).reshape(-1, masks.shape[-2] * masks.shape[-1]).numpy()
    return torch.tensor([np.count_nonzero(mask) for mask in flat], dtype=torch.int64).view(masks.shape[:-2])


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
    order = scores.argsort(descending=True, stable=True).cpu()
    ranked = (boxes if boxes.is_floating_point() else boxes.float()).cpu()[order].numpy()
    corners, ends = ranked[:, :2], ranked[:, 2:]
    areas = (ends - corners).prod(axis=1)
    rest = np.arange(len(ranked))
    kept: list[int] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        while len(rest):
            best, rest = int(rest[0]), rest[1:]
            kept.append(best)
            sides = np.minimum(ends[best], ends[rest]) - np.maximum(corners[best], corners[rest])
            overlap = sides.clip(min=0).prod(axis=1)
            rest = rest[~(overlap / (areas[best] + areas[rest] - overlap) > iou_threshold)]
    return order[torch.tensor(kept, dtype=torch.int64)].to(boxes.device)


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
    # Evenly spaced between the first and the last centre, to the last bit as in the official generator.
    edge = 1 / (2 * points_per_side)
    centres = torch.from_numpy(np.linspace(edge, 1 - edge, points_per_side))
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


@dataclass(frozen=True)
class MaskRuns:
    """N masks of one size as the runs of set pixels down their columns, the order of COCO's RLE.

    The mask of an object takes some kilobytes instead of a byte per pixel, and areas, boxes, components and RLEs come
    from the runs without touching pixels.

    Attributes:
        size: (height, width) in pixels.
        borders: int64; where runs of set pixels start and (exclusive) end, in turn, mask after mask: position
            `x * height + y` of a pixel. Increasing within a mask.
        offsets: int64 (N + 1,); mask i owns `borders[offsets[i]:offsets[i + 1]]`.
    """

    size: tuple[int, int]
    borders: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    # --- making them

    @classmethod
    def encode(cls, masks: np.ndarray | torch.Tensor) -> MaskRuns:
        """Masks (N, height, width), non-zero = set.

        Raises:
            ValueError: not three-dimensional.
        """
        if masks.ndim != 3:
            raise ValueError(f"`masks` must have the shape (N, height, width), got {tuple(masks.shape)}.")
        count, height, width = masks.shape
        columns, y = np.divmod(_column_changes(masks), height + 1)
        owner, x = np.divmod(columns, max(width, 1))
        return cls._from_borders((height, width), count, owner, x * height + y)

    @classmethod
    def from_rles(cls, rles: Sequence[Mapping[str, Any]], size: Sequence[int] | None = None) -> MaskRuns:
        """Masks from COCO RLEs, compressed (str or bytes) or not (lists of run lengths), all of one size.

        Args:
            rles: `{"size": [height, width], "counts": ...}` each.
            size: (height, width); needed if there may be no RLE at all.

        Raises:
            ValueError: a damaged RLE, or sizes that differ; the message says which.
        """
        expected = None if size is None else (int(size[0]), int(size[1]))
        parts = []
        for index, rle in enumerate(rles):
            try:
                own, counts = _read_rle(rle)
            except ValueError as error:
                raise ValueError(f"RLE {index}: {error}") from error
            expected = expected or own
            if own != expected:
                raise ValueError(f"RLE {index} is of a mask of the size {own}, the others are of {expected}.")
            parts.append(np.cumsum(counts)[: len(counts) // 2 * 2])
        if expected is None:
            raise ValueError("Without any RLE the `size` of the masks must be given.")
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls._from_borders(expected, len(parts), owner, np.concatenate([np.zeros(0, np.int64), *parts]))

    @classmethod
    def concat(cls, parts: Sequence[MaskRuns], size: tuple[int, int]) -> MaskRuns:
        """The masks of all parts, which have the given size, in order."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)])
        borders = np.concatenate([np.zeros(0, np.int64), *(part.borders for part in parts)])
        return cls(size, borders, _offsets(lengths))

    @classmethod
    def _from_borders(cls, size: tuple[int, int], count: int, owner: np.ndarray, positions: np.ndarray) -> MaskRuns:
        """From borders ordered by mask and position. A position that stands there twice is no border: runs join."""
        keys = owner * (size[0] * size[1] + 1) + positions
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        kept = first[np.diff(np.append(first, len(keys))) % 2 == 1]
        return cls(size, positions[kept], np.searchsorted(owner[kept], np.arange(count + 1)))

    # --- changing them

    def select(self, indices: np.ndarray | torch.Tensor) -> MaskRuns:
        """The masks at integer indices (K,), in that order."""
        indices = np.asarray(indices)
        lengths = np.diff(self.offsets)[indices]
        borders = self.borders[np.repeat(self.offsets[indices], lengths) + _places(lengths)]
        return MaskRuns(self.size, borders, _offsets(lengths))

    def embed(self, size: tuple[int, int], x0: int, y0: int) -> MaskRuns:
        """The masks of a crop in the image of `size` = (height, width) that holds the crop at (x0, y0)."""
        if size == self.size:
            return self
        owner, x, top, bottom = self.column_runs()
        start = (x + x0) * size[0] + y0
        positions = np.stack([start + top, start + bottom], axis=1).reshape(-1)
        return self._from_borders(size, len(self), np.repeat(owner, 2), positions)

    def remove_small_regions(
        self, area_thresh: float, mode: Literal["holes", "islands"]
    ) -> tuple[MaskRuns, np.ndarray]:
        """[`remove_small_regions`] for all masks at once. Returns the masks and which of them had a small region."""
        if mode not in ("holes", "islands"):
            raise ValueError(f'`mode` must be "holes" or "islands", got {mode!r}.')
        regions = self if mode == "islands" else self._complement()
        owner, x, top, bottom = regions.column_runs()
        height, width = self.size
        region = connect_runs(owner, x, top, bottom, self.size)
        area = np.bincount(region, weights=bottom - top)
        small = area < area_thresh
        own = np.zeros(len(area), np.int64)  # the mask of each region
        own[region] = owner
        changed = np.bincount(own, weights=small, minlength=len(self)) > 0
        if mode == "islands":
            first = np.full(len(area), height * width)  # pixel by which a region is met row by row: decides ties
            np.minimum.at(first, region, top * width + x)
            order = np.lexsort((first, -area, own))
            largest = order[np.flatnonzero(np.diff(own[order], prepend=-1))]
            small[largest] = False
        # Filling a hole and removing an island both turn its pixels over.
        turned = small[region]
        start = x[turned] * height
        extra = np.stack([start + top[turned], start + bottom[turned]], axis=1).reshape(-1)
        return self._turn_over(np.repeat(owner[turned], 2), extra), changed

    def _complement(self) -> MaskRuns:
        ends = np.tile([0, self.size[0] * self.size[1]], len(self))
        return self._turn_over(np.repeat(np.arange(len(self)), 2), ends)

    def _turn_over(self, owner: np.ndarray, borders: np.ndarray) -> MaskRuns:
        """Set pixels unset and the other way round between pairs of further borders."""
        owner = np.concatenate([self._owners(), owner])
        positions = np.concatenate([self.borders, borders])
        order = np.lexsort((positions, owner))
        return self._from_borders(self.size, len(self), owner[order], positions[order])

    # --- asking them

    def _owners(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def areas(self) -> np.ndarray:
        """int64 (N,): set pixels of each mask."""
        lengths = self.borders[1::2] - self.borders[::2]
        return np.bincount(self._owners()[::2], weights=lengths, minlength=len(self)).astype(np.int64)

    def boxes(self) -> np.ndarray:
        """int64 (N, 4): as [`mask_to_box`], inclusive; zeros for a mask without a pixel."""
        owner, x, top, bottom = self.column_runs()
        boxes = np.zeros((len(self), 4), np.int64)
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        if len(starts):
            edges = [np.minimum.reduceat(values, starts) for values in (x, top)]
            edges += [np.maximum.reduceat(values, starts) for values in (x, bottom - 1)]
            boxes[owner[starts]] = np.stack(edges, axis=1)
        return boxes

    def column_runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Index of the mask, column, first row and (exclusive) last row of every run, cut at the ends of columns."""
        height = max(self.size[0], 1)
        start, end = self.borders[::2], self.borders[1::2]
        first = start // height
        pieces = (end - 1) // height - first + 1
        run = np.repeat(np.arange(len(start)), pieces)
        x = first[run] + _places(pieces)
        top, bottom = np.maximum(start[run] - x * height, 0), np.minimum(end[run] - x * height, height)
        return self._owners()[::2][run], x, top, bottom

    def decode(self) -> np.ndarray:
        """bool (N, height, width)."""
        height, width = self.size
        counts, offsets = self._counts()
        values = _places(np.diff(offsets)) % 2 == 1
        return np.repeat(values, counts).reshape(len(self), width, height).transpose(0, 2, 1).copy()

    def to_uncompressed(self) -> list[dict[str, Any]]:
        """`{"size": [height, width], "counts": [int]}` per mask: run lengths of unset and set pixels in turn."""
        counts, offsets = self._counts()
        parts = np.split(counts, offsets[1:-1]) if len(self) else []
        return [{"size": list(self.size), "counts": part.tolist()} for part in parts]

    def to_coco(self) -> list[dict[str, Any]]:
        """`{"size": [height, width], "counts": str}` per mask: the bytes of pycocotools, as text fit for JSON."""
        counts, offsets = self._counts()
        code, lengths = _compress_counts(counts, offsets)
        ends = _offsets(lengths)[offsets]
        return [{"size": list(self.size), "counts": code[a:b]} for a, b in zip(ends[:-1], ends[1:])]

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Run lengths of all masks, each from the unset pixels at its start, and their (N + 1,) offsets."""
        pixels = self.size[0] * self.size[1]
        lengths = np.diff(self.offsets)
        head = self.offsets[:-1] + 2 * np.arange(len(self))  # each mask: 0, its borders, the number of pixels
        edges = np.zeros(len(self.borders) + 2 * len(self), np.int64)
        edges[np.arange(len(self.borders)) + 2 * self._owners() + 1] = self.borders
        edges[head + lengths + 1] = pixels
        counts = np.diff(edges, append=0)
        kept = np.ones(len(counts), bool)
        kept[head + lengths + 1] = False  # from one mask to the next
        last = head + lengths
        kept[last[(counts[last] == 0) & (lengths > 0)]] = False  # the mask ends with a set pixel
        owner = np.repeat(np.arange(len(self)), lengths + 2)[kept]
        return counts[kept], np.searchsorted(owner, np.arange(len(self) + 1))


def remove_small_regions(
    mask: np.ndarray | torch.Tensor, area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[np.ndarray, bool]:
    """Fills small holes of a mask or removes its small islands, as the official generator does with OpenCV.

    Regions hang together across edges and corners (8-connectivity). Every region of unset pixels counts as a hole, also
    at the border of the image. If all islands are small the largest stays, of several the first row by row.

    Args:
        mask: (height, width), non-zero = set.
        area_thresh: regions of *fewer* pixels are small.
        mode: "holes" or "islands".

    Returns:
        The bool mask, and whether it had a small region.

    Raises:
        ValueError: `mask` is not two-dimensional, or an unknown mode.
    """
    runs, changed = MaskRuns.encode(_one_mask(mask)).remove_small_regions(area_thresh, mode)
    return runs.decode()[0], bool(changed[0])


def encode_rle(mask: np.ndarray | torch.Tensor) -> dict[str, Any]:
    """A mask as COCO's compressed run-length encoding; the bytes are those of pycocotools.

    For many masks of one size use [`MaskRuns`].

    Args:
        mask: (height, width), non-zero = set.

    Returns:
        `{"size": [height, width], "counts": str}`: fit for JSON.

    Raises:
        ValueError: `mask` is not two-dimensional.
    """
    return MaskRuns.encode(_one_mask(mask)).to_coco()[0]


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The mask of a COCO run-length encoding, compressed (str or bytes) or not (a list of run lengths).

    Args:
        rle: `{"size": [height, width], "counts": ...}`.

    Returns:
        bool (height, width).

    Raises:
        ValueError: a damaged encoding, or runs that do not add up to height * width.
    """
    (height, width), counts = _read_rle(rle)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _one_mask(mask: np.ndarray | torch.Tensor) -> np.ndarray:
    array = (mask != 0).cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"`mask` must have the shape (height, width), got {array.shape}: give masks one by one.")
    return array[None]


def _places(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., n - 1 for each length n, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _column_changes(masks: np.ndarray | torch.Tensor) -> np.ndarray:
    """Sorted `(n * width + x) * (height + 1) + y` wherever pixel (x, y) of mask n differs from the one above it.

    Above and below the image pixels count as unset.
    """
    count, height, width = masks.shape
    if isinstance(masks, torch.Tensor) and masks.device.type != "cpu":
        padded = F.pad(masks != 0, (0, 0, 1, 1))
        places = (padded[:, 1:] ^ padded[:, :-1]).flatten().nonzero()[:, 0].cpu().numpy()
    else:
        array = (masks != 0).numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
        array = array if array.dtype == bool else array != 0
        total = count * (height + 1) * width
        flat = np.zeros(-(-total // 8) * 8, bool)
        changes = flat[:total].reshape(count, height + 1, width)
        changes[:, :-1] = array
        changes[:, 1:] ^= array
        # Changes are rare: look for them eight pixels at a time.
        words = np.flatnonzero(flat.view(np.int64))
        word, byte = np.nonzero(flat.reshape(-1, 8)[words])
        places = words[word] * 8 + byte
    n, rest = np.divmod(places, max((height + 1) * width, 1))
    y, x = np.divmod(rest, max(width, 1))
    return np.sort((n * width + x) * (height + 1) + y)


def connect_runs(
    owner: np.ndarray, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The 8-connected region, 0, 1, ..., of each of the ordered column runs of many masks."""
    stride = size[0] + 2  # so far apart that columns, and with one empty column masks, do not touch
    line = (owner * (size[1] + 1) + x) * stride
    start, end = line + top, line + bottom
    # The runs of the column to the left that share an edge or a corner with each run stand together.
    first = np.searchsorted(end, start - stride, side="left")
    neighbours = np.searchsorted(start, end - stride, side="right") - first
    a = np.repeat(np.arange(len(x)), neighbours)
    b = np.repeat(first, neighbours) + _places(neighbours)
    root = np.arange(len(x))
    while len(a):
        # Of all neighbours the lowest becomes the new root, then every run looks up its highest root.
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root = above
        a, b = root[a], root[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return np.unique(root, return_inverse=True)[1]


def _compress_counts(counts: np.ndarray, offsets: np.ndarray) -> tuple[str, np.ndarray]:
    """COCO's text of run lengths, and the characters that each takes.

    From the fourth number of a mask on, differences to the last but one are written; 5 bits per character.
    """
    values = counts.astype(np.int64)
    later = np.flatnonzero(_places(np.diff(offsets)) > 2)
    values[later] -= counts[later - 2]
    characters, used = [], []
    more = np.ones(len(values), dtype=bool)
    while more.any():  # once per 5-bit group of the longest number
        used.append(more)
        group = values & 31
        values = values >> 5
        more = more & np.where(group & 16, values != -1, values != 0)
        characters.append(group | (more << 5))
    if not used:
        return "", np.zeros(0, np.int64)
    written = np.stack(used, axis=1)
    code = np.stack(characters, axis=1)[written] + 48
    return code.astype(np.uint8).tobytes().decode("ascii"), written.sum(axis=1)


def _read_rle(rle: Mapping[str, Any]) -> tuple[tuple[int, int], np.ndarray]:
    """(height, width) and checked run lengths, int64."""
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
    return (height, width), counts


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
