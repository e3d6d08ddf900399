# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Records of masks as the official mask generator gives and writes them: dicts, SA-1B json, PNG + metadata.csv.

`bbox` is [x0, y0, x1 - x0, y1 - y0] of the first and last set column and row, in pixels: in width and height one less
than the box that covers the mask. `crop_box` is [x0, y0, width, height], `point_coords` [[x, y]], all in image pixels.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from .everything import MaskProposals
from .files import IMAGE_SUFFIXES, atomic_path, by_number
from .masks import MaskRuns, decode_rle, upscale_masks

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_CSV_COLUMNS = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
    "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
)


def check_output_mode(output_mode: Any) -> OutputMode:
    """`output_mode` itself.

    Raises:
        ValueError: unknown.
    """
    if output_mode not in OUTPUT_MODES:
        raise ValueError(f"`output_mode` must be one of {list(OUTPUT_MODES)}, got {output_mode!r}.")
    return output_mode


def to_records(proposals: MaskProposals, output_mode: OutputMode = "binary_mask") -> list[dict[str, Any]]:
    """The official records of masks, in their order.

    Args:
        proposals: what [`~hf_segcap.everything.generate_masks`] found.
        output_mode: form of "segmentation": "binary_mask" (bool array (height, width)), "uncompressed_rle" (run lengths
            as a list) or "coco_rle" (as text; the bytes of pycocotools).

    Returns:
        Dicts of "segmentation", "area" (pixels), "bbox", "predicted_iou", "point_coords", "stability_score" and
        "crop_box"; all but a binary mask fit for JSON.

    Raises:
        ValueError: unknown `output_mode`.
    """
    segmentations: Any = segmentations_of(proposals.runs, output_mode)
    columns = zip(
        segmentations,
        proposals.runs.areas().tolist(),
        _to_sizes(proposals.boxes),
        proposals.predicted_iou.tolist(),
        proposals.points.tolist(),
        proposals.stability_score.tolist(),
        _to_sizes(proposals.crop_boxes),
    )
    return [
        {
            "segmentation": segmentation,
            "area": area,
            "bbox": bbox,
            "predicted_iou": predicted_iou,
            "point_coords": [point],
            "stability_score": stability,
            "crop_box": crop_box,
        }
        for segmentation, area, bbox, predicted_iou, point, stability, crop_box in columns
    ]


def to_matte_records(
    proposals: MaskProposals, image_size: int, output_mode: OutputMode = "binary_mask"
) -> list[dict[str, Any]]:
    """The official records of mattes: those of [`to_records`] and "logit".

    "logit" is, despite its name, the matte: alpha times 255, rounded down, uint8 (height, width) of the whole image. All
    mattes are held at once: that is a byte per pixel and record.

    Args:
        proposals: what [`~hf_segcap.everything.generate_masks`] found with `mattes=True`.
        image_size: side of the padded model frame in pixels.
        output_mode: as in [`to_records`].
    """

    def finish(low_res: torch.Tensor, crop_size: tuple[int, int], reshaped_size: tuple[int, int]) -> np.ndarray:
        alpha = upscale_masks(low_res[None, None], reshaped_size, crop_size, image_size)[0, 0].sigmoid_()
        return (alpha * 255).to(torch.uint8).numpy()

    records = to_records(proposals, output_mode)
    for index, record in enumerate(records):
        record["logit"] = proposals.matte(index, finish)
    return records


def segmentations_of(runs: MaskRuns, output_mode: OutputMode) -> Any:
    """An iterable over the masks in the form of `output_mode`, see [`to_records`]."""
    if check_output_mode(output_mode) == "uncompressed_rle":
        return runs.to_uncompressed()
    if output_mode == "coco_rle":
        return runs.to_coco()
    return (runs.select(np.array([index])).decode()[0] for index in range(len(runs)))


def _to_sizes(boxes: Any) -> list[list[int]]:
    """xyxy -> [x, y, width, height]."""
    return [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()]


# --- SA-1B ------------------------------------------------------------------------------------------------------------


