# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Regions of real photographs with words measured from their pixels.

The photographs come inside scikit-image (public domain or CC0) and this package; some are never trained on.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from ..assets import bundled_photograph
from ..files import image_files
from ..images import load_image
from ..masks import encode_rle
from .describe import colour_words, describe_region, vocabulary_captions

# Public domain: astronaut, hubble_deep_field (NASA), rocket (SpaceX), retina. CC0: chelsea, coffee, brick, grass, gravel, lemur.
PHOTOGRAPHS = {
    "train": ("astronaut", "chelsea", "rocket", "hubble_deep_field", "retina", "brick", "grass", "gravel"),
    "held_out": ("coffee", "lemur"),
}
_LONGEST_SIDE = 448  # of a photograph before cropping
_KEPT = 512  # photographs in memory, about 0.4 MB each
_LONGEST_CROP = 224  # of what a row shows: about what the bundled models see, so that texture is measured alike
_HUE_ODDS = 0.5
_SEGMENT_HUE_ODDS = 0.4
_HAZE_ODDS = 0.35  # light colours are rare in these photographs
_CHROMA_AXES = np.array([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / 6**0.5  # orthonormal, perpendicular to grey
_SEGMENT_SHARE = (0.004, 0.5)  # of the crop: smaller and larger segments are not described


def photograph_names(split: str, folder: str | Path | None = None) -> tuple[str, ...]:
    """What `load_photograph` takes: the photographs of a split and, for training, those of a folder of yours.

    Raises:
        ValueError: an unknown split, a folder for another split than "train", or one that is missing or holds no image.
    """
    if split not in PHOTOGRAPHS:
        raise ValueError(f"split must be one of {list(PHOTOGRAPHS)}, got {split!r}")
    if folder is None:
        return PHOTOGRAPHS[split]
    if split != "train":
        raise ValueError(
            f'a folder of photographs is for the split "train", got {split!r}: held-out ones stay the same'
        )
    return (*PHOTOGRAPHS[split], *map(str, image_files(folder)))


@lru_cache(_KEPT)
def load_photograph(name: str) -> Image.Image:
    """One of `PHOTOGRAPHS` or the image file at a path, RGB, at most 448 pixels on its longest side.

    Raises:
        ImportError: scikit-image, which holds most of them, is not installed.
        ValueError: the file is missing or no image.
    """
    if not any(name in names for names in PHOTOGRAPHS.values()):
        path = Path(name)
    elif name == "lemur":
        path = Path(bundled_photograph(name))
    else:
        try:
            import skimage.data
        except ImportError as error:
            raise ImportError("The photographs come with scikit-image: pip install hf_segcap[demo]") from error
        folder = Path(skimage.data.__file__).parent
        path = next(p for p in (folder / f"{name}.png", folder / f"{name}.jpg") if p.exists())
    image = load_image(path)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
    return image


@cache
def segment_photograph(name: str) -> np.ndarray:
    """Regions of similar colour (Felzenszwalb and Huttenlocher, 2004) of a photograph, (H, W) integer labels."""
    from skimage.segmentation import felzenszwalb

    return felzenszwalb(np.asarray(load_photograph(name)), scale=220, sigma=0.8, min_size=160)


def random_box(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of random size (8 to 60 % of each side) and place inside an image of `size` (height, width)."""
    height, width = size
    box_width = max(4, int(rng.uniform(0.08, 0.6) * width))
    box_height = max(4, int(rng.uniform(0.08, 0.6) * height))
    x0, y0 = int(rng.integers(0, width - box_width + 1)), int(rng.integers(0, height - box_height + 1))
    return x0, y0, x0 + box_width, y0 + box_height


def random_regions(image: Image.Image, boxes: int, seed: int) -> dict[str, Any]:
    """A row of a photograph of your own: random boxes, described by their pixels."""
    image, _ = _shrink(image, None)
    rng = np.random.default_rng(seed)
    pixels = np.asarray(image)
    return _row(image, 0, [_region(pixels, random_box(rng, pixels.shape[:2])) for _ in range(boxes)])


class PhotographRegions(Dataset):
    """Rows of photographs (the row format of `hf_segcap.data.sources`); row i depends on `seed` and i only.

    Regions are random boxes without a mask, described by all their pixels (augmented: of as many colours as are
    found), and segments of similar colour with a mask, kept if the box around them would be given the same colour word.

    Args:
        n: number of rows.
        split: "train" or "held_out".
        seed: of all random decisions.
        boxes: random boxes per row.
        segments: segments per row, at most.
        augment: crops, flips and changes colours. Without, rows are whole photographs in turn.
    """

    def __init__(
        self, n: int, split: str = "train", seed: int = 0, boxes: int = 6, segments: int = 4, augment: bool = True
    ) -> None:
        if split not in PHOTOGRAPHS:
            raise ValueError(f"split must be one of {list(PHOTOGRAPHS)}, got {split!r}")
        self.n, self.split, self.seed, self.boxes, self.segments = n, split, seed, boxes, segments
        self.augment = augment

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        rng = np.random.default_rng([self.seed, index])
        names = PHOTOGRAPHS[self.split]
        name = names[int(rng.integers(len(names)))] if self.augment else names[index % len(names)]
        image, labels = load_photograph(name), segment_photograph(name) if self.segments else None
        image, labels = _augment(image, labels, rng) if self.augment else _shrink(image, labels)
        pixels = np.asarray(image)
        sums = _integral(pixels)
        if self.augment:
            boxes = _of_many_colours(sums, [random_box(rng, pixels.shape[:2]) for _ in range(3 * self.boxes)])
        else:
            boxes = [random_box(rng, pixels.shape[:2]) for _ in range(self.boxes)]
        regions = [_region(pixels, box) for box in boxes[: self.boxes]]
        if labels is not None:
            regions += self._segment_regions(pixels, sums, labels, rng)
        return _row(image, index, regions)

    def _segment_regions(
        self, pixels: np.ndarray, sums: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        from scipy.ndimage import find_objects

        counts = np.bincount(labels.ravel())
        share = counts / labels.size
        values = rng.permutation(np.flatnonzero((share > _SEGMENT_SHARE[0]) & (share < _SEGMENT_SHARE[1])))
        if not len(values):
            return []
        places = find_objects(labels + 1)
        boxes = [(p[1].start, p[0].start, p[1].stop, p[0].stop) for p in (places[value] for value in values)]
        totals = [np.bincount(labels.ravel(), weights=pixels[..., channel].ravel()) for channel in range(3)]
        own = colour_words(np.stack(totals, axis=-1)[values] / counts[values, None])[0]
        kept = np.flatnonzero(own == _box_colours(sums, boxes))[: self.segments]
        return [_region(pixels, boxes[i], labels == values[i]) for i in kept]

    def texts(self) -> Iterator[str]:
        """Captions with every word of the generated world."""
        return vocabulary_captions()


def _row(image: Image.Image, index: int, regions: list[dict[str, Any]]) -> dict[str, Any]:
    size = {"width": image.width, "height": image.height}
    return {"image": image, "image_id": index, **size, "caption": None, "regions": regions}


def _region(pixels: np.ndarray, box: Sequence[int], mask: np.ndarray | None = None) -> dict[str, Any]:
    caption = describe_region(pixels, box, mask).caption()
    rle = None if mask is None else encode_rle(mask)
    return {"box": [float(v) for v in box], "phrases": [caption], "mask": rle, "category": None}


def _integral(pixels: np.ndarray) -> np.ndarray:
    """(H + 1, W + 1, 3) int32 sums of the pixels (H, W, 3) above and left of each corner."""
    sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1, 3), dtype=np.int32)
    np.cumsum(pixels, axis=1, dtype=np.int32, out=sums[1:, 1:])
    return np.cumsum(sums, axis=0, out=sums)


def _box_colours(sums: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """The word for the mean colour of each box, from the `_integral` of its image."""
    x0, y0, x1, y1 = np.array(boxes, dtype=int).reshape(-1, 4).T
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return colour_words(inside / ((x1 - x0) * (y1 - y0))[:, None])[0]


def _of_many_colours(sums: np.ndarray, boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """The boxes, in turn one of each colour word: most of a photograph is grey or black."""
    seen: Counter[str] = Counter()
    turns = []
    for word in _box_colours(sums, boxes).tolist():
        turns.append(seen[word])
        seen[word] += 1
    return [boxes[i] for i in np.argsort(turns, kind="stable")]


def _shrink(image: Image.Image, labels: np.ndarray | None) -> tuple[Image.Image, np.ndarray | None]:
    scale = min(1, _LONGEST_CROP / max(image.size))
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    if labels is not None:
        rows, columns = (np.arange(n) * m // n for n, m in zip(image.size[::-1], labels.shape))
        labels = labels[np.ix_(rows, columns)]
    return image, labels


def _hue_rotation(rng: np.random.Generator) -> np.ndarray:
    """A matrix (3, 3) float32 for colours as rows: turns them around the grey axis and changes their distance from it."""
    turn, gain = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.6)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * gain
    grey = np.full((3, 3), 1 / 3)
    return (grey + _CHROMA_AXES.T @ rotation @ _CHROMA_AXES).astype(np.float32)


def _augment(
    image: Image.Image, labels: np.ndarray | None, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray | None]:
    """Random crop (40 to 100 % of each side), flip, and colours: saturation, brightness, channel order, a random
    mean colour, hue (of the whole, of some segments of their own) and haze: the photographs have few colours of their own."""
    width, height = image.size
    crop_width, crop_height = (int(side * rng.uniform(0.4, 1)) for side in (width, height))
    left, top = int(rng.integers(0, width - crop_width + 1)), int(rng.integers(0, height - crop_height + 1))
    image = image.crop((left, top, left + crop_width, top + crop_height))
    labels = None if labels is None else labels[top : top + crop_height, left : left + crop_width]
    image, labels = _shrink(image, labels)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        labels = None if labels is None else labels[:, ::-1]
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.4, 2.5))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5))
    pixels = np.asarray(image).astype(np.float32)
    if rng.random() < 0.4:
        pixels = pixels[..., rng.permutation(3)]
    if rng.random() < 0.5:
        wanted = np.array(colorsys.hsv_to_rgb(*rng.uniform((0, 0, 0.25), (1, 0.9, 1)))) * 255
        pixels *= (wanted / (pixels.mean(axis=(0, 1)) + 1)).clip(0.35, 3).astype(np.float32)
    if rng.random() < _HUE_ODDS:
        pixels = pixels @ _hue_rotation(rng)
    if labels is not None and rng.random() < _SEGMENT_HUE_ODDS:
        some = (rng.random(int(labels.max()) + 1) < 0.4)[labels]
        pixels[some] = pixels[some] @ _hue_rotation(rng)
    if rng.random() < _HAZE_ODDS:
        haze = np.float32(rng.uniform(0, 0.6))
        pixels += haze * (rng.uniform(190, 255, 3).astype(np.float32) - pixels)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels
