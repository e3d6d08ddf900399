# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What can be said of a region from its pixels alone: size, tone, colour, texture, shape and place.

These words label the data of the bundled region captioner and judge its answers, so that each of them can be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("black", "grey", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
TONES = ("dark", "light")
SIZES = ("tiny", "small", "medium", "large")
SIZE_LIMITS = (0.01, 0.05, 0.2)  # of the image area, between neighbouring size words
TEXTURES = ("plain", "textured", "striped", "dotted", "checkered")
SHAPES = ("round", "square", "triangular", "star-shaped", "ring-shaped")
PLACES = ("upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right")

_PLAIN_LIMIT = 6.0  # mean absolute luminance step between neighbouring pixels, 0..255, of a plain photograph region

_PATTERN = re.compile(
    rf"an? (?P<size>{'|'.join(SIZES)}) (?:(?P<tone>{'|'.join(TONES)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<texture>{'|'.join(TEXTURES)}) (?:(?P<shape>{'|'.join(SHAPES)}) )?region at the (?P<place>{'|'.join(PLACES)})"
)


@dataclass(frozen=True)
class RegionWords:
    """The words of one region; `tone` and `shape` may be empty."""

    size: str
    colour: str
    texture: str
    place: str
    tone: str = ""
    shape: str = ""

    def caption(self) -> str:
        """For example "a small dark red striped region at the upper left"."""
        words = ["a", self.size, self.tone, self.colour, self.texture, self.shape, "region at the", self.place]
        return " ".join(word for word in words if word)

    @classmethod
    def parse(cls, caption: str) -> RegionWords | None:
        """The words of a caption, or None if it does not follow the grammar."""
        match = _PATTERN.fullmatch(caption.strip())
        return None if match is None else cls(**{name: word or "" for name, word in match.groupdict().items()})


def vocabulary_captions() -> Iterator[str]:
    """Captions that contain every word at least once, for training a tokenizer without looking at images."""
    for i in range(max(len(COLOURS), len(PLACES))):
        yield RegionWords(
            size=SIZES[i % len(SIZES)],
            tone=TONES[i % len(TONES)],
            colour=COLOURS[i % len(COLOURS)],
            texture=TEXTURES[i % len(TEXTURES)],
            shape=SHAPES[i % len(SHAPES)],
            place=PLACES[i % len(PLACES)],
        ).caption()


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) in 0..255 -> CIELAB (..., 3) with white point D65 (IEC 61966-2-1, CIE 15)."""
    c = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), t * 7.787 + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def colour_words(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names of colours.

    Args:
        rgb: (..., 3) sRGB, 0..255.

    Returns:
        Colour and tone words, string arrays of shape (...); the tone is "" between dark and light. Black, grey and
        white have little chroma; the rest is told by hue, with brown the dark or dull red, orange and yellow, and pink the
        light red.
    """
    lab = rgb_to_lab(rgb)
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    neutral = chroma < 9
    red_hue = (hue < 45) | (hue >= 345)
    conditions = [
        ((lightness < 14) & (chroma < 30)) | (neutral & (lightness < 25)),
        neutral & (lightness > 82),
        neutral,
        (hue >= 15) & (hue < 95) & (chroma < 45) & (lightness < 78),  # skin, tan
        (hue >= 38) & (hue < 95) & (chroma < 58) & (lightness < 72),  # wood
        red_hue & (lightness > 62),
        red_hue,
        (hue < 95) & (lightness < 50),
        hue < 75,
        (hue < 115) & (lightness > 65),
        hue < 185,  # olive is a dark green
        hue < 312,
        lightness > 68,
    ]
    names = (
        "black",
        "white",
        "grey",
        "brown",
        "brown",
        "pink",
        "red",
        "brown",
        "orange",
        "yellow",
        "green",
        "blue",
        "pink",
    )
    colour = np.select(conditions, names, default="purple")
    tone = np.select([np.isin(colour, ("black", "white")), lightness < 36, lightness > 66], ["", "dark", "light"], "")
    return colour, tone


def commonest_colour(pixels: np.ndarray) -> str:
    """The colour word that most of the pixels (n, 3) have by themselves."""
    names, counts = np.unique(colour_words(pixels)[0], return_counts=True)
    return str(names[counts.argmax()])


def size_word(area_fraction: float) -> str:
    """Word for the share of the image area, 0..1."""
    return SIZES[int(np.searchsorted(SIZE_LIMITS, area_fraction, side="right"))]


def place_word(box: Sequence[float], image_size: tuple[int, int]) -> str:
    """Cell of a 3 x 3 grid over the image that holds the box centre.

    Args:
        box: x0 y0 x1 y1, pixels.
        image_size: (height, width), pixels.
    """
    height, width = image_size
    column = int(np.clip((box[0] + box[2]) / 2 / width * 3, 0, 2))
    row = int(np.clip((box[1] + box[3]) / 2 / height * 3, 0, 2))
    return PLACES[3 * row + column]


def texture_word(pixels: np.ndarray) -> str:
    """ "plain" or "textured", from the mean luminance step between neighbours of a patch (h, w, 3), 0..255."""
    luminance = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = [np.abs(np.diff(luminance, axis=axis)) for axis in (0, 1)]
    steps = [step.mean() for step in steps if step.size]
    return "textured" if steps and float(np.mean(steps)) > _PLAIN_LIMIT else "plain"


def describe_region(
    image: np.ndarray, box: Sequence[float], mask: np.ndarray | None = None, texture: str = "", shape: str = ""
) -> RegionWords:
    """The words for a region.

    Args:
        image: (H, W, 3) uint8.
        box: x0 y0 x1 y1, pixels of `image`, inside it.
        mask: (H, W) bool; its pixels and area count instead of the box's.
        texture, shape: known words (generated objects); else the texture is measured and no shape is named.
    """
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(box[0])), int(np.floor(box[1]))
    x1, y1 = max(int(np.ceil(box[2])), x0 + 1), max(int(np.ceil(box[3])), y0 + 1)
    patch = image[y0:y1, x0:x1]
    pixels = patch.reshape(-1, 3) if mask is None else image[mask]
    area = (box[2] - box[0]) * (box[3] - box[1]) if mask is None else float(mask.sum())
    colour, tone = colour_words(pixels.mean(axis=0))
    return RegionWords(
        size=size_word(area / (height * width)),
        tone=str(tone),
        colour=str(colour),
        texture=texture or texture_word(patch),
        shape=shape,
        place=place_word(box, (height, width)),
    )
