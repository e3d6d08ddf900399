# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Generated objects with exact alpha mattes over photographs: hair, fur, soft edges, lace, motion blur, glass.

Every object is a layer of colours F with a matte a; pictures are composed back to front, I = a F + (1 - a) I. The matte of
a region is what can be seen of its object, so the picture is the sum of all visible mattes times their colours and of what
is left of the background. Glass is tinted and shines but does not bend the light.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from .alpha import alpha_region, encode_alpha
from .composites import (
    MIN_CONTRAST,
    Canvas,
    Layer,
    add_noise,
    compose,
    draw_background,
    draw_fill,
    draw_outline,
    draw_size,
)
from .cutouts import CUTOUT, Cutouts
from .photographs import photograph_names
from .synthetic import TEXTURE_PATTERNS, random_colour

KINDS = ("hair", "fur", "soft", "lace", "blur", "glass", "solid")
_KIND_ODDS = dict(zip(KINDS, (3, 3, 2, 2, 1.5, 1.5, 2)))
_SIZE_RANGE = (0.14, 0.5)  # radius of an object, of the image's shorter side
_OUTLINES = ("blob", "polygon", "round", "ring-shaped", "star-shaped")
_OUTLINE_ODDS = np.array([5.0, 2.0, 1.5, 0.75, 0.75]) / 10
_TEXTURE_SHARE = 0.3  # of fills with a generated texture, otherwise a piece of a photograph
_MIN_SEEN = 0.2  # share of an object that must be seen
_STRAND_POINTS = 6


@dataclass(frozen=True)
class _Drawn:
    """An object without its colours; the arrays (h, w) lie inside the image.

    Attributes:
        top, left: of the first pixel, in the image.
        alpha: float32, 0..1.
        tone: what the colours are multiplied by, or None.
        shine: 0..1, how far the colours become white, or None.
        motion: (n, 2) whole-pixel steps (y, x) over which the colours are smeared, or None.
    """

    top: int
    left: int
    alpha: np.ndarray
    tone: np.ndarray | None = None
    shine: np.ndarray | None = None
    motion: np.ndarray | None = None


def visible_alphas(layers: Sequence[Layer], size: tuple[int, int]) -> list[np.ndarray]:
    """What can be seen of each layer, (H, W) float32: its matte times what the layers above let through.

    Args:
        layers: back to front.
        size: (height, width) of the image.
    """
    alphas: list[np.ndarray] = []
    for layer in layers:
        for other in alphas:
            other[layer.place] *= 1 - layer.alpha
        alphas.append(np.zeros(size, dtype=np.float32))
        alphas[-1][layer.place] = layer.alpha
    return alphas