def write_sa1b(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    *,
    image_id: int,
    file_name: str,
    width: int,
    height: int,
) -> None:
    """Writes the masks of one image as SA-1B does: `{"image": {...}, "annotations": [{"id": 0, ...}, ...]}`.

    Args:
        path: the json file; SA-1B calls it like the image. It appears complete or not at all.
        records: as [`to_records`] gives them, with any form of "segmentation".
        image_id: number of the image.
        file_name: name of the image file, relative to the json file.
        width: of the image in pixels.
        height: of the image in pixels.

    Raises:
        ValueError: a mask that has not the size of the image, or a record without one of the fields.
    """
    annotations = []
    for index, record in enumerate(records):
        missing = [name for name in ("segmentation", "area", "bbox") if name not in record]
        if missing:
            raise ValueError(f"Record {index} lacks {missing}.")
        runs = _runs_of(record["segmentation"], f"Record {index}")
        if runs.size != (height, width):
            raise ValueError(
                f"The mask of record {index} has the size {runs.size} (height, width), its image {(height, width)}."
            )
        annotation = {name: value for name, value in without_nan(record).items() if name != "segmentation"}
        annotations.append({"id": index, "segmentation": runs.to_coco()[0], **annotation})
    image = {"image_id": image_id, "width": width, "height": height, "file_name": file_name}
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps({"image": image, "annotations": annotations}, default=_plain_number), encoding="utf-8"
        )


def without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for the stability of an empty mask, which is NaN: JSON does not know it."""
    score = record.get("stability_score")
    return {**record} if score is None or math.isfinite(score) else {**record, "stability_score": None}


def _plain_number(value: Any) -> Any:
    """Numbers of numpy and torch, for `json`."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not fit into JSON")


def _runs_of(segmentation: Any, where: str) -> MaskRuns:
    if isinstance(segmentation, Mapping):
        try:
            return MaskRuns.from_rles([segmentation])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    mask = np.asarray(segmentation)
    if mask.ndim != 2:
        raise ValueError(
            f'{where}: "segmentation" must be a mask (height, width) or an RLE, got {segmentation!r:.100}.'
        )
    return MaskRuns.encode(mask[None])


def list_sa1b(path: str | os.PathLike[str]) -> list[Path]:
    """The json files of a folder, without hidden ones, in the order of their names (numbers by value), or the one file itself.

    Raises:
        ValueError: no such file or folder, or a folder without json files.
    """
    path = Path(path)
    found = (file for file in path.glob("*.json") if file.name[0] != ".")  # hidden ones are of other programs
    files = sorted(found, key=by_number) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"there are no masks at {path}: expected a json file of SA-1B or a folder of such files")
    return files


def read_sa1b(path: str | os.PathLike[str], max_area: float | None = None) -> list[dict[str, Any]]:
    """SA-1B json, or the lists of records that the official command line writes, as rows of regions.

    Args:
        path: one json file, or a folder of them (all are held in memory; [`~hf_segcap.data.sa1b.SA1BRegions`] reads them
            one by one).
        max_area: leave out masks that cover more than this part of their image (SAM's training: 0.9).

    Returns:
        One dict per file: "image" (path next to the json file; it need not exist), "image_id", "width", "height",
        "caption" (None) and "regions", each with "box" (xyxy that covers the mask, in pixels), "mask" (COCO RLE),
        "phrases" (none), "category" (None), "points" ([[x, y]]), "predicted_iou", "stability_score" (None if unknown).

    Raises:
        ValueError: nothing there, or a damaged file; the message names the file, the mask and what is expected.
    """
    return [read_sa1b_file(file, max_area) for file in list_sa1b(path)]


