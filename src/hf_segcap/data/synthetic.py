# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A generated world: scenes of overlapping coloured and textured shapes with exact masks and true captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from ..masks import encode_rle
from .describe import COLOURS, SHAPES, colour_words, describe_region, vocabulary_captions

TEXTURE_PATTERNS = ("plain", "striped", "dotted", "checkered")
MIN_VISIBLE_SHARE = 0.6  # of an object that others cover; below, its shape can no longer be told
_MIN_VISIBLE_PIXELS = 40


@dataclass(frozen=True)
class SceneObject:
    """One visible object: its mask (H, W) bool, box x0 y0 x1 y1 (pixels, exclusive end) and true words."""

    mask: np.ndarray
    box: tuple[float, float, float, float]
    shape: str
    texture: str
    caption: str


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8 and its objects, back to front."""

    image: np.ndarray
    objects: list[SceneObject]


@cache
def _palette() -> dict[str, np.ndarray]:
    """Random sRGB values of each colour word, so that words and not hues are equally frequent."""
    rgb = np.random.default_rng(0).integers(0, 256, (60_000, 3))
    names, _ = colour_words(rgb)
    greys = np.random.default_rng(1).integers(0, 256, (3_000, 1)) + np.random.default_rng(2).integers(
        -4, 5, (3_000, 3)
    )
    greys = greys.clip(0, 255)
    rgb, names = np.concatenate([rgb, greys]), np.concatenate([names, colour_words(greys)[0]])
    return {name: rgb[names == name] for name in COLOURS}


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) float sRGB, 0..255; every colour word is equally likely."""
    values = _palette()[COLOURS[int(rng.integers(len(COLOURS)))]]
    return values[int(rng.integers(len(values)))].astype(np.float64)


def generate_scene(
    rng: np.random.Generator, size: tuple[int, int] = (192, 192), num_objects: int | None = None
) -> Scene:
    """Draws a scene.

    Args:
        rng: source of all decisions.
        size: (height, width), pixels.
        num_objects: objects drawn (some may end up covered); default 3 to 9.
    """
    image = _background(rng, size)
    count = int(rng.integers(3, 10)) if num_objects is None else num_objects
    drawn: list[tuple[np.ndarray, int, str, str]] = []
    for _ in range(count):
        shape, texture = str(rng.choice(SHAPES)), str(rng.choice(TEXTURE_PATTERNS))
        mask = _shape_mask(rng, size, shape)
        if not mask.any():
            continue
        ys, xs = np.nonzero(mask)
        image[ys, xs] = _texture(rng, ys, xs, texture)
        drawn = [(other & ~mask, area, *rest) for other, area, *rest in drawn]
        drawn.append((mask, int(mask.sum()), shape, texture))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    pixels = (image + rng.uniform(0, 6) * noise).clip(0, 255).astype(np.uint8)
    objects = []
    for mask, area, shape, texture in drawn:
        visible = int(mask.sum())
        if visible >= max(_MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * area):
            ys, xs = np.nonzero(mask)
            box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
            words = describe_region(pixels, box, mask, texture=texture, shape=shape)
            objects.append(SceneObject(mask, box, shape, texture, words.caption()))
    return Scene(pixels, objects)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Flat, gradient or clouds, (H, W, 3) float32."""
    height, width = size
    first, second = (random_colour(rng).astype(np.float32) for _ in range(2))
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(first, (height, width, 3)).copy()
    if kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.arange(height)[:, None] / height * np.sin(angle) + np.arange(width)[None] / width * np.cos(angle)
        ramp = (ramp - ramp.min()) / np.ptp(ramp)
    else:
        cells = rng.integers(3, 12, 2)
        clouds = Image.fromarray(rng.integers(0, 256, cells, dtype=np.uint8))
        ramp = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC)) / np.float32(255)
    return first + (second - first) * ramp[..., None].astype(np.float32)


def _shape_mask(rng: np.random.Generator, size: tuple[int, int], shape: str) -> np.ndarray:
    """A shape of random size, place and rotation, (H, W) bool; it may leave the image."""
    height, width = size
    radius = np.exp(rng.uniform(np.log(0.05), np.log(0.33))) * min(size)
    cx, cy = rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    if shape in ("round", "ring-shaped"):
        rx, ry = radius * rng.uniform(0.85, 1, 2)
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=1)
        if shape == "ring-shaped":
            inner = rng.uniform(0.4, 0.6)
            draw.ellipse((cx - rx * inner, cy - ry * inner, cx + rx * inner, cy + ry * inner), fill=0)
        return np.array(canvas)
    corners, radii = {"square": (4, [1.0]), "triangular": (3, [1.0]), "star-shaped": (10, [1.0, 0.45])}[shape]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    reach = radius * np.resize(radii, corners)
    draw.polygon([(cx + r * np.cos(a), cy + r * np.sin(a)) for r, a in zip(reach, angles)], fill=1)
    return np.array(canvas)


def _texture(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, texture: str) -> np.ndarray:
    """Colours (n, 3) of the pixels at (y, x); the second colour of a pattern is a clearly darker or lighter first one."""
    colour = random_colour(rng)
    if texture == "plain":
        return colour[None]
    factor = rng.uniform(0.35, 0.65)
    other = colour * factor if colour.mean() > 70 else 255 - (255 - colour) * factor
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 16)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period
    v = (y * np.cos(angle) - x * np.sin(angle)) / period
    if texture == "striped":
        chosen = u % 1 < 0.5
    elif texture == "checkered":
        chosen = (u % 1 < 0.5) ^ (v % 1 < 0.5)
    else:
        chosen = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3
    return np.where(chosen[:, None], other, colour)


class SyntheticRegions(Dataset):
    """Rows of generated scenes (the row format of `hf_segcap.data.sources`); row i depends on `seed` and i only.

    Args:
        n: number of scenes.
        seed: of all scenes; other seeds give other scenes.
        min_size, max_size: longest side in pixels; the shorter one is 0.6 to 1 times as long.
    """

    def __init__(self, n: int, seed: int = 0, min_size: int = 160, max_size: int = 224) -> None:
        self.n, self.seed, self.min_size, self.max_size = n, seed, min_size, max_size

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> Scene:
        """The scene of a row; scenes always show at least one object."""
        for attempt in range(100):
            rng = np.random.default_rng([self.seed, index, attempt])
            sides = np.array([1.0, rng.uniform(0.6, 1)]) * rng.integers(self.min_size, self.max_size + 1)
            height, width = rng.permutation(sides.astype(int)).tolist()
            scene = generate_scene(rng, (height, width))
            if scene.objects:
                return scene
        raise RuntimeError(f"no scene with a visible object for seed {self.seed}, index {index}")

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        scene = self.scene(index)
        return {
            "image": Image.fromarray(scene.image),
            "image_id": index,
            "width": scene.image.shape[1],
            "height": scene.image.shape[0],
            "caption": None,
            "regions": [
                {"box": list(o.box), "phrases": [o.caption], "mask": encode_rle(o.mask), "category": o.shape}
                for o in scene.objects
            ],
        }

    def texts(self) -> Iterator[str]:
        """Captions with every word of the generated world."""
        return vocabulary_captions()
