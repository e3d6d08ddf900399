# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Small pictures of mattes side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.alpha import alpha_box

Item = tuple[str, Image.Image, Mapping[str, Any], Mapping[str, np.ndarray]]

_TILE, _TITLE, _GAP = 150, 16, 4  # pixels
_AROUND = 0.3  # of the object's sides, shown around it
_INSIDE, _OUTSIDE = (40, 220, 90), (235, 60, 60)
_PAPER, _INK = (250, 250, 250), (20, 20, 20)


def contact_sheet(items: Iterable[Item], columns: int = 2) -> Image.Image:
    """A picture with a title and small pictures of each item: its image with the prompt, then its mattes.

    What is shown is the surroundings of the object in the first matte. Of each item only the small pictures are kept.

    Args:
        items: title; image; prompt (`input_boxes`, or `input_points` with `point_labels`, pixels of the image); mattes
            (H, W) in [0, 1] by name, the same names for all items.
        columns: items side by side.

    Raises:
        ValueError: no items.
    """
    shown = [(title, _pictures(image, prompt, mattes)) for title, image, prompt, mattes in items]
    if not shown:
        raise ValueError("there is nothing to show")
    names = list(shown[0][1])
    width, height = len(names) * (_TILE + _GAP) + 2 * _GAP, _TILE + _TITLE + 2 * _GAP
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height + _TITLE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for number, (title, pictures) in enumerate(shown):
        left, top = number % columns * width + _GAP, number // columns * height + _TITLE
        draw.text((left, top), title[: width // 6], fill=_INK, font=font)
        for place, picture in enumerate(pictures.values()):
            sheet.paste(picture, (left + place * (_TILE + _GAP), top + _TITLE))
    for column in range(min(columns, len(shown))):
        for place, name in enumerate(names):
            draw.text((column * width + _GAP + place * (_TILE + _GAP), 1), name, fill=_INK, font=font)
    return sheet


def _pictures(
    image: Image.Image, prompt: Mapping[str, Any], mattes: Mapping[str, np.ndarray]
) -> dict[str, Image.Image]:
    """The small pictures of an item by name."""
    window = _window(next(iter(mattes.values())))
    return {
        "image": _with_prompt(image, prompt, window),
        **{name: _grey(matte, window) for name, matte in mattes.items()},
    }


def _window(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the object and what is around it."""
    height, width = alpha.shape
    x0, y0, x1, y1 = alpha_box(alpha) or (0, 0, width, height)
    across, down = _AROUND * (x1 - x0), _AROUND * (y1 - y0)
    return (
        max(0, int(x0 - across)),
        max(0, int(y0 - down)),
        min(width, int(np.ceil(x1 + across))),
        min(height, int(np.ceil(y1 + down))),
    )


def _scale(window: tuple[int, int, int, int]) -> float:
    return _TILE / max(window[2] - window[0], window[3] - window[1])


def _fitted(picture: Image.Image, window: tuple[int, int, int, int]) -> Image.Image:
    scale = _scale(window)
    size = (max(1, round((window[2] - window[0]) * scale)), max(1, round((window[3] - window[1]) * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR, box=window)


def _grey(alpha: np.ndarray, window: tuple[int, int, int, int]) -> Image.Image:
    return _fitted(Image.fromarray(np.rint(255 * alpha).astype(np.uint8)), window)


def _with_prompt(image: Image.Image, prompt: Mapping[str, Any], window: tuple[int, int, int, int]) -> Image.Image:
    picture = _fitted(image.convert("RGB"), window)
    draw, scale, origin = ImageDraw.Draw(picture), _scale(window), np.array(window[:2])
    if "input_boxes" in prompt:
        corners = (np.reshape(prompt["input_boxes"], (2, 2)) - origin) * scale
        draw.rectangle(corners.ravel().tolist(), outline=_INSIDE, width=2)
        return picture
    for point, label in zip(prompt["input_points"], prompt["point_labels"]):
        x, y = (np.asarray(point) - origin) * scale
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_INSIDE if label == 1 else _OUTSIDE, outline=_PAPER)
    return picture
