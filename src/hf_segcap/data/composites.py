# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Generated objects laid over real photographs, with exact masks: training data for segmentation.

Smooth blobs, polygons and named shapes, filled with generated textures or with pieces of other photographs, overlap each
other and carry smaller shapes as parts, so that a point on a part may mean the part or the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from ..masks import encode_rle
from .cutouts import CUTOUT, Cutouts
from .describe import SHAPES, describe_region, vocabulary_captions
from .photographs import load_photograph, photograph_names
from .synthetic import MIN_VISIBLE_SHARE, TEXTURE_PATTERNS, SyntheticRegions, _background, _texture

OUTLINES = ("blob", "polygon", *SHAPES)
_OUTLINE_ODDS = np.array([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]) / 10
_SIZE_RANGE = (0.14, 0.45)  # radius of an object, of the image's shorter side
_PART_ODDS = 0.15
_PART_RANGE = (0.25, 0.55)  # radius of a part, of its object's
_SHADING_ODDS = 0.3
_PHOTOGRAPH_ODDS = 0.8  # of a photograph as background, otherwise flat colours, gradients or clouds
_SUPERSAMPLING = 3
_REGULAR = {  # corners, and their distances from the centre in turn
    "round": (40, [1.0]),
    "ring-shaped": (40, [1.0]),
    "square": (4, [1.0]),
    "triangular": (3, [1.0]),
    "star-shaped": (10, [1.0, 0.45]),
}
MIN_CONTRAST = 40.0  # between the mean colours of a fill and of what it covers, in the channel that differs most


