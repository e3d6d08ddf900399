# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Pictures of results: masks, boxes and captions over the image. PIL and numpy only."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .images import load_image

Color = tuple[int, int, int]
_MIN_FONT_SIZE = 7


def distinct_colors(count: int) -> list[Color]:
    """`count` RGB colours (0..255) whose neighbours in the list differ clearly: hues a golden angle apart."""
    colors = []
    for index in range(count):
        hue = (0.58 + index * 0.61803398875) % 1.0
        saturation, value = ((0.80, 0.95), (0.60, 1.00), (0.95, 0.75))[index % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def draw_regions(
    image: Any,
    results: Sequence[Mapping[str, Any]],
    *,
    show_masks: bool = True,
    show_boxes: bool = True,
    show_captions: bool = True,
    show_scores: bool = False,
    mask_opacity: float = 0.4,
    font_size: int | None = None,
    font: str | None = None,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Draws what a region pipeline returned over its image.

    Captions stand on plates in the colour of their region, inside the picture, and do not cover each other as long as
    there is room; a plate that had to move away from its region is tied to it by a line.

    Args:
        image: the image in any form that the pipelines take.
        results: per region a dict with any of "caption" (str), "score" (float), "box" ({xmin, ymin, xmax, ymax} in
            pixels of the image) and "mask" ((H, W) bool). Nothing is drawn for what is missing.
        show_masks: draw masks, translucent with a contour.
        show_boxes: draw boxes.
        show_captions: draw captions.
        show_scores: write the score behind the caption.
        mask_opacity: 0 (invisible) to 1 (solid).
        font_size: of the captions in pixels; by default it follows the size of the image. Captions too long for the
            image are set smaller.
        font: path of a TrueType font, for scripts that PIL's own font does not contain.
        colors: RGB colours (0..255), used in turn; by default `distinct_colors`.

    Returns:
        A new RGB image of the size of the input.

    Raises:
        ValueError: a mask that has not the size of the image, `mask_opacity` outside [0, 1], `font_size` below 1.
    """
    if not 0 <= mask_opacity <= 1:
        raise ValueError(f"`mask_opacity` must be between 0 and 1, got {mask_opacity}.")
    if font_size is not None and font_size < 1:
        raise ValueError(f"`font_size` must be at least 1 pixel, got {font_size}.")
    picture = load_image(image).convert("RGB")
    width, height = picture.size
    palette = list(colors) if colors else distinct_colors(len(results))
    paint = [palette[index % len(palette)] for index in range(len(results))]
    line = max(1, round(max(width, height) / 400))

    if show_masks:
        picture = _paint_masks(picture, results, paint, mask_opacity, line)
    draw = ImageDraw.Draw(picture)
    if show_boxes:
        for result, color in zip(results, paint):
            if (box := _box_of(result)) is not None:
                draw.rectangle(box, outline=color, width=line)
    if show_captions:
        size = font_size or max(_MIN_FONT_SIZE, min(48, round(max(width, height) / 42)))
        _Labels(picture, size, font, line).draw(results, paint, show_scores)
    return picture


def _box_of(result: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    box = result.get("box")
    return None if box is None else (box["xmin"], box["ymin"], box["xmax"], box["ymax"])


def _paint_masks(
    picture: Image.Image, results: Sequence[Mapping[str, Any]], paint: list[Color], opacity: float, line: int
) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32)
    masks = []
    for index, result in enumerate(results):
        if result.get("mask") is None:
            continue
        mask = np.asarray(result["mask"], dtype=bool)
        if mask.shape != pixels.shape[:2]:
            raise ValueError(
                f"The mask of region {index} has the shape {mask.shape}, but the image has {pixels.shape[:2]} "
                "(height, width): draw results over the image they were made from."
            )
        masks.append((mask, paint[index]))
    # Large masks first: small ones stay visible on top of them.
    for mask, color in sorted(masks, key=lambda entry: -int(entry[0].sum())):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part = np.pad(mask[window], line)  # a rim, so that the contour also runs along the window's border
        inner = np.asarray(Image.fromarray(part).convert("L").filter(ImageFilter.MinFilter(2 * line + 1))) > 0
        contour = (part & ~inner)[line:-line, line:-line]
        strength = np.where(mask[window], opacity, 0.0)
        strength[contour] = max(opacity, 0.9) if opacity else 0.0
        pixels[window] += strength[..., None].astype(np.float32) * (np.array(color, dtype=np.float32) - pixels[window])
    return Image.fromarray(pixels.round().astype(np.uint8))


class _Labels:
    """Sets captions on plates and finds a free place for each."""

    def __init__(self, picture: Image.Image, font_size: int, font: str | None, line: int) -> None:
        self.picture, self.font_size, self.font_path, self.line = picture, font_size, font, line
        self.taken = np.zeros((0, 4))

    def draw(self, results: Sequence[Mapping[str, Any]], paint: list[Color], show_scores: bool) -> None:
        labels = []
        for result, color in zip(results, paint):
            text = " ".join(str(result.get("caption") or "").split())
            if show_scores and result.get("score") is not None:
                text = f"{text} {float(result['score']):.2f}".strip()
            if text:
                anchor = _box_of(result) or (0.0, 0.0, float(self.picture.width), float(self.picture.height))
                lines, font, size = self._set(text)
                labels.append((lines, font, color, anchor, self._place(anchor, size)))
        draw = ImageDraw.Draw(self.picture)
        for *_, color, anchor, plate in labels:
            _tie(draw, plate, anchor, color, self.line)
        for lines, font, color, _, plate in labels:
            self._write(lines, font, color, plate)

    def _set(self, text: str) -> tuple[list[str], Any, tuple[int, int]]:
        """Breaks a text into lines, smaller if it does not fit; returns lines, font and the size of the plate."""
        width, height = self.picture.size
        size = self.font_size
        while True:
            font = ImageFont.truetype(self.font_path, size) if self.font_path else ImageFont.load_default(size=size)
            pad, leading = _metrics(font)
            room = max(0.4 * width, min(12 * size, width)) - 2 * pad
            lines = _wrap(text, font, room)
            widest = max(font.getlength(line) for line in lines)
            plate = (int(np.ceil(widest)) + 2 * pad, leading * len(lines) + 2 * pad)
            if plate[0] <= width and plate[1] <= max(height / 2, min(height, leading + 2 * pad)):
                return lines, font, plate
            if size <= _MIN_FONT_SIZE:
                fitting = max(1, (height - 2 * pad) // leading)
                if len(lines) > fitting:
                    lines = [*lines[: fitting - 1], lines[fitting - 1].rstrip(" .") + "…"]
                return lines, font, (min(plate[0], width), min(leading * len(lines) + 2 * pad, height))
            size = max(_MIN_FONT_SIZE, int(size * 0.85))

    def _place(
        self, box: tuple[float, float, float, float], size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """The free place closest to the region: its border first, then anywhere; the least covered one if none is free."""
        (width, height), (w, h) = self.picture.size, size
        x0, y0, x1, y1 = box
        gap = self.line
        beside = [
            (x0, y0 - h - gap),  # above, the usual place
            (x0 + gap, y0 + gap),  # inside at the top
            (x0, y1 + gap),  # below
            (x0 + gap, y1 - h - gap),  # inside at the bottom
            (x1 - w, y0 - h - gap),
            (x1 - w - gap, y0 + gap),
            (x1 - w, y1 + gap),
            (x1 - w - gap, y1 - h - gap),
            (x1 + gap, y0),
            (x0 - w - gap, y0),
            ((x0 + x1 - w) / 2, (y0 + y1 - h) / 2),
        ]
        step = max(4, h // 2)
        across, down = np.meshgrid(
            np.arange(0, max(1, width - w + 1), step), np.arange(0, max(1, height - h + 1), step)
        )
        corners = np.concatenate([np.array(beside, dtype=float), np.stack([across.ravel(), down.ravel()], -1)])
        wish = corners.copy()
        corners[:, 0] = corners[:, 0].clip(0, max(0, width - w))
        corners[:, 1] = corners[:, 1].clip(0, max(0, height - h))
        plates = np.concatenate([corners, corners + (w, h)], axis=1)

        overlap = np.zeros(len(plates))
        for other in self.taken:
            sides = np.minimum(plates[:, 2:], other[2:] + 1) - np.maximum(plates[:, :2], other[:2] - 1)
            overlap += sides.clip(0).prod(1)
        # Distance between plate and box, then how far a preferred place had to be pushed into the picture, then order.
        away = np.maximum(np.maximum((x0, y0) - plates[:, 2:], plates[:, :2] - (x1, y1)), 0)
        cost = np.hypot(*away.T) + 0.5 * np.abs(corners - wish).sum(1)
        cost[: len(beside)] += np.arange(len(beside)) * 0.1
        cost[len(beside) :] += 2.0 * h  # a scanned place only when the places at the border are taken
        best = np.lexsort((cost, overlap.round()))[0]
        self.taken = np.concatenate([self.taken, plates[best : best + 1]])
        return tuple(plates[best].tolist())

    def _write(self, lines: list[str], font: Any, color: Color, plate: tuple[float, float, float, float]) -> None:
        pad, leading = _metrics(font)
        x0, y0, x1, y1 = (round(side) for side in plate)
        cover = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(cover).rounded_rectangle((0, 0, x1 - x0 - 1, y1 - y0 - 1), radius=pad, fill=225)
        self.picture.paste(color, (x0, y0, x1, y1), cover)
        red, green, blue = color
        ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
        draw = ImageDraw.Draw(self.picture)
        for row, text in enumerate(lines):
            draw.text((x0 + pad, y0 + pad + row * leading), text, fill=ink, font=font)


def _tie(
    draw: ImageDraw.ImageDraw,
    plate: tuple[float, float, float, float],
    box: tuple[float, float, float, float],
    color: Color,
    line: int,
) -> None:
    """A line between a plate and the nearest point of its region's box, when they are apart."""
    x, y = min(max((plate[0] + plate[2]) / 2, box[0]), box[2]), min(max((plate[1] + plate[3]) / 2, box[1]), box[3])
    start = min(max(x, plate[0]), plate[2]), min(max(y, plate[1]), plate[3])
    if np.hypot(x - start[0], y - start[1]) > 3 * line:
        draw.line([start, (x, y)], fill=color, width=line)
        draw.ellipse((x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line), fill=color)


def _metrics(font: Any) -> tuple[int, int]:
    """Padding of a plate and distance of its lines, in pixels."""
    ascent, descent = font.getmetrics()
    return max(1, round(ascent * 0.22)), ascent + descent


def _wrap(text: str, font: Any, room: float) -> list[str]:
    """Greedy line breaking at spaces; a word wider than a line is broken anywhere."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
    return lines
