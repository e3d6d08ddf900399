# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The one place where images come in: whatever a user has becomes an upright 8-bit RGB picture, or a clear error."""

from __future__ import annotations

import base64
import io
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

_OVERSHOOT = 0.1  # of [0, 1], after interpolation
_URL_TIMEOUT_SECONDS = 30.0
_MAX_DOWNLOAD_BYTES = 256 * 2**20  # what a server sends is not trusted to end
_EXPECTED = (
    "a path, a URL, a PIL image, the bytes of an image file, or a numpy array or tensor of shape (H, W), (H, W, C) or "
    "(C, H, W) with 1, 3 or 4 channels"
)


def load_image(
    image: Any, *, name: str = "image", input_data_format: str | None = None, timeout: float | None = None
) -> Image.Image:
    """Turns one image of any kind into an upright RGB picture.

    The EXIF orientation is applied, so that "original-image pixels" are those a viewer shows. Transparent pixels are laid
    over white. 16-bit images are scaled to 8 bits by their full range (65535 -> 255).

    Args:
        image: path (str or os.PathLike), `http(s)://` or `data:` URL, PIL image of any mode, bytes of an image file (or a
            binary file object), numpy array or tensor. Arrays are (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4:
            bool; uint8 0..255; uint16 0..65535; other integers 0..255; floats in [0, 1] (up to 0.1 beyond, as bicubic
            resizing makes them, is cut off), or in [0, 255] if any value is above 2.
        name: how error messages call this image, for example "image 3".
        input_data_format: "channels_first" or "channels_last" for arrays whose shape leaves it open. By default tensors
            are read as channels first and numpy arrays as channels last where both would be possible.
        timeout: seconds to wait for a URL (default 30).

    Returns:
        PIL image in mode "RGB".

    Raises:
        ValueError: a missing or damaged file, an image without pixels, an array of a wrong shape or range.
        TypeError: something that is no image.
    """
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _from_array(image, name, input_data_format)
    picture = image if isinstance(image, Image.Image) else _open(image, name, timeout)
    try:
        # Pillow decodes here; damaged files make it raise many types, from OSError to struct.error.
        picture = ImageOps.exif_transpose(picture)
        if 0 in picture.size:
            raise ValueError("it has no pixels")
        return _to_rgb(picture)
    except Exception as error:
        width, height = getattr(picture, "size", (0, 0))
        raise ValueError(
            f"{name}: a {height} x {width} (height x width) image of mode {getattr(picture, 'mode', None)!r} cannot be "
            f"used: {error}. Expected an intact image with at least one pixel."
        ) from error


def load_images(images: Any, *, input_data_format: str | None = None) -> list[Image.Image]:
    """Turns one image, a (nested) list of images or a batch array (B, ...) into a flat list of upright RGB pictures.

    Raises:
        ValueError, TypeError: as `load_image`, naming the index of the image in the flat list.
    """
    return [
        load_image(image, name=f"image {i}", input_data_format=input_data_format)
        for i, image in enumerate(flatten_images(images))
    ]


def flatten_images(images: Any, _depth: int = 0) -> list[Any]:
    """The single images, not yet loaded, of one image, a (nested) list or a batch array (B, ...)."""
    if isinstance(images, (list, tuple)):
        if _depth > 2:
            raise ValueError("`images` may be an image, a list of images or a list of lists of images, not deeper.")
        return [image for item in images for image in flatten_images(item, _depth + 1)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _open(image: Any, name: str, timeout: float | None) -> Image.Image:
    """Opens (does not yet decode) an image that comes as a path, a URL, bytes or a file object."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        source: Any = io.BytesIO(image)
        described = f"{len(image)} bytes"
    elif isinstance(image, (str, os.PathLike)):
        source, described = image, f"{os.fspath(image)!r:.200}"
    elif hasattr(image, "read"):
        source, described = image, f"a {type(image).__name__}"
    else:
        raise TypeError(f"{name}: expected {_EXPECTED}, got {type(image).__name__}.")
    try:
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source, timeout=timeout or _URL_TIMEOUT_SECONDS) as response:
                content = response.read(_MAX_DOWNLOAD_BYTES + 1)
                if len(content) > _MAX_DOWNLOAD_BYTES:
                    raise ValueError(f"it is larger than {_MAX_DOWNLOAD_BYTES // 2**20} MiB: download it yourself")
                source = io.BytesIO(content)
        elif isinstance(source, str) and source.startswith("data:"):
            source = io.BytesIO(base64.b64decode(source.partition(",")[2]))
        elif isinstance(source, (str, os.PathLike)) and not Path(os.fsdecode(source)).is_file():
            raise ValueError("there is no such file")
        return Image.open(source)
    except Exception as error:
        raise ValueError(f"{name}: cannot open {described}: {error}. Expected {_EXPECTED}.") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        if picture.mode == "I" and values.size and values.min() >= 0 and 255 < values.max() <= 65535:
            values = values.astype(np.uint16)  # how some 16-bit files are opened
        return Image.fromarray(_to_uint8(values)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    # A copy, so that nothing keeps the file open and the caller's object is never shared.
    return picture.convert("RGB")


def _from_array(array: np.ndarray | torch.Tensor, name: str, input_data_format: str | None) -> Image.Image:
    first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    try:
        values = _channels_last(array, first, input_data_format)
        if values.size == 0:
            raise ValueError("it has no pixels")
        return _to_rgb(Image.fromarray(_to_uint8(values)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: an array of shape {tuple(array.shape)} and type {array.dtype} cannot be used: {error}. "
            f"Expected {_EXPECTED}."
        ) from error


def _channels_last(array: np.ndarray, prefer_first: bool, input_data_format: str | None) -> np.ndarray:
    """(H, W) or (H, W, 3 | 4) from any layout of an image array."""
    if array.ndim == 2:
        return array
    if array.ndim != 3:
        raise ValueError(f"it has {array.ndim} dimensions")
    if input_data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(f"`input_data_format` must be 'channels_first' or 'channels_last', got {input_data_format!r}")
    first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if input_data_format is not None:
        first, last = (
            possible and input_data_format == layout
            for possible, layout in ((first, "channels_first"), (last, "channels_last"))
        )
    if not (first or last):
        raise ValueError("none of its outer dimensions is a number of channels (1, 3 or 4)")
    if first and (prefer_first or not last):
        array = np.moveaxis(array, 0, -1)
    return array[..., 0] if array.shape[-1] == 1 else array


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """8-bit values of an array, with the range its type implies (see `load_image`)."""
    if values.dtype == np.uint8 or values.size == 0:
        return np.ascontiguousarray(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ValueError(f"values of type {values.dtype} are no grey or colour values")
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
            return np.rint(values.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)
        if 1 < high <= 2:
            raise ValueError(f"its values run from {low} to {high}: cut them off at 1, or give 0..255 as uint8")
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:  # either byte order
        return np.ascontiguousarray((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not (low >= 0 and high <= 255):  # also false for NaN
        raise ValueError(
            f"its values run from {low} to {high}, but floats lie in [0, 1] or [0, 255], integers in [0, 255]"
        )
    return np.rint(values).astype(np.uint8)
