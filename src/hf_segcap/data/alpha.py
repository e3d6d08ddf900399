# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How rows hold alpha mattes: a grey PNG (bytes) or an array, in and out of (H, W) float32, 0..1."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..masks import encode_rle

BOX_ALPHA = 0.1  # pixels above it make the box of an object
MASK_ALPHA = 0.5  # pixels above it make its mask
_EXPECTED = (
    "a path or the bytes of a grey image of 8 or 16 bits, a PIL image, or an (H, W) array or tensor: bool, uint8 0..255, uint16 "
    "0..65535, floats 0..1"
)


def encode_alpha(alpha: np.ndarray, bits: int = 8) -> bytes:
    """A matte (H, W), floats in [0, 1], as a grey PNG with 8 or 16 bits per pixel.

    Raises:
        ValueError: not a matte, or another number of bits.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    top, kind = (255, np.uint8) if bits == 8 else (65535, np.uint16)
    file = io.BytesIO()
    values = np.rint(_from_array(np.asarray(alpha), "alpha") * np.float64(top)).astype(kind)
    Image.fromarray(values).save(file, "PNG", compress_level=1)
    return file.getvalue()


def decode_alpha(alpha: Any, name: str = "alpha", size: tuple[int, int] | None = None) -> np.ndarray:
    """The matte of a region as (H, W) float32 in [0, 1]; a new array.

    Args:
        alpha: a path or the bytes of an image file, a PIL image, or an (H, W) array or tensor: bool, uint8 0..255, uint16
            0..65535, or floats 0..1. Colour images are converted to grey; of images with transparency (that are not
            opaque all over) the transparency is the matte. 32-bit integers are 0..255, or 0..65535 if any is
            above 255.
        name: how error messages call it.
        size: (height, width) it must have.

    Raises:
        ValueError: a missing or damaged file, a wrong shape, range or size.
        TypeError: something that is no matte.
    """
    if isinstance(alpha, (bytes, bytearray, memoryview, str, os.PathLike)):
        source: Any = io.BytesIO(alpha) if isinstance(alpha, (bytes, bytearray, memoryview)) else alpha
        try:
            with Image.open(source) as picture:
                matte = _from_picture(picture)
        except Exception as error:  # Pillow raises many types for damaged files
            raise ValueError(f"{name}: cannot read the matte: {error}. Expected {_EXPECTED}.") from error
    elif isinstance(alpha, Image.Image):
        matte = _from_picture(alpha)
    elif isinstance(alpha, (np.ndarray, torch.Tensor)):
        values = _to_numpy(alpha) if isinstance(alpha, torch.Tensor) else alpha
        matte = _from_array(values, name)
    else:
        raise TypeError(f"{name}: expected {_EXPECTED}, got {type(alpha).__name__}.")
    if size is not None and matte.shape != tuple(size):
        raise ValueError(
            f"{name}: the matte has {matte.shape[0]} x {matte.shape[1]} (height x width) pixels, the image "
            f"{size[0]} x {size[1]}"
        )
    return matte


def alpha_box(alpha: np.ndarray) -> list[float] | None:
    """x0, y0, x1, y1 (end exclusive, pixels) around the pixels of a matte (H, W) above 0.1, or if there are none above 0;
    None for an empty matte."""
    for threshold in (BOX_ALPHA, 0.0):
        seen = alpha > threshold
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if len(rows):
            return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    return None


def alpha_region(
    matte: np.ndarray, alpha: Any, category: str | None = None, box: list[float] | None = None
) -> dict[str, Any]:
    """The region of a row (see `sources.py`) that holds a matte.

    Args:
        matte: (H, W) floats 0..1.
        alpha: the form it is stored in.
        category: kind of object.
        box: x0, y0, x1, y1; default: the box of the matte.

    Raises:
        ValueError: an empty matte without a box.
    """
    box = alpha_box(matte) if box is None else box
    if box is None:
        raise ValueError("the matte is 0 everywhere: there is no object")
    mask = encode_rle(matte > MASK_ALPHA)
    return {"box": box, "phrases": [], "mask": mask, "category": category, "alpha": alpha}


def _to_numpy(alpha: torch.Tensor) -> np.ndarray:
    alpha = alpha.detach().cpu()
    return (alpha.float() if alpha.is_floating_point() else alpha).numpy()  # numpy has no bfloat16


def _from_picture(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)  # upright, as `load_image` makes its image
    if picture.mode in ("P", "RGB") and picture.has_transparency_data:  # one colour, or some of a palette
        picture = picture.convert("RGBA")
    if picture.mode in ("LA", "PA", "RGBA"):
        band = picture.getchannel("A")
        picture = band if np.asarray(band).min() < 255 else picture.convert("L")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError(f"16-bit values lie in 0..65535, got {values.min()}..{values.max()}")
        deep = picture.mode != "I" or values.max(initial=0) > 255  # 32-bit integers may hold either, see `load_image`
        return (values / np.float64(65535 if deep else 255)).astype(np.float32)
    if picture.mode == "F":
        return _from_array(np.asarray(picture), "alpha")
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)


def _from_array(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: expected an (H, W) array with at least one pixel, got shape {values.shape}")
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype in (np.uint8, np.uint16):
        return (values / np.float64(np.iinfo(values.dtype).max)).astype(np.float32)
    if values.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
        raise ValueError(
            f"{name}: expected {_EXPECTED}, got values of type {values.dtype} from {values.min()} to {values.max()}"
        )
    return values.astype(np.float32)