def read_sa1b_file(path: Path, max_area: float | None = None) -> dict[str, Any]:
    """The row of one json file, see [`read_sa1b`]."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); the file may be cut off") from error
    if isinstance(content, list):  # the command line writes no image block
        content = {"image": {}, "annotations": content}
    image = content.get("image") if isinstance(content, dict) else None
    if not isinstance(image, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(f'{path}: expected an object with "image" and a list of "annotations", as in SA-1B')
    regions = [_read_annotation(a, f"{path}, mask {i}") for i, a in enumerate(content["annotations"])]
    sizes = {tuple(region["mask"]["size"]) for region in regions}
    try:
        if {"width", "height"} <= image.keys():
            sizes.add((int(image["height"]), int(image["width"])))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f'{path}: expected "width" and "height" in pixels, got {image!r:.200}') from error
    if len(sizes) > 1:
        raise ValueError(f"{path}: masks and image have different sizes (height, width): {sorted(sizes)}")
    height, width = sizes.pop() if sizes else (0, 0)
    if max_area is not None:
        regions = [region for region in regions if region["area"] <= max_area * height * width]
    return {
        "image": _image_of(path, image),
        "image_id": image.get("image_id", path.stem),
        "width": width,
        "height": height,
        "caption": None,
        "regions": regions,
    }


def _image_of(path: Path, image: Mapping[str, Any]) -> Path:
    if isinstance(image.get("file_name"), str):
        return path.parent / image["file_name"]
    found = [path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES if path.with_suffix(suffix).is_file()]
    return found[0] if found else path.with_suffix(IMAGE_SUFFIXES[0])


def _read_annotation(annotation: Any, where: str) -> dict[str, Any]:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("segmentation"), dict):
        raise ValueError(f'{where}: expected an object with an RLE as "segmentation", got {annotation!r:.200}')
    runs = _runs_of(annotation["segmentation"], where)
    x0, y0, x1, y1 = runs.boxes()[0].tolist()
    area = int(runs.areas()[0])
    points = annotation.get("point_coords") or []
    scores = {name: annotation.get(name) for name in ("predicted_iou", "stability_score")}
    try:
        points = [[float(x), float(y)] for x, y in points]
        scores = {name: None if value is None else float(value) for name, value in scores.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{where}: expected numbers as "predicted_iou" and "stability_score" and [[x, y]] as "point_coords" ({error})'
        ) from error
    return {
        "box": [float(x0), float(y0), float(x1 + (area > 0)), float(y1 + (area > 0))],
        "phrases": [],
        "mask": runs.to_coco()[0],
        "category": None,
        "area": area,
        "points": points,
        **scores,
    }


# --- the official command line ----------------------------------------------------------------------------------------


def write_mask_folder(folder: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes masks as the official command line does: `0.png`, `1.png`, ... (0 or 255) and `metadata.csv`.

    Args:
        folder: made by this function; it appears complete or not at all.
        records: as [`to_records`] gives them, with any form of "segmentation".

    Raises:
        ValueError: the folder exists, or a record without one of the fields.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already: masks are written into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        inner = temporary / "masks"  # made with the usual permissions, unlike the temporary folder
        inner.mkdir()
        lines = [_CSV_COLUMNS]
        for index, record in enumerate(records):
            lines.append(_csv_line(index, record))
            segmentation = record["segmentation"]
            mask = decode_rle(segmentation) if isinstance(segmentation, Mapping) else np.asarray(segmentation)
            Image.fromarray((mask != 0).astype(np.uint8) * 255).save(inner / f"{index}.png")
        (inner / "metadata.csv").write_text("\n".join(lines), encoding="utf-8", newline="")
        os.rename(inner, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _csv_line(index: int, record: Mapping[str, Any]) -> str:
    try:
        numbers = [index, record["area"], *record["bbox"], *record["point_coords"][0], record["predicted_iou"]]
        numbers += [record["stability_score"], *record["crop_box"]]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"Record {index} is incomplete ({error}): expected the fields of `to_records`.") from error
    return ",".join(map(str, numbers))


def write_coco_json(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records with COCO RLE as one list, as the official command line does when asked for RLE.

    Args:
        path: the json file. It appears complete or not at all.
        records: as [`to_records`] gives them with `output_mode="coco_rle"`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(list(map(without_nan, records)), default=_plain_number), encoding="utf-8")