@dataclass(frozen=True)
class Layer:
    """One object before it is laid over others.

    Attributes:
        top, left: where its patch starts, pixels of the image; the patch lies inside the image.
        alpha: (h, w) float32 coverage of each pixel, 0..1; fractions only on the outline.
        fill: (h, w, 3) float32 colours, 0..255.
        outline: one of `OUTLINES`, or "cutout".
        texture: a word of `TEXTURE_PATTERNS`, or "" for a piece of a photograph.
        parent: index of the layer it is a part of.
    """

    top: int
    left: int
    alpha: np.ndarray
    fill: np.ndarray
    outline: str
    texture: str
    parent: int | None = None

    @property
    def place(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def compose(background: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
    """The background (H, W, 3) float32 with the layers over it, the last one on top; a new float32 array."""
    image = background.copy()
    for layer in layers:
        under = image[layer.place]
        under += layer.alpha[..., None] * (layer.fill - under)
    return image


def visible_masks(layers: Sequence[Layer], size: tuple[int, int]) -> list[np.ndarray]:
    """What can be seen of each layer, its parts included: (H, W) bool, where it covers at least half of the pixel.

    Args:
        layers: back to front, parts after their whole.
        size: (height, width) of the image.
    """
    masks: list[np.ndarray] = []
    for layer in layers:
        covered = layer.alpha >= 0.5
        for other, mask in enumerate(masks):
            if other != layer.parent:  # of a whole, its part hides nothing
                mask[layer.place] &= ~covered
        masks.append(np.zeros(size, dtype=bool))
        masks[-1][layer.place] = covered
    return masks


class CompositeRegions(Dataset):
    """Rows of photographs with generated objects on them (the row format of `hf_segcap.data.sources`).

    Row i depends on `seed` and i only. Masks hold the visible pixels, without those that later objects cover; a whole
    includes its parts. Objects filled with a generated texture have a caption of their true words, others a generic one.

    Args:
        n: number of rows.
        split: "train" or "held_out": the photographs used, see `hf_segcap.data.photographs`.
        photographs: a folder of photographs of yours, used beside those of the split "train".
        photographs_per_row: a row is made of pieces of at most so many photographs, drawn anew for each row, so that objects
            often look like what is behind them; None: of any.
        cutouts: a folder of pictures with transparency, objects of yours for the split "train".
        cutout_share: probability of one of them instead of a generated object.
        seed: of all random decisions.
        min_size, max_size: longest side in pixels; the shorter one is 0.6 to 1 times as long.
        max_objects: objects drawn, at most, parts not counted.
        texture_share: probability of a generated texture as fill of an object, otherwise a piece of a photograph.
        scene_share: probability of a row of [`SyntheticRegions`] instead.
        min_pixels: objects of which fewer pixels, or less than 60 %, can be seen are not listed.

    Raises:
        ValueError: an unknown split, a folder without images or a setting out of range.
    """

    def __init__(
        self,
        n: int,
        split: str = "train",
        seed: int = 0,
        min_size: int = 160,
        max_size: int = 224,
        max_objects: int = 5,
        texture_share: float = 0.6,
        scene_share: float = 0.25,
        min_pixels: int = 100,
        photographs: str | Path | None = None,
        photographs_per_row: int | None = None,
        cutouts: str | Path | None = None,
        cutout_share: float = 0.4,
    ) -> None:
        if not 32 <= min_size <= max_size or max_objects < 1 or min_pixels < 1:
            raise ValueError(
                "expected 32 <= min_size <= max_size, max_objects >= 1 and min_pixels >= 1, got "
                f"{min_size}, {max_size}, {max_objects} and {min_pixels}"
            )
        if photographs_per_row is not None and photographs_per_row < 1:
            raise ValueError(f"photographs_per_row must be None or at least 1, got {photographs_per_row}")
        if not 0 <= texture_share <= 1 or not 0 <= scene_share <= 1:
            raise ValueError(f"expected shares in [0, 1], got texture {texture_share} and scene {scene_share}")
        self.n, self.split, self.seed = n, split, seed
        self.photographs, self.photographs_per_row = photograph_names(split, photographs), photographs_per_row
        self.min_size, self.max_size, self.max_objects = min_size, max_size, max_objects
        self.texture_share, self.scene_share, self.min_pixels = texture_share, scene_share, min_pixels
        self.cutouts = Cutouts.of_split(split, cutouts, cutout_share)
        self._scenes = SyntheticRegions(n, seed=seed, min_size=min_size, max_size=max_size)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.scene_share:
            return self._scenes[index]
        for _ in range(100):
            background, layers = self.draw(rng)
            height, width = background.shape[:2]
            masks = visible_masks(layers, (height, width))
            listed = [i for i, mask in enumerate(masks) if self._is_listed(layers[i], mask)]
            if listed:
                break
        else:
            raise RuntimeError(f"no visible object for seed {self.seed}, index {index}: lower min_pixels")
        pixels = add_noise(rng, compose(background, layers))
        regions = [_region(pixels, layers[i], masks[i]) for i in listed]
        return {
            "image": Image.fromarray(pixels),
            "image_id": index,
            "width": width,
            "height": height,
            "caption": None,
            "regions": regions,
        }

    def _is_listed(self, layer: Layer, mask: np.ndarray) -> bool:
        pixels = np.count_nonzero(mask)
        return bool(pixels >= max(self.min_pixels, MIN_VISIBLE_SHARE * np.count_nonzero(layer.alpha >= 0.5)))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Layer]]:
        """A background (H, W, 3) float32 and the layers to lay over it, parts right after their whole."""
        height, width = draw_size(rng, self.min_size, self.max_size)
        photographs = self.photographs
        if self.photographs_per_row is not None:
            chosen = rng.integers(len(photographs), size=self.photographs_per_row)
            photographs = tuple(photographs[i] for i in chosen)
        background = draw_background(rng, photographs, (height, width))
        layers: list[Layer] = []
        for _ in range(int(rng.integers(1, self.max_objects + 1))):
            radius = np.exp(rng.uniform(*np.log(_SIZE_RANGE))) * min(height, width)
            centre = rng.uniform(0.02, 0.98, 2) * (height, width)
            layer = self._layer(rng, photographs, background, centre, radius)
            if layer is None:
                continue
            layers.append(layer)
            if rng.random() < _PART_ODDS:
                ys, xs = np.nonzero(layer.alpha > 0.5)
                inside = int(rng.integers(len(ys)))
                centre = np.array([layer.top + ys[inside], layer.left + xs[inside]], dtype=np.float64)
                part_radius = radius * rng.uniform(*_PART_RANGE)
                part = self._layer(rng, photographs, background, centre, part_radius, (len(layers) - 1, layer))
                if part is not None:
                    layers.append(part)
        return background, layers

    def _layer(
        self,
        rng: np.random.Generator,
        photographs: Sequence[str],
        background: np.ndarray,
        centre: np.ndarray,
        radius: float,
        whole: tuple[int, Layer] | None = None,
    ) -> Layer | None:
        """An object around `centre` (y, x), or a part of the layer `whole` (with its index); None if none of it is seen."""
        if whole is None and self.cutouts is not None and rng.random() < self.cutouts.share:
            cutout = self.cutouts.draw(rng, centre, radius, (background.shape[0], background.shape[1]))
            return None if cutout is None else Layer(*cutout, CUTOUT, "")
        outline = OUTLINES[int(rng.choice(len(OUTLINES), p=_OUTLINE_ODDS))]
        size = (background.shape[0], background.shape[1])
        drawn = rasterise(draw_outline(rng, outline, centre, radius), size)
        if drawn is None:
            return None
        top, left, alpha = drawn
        height, width = alpha.shape
        place = slice(top, top + height), slice(left, left + width)
        under = background[place]
        if whole is not None:
            cover = np.zeros(size, dtype=np.float32)
            cover[whole[1].place] = whole[1].alpha
            alpha, under = np.minimum(alpha, cover[place]), whole[1].fill
            if alpha.max() < 0.5:
                return None
        for _ in range(3):
            texture = str(rng.choice(TEXTURE_PATTERNS)) if rng.random() < self.texture_share else ""
            fill = draw_fill(rng, photographs, texture, (height, width))
            if np.abs(fill.mean(axis=(0, 1)) - under.mean(axis=(0, 1))).max() > MIN_CONTRAST:
                break
        return Layer(top, left, alpha, fill, outline, texture, None if whole is None else whole[0])

    def texts(self) -> Iterator[str]:
        """Captions with every word of the generated world."""
        return vocabulary_captions()