class MatteComposites(Dataset):
    """Rows of photographs with generated objects on them, each with its alpha matte (see the module's description).

    The row format is that of `hf_segcap.data.sources`; a region also has `alpha`, an 8-bit grey PNG (bytes) of the visible
    matte; `box` is around the pixels above 0.1, `mask` the COCO RLE of those above 0.5, `category` one of `KINDS` or "cutout",
    `phrases` empty. Row i depends on `seed` and i only.

    Args:
        n: number of rows.
        split: "train" or "held_out": the photographs used, see `hf_segcap.data.photographs`.
        photographs: a folder of photographs of yours, used beside those of the split "train".
        cutouts: a folder of pictures with transparency, objects of yours for the split "train".
        cutout_share: probability of one of them instead of a generated object.
        pied_share: probability of patches of other colours on an object that is not glass, as on the coat of a pied animal.
        seed: of all random decisions.
        min_size, max_size: longest side in pixels; the shorter one is 0.6 to 1 times as long.
        max_objects: objects drawn, at most.
        kinds: relative odds of the kinds of objects; default: all.
        min_pixels: objects whose visible matte sums up to less are not listed.

    Raises:
        ValueError: an unknown split or kind, a folder without images, or a setting out of range.
        ImportError: scikit-image, which holds the photographs, is not installed.
    """

    def __init__(
        self,
        n: int,
        split: str = "train",
        seed: int = 0,
        min_size: int = 160,
        max_size: int = 256,
        max_objects: int = 3,
        kinds: Mapping[str, float] | None = None,
        min_pixels: int = 60,
        photographs: str | Path | None = None,
        pied_share: float = 0.0,
        cutouts: str | Path | None = None,
        cutout_share: float = 0.4,
    ) -> None:
        if not 32 <= min_size <= max_size or max_objects < 1 or min_pixels < 1:
            raise ValueError(
                "expected 32 <= min_size <= max_size, max_objects >= 1 and min_pixels >= 1, got "
                f"{min_size}, {max_size}, {max_objects} and {min_pixels}"
            )
        odds = _KIND_ODDS if kinds is None else dict(kinds)
        if set(odds) - set(KINDS) or min(odds.values(), default=0) < 0 or not sum(odds.values()) > 0:
            raise ValueError(f"kinds must give odds for some of {KINDS}, got {odds}")
        if not 0 <= pied_share <= 1:
            raise ValueError(f"pied_share must lie in [0, 1], got {pied_share}")
        self.n, self.split, self.seed = n, split, seed
        self.photographs, self.pied_share = photograph_names(split, photographs), pied_share
        self.cutouts = Cutouts.of_split(split, cutouts, cutout_share)
        self.min_size, self.max_size, self.max_objects = min_size, max_size, max_objects
        self.min_pixels = min_pixels
        self.kinds = {kind: value / sum(odds.values()) for kind, value in odds.items()}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        rng = np.random.default_rng([self.seed, index])
        for _ in range(100):
            background, layers = self.draw(rng)
            height, width = background.shape[:2]
            seen = [
                (layer, alpha)
                for layer, alpha in zip(layers, visible_alphas(layers, (height, width)))
                if (left := float(alpha.sum())) >= self.min_pixels and left >= _MIN_SEEN * float(layer.alpha.sum())
            ]
            if seen:
                break
        else:
            raise RuntimeError(f"no visible object for seed {self.seed}, index {index}: lower min_pixels")
        return {
            "image": Image.fromarray(add_noise(rng, compose(background, layers))),
            "image_id": index,
            "width": width,
            "height": height,
            "caption": None,
            "regions": [alpha_region(alpha, encode_alpha(alpha), layer.outline) for layer, alpha in seen],
        }

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Layer]]:
        """A background (H, W, 3) float32, 0..255, and the layers to lay over it, back to front; `outline` is the kind."""
        size = draw_size(rng, self.min_size, self.max_size)
        background = draw_background(rng, self.photographs, size)
        layers: list[Layer] = []
        for _ in range(int(rng.integers(1, self.max_objects + 1))):
            kind = str(rng.choice(list(self.kinds), p=list(self.kinds.values())))
            radius = np.exp(rng.uniform(*np.log(_SIZE_RANGE))) * min(size)
            centre = rng.uniform(0.05, 0.95, 2) * size
            if self.cutouts is not None and rng.random() < self.cutouts.share:
                cutout = self.cutouts.draw(rng, centre, radius, size)
                if cutout is not None:
                    layers.append(Layer(*cutout, CUTOUT, ""))
                continue
            drawn = _DRAWERS[kind](rng, centre, radius, size)
            if drawn is not None:
                layers.append(self._coloured(rng, kind, drawn, background))
        return background, layers

    def _coloured(self, rng: np.random.Generator, kind: str, drawn: _Drawn, background: np.ndarray) -> Layer:
        height, width = drawn.alpha.shape
        place = slice(drawn.top, drawn.top + height), slice(drawn.left, drawn.left + width)
        under = background[place].mean(axis=(0, 1))
        for _ in range(3):
            fill = self._fill(rng, kind, (height, width))
            if kind != "glass" and self.pied_share and rng.random() < self.pied_share:
                fill = self._pied(rng, kind, fill, (height, width))
            if drawn.tone is not None:
                fill = fill * drawn.tone[..., None]
            if drawn.motion is not None:
                fill = _smeared(fill, drawn.motion, "edge")
            if np.abs(fill.mean(axis=(0, 1)) - under).max() > MIN_CONTRAST:
                break
        if drawn.shine is not None:
            fill = fill + (255 - fill) * drawn.shine[..., None]
        return Layer(drawn.top, drawn.left, drawn.alpha, fill.clip(0, 255), kind, "")

    def _fill(self, rng: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
        """(h, w, 3) float32, or (1, 1, 3) where the colour is the same everywhere."""
        if kind == "glass":
            return (255 - rng.uniform(0, 0.6) * (255 - random_colour(rng)))[None, None].astype(np.float32)
        if kind in ("hair", "fur") and rng.random() < 0.6:  # one colour, varied by the tone of the strands
            return random_colour(rng)[None, None].astype(np.float32)
        texture = str(rng.choice(TEXTURE_PATTERNS)) if rng.random() < _TEXTURE_SHARE else ""
        return draw_fill(rng, self.photographs, texture, size)

    def _pied(self, rng: np.random.Generator, kind: str, fill: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(h, w, 3) float32: the fill with 1 to 4 patches of others of its kind on it."""
        fill = np.broadcast_to(fill, (*size, 3))
        for _ in range(int(rng.integers(1, 5))):
            canvas = Canvas(size, (0, 0))
            canvas.shape(draw_outline(rng, "blob", rng.random(2) * size, rng.uniform(0.15, 0.5) * max(size)))
            cover = _blurred(canvas.coverage(), rng.uniform(0.3, 4))[..., None]
            fill = fill + cover * (self._fill(rng, kind, size) - fill)
        return fill

    def texts(self) -> Iterator[str]:
        """None: the regions have no words."""
        return iter(())


# --- kinds of objects: (source of decisions, centre (y, x), radius in pixels, (height, width) of the image) -----------


def _solid(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """Opaque up to its border."""
    shape = _shape(rng, centre, radius, size, 0)
    return None if shape is None else _cropped(*shape, size)


def _soft(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """Out of focus, all over or towards one side; or smoke, whose density varies inside too."""
    sigma = radius * np.exp(rng.uniform(np.log(0.02), np.log(0.25)))
    shape = _shape(rng, centre, radius, size, int(np.ceil(2 * sigma)))
    if shape is None:
        return None
    top, left, sharp = shape
    alpha = _blurred(sharp, sigma)
    draw = rng.random()
    if draw < 0.35:
        ys, xs = np.ogrid[: alpha.shape[0], : alpha.shape[1]]
        angle = rng.uniform(0, 2 * np.pi)
        along = ((ys + top - centre[0]) * np.sin(angle) + (xs + left - centre[1]) * np.cos(angle)) / radius
        share = (along + 0.5).clip(0, 1).astype(np.float32)
        alpha = sharp + share * (alpha - sharp)
    elif draw < 0.65:
        density = _clouds(rng, int(rng.integers(3, 9)), alpha.shape)
        alpha = alpha * (rng.uniform(0, 0.6) + rng.uniform(0.6, 1.4) * density).clip(0, 1).astype(np.float32)
    return _cropped(top, left, alpha, size)


def _lace(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """With many holes: a net, a perforated sheet, a fence or leaves."""
    shape = _shape(rng, centre, radius, size, 0)
    if shape is None:
        return None
    top, left, alpha = shape
    height, width = alpha.shape
    pattern = int(rng.integers(4))
    if pattern == 3:
        noise = _clouds(rng, max(4, int(radius / rng.uniform(3, 7))), alpha.shape)
        return _cropped(
            top, left, alpha * ((noise - rng.uniform(0.35, 0.55)) * rng.uniform(6, 16) + 0.5).clip(0, 1), size
        )
    period, angle = rng.uniform(6, 16), rng.uniform(0, np.pi)
    ys, xs = np.ogrid[:height, :width]
    u, v = xs * np.cos(angle) + ys * np.sin(angle), ys * np.cos(angle) - xs * np.sin(angle)
    reach, wave = rng.uniform(0, 0.6) * period, rng.uniform(3, 8) * period
    u, v = u + reach * np.sin(v * (2 * np.pi / wave)), v + reach * np.sin(u * (2 * np.pi / wave))
    across, down = ((w / period % 1 - 0.5) * period for w in (u, v))  # to the middle of the cell, pixels
    if pattern == 0:
        middle = rng.uniform(0.3, 1.2)  # half a thread, pixels
        alpha = alpha * (middle + 0.5 - np.minimum(np.abs(across), np.abs(down))).clip(0, 1)
    elif pattern == 1:
        alpha = alpha * (np.hypot(across, down) - rng.uniform(0.25, 0.45) * period + 0.5).clip(0, 1)
    else:
        alpha = alpha * (rng.uniform(0.15, 0.35) * period + 0.5 - np.abs(across)).clip(0, 1)
    return _cropped(top, left, alpha, size)


def _motion_blur(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """Moved along a line while it was seen."""
    length, angle = radius * rng.uniform(0.2, 0.9), rng.uniform(0, np.pi)
    margin = int(np.ceil(length / 2)) + 1
    shape = _shape(rng, centre, radius, size, margin)
    if shape is None:
        return None
    top, left, sharp = shape
    steps = np.linspace(-0.5, 0.5, max(3, int(length)))[:, None] * length
    motion = np.rint(steps * (np.sin(angle), np.cos(angle))).astype(int)
    drawn = _cropped(top, left, _smeared(sharp, motion, "constant"), size)
    return None if drawn is None else replace(drawn, motion=motion[:: max(1, len(motion) // 8)])


def _glass(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """See-through, denser at its border, with highlights."""
    shape = _shape(rng, centre, radius, size, 2)
    if shape is None:
        return None
    top, left, cover = shape
    border = (2 * (1 - _blurred(cover, radius * rng.uniform(0.06, 0.2)))).clip(0, 1) ** 2
    base = rng.uniform(0.05, 0.4)
    alpha = cover * (base + (rng.uniform(0.45, 0.95) - base) * border)
    shine = np.zeros_like(alpha)
    ys, xs = np.ogrid[: alpha.shape[0], : alpha.shape[1]]
    for _ in range(int(rng.integers(0, 4))):
        y, x = centre + rng.uniform(-0.5, 0.5, 2) * radius - (top, left)
        turn, reach, flat = rng.uniform(0, np.pi), radius * rng.uniform(0.05, 0.25), rng.uniform(1, 5)
        u, v = (xs - x) * np.cos(turn) + (ys - y) * np.sin(turn), (ys - y) * np.cos(turn) - (xs - x) * np.sin(turn)
        spot = np.exp(-((u * u + (flat * v) ** 2) / (reach * reach)).clip(0, 40)).astype(np.float32)
        shine = np.maximum(shine, rng.uniform(0.4, 1) * spot)
    alpha = np.maximum(alpha, cover * shine * np.float32(0.95))
    return _cropped(top, left, alpha, size, shine=shine)


def _fur(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """A body with short strands all along its border."""
    rings = draw_outline(rng, str(rng.choice(("blob", "round", "polygon"), p=(0.7, 0.2, 0.1))), centre, radius * 0.85)
    length = radius * rng.uniform(0.08, 0.3)
    count = int(min(_perimeter(rings[0]) * rng.uniform(0.8, 2), 700))
    roots, outward = _along(rings[0], np.sort(rng.random(count)))
    lean = rng.normal(0, 0.5) + 0.6 * np.sin(
        np.linspace(0, 2 * np.pi, count) * int(rng.integers(1, 4)) + rng.uniform(0, 6)
    )
    directions = _turned(outward, lean + rng.normal(0, 0.3, count))
    roots = roots - outward * (length * rng.uniform(0.1, 0.7, (count, 1)))
    lengths = length * rng.uniform(0.7, 1.6, count)
    paths = _strands(roots, directions, lengths, rng.normal(0, 0.25, count))
    inside = _strand_tones(rng, rings[0], directions, length)
    return _with_strands(rng, rings, paths, size, inside)


def _hair(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> _Drawn | None:
    """Long strands in locks around a body, or a tuft without one, such as grass."""
    tuft = rng.random() < 0.25
    locks, count = int(rng.integers(5, 22)), int(rng.integers(60, 260))
    lock = rng.integers(0, locks, count)
    if tuft:
        rings = []
        across = np.sort(rng.uniform(-0.6, 0.6, locks))[lock] + rng.normal(0, 0.06, count)
        lean = rng.normal(0, 0.4)
        foot = np.stack([across, np.full(count, 0.8) + rng.normal(0, 0.03, count)], axis=1) * radius
        roots = _turned(foot, lean) + centre[::-1]
        spread = across * rng.uniform(0.3, 1.2) + rng.normal(0, 0.2, locks)[lock] + rng.normal(0, 0.1, count)
        directions = _turned(np.array([[0.0, -1.0]]), spread + lean)
        lengths = radius * rng.uniform(0.7, 1.7, locks)[lock] * rng.uniform(0.6, 1, count)
    else:
        rings = draw_outline(rng, "blob", centre, radius * rng.uniform(0.45, 0.75))
        first, span = rng.random(), rng.uniform(0.35, 1)
        places = (first + span * (rng.random(locks)[lock] + rng.normal(0, 0.02, count))) % 1
        roots, outward = _along(rings[0], places)
        roots = roots - outward * (radius * rng.uniform(0.02, 0.25, (count, 1)))
        pull = _turned(np.array([[0.0, 1.0]]), rng.normal(0, 0.6)) * rng.uniform(0, 1.2)  # gravity and wind
        turn = rng.normal(0, 0.4, locks)[lock] + rng.normal(0, 0.12, count)
        directions = _turned(outward, turn) + pull
        directions /= np.linalg.norm(directions, axis=1, keepdims=True).clip(1e-6)
        lengths = radius * rng.uniform(0.3, 1.1, locks)[lock] * rng.uniform(0.6, 1, count)
    bend = rng.normal(0, 0.35, locks)[lock] + rng.normal(0, 0.08, count)
    paths = _strands(roots, directions, lengths, bend, rng.uniform(0, 0.12), rng.uniform(0, 6, locks)[lock])
    inside = None if tuft else _strand_tones(rng, rings[0], directions, radius * 0.4)
    return _with_strands(rng, rings, paths, size, inside)


_DRAWERS: dict[str, Callable[[np.random.Generator, np.ndarray, float, tuple[int, int]], _Drawn | None]] = {
    "hair": _hair,
    "fur": _fur,
    "soft": _soft,
    "lace": _lace,
    "blur": _motion_blur,
    "glass": _glass,
    "solid": _solid,
}


# --- strands ----------------------------------------------------------------------------------------------------------


def _perimeter(ring: np.ndarray) -> float:
    return float(np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1).sum())


def _along(ring: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) at shares 0..1 of the way around a closed line, and the directions (n, 2) out of it there."""
    edges = np.roll(ring, -1, axis=0) - ring
    lengths = np.linalg.norm(edges, axis=1).clip(1e-9)
    ends = np.cumsum(lengths)
    way = places * ends[-1]
    edge = np.searchsorted(ends, way, side="right").clip(max=len(ring) - 1)
    share = (way - (ends - lengths)[edge]) / lengths[edge]
    points = ring[edge] + share[:, None] * edges[edge]
    area = float(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - np.roll(ring[:, 0], -1) * ring[:, 1]))
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1) / lengths[:, None] * (1 if area > 0 else -1)
    return points, normals[edge]


