# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The three stages of SAM's data engine, as functions (SAM, section 4): help for annotators, prefilling, labelling alone.

1. Assisted-manual: [`precompute_embeddings`], so that an annotation tool only runs the light mask decoder.
2. Semi-automatic: [`prefill_masks`] turns the boxes of any detector into confident masks; annotators add what is missing.
3. Fully automatic: [`label_images`] writes the files of SA-1B, which `load_source("sa1b", root=...)` trains on.

Long jobs show a bar and lose nothing when they are killed: what is written is complete, and a second call goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .files import atomic_path, image_files, relative_path
from .images import load_image
from .pipelines.promptable_segmentation import PromptableSegmentationPipeline, to_official_records
from .records import write_sa1b
from .resume import check_settings, fingerprint

logger = logging.get_logger(__name__)

SETTINGS_FILE = ".settings"  # in the folder of the results

# SA-1B leaves out masks of nearly the whole image (SAM, appendix B).
MAX_AREA = 0.95


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder, by name; not those of folders inside it.

    Raises:
        ValueError: no folder, no image in it, or two images with the same name but for the ending.
    """
    found = image_files(folder)
    _check_names(found)
    return found


def _check_names(paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise ValueError(
                f"{seen[path.stem]} and {path} are both called {path.stem!r}: results are named after the images, rename one"
            )
        seen[path.stem] = path


def precompute_embeddings(
    segmenter: PromptableSegmentationPipeline,
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    progress: bool = True,
) -> list[Path]:
    """Stage 1: one `<stem>.npy` per image with its embedding, float32 (1, C, g, g), as SAM's browser demo reads it.

    Args:
        segmenter: the pipeline whose model encodes.
        images: image files.
        output: folder; embeddings that are there already are kept.
        progress: shows a bar.

    Returns:
        The files, in the order of the images. Damaged images are left out with a warning.

    Raises:
        ValueError: images of the same name, or `output` holds embeddings of another model.
    """
    output = Path(output)
    paths = [Path(image) for image in images]
    _check_names(paths)
    check_settings(
        output / SETTINGS_FILE, {"job": "embeddings", "model": fingerprint(segmenter.model, segmenter.processor)}
    )
    files = [output / f"{path.stem}.npy" for path in paths]
    for path, file in zip(tqdm(paths, desc="embeddings", unit="image", disable=not progress), files):
        if file.exists():
            continue
        try:
            inputs = segmenter.processor(images=load_image(path), return_tensors="pt")
        except ValueError as error:
            logger.warning(f"left out, {path}: {error}")
            continue
        pixel_values = inputs["pixel_values"].to(segmenter.device, segmenter.dtype)
        with torch.no_grad():
            embedding = segmenter.model.get_image_embeddings(pixel_values)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, embedding.float().cpu().numpy(), allow_pickle=False)
    return [file for file in files if file.exists()]


def prefill_masks(
    segmenter: PromptableSegmentationPipeline,
    image: Any,
    boxes: Sequence[Sequence[float]],
    confidence: Sequence[float] | None = None,
    min_confidence: float = 0.5,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
) -> list[dict[str, Any]]:
    """Stage 2: confident masks for the boxes of a detector.

    Args:
        segmenter: the pipeline.
        image: any form of image that the pipeline takes.
        boxes: xyxy in pixels of the image.
        confidence: of the detector for each box, in [0, 1]; 1 if not given.
        min_confidence: boxes below it are not prefilled.
        pred_iou_thresh, stability_score_thresh: masks that reach both stay.

    Returns:
        Results of the pipeline ("mask", "score", "box", "area", "stability_score") with "index", the place in `boxes`, and
        "confidence".

    Raises:
        ValueError: as many confidences as boxes are expected; unusable boxes.
    """
    scores = [1.0] * len(boxes) if confidence is None else [float(value) for value in confidence]
    if len(scores) != len(boxes):
        raise ValueError(f"got {len(scores)} confidences for {len(boxes)} boxes, expected one for each")
    chosen = [i for i, score in enumerate(scores) if score >= min_confidence]
    if not chosen:
        return []
    results = segmenter(image, boxes=[list(boxes[i]) for i in chosen])
    return [
        {**result, "index": i, "confidence": scores[i]}
        for i, result in zip(chosen, results)
        if result["score"] >= pred_iou_thresh and result["stability_score"] >= stability_score_thresh
    ]


def label_images(
    segmenter: PromptableSegmentationPipeline,
    images: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    max_area: float = MAX_AREA,
    progress: bool = True,
    **generator_settings: Any,
) -> list[Path]:
    """Stage 3: one SA-1B file `<stem>.json` per image with all masks of everything mode.

    SAM's own settings for SA-1B: `points_per_side=32, crop_n_layers=2, crop_n_points_downscale_factor=2,
    pred_iou_thresh=0.88, stability_score_thresh=0.95, min_mask_region_area=100`.

    Args:
        segmenter: the pipeline.
        images: image files.
        output: folder; files that are there already are kept. "file_name" in them is the path of the image from there.
        max_area: masks that cover this part of the image or more are left out.
        progress: shows a bar.
        generator_settings: see [`~hf_segcap.everything.GeneratorSettings`].

    Returns:
        The files, in the order of the images. Damaged images are left out with a warning.

    Raises:
        ValueError: generator settings that cannot be, images of the same name, or `output` holds labels of another model or
            with other settings.
    """
    output = Path(output)
    paths = [Path(image) for image in images]
    _check_names(paths)
    settings = asdict(segmenter.generator_settings(generator_settings))
    del settings["points_per_batch"]  # changes no result
    settings |= {"job": "labels", "model": fingerprint(segmenter.model, segmenter.processor), "max_area": max_area}
    check_settings(output / SETTINGS_FILE, settings)
    files = [output / f"{path.stem}.json" for path in paths]
    for path, file in zip(tqdm(paths, desc="labels", unit="image", disable=not progress), files):
        if file.exists():
            continue
        try:
            image = load_image(path)
            results = segmenter(image, output_mode="coco_rle", progress=False, **generator_settings)
        except ValueError as error:
            logger.warning(f"left out, {path}: {error}")
            continue
        kept = [result for result in results if result["area"] < max_area * image.width * image.height]
        write_sa1b(
            file,
            to_official_records(kept),
            image_id=_image_id(path),
            file_name=relative_path(path, output),
            width=image.width,
            height=image.height,
        )
    return [file for file in files if file.exists()]


def _image_id(path: Path) -> int:
    """A number for the name of an image, below 2^52: the same in every run, whatever other images there are."""
    return int(hashlib.sha256(path.stem.encode()).hexdigest()[:13], 16)


__all__ = ["label_images", "list_images", "precompute_embeddings", "prefill_masks"]