def _region(pixels: np.ndarray, layer: Layer, mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    shape = layer.outline if layer.outline in SHAPES else ""
    if layer.texture:
        phrase = describe_region(pixels, box, mask, texture=layer.texture, shape=shape).caption()
    else:
        phrase = f"a {shape} object" if shape else "an object"
    return {"box": box, "phrases": [phrase], "mask": encode_rle(mask), "category": layer.outline}


def draw_size(rng: np.random.Generator, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width): the longer side between the limits, the other one 0.6 to 1 times as long."""
    sides = np.array([1.0, rng.uniform(0.6, 1)]) * rng.integers(min_size, max_size + 1)
    height, width = rng.permutation(sides.astype(int)).tolist()
    return height, width


def draw_background(rng: np.random.Generator, photographs: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """A piece of one of the photographs, or flat colours, a gradient or clouds: (height, width, 3) float32, 0..255."""
    if rng.random() < _PHOTOGRAPH_ODDS:
        return photograph_piece(rng, photographs, size, zoom=(0.5, 1.0))
    return _background(rng, size)


def draw_fill(rng: np.random.Generator, photographs: Sequence[str], texture: str, size: tuple[int, int]) -> np.ndarray:
    """What an object of `size` (height, width) is made of, (height, width, 3) float32, 0..255 (shading may go above).

    Args:
        texture: a word of `TEXTURE_PATTERNS`, or "" for a piece of one of the photographs.
    """
    if texture:
        ys, xs = np.divmod(np.arange(size[0] * size[1], dtype=np.float32), size[1])
        colours = np.broadcast_to(_texture(rng, ys, xs, texture), (len(ys), 3))
        fill = colours.astype(np.float32).reshape(*size, 3)
    else:
        fill = photograph_piece(rng, photographs, size, zoom=(0.05, 0.4))
    if rng.random() < _SHADING_ODDS:
        first, last = rng.uniform(0.7, 1.15, 2).tolist()
        ramp = np.linspace(first, last, size[1], dtype=np.float32)
        fill = fill * ramp[None, :, None]
    return fill


def add_noise(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 -> uint8, some pictures with the noise of a camera."""
    if rng.random() < 0.4:
        pixels += rng.uniform(1, 7) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def photograph_piece(
    rng: np.random.Generator, photographs: Sequence[str], size: tuple[int, int], zoom: tuple[float, float]
) -> np.ndarray:
    """A random piece of one of the photographs with shifted colours, (height, width, 3) float32, 0..255.

    Args:
        zoom: range of the piece's share of the largest one of its proportions.
    """
    photograph = load_photograph(photographs[int(rng.integers(len(photographs)))])
    height, width = size
    scale = min(photograph.width / width, photograph.height / height) * rng.uniform(*zoom)
    piece_width, piece_height = width * scale, height * scale
    left, top = rng.uniform(0, photograph.width - piece_width), rng.uniform(0, photograph.height - piece_height)
    box = (left, top, left + piece_width, top + piece_height)
    piece = np.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    if rng.random() < 0.3:
        piece = piece[..., rng.permutation(3)]
    gains = rng.uniform(0.6, 1.4) * rng.uniform(0.8, 1.2, 3)
    return (piece * gains.astype(np.float32)).clip(0, 255)


def draw_outline(rng: np.random.Generator, outline: str, centre: np.ndarray, radius: float) -> list[np.ndarray]:
    """Closed lines (k, 2) of (x, y), pixels: the border of a shape around `centre` (y, x), then those of its holes."""
    turn, stretch, holes = rng.uniform(0, 2 * np.pi), 1.0, []
    if outline == "blob":
        angles = np.arange(48) * (2 * np.pi / 48)
        waves = np.arange(2, 6)[:, None]
        swing = rng.normal(0, 0.35, (4, 1)) / waves
        reach = (1 + (swing * np.cos(waves * angles + rng.uniform(0, 2 * np.pi, (4, 1)))).sum(axis=0)).clip(0.2)
        stretch = rng.uniform(0.35, 1)
        holes = [rng.uniform(0.3, 0.6)] if rng.random() < 0.1 else []
    elif outline == "polygon":
        corners = int(rng.integers(3, 10))
        angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
        reach, stretch = rng.uniform(0.4, 1, corners), rng.uniform(0.4, 1)
    else:
        corners, pattern = _REGULAR[outline]
        angles, reach = np.arange(corners) * (2 * np.pi / corners), np.resize(pattern, corners)
        if outline in ("round", "ring-shaped"):
            stretch = rng.uniform(0.85, 1)
        holes = [rng.uniform(0.4, 0.6)] if outline == "ring-shaped" else []
    reach = reach / reach.max() * radius
    points = np.stack([reach * np.cos(angles), stretch * reach * np.sin(angles)], axis=1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = points @ rotation
    return [points * share + centre[::-1] for share in (1.0, *holes)]


def rasterise(rings: list[np.ndarray], size: tuple[int, int]) -> tuple[int, int, np.ndarray] | None:
    """Coverage of the pixels by a shape: top, left and (h, w) float32 of its part of the image; None if that is empty."""
    low = np.maximum(np.floor(rings[0].min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(rings[0].max(axis=0)) + 1, size[::-1]).astype(int)
    width, height = (high - low).tolist()
    if width < 1 or height < 1:
        return None
    canvas = Canvas((height, width), low)
    canvas.shape(rings)
    alpha = canvas.coverage()
    return (int(low[1]), int(low[0]), alpha) if alpha.max() >= 0.5 else None


class Canvas:
    """Draws antialiased shapes and lines, 3 x 3 samples per pixel.

    Args:
        size: (height, width), pixels.
        origin: (x, y) of its first pixel in the coordinates of what is drawn.
        value: of the empty canvas, 0..255.
    """

    def __init__(self, size: tuple[int, int], origin: np.ndarray | tuple[int, int] = (0, 0), value: int = 0) -> None:
        self.origin = np.asarray(origin)
        self._picture = Image.new("L", (size[1] * _SUPERSAMPLING, size[0] * _SUPERSAMPLING), value)
        self._draw = ImageDraw.Draw(self._picture)

    def shape(self, rings: list[np.ndarray]) -> None:
        """Fills a closed line (k, 2) of (x, y) and empties the other ones, its holes."""
        for number, ring in enumerate(rings):
            self._draw.polygon(self._samples(ring).ravel().tolist(), fill=0 if number else 255)

    def lines(self, paths: np.ndarray, widths: np.ndarray, values: np.ndarray) -> None:
        """Lines one over the other: (n, k, 2) of (x, y), n widths in thirds of a pixel, n values 0..255."""
        flat = self._samples(paths).reshape(len(paths), -1).tolist()
        for path, width, value in zip(flat, widths.tolist(), values.tolist()):
            self._draw.line(path, fill=value, width=width)

    def coverage(self) -> np.ndarray:
        """(height, width) float32, 0..1."""
        return np.asarray(self._picture.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)

    def _samples(self, points: np.ndarray) -> np.ndarray:
        return (points - self.origin) * _SUPERSAMPLING
