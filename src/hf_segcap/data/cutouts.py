# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Cut-outs of your own, pictures with transparency, as objects of the generated data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..files import image_files

CUTOUT = "cutout"  # category of such objects
_LONGEST_SIDE = 448  # of a picture in memory, as of photographs
_KEPT = 512  # pictures in memory, up to 0.8 MB each
_TURN = 25.0  # degrees to either side
_RECOLOURED_ODDS = 0.15


@lru_cache(_KEPT)
def load_cutout(path: str) -> Image.Image:
    """The part of a picture that is not wholly transparent, RGBA, at most 448 pixels on its longest side.

    Raises:
        ValueError: the file is missing or damaged, opaque all over, or empty.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except Exception as error:  # Pillow raises many types for damaged files
        raise ValueError(f"{path}: cannot read the cut-out: {error}") from error
    alpha = picture.getchannel("A")
    box = alpha.getbbox()
    if box is None or alpha.getextrema()[0] == 255:
        state = "transparent" if box is None else "opaque"
        raise ValueError(f"{path} is {state} all over: expected an object on a transparent background")
    picture = picture.crop(box)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.BICUBIC)
    return picture


class Cutouts:
    """The pictures of a folder.

    Args:
        folder: of images with transparency (PNG, WebP).
        share: of the objects that are drawn from it, 0..1.

    Raises:
        ValueError: no folder, no image in it, or a share out of range.
    """

    def __init__(self, folder: str | Path, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"cutout_share must lie in [0, 1], got {share}")
        self.paths, self.share = tuple(map(str, image_files(folder))), share

    @classmethod
    def of_split(cls, split: str, folder: str | Path | None, share: float) -> Cutouts | None:
        """None without a folder.

        Raises:
            ValueError: as the class, or a folder for another split than "train".
        """
        if folder is None:
            return None
        if split != "train":
            raise ValueError(
                f'a folder of cut-outs is for the split "train", got {split!r}: held-out data stay the same'
            )
        return cls(folder, share)

    def draw(
        self, rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]
    ) -> tuple[int, int, np.ndarray, np.ndarray] | None:
        """One of them, turned, mirrored and tinted.

        Args:
            centre: (y, x) in pixels of the image.
            radius: half of its longest side before it is turned, pixels.
            size: (height, width) of the image.

        Returns:
            top, left, alpha (h, w) float32 0..1 and colours (h, w, 3) float32 0..255 of the part inside the image; None if
            nothing of it is seen.
        """
        picture = load_cutout(self.paths[int(rng.integers(len(self.paths)))])
        scale = 2 * radius / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        picture = picture.rotate(rng.uniform(-_TURN, _TURN), Image.Resampling.BICUBIC, expand=True)
        top, left = (round(middle - side / 2) for middle, side in zip(centre.tolist(), picture.size[::-1]))
        inside = (max(-left, 0), max(-top, 0), min(size[1] - left, picture.width), min(size[0] - top, picture.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            return None
        pixels = np.asarray(picture.crop(inside), dtype=np.float32)
        alpha, colours = pixels[..., 3] / np.float32(255), pixels[..., :3]
        if alpha.max() < 0.5:
            return None
        if rng.random() < _RECOLOURED_ODDS:
            colours = colours[..., rng.permutation(3)]
        gains = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3)
        return max(top, 0), max(left, 0), alpha, (colours * gains.astype(np.float32)).clip(0, 255)
