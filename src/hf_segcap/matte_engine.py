# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Coarse masks to mattes with a label converter (ZIM, ICCV 2025, section 3.1): of one image, or of all of SA-1B.

[`label_mattes`] turns a folder in the format of SA-1B into what the paper calls SA1B-Matte; `load_source("sa1b_mattes",
root=...)` trains on it. Long jobs show a bar; what is written is complete, and a second call goes on.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .data.alpha import MASK_ALPHA, alpha_region, encode_alpha
from .data.matte_shards import shard_rows
from .data.sa1b import SA1BRegions
from .files import atomic_path, relative_path
from .images import load_image
from .masks import decode_rle
from .models.zim.modeling_label_converter import ZimLabelConverter
from .models.zim.processing_label_converter import ZimLabelConverterProcessor
from .prompts import parse_prompts
from .resume import check_settings, fingerprint

logger = logging.get_logger(__name__)

MASKS_AT_ONCE = 16  # given to the model, which may split them further
SETTINGS_FILE = ".matte_settings"  # in the folder of the shards; hidden, as `root` may be the same one
FLUSH_SECONDS = 60.0  # after which an unfinished shard is written: at most so much work is lost by a crash


def convert_masks(
    model: ZimLabelConverter,
    processor: ZimLabelConverterProcessor,
    image: Any,
    masks: Any,
    masks_per_batch: int | None = None,
    dtype: str | torch.dtype = "float32",
) -> torch.Tensor:
    """The mattes of any number of masks of one image.

    Args:
        model, processor: of a label converter.
        image: any form of image, see [`~hf_segcap.images.load_image`].
        masks: (P, height, width) or a list of P masks of the size of the image, each with at least one pixel set: bool,
            integers of {0, 1} or {0, 255}, PIL images, or COCO run-length codes.
        masks_per_batch: at most so many masks go through the model at a time; default: by the size of the images.
        dtype: `"float32"` (0..1), `"uint8"` (0..255) or `"uint16"` (0..65535); or the torch type.

    Returns:
        (P, height, width) on the CPU.

    Raises:
        ValueError, TypeError: an unusable image or mask; the message names the mask ("image 0, prompt 3").
    """
    picture = load_image(image)
    if isinstance(masks, (list, tuple)):
        masks = [decode_rle(mask) if isinstance(mask, Mapping) else mask for mask in masks]
    parsed = parse_prompts([(picture.height, picture.width)], masks=[masks])
    assert parsed is not None and parsed.masks is not None
    if not len(parsed.masks[0]):
        raise ValueError("`masks` is empty: expected at least one mask.")
    with _evaluating(model):
        return torch.cat(list(_mattes(model, processor, picture, parsed.masks[0], masks_per_batch, dtype)))


