# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Pictures of results: masks, boxes and captions over the image, mattes and cut-outs. PIL and numpy only."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data.alpha import alpha_box, decode_alpha
from .images import load_image
from .masks import decode_rle

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
_MIN_FONT_SIZE, _SMALL_FONT_SIZE = 7, 11  # set for lack of room; set to keep captions near their regions
_MATTE_STYLES = ("cutouts", "overlay")
_CHECKERS = (255, 208)  # grey values of the squares behind cut-outs
_BACKDROP = 0.35  # brightness of what belongs to no object
_TINT = 0.3  # how much an object gets of its colour
# Tried in this order for text beyond ASCII, which PIL's own font hardly covers; PIL looks in the system's font folders.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


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
        font_size: of the captions in pixels; by default it follows the size of the image. Captions that
            would not fit, or cover each other, are set smaller.
        font: path of a TrueType font. By default PIL's own, and for text beyond ASCII a wide one of the system.
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
        texts = [_caption_of(result, show_scores) for result in results]
        boxes = [_box_of(result) or (0.0, 0.0, float(width), float(height)) for result in results]
        size = font_size or max(_MIN_FONT_SIZE, min(48, round(max(width, height) / 42)))
        labels = _arrange(picture.size, texts, boxes, size, font, line)
        for label, box, color in zip(labels, boxes, paint):
            if label is not None:
                _tie(draw, label.plate, box, color, line)
        for label, color in zip(labels, paint):
            if label is not None:
                label.write(picture, color)
    return picture


