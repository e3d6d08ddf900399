# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Your own data: a folder of images and one JSON-lines file.

```
my_data/
  regions.jsonl
  images/cat.jpg
```
with one line per image (shown on several lines here):
```
{"image": "images/cat.jpg",
 "regions": [{"box": [10, 20, 200, 180], "phrases": ["a grey cat", "a cat asleep"]},
             {"box": [210, 40, 300, 120], "phrase": "a red cup"}]}
```
`box` is x0, y0, x1, y1 in pixels of the upright image. Optional per region: `mask` (COCO run-length code), which segmentation
trains on; `alpha` (path of a matte, an image as large as that one: see `decode_alpha`) and `coarse` (true: the label converter
learns the mask as it is), which matting trains on; `category`. A region with a mask or a matte needs neither box (the one around
it is taken) nor phrases, which only captioning uses. Also `image_id`, `caption`, `task` ("caption" or "recognition") per image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..masks import MaskRuns
from .alpha import alpha_box, decode_alpha
from .sources import StoredRows, check_box

logger = logging.get_logger(__name__)

_EXAMPLE = '{"image": "images/cat.jpg", "regions": [{"box": [10, 20, 200, 180], "phrases": ["a grey cat"]}]}'

_REGION_FIELDS = {"box", "phrases", "phrase", "mask", "alpha", "coarse", "category"}


class RegionFolder(StoredRows):
    """Rows of a JSON-lines file with image paths, see the module's description. Images and mattes are opened when a row
    is asked for.

    Args:
        root: folder that image paths are relative to.
        annotations: the JSON-lines file, relative to `root` or absolute.
        limit: use the first lines only.

    Raises:
        ValueError: the file is missing or a line of it is unusable: the message names file and line, what is wrong and
            what is expected. All lines are checked at once, when the data set is made; images and mattes must exist. When a
            row is asked for: a matte that is 0 everywhere or has another size than the image.
    """

    def __init__(self, root: str | Path, annotations: str | Path = "regions.jsonl", limit: int | None = None) -> None:
        self.root = Path(root)
        path = self.root / annotations
        if not path.is_file():
            raise ValueError(f"there is no {path}: expected a file with one line per image such as {_EXAMPLE}")
        rows: list[dict[str, Any]] = []
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    rows.append(_parse_line(line, f"{path}, line {number}", self.root, len(rows)))
        if not rows:
            raise ValueError(f"{path} has no rows, expected lines such as {_EXAMPLE}")
        super().__init__(rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        for i, region in enumerate(row["regions"]):
            if region["box"] is None:
                where = f"{self.root}, row {index} ({row['image_id']}), region {i}"
                region["box"] = _box_around_matte(region["alpha"], where, (row["height"], row["width"]))  # once
        return row


def _parse_line(line: str, where: str, root: Path, index: int) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error}); each line is one complete object: {_EXAMPLE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise ValueError(f'{where}: expected an object with the path of an "image", for example {_EXAMPLE}')
    path = root / content["image"]
    if not path.is_file():
        raise ValueError(f"{where}: there is no image {path}; paths are relative to {root}")
    if not isinstance(content.get("regions"), list):
        raise ValueError(f'{where}: expected a list of "regions", got {content.get("regions")!r}')
    return {
        "image": path,
        "image_id": content.get("image_id", index),
        "caption": content.get("caption"),
        "task": content.get("task"),
        "regions": [_parse_region(r, f"{where}, region {i}", root) for i, r in enumerate(content["regions"])],
    }


def _parse_region(region: Any, where: str, root: Path) -> dict[str, Any]:
    if not isinstance(region, dict):
        raise ValueError(f'{where}: expected an object with "box" and "phrases", got {region!r}')
    region = {
        name: value for name, value in region.items() if value is not None
    }  # tables fill their columns with null
    unknown = sorted(set(region) - _REGION_FIELDS)
    if unknown:
        logger.warning_once(
            f"{where}: {', '.join(unknown)} of regions is not used, known are {sorted(_REGION_FIELDS)}"
        )
    mask = region.get("mask")
    if mask is not None and not (isinstance(mask, dict) and {"size", "counts"} <= mask.keys()):
        raise ValueError(f'{where}: expected a "mask" of the form {{"size": [h, w], "counts": ...}}, got {mask!r}')
    more = _matte_fields(region, where, root)
    shaped = bool(mask or more.get("alpha"))
    phrases = [region["phrase"]] if "phrase" in region else region.get("phrases", [] if shaped else None)
    if not isinstance(phrases, list) or not (phrases or shaped) or not all(isinstance(text, str) for text in phrases):
        raise ValueError(f'{where}: expected "phrases" (a list of texts) or "phrase" (a text), got {phrases!r}')
    box = None  # around a matte: opened with its image
    if mask and "box" not in region:
        box = _box_around(mask, where)
    elif "box" in region or not shaped:
        box = _given_box(region.get("box"), where)
    return {"box": box, "phrases": phrases, "mask": mask, "category": region.get("category"), **more}


def _given_box(given: Any, where: str) -> list[float]:
    box = check_box(given, where)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"{where}: the box {box.tolist()} is empty or inverted, expected x0 < x1 and y0 < y1 (two corners, not width "
            "and height)"
        )
    return box.tolist()


def _matte_fields(region: dict[str, Any], where: str, root: Path) -> dict[str, Any]:
    """`alpha`, as a path that exists, and `coarse`, where the region has them."""
    fields: dict[str, Any] = {}
    if region.get("alpha") is not None:
        if not isinstance(region["alpha"], str) or not (root / region["alpha"]).is_file():
            raise ValueError(f'{where}: expected the path of a matte as "alpha", from {root}, got {region["alpha"]!r}')
        fields["alpha"] = root / region["alpha"]
    if region.get("coarse") is not None:
        if not isinstance(region["coarse"], bool):
            raise ValueError(f'{where}: "coarse" is true or false, got {region["coarse"]!r}')
        fields["coarse"] = region["coarse"]
    return fields


def _box_around_matte(path: Path, where: str, size: tuple[int, int]) -> list[float]:
    box = alpha_box(decode_alpha(path, where, size))
    if box is None:
        raise ValueError(f"{where}: the matte {path} is 0 everywhere, expected an object")
    return box


def _box_around(mask: dict[str, Any], where: str) -> list[float]:
    try:
        runs = MaskRuns.from_rles([mask])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not runs.areas()[0]:
        raise ValueError(f"{where}: the mask is empty, expected at least one pixel")
    x0, y0, x1, y1 = map(float, runs.boxes()[0])
    return [x0, y0, x1 + 1, y1 + 1]