def label_mattes(
    model: ZimLabelConverter,
    processor: ZimLabelConverterProcessor,
    root: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_area: float | None = 0.95,
    limit: int | None = None,
    masks_per_batch: int | None = None,
    bits: int = 8,
    images_per_shard: int = 32,
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Converts all masks of a folder in the format of SA-1B into shards of mattes, see `hf_segcap.data.matte_shards`.

    Empty masks, and mattes that are 0 everywhere, are left out. An interruption or an error loses at most the image at work,
    a kill what was made in the last minute; images that are in shards already are not converted again, whatever the other
    arguments say. Damaged files are left out with a warning; the next run tries them again.

    Args:
        model, processor: of a label converter; the model is used on its device and in its dtype.
        root: folder of `sa_1.json`, ... with their images next to them.
        output: folder of the shards; they hold the relative path from here to the images.
        max_area: masks that cover more than this part of the image are left out; None: none are.
        limit: use the first files only.
        masks_per_batch: at most so many masks go through the model at a time; default: by the size of the images.
        bits: of the mattes, 8 or 16.
        images_per_shard: a shard is written when it holds so many images, and each minute.
        process_index, num_processes: convert every n-th file only; the processes share `output`.
        progress: shows a bar.

    Returns:
        All shards in `output`.

    Raises:
        ValueError: no files there, `output` holds mattes of another converter or with other bits, or a setting out of range.
    """
    if bits not in (8, 16) or images_per_shard < 1 or not 0 <= process_index < num_processes:
        raise ValueError(
            "expected bits 8 or 16, images_per_shard of at least 1 and process_index below num_processes, got "
            f"{bits}, {images_per_shard}, {process_index} and {num_processes}"
        )
    output = Path(output)
    rows = SA1BRegions(Path(root), max_area, limit)
    check_settings(output / SETTINGS_FILE, {"converter": fingerprint(model, processor), "bits": bits})
    done = {name for path in output.glob("*.zip") for name in shard_rows(path)}
    mine = [i for i in range(process_index, len(rows), num_processes) if rows.files[i].stem not in done]
    writer = _ShardWriter(output, images_per_shard)
    try:
        with _evaluating(model):
            for i in tqdm(mine, desc="mattes", unit="image", disable=not progress):
                try:
                    row = rows[i]
                    row["regions"], alphas = _convert_row(model, processor, row, masks_per_batch, bits)
                except ValueError as error:
                    logger.warning(f"left out, {error}")
                    continue
                row["image"] = relative_path(row.pop("image_path"), output)
                writer.add(rows.files[i].stem, row, alphas)
    finally:
        writer.flush()
    return sorted(output.glob("*.zip"))


def _convert_row(
    model: ZimLabelConverter,
    processor: ZimLabelConverterProcessor,
    row: Mapping[str, Any],
    masks_per_batch: int | None,
    bits: int,
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Regions with mattes, without `alpha`, and their PNG files."""
    given = [region for region in row["regions"] if region["area"] > 0]
    regions: list[dict[str, Any]] = []
    files: list[bytes] = []
    for start in range(0, len(given), MASKS_AT_ONCE):  # decoded masks of SA-1B are large
        part = given[start : start + MASKS_AT_ONCE]
        masks = np.stack([decode_rle(region["mask"]) for region in part])
        mattes = _mattes(model, processor, row["image"], torch.from_numpy(masks), masks_per_batch, f"uint{bits}")
        for region, mask, alpha in zip(part, masks, torch.cat(list(mattes)).numpy()):
            matte = alpha / np.float32(np.iinfo(alpha.dtype).max)
            if not alpha.any():
                continue
            inside = matte > MASK_ALPHA
            found = {name: region[name] for name in ("points", "predicted_iou", "stability_score")}
            found |= alpha_region(matte, None)
            del found["alpha"]  # lies in a file of its own
            iou = np.count_nonzero(inside & mask) / np.count_nonzero(inside | mask)
            regions.append({**found, "coarse_mask": region["mask"], "mask_iou": iou})
            files.append(encode_alpha(alpha, bits))
    return regions, files


@torch.no_grad()
def _mattes(
    model: ZimLabelConverter,
    processor: ZimLabelConverterProcessor,
    picture: Any,
    masks: torch.Tensor,
    masks_per_batch: int | None,
    dtype: str | torch.dtype,
) -> Iterator[torch.Tensor]:
    """Mattes (p, height, width) of few masks (P, height, width) bool at a time."""
    inputs = processor(images=picture)
    pixel_values = inputs["pixel_values"].to(model.device, model.dtype)
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    for part in masks.split(MASKS_AT_ONCE):
        coarse = processor(original_sizes=sizes[0], coarse_masks=[part])["coarse_masks"]
        alphas = model(pixel_values, coarse.to(model.device), masks_per_batch=masks_per_batch).alphas
        yield processor.post_process_alphas(alphas, *sizes, dtype=dtype)[0].cpu()


@contextmanager
def _evaluating(model: ZimLabelConverter) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _ShardWriter:
    """Collects rows and writes them as zip files that are whole or not there."""

    def __init__(self, output: Path, images_per_shard: int) -> None:
        self.output, self.images_per_shard = output, images_per_shard
        self._rows: list[tuple[str, dict[str, Any], Sequence[bytes]]] = []
        self._last = time.monotonic()

    def add(self, name: str, row: dict[str, Any], alphas: Sequence[bytes]) -> None:
        self._rows.append((name, row, alphas))
        if len(self._rows) >= self.images_per_shard or time.monotonic() - self._last > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            # a new name every time: processes that share the folder never meet
            with atomic_path(self.output / f"mattes-{uuid.uuid4().hex}.zip") as temporary:
                with zipfile.ZipFile(temporary, "w") as shard:  # stored: a PNG is compressed already
                    for name, row, alphas in self._rows:
                        shard.writestr(f"{name}.json", json.dumps(row))
                        for i, alpha in enumerate(alphas):
                            shard.writestr(f"{name}/{i}.png", alpha)
        self._rows, self._last = [], time.monotonic()


__all__ = ["convert_masks", "label_mattes"]