def draw_mattes(
    image: Any,
    results: Sequence[Mapping[str, Any]],
    *,
    style: str = "cutouts",
    columns: int | None = None,
    panel_size: int = 400,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Draws what `pipeline("image-matting")` returned.

    Args:
        image: the image in any form that the pipelines take.
        results: per object a dict with "alpha" (of the size of the image, see [`~hf_segcap.data.alpha.decode_alpha`]) and, for
            cut-outs without the colours of the background, "foreground".
        style: "overlay": the image, grey and dark outside of all objects, each of which is tinted with a colour of its own.
            "cutouts": a sheet of panels: this picture, then each object, close up, over a checkerboard.
        columns: panels per row; default: a sheet that is about as wide as high.
        panel_size: longer side of a panel in pixels.
        colors: RGB colours (0..255), used in turn; by default `distinct_colors`.

    Returns:
        A new RGB image: of the size of the input ("overlay"), or a sheet.

    Raises:
        ValueError: a result without a matte, or with one of another size; an unknown style; sizes below 1.
    """
    if style not in _MATTE_STYLES:
        raise ValueError(f"`style` must be one of {list(_MATTE_STYLES)}, got {style!r}.")
    if panel_size < 1 or (columns is not None and columns < 1):
        raise ValueError(f"`panel_size` and `columns` must be at least 1, got {panel_size} and {columns}.")
    picture = load_image(image)
    palette = list(colors) if colors else distinct_colors(len(results))
    paint = [palette[index % len(palette)] for index in range(len(results))]
    for index, result in enumerate(results):
        if result.get("alpha") is None:
            raise ValueError(f'Result {index} has no "alpha": it is not of the image-matting pipeline.')
    if style == "overlay":
        return _paint_mattes(picture, results, paint)
    scale = panel_size / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    panels = [_paint_mattes(picture, results, paint).resize(size, Image.Resampling.LANCZOS)]
    panels += [_cut_out_panel(picture, result, index, size, paint[index]) for index, result in enumerate(results)]
    columns = columns or max(1, round((len(panels) * size[1] / size[0]) ** 0.5))
    columns, gap = min(columns, len(panels)), max(1, panel_size // 50)
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (size[0] + gap) + gap, rows * (size[1] + gap) + gap), "white")
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        sheet.paste(panel, (gap + column * (size[0] + gap), gap + row * (size[1] + gap)))
    return sheet


def _matte_of(result: Mapping[str, Any], index: int, picture: Image.Image) -> np.ndarray:
    return decode_alpha(result["alpha"], name=f"result {index}", size=(picture.height, picture.width))


def _paint_mattes(picture: Image.Image, results: Sequence[Mapping[str, Any]], paint: Sequence[Color]) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32)
    grey = np.asarray(picture.convert("L")).astype(np.float32)[..., None] * _BACKDROP
    outside = np.ones((*grey.shape[:2], 1), np.float32)
    for index, (result, color) in enumerate(zip(results, paint)):
        matte = _matte_of(result, index, picture)[..., None]
        outside *= 1 - matte
        pixels += _TINT * matte * (np.array(color, np.float32) - pixels)
    if results:
        pixels += outside * (grey - pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _cut_out_panel(
    picture: Image.Image, result: Mapping[str, Any], index: int, size: tuple[int, int], color: Color
) -> Image.Image:
    """One object over a checkerboard, as large as the panel allows, in a frame of its colour."""
    matte = _matte_of(result, index, picture)
    x0, y0, x1, y1 = alpha_box(matte) or (0.0, 0.0, float(picture.width), float(picture.height))
    margin = 0.06 * max(x1 - x0, y1 - y0)
    window = (
        max(0, int(x0 - margin)),
        max(0, int(y0 - margin)),
        min(picture.width, int(np.ceil(x1 + margin))),
        min(picture.height, int(np.ceil(y1 + margin))),
    )
    if result.get("foreground") is not None:
        cutout = result["foreground"].convert("RGBA").crop(window)
    else:
        cutout = picture.crop(window).convert("RGBA")
        part = matte[window[1] : window[3], window[0] : window[2]]
        cutout.putalpha(Image.fromarray(np.rint(part * 255).astype(np.uint8)))
    scale = min(size[0] / cutout.width, size[1] / cutout.height)
    shape = (max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale)))
    cutout = cutout.resize(shape, Image.Resampling.BICUBIC)  # Pillow weighs colours with alpha here
    side = max(2, max(size) // 32)
    squares = np.indices((size[1], size[0])) // side
    panel = Image.fromarray(np.where(squares.sum(0) % 2, *_CHECKERS[::-1]).astype(np.uint8)).convert("RGBA")
    panel.alpha_composite(cutout, ((size[0] - shape[0]) // 2, (size[1] - shape[1]) // 2))
    panel = panel.convert("RGB")
    ImageDraw.Draw(panel).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=color, width=max(1, max(size) // 130))
    return panel


def _box_of(result: Mapping[str, Any]) -> Box | None:
    box = result.get("box")
    return None if box is None else (box["xmin"], box["ymin"], box["xmax"], box["ymax"])


def _caption_of(result: Mapping[str, Any], with_score: bool) -> str:
    text = " ".join(str(result.get("caption") or "").split())
    if with_score and result.get("score") is not None:
        text = f"{text} {float(result['score']):.2f}".strip()
    return text


def _paint_masks(
    picture: Image.Image, results: Sequence[Mapping[str, Any]], paint: list[Color], opacity: float, line: int
) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float32)
    masks = []
    for index, result in enumerate(results):
        if result.get("mask") is None:
            continue
        mask = result["mask"]
        mask = decode_rle(mask) if isinstance(mask, Mapping) else np.asarray(mask, dtype=bool)
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
        contour = (part & ~_erode(part, line))[line:-line, line:-line]
        strength = np.where(mask[window], opacity, 0.0)
        strength[contour] = max(opacity, 0.9) if opacity else 0.0
        pixels[window] += strength[..., None].astype(np.float32) * (np.array(color, dtype=np.float32) - pixels[window])
    return Image.fromarray(pixels.round().astype(np.uint8))


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """The pixels of a mask (H, W) whose square neighbourhood of `radius` is set; its outermost `radius` pixels are lost."""
    for _ in range(2):  # down the rows, then, transposed, down the columns
        size = mask.shape[0] - 2 * radius
        inner = mask[:size].copy()
        for start in range(1, 2 * radius + 1):
            inner &= mask[start : start + size]
        mask = np.pad(inner, ((radius, radius), (0, 0))).T
    return mask


@dataclass(frozen=True)
class _Label:
    """A caption broken into lines, and the plate (xyxy, whole pixels) that it stands on."""

    lines: list[str]
    font: Any
    plate: Box

    def write(self, picture: Image.Image, color: Color) -> None:
        pad, leading = _metrics(self.font)
        x0, y0, x1, y1 = (int(side) for side in self.plate)
        cover = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(cover).rounded_rectangle((0, 0, x1 - x0 - 1, y1 - y0 - 1), radius=pad, fill=225)
        picture.paste(color, (x0, y0, x1, y1), cover)
        red, green, blue = color
        ink = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
        draw = ImageDraw.Draw(picture)
        for row, text in enumerate(self.lines):
            draw.text((x0 + pad, y0 + pad + row * leading), text, fill=ink, font=self.font)


def _arrange(
    canvas: tuple[int, int], texts: list[str], boxes: list[Box], font_size: int, font: str | None, line: int
) -> list[_Label | None]:
    """One label per text (None for an empty one); smaller ones as long as some cover each other or lie far away."""
    while True:
        labels: list[_Label | None] = []
        taken = np.zeros((len(texts), 4))
        covered, far = 0.0, False
        for index, (text, box) in enumerate(zip(texts, boxes)):
            if not text:
                labels.append(None)
                continue
            lines, face, size = _set(text, canvas, font_size, font)
            plate, overlap = _place(canvas, box, size, taken[:index], line)
            covered += overlap
            far |= _distance(plate, box) > 5 * font_size
            taken[index] = plate
            labels.append(_Label(lines, face, plate))
        if font_size <= (_MIN_FONT_SIZE if covered else _SMALL_FONT_SIZE if far else font_size):
            return labels
        font_size = max(_MIN_FONT_SIZE, int(font_size * 0.85))


def _set(text: str, canvas: tuple[int, int], size: int, path: str | None) -> tuple[list[str], Any, tuple[int, int]]:
    """Breaks a text into lines, smaller if it does not fit; returns lines, font and the size of the plate."""
    width, height = canvas
    while True:
        font = _load_font(path, size, text)
        pad, leading = _metrics(font)
        lines = _wrap(text, font, max(0.4 * width, min(12 * size, width)) - 2 * pad)
        plate = (int(np.ceil(max(map(font.getlength, lines)))) + 2 * pad, leading * len(lines) + 2 * pad)
        if plate[0] <= width and plate[1] <= max(height / 2, min(height, leading + 2 * pad)):
            return lines, font, plate
        if size <= _MIN_FONT_SIZE:
            fitting = max(1, (height - 2 * pad) // leading)
            if len(lines) > fitting:
                lines = [*lines[: fitting - 1], lines[fitting - 1][:-1].rstrip() + "…"]
            return lines, font, (min(plate[0], width), min(leading * len(lines) + 2 * pad, height))
        size = max(_MIN_FONT_SIZE, int(size * 0.85))


def _place(canvas: tuple[int, int], box: Box, size: tuple[int, int], taken: np.ndarray, gap: int) -> tuple[Box, float]:
    """The free place closest to the region, at its border or anywhere; without a free one, the least covered.

    Returns the plate and the area, in square pixels, that it shares with those in `taken` (N, 4).
    """
    (width, height), (w, h) = canvas, size
    x0, y0, x1, y1 = box
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
    across, down = np.meshgrid(np.arange(0, max(1, width - w + 1), step), np.arange(0, max(1, height - h + 1), step))
    wish = np.concatenate([np.array(beside), np.stack([across.ravel(), down.ravel()], -1)]).round()
    corners = wish.clip(0, (max(0, width - w), max(0, height - h)))
    plates = np.concatenate([corners, corners + (w, h)], axis=1)

    overlap = np.zeros(len(plates))
    for other in taken:
        sides = np.minimum(plates[:, 2:], other[2:]) - np.maximum(plates[:, :2], other[:2])
        overlap += sides.clip(0).prod(1)
    # Distance between plate and box, how far a preferred place had to be pushed into the picture, then the order.
    cost = _distance(plates, box) + 0.5 * np.abs(corners - wish).sum(1)
    cost[: len(beside)] += 0.1 * np.arange(len(beside))
    cost[len(beside) :] += 2.0 * h  # anywhere else only when the places at the border are taken
    best = np.lexsort((cost, overlap))[0]
    left, top, right, bottom = plates[best].tolist()
    return (left, top, right, bottom), float(overlap[best])


def _distance(plates: Any, box: Box) -> Any:
    """Gap in pixels between rectangles (..., 4) and a box; 0 where they touch."""
    plates = np.asarray(plates)
    gaps = np.maximum(np.maximum(np.array(box[:2]) - plates[..., 2:], plates[..., :2] - np.array(box[2:])), 0)
    return np.hypot(gaps[..., 0], gaps[..., 1])


def _tie(draw: ImageDraw.ImageDraw, plate: Box, box: Box, color: Color, line: int) -> None:
    """A line between a plate and the nearest point of its region's box, when they are apart."""
    x, y = min(max((plate[0] + plate[2]) / 2, box[0]), box[2]), min(max((plate[1] + plate[3]) / 2, box[1]), box[3])
    start = min(max(x, plate[0]), plate[2]), min(max(y, plate[1]), plate[3])
    if np.hypot(x - start[0], y - start[1]) > 3 * line:
        draw.line([start, (x, y)], fill=color, width=line)
        draw.ellipse((x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line), fill=color)


def _load_font(path: str | None, size: int, text: str) -> Any:
    if path is not None:
        return ImageFont.truetype(path, size)
    if not text.isascii():
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size=size)


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