def _turned(vectors: np.ndarray, angles: np.ndarray | float) -> np.ndarray:
    """(n, 2) vectors turned by n angles."""
    cos, sin = np.cos(angles), np.sin(angles)
    x, y = vectors[:, 0], vectors[:, 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=1)


def _strands(
    roots: np.ndarray,
    directions: np.ndarray,
    lengths: np.ndarray,
    bend: np.ndarray,
    wave: float = 0.0,
    phase: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Curves (n, k, 2): from their roots along their directions, more and more to one side, and waving."""
    t = np.linspace(0, 1, _STRAND_POINTS)
    side = np.stack([-directions[:, 1], directions[:, 0]], axis=1)
    swing = bend[:, None] * t**2 + wave * t * np.sin(9 * t + np.reshape(phase, (-1, 1)))
    ways = directions[:, None] * t[:, None] + side[:, None] * swing[..., None]
    return roots[:, None] + lengths[:, None, None] * ways


def _strand_tones(rng: np.random.Generator, ring: np.ndarray, directions: np.ndarray, length: float) -> np.ndarray:
    """Curves (n, k, 2) that cover a body, to vary its tone."""
    low, high = ring.min(axis=0), ring.max(axis=0)
    count = int(rng.integers(60, 250))
    roots = rng.uniform(low, high, (count, 2))
    chosen = directions[rng.integers(0, len(directions), count)]
    return _strands(roots, chosen, length * rng.uniform(0.6, 1.5, count), rng.normal(0, 0.3, count))


def _with_strands(
    rng: np.random.Generator,
    rings: list[np.ndarray],
    paths: np.ndarray,
    size: tuple[int, int],
    inside: np.ndarray | None,
) -> _Drawn | None:
    """A body (or none) and strands that get thinner and fainter; their tones differ.

    Args:
        inside: curves that only vary the tone.
    """
    points = np.concatenate([*rings, paths.reshape(-1, 2)])
    window = _window(points, size, 0)
    if window is None:
        return None
    top, left, height, width = window
    canvas = Canvas((height, width), (left, top))
    widths = rng.integers(1, int(rng.integers(2, 5)), len(paths))
    half = _STRAND_POINTS // 2
    canvas.lines(paths[:, half:], (widths - 1).clip(1), rng.integers(110, 220, len(paths)))
    canvas.lines(paths[:, : half + 1], widths, rng.integers(190, 256, len(paths)))
    if rings:
        canvas.shape(rings)
    alpha = canvas.coverage()
    if alpha.max() < 0.2:
        return None
    curves = paths if inside is None else np.concatenate([paths, inside])
    spread = rng.uniform(15, 90)
    tones = (128 + spread * rng.standard_normal(len(curves))).clip(1, 255).astype(int)
    tone = Canvas((height, width), (left, top), value=128)
    tone.lines(curves, np.full(len(curves), int(rng.integers(3, 6))), tones)
    found = _blurred(tone.coverage(), 0.6)
    return _Drawn(top, left, alpha, tone=0.45 + np.float32(255 / 128 * 0.55) * found)


# --- patches of the image ---------------------------------------------------------------------------------------------


def _window(points: np.ndarray, size: tuple[int, int], margin: int) -> tuple[int, int, int, int] | None:
    """top, left, height, width of the part of the image, and of `margin` pixels around it, that (n, 2) points (x, y) and
    the margin around them span; None if that is less than a pixel."""
    limit = np.array(size[::-1]) + margin
    low = np.maximum(np.floor(points.min(axis=0)) - margin, -margin).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0)) + 1 + margin, limit).astype(int)
    (left, top), (width, height) = low.tolist(), (high - low).tolist()
    return (top, left, height, width) if height > 0 and width > 0 else None


def _shape(
    rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int], margin: int
) -> tuple[int, int, np.ndarray] | None:
    """top, left and coverage (h, w) of a random shape with `margin` pixels around it, also outside the image."""
    outline = _OUTLINES[int(rng.choice(len(_OUTLINES), p=_OUTLINE_ODDS))]
    rings = draw_outline(rng, outline, centre, radius)
    window = _window(rings[0], size, margin)
    if window is None:
        return None
    top, left, height, width = window
    canvas = Canvas((height, width), (left, top))
    canvas.shape(rings)
    return top, left, canvas.coverage()


def _smeared(values: np.ndarray, motion: np.ndarray, outside: Literal["constant", "edge"]) -> np.ndarray:
    """The mean of copies of (h, w, ...) float32 moved by (n, 2) steps (y, x); outside are zeros or the border's values."""
    margin = int(np.abs(motion).max())
    padded = np.pad(values, [(margin, margin)] * 2 + [(0, 0)] * (values.ndim - 2), mode=outside)
    height, width = values.shape[:2]
    total = np.zeros_like(values)
    for y, x in (motion + margin).tolist():
        total += padded[y : y + height, x : x + width]
    return total / np.float32(len(motion))


def _cropped(
    top: int, left: int, alpha: np.ndarray, size: tuple[int, int], shine: np.ndarray | None = None
) -> _Drawn | None:
    """The part inside the image; None if nothing of it is seen."""
    rows = slice(max(-top, 0), size[0] - top)
    columns = slice(max(-left, 0), size[1] - left)
    inside = alpha[rows, columns].astype(np.float32)
    if inside.size == 0 or inside.max() < 0.2:
        return None
    return _Drawn(max(top, 0), max(left, 0), inside, shine=None if shine is None else shine[rows, columns])


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """(h, w) float32, 0..1, after a Gaussian; border values go on outside."""
    picture = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(sigma))), dtype=np.float32) / np.float32(255)


def _clouds(rng: np.random.Generator, cells: int, size: tuple[int, ...]) -> np.ndarray:
    """Smooth noise (h, w) float32, 0..1, of about `cells` x `cells` spots."""
    picture = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255)
