# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Visual Genome region descriptions (v1.2) with the splits of DenseCap, as SCA trains and evaluates on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .sources import StoredRows

SPLITS = ("train", "val", "test")


class VisualGenomeRegions(StoredRows):
    """One row per image of a split: all its region descriptions, one phrase each.

    `root` holds `image_data.json`, `region_descriptions.json`, `densecap_splits.json` (from the authors of DenseCap) and
    the folders `VG_100K` and `VG_100K_2`. Images of the split without regions are left out.

    Args:
        root: the folder.
        split: "train" (about 77,400 images), "val" or "test" (5,000 images, on which results are published).
        limit: use the first images only.

    Raises:
        ValueError: a file is missing or has another content, or the split is unknown.
    """

    def __init__(self, root: str | Path, split: str = "train", limit: int | None = None) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
        self.root = Path(root)
        wanted = self._read("densecap_splits.json")
        if not isinstance(wanted, dict) or split not in wanted:
            raise ValueError(f"{self.root / 'densecap_splits.json'}: expected a list of image ids under {split!r}")
        ids = set(wanted[split])
        # The descriptions have neither addresses nor sizes of the images.
        images = {item["image_id"]: item for item in self._read("image_data.json") if item["image_id"] in ids}
        rows: list[dict[str, Any]] = []
        for entry in self._read("region_descriptions.json"):
            if limit is not None and len(rows) >= limit:
                break
            if entry["id"] in ids and entry["regions"]:
                if entry["id"] not in images:
                    raise ValueError(f"image {entry['id']} of the split is not in {self.root / 'image_data.json'}")
                rows.append(self._row(images[entry["id"]], entry["regions"]))
        super().__init__(rows)

    def _row(self, image: dict[str, Any], regions: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            # The last two parts of the address are the path: VG_100K_2/1.jpg.
            "image": self.root.joinpath(*image["url"].split("/")[-2:]),
            "image_id": image["image_id"],
            "width": image["width"],
            "height": image["height"],
            "caption": None,
            "regions": [
                {
                    "box": [r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"]],
                    "phrases": [r["phrase"]],
                    "mask": None,
                    "category": None,
                    "region_id": r["region_id"],
                }
                for r in regions
            ],
        }

    def _read(self, name: str) -> Any:
        path = self.root / name
        if not path.is_file():
            raise ValueError(
                f"there is no {path}: expected image_data.json and region_descriptions.json (Visual Genome v1.2) and "
                "densecap_splits.json (DenseCap)"
            )
        with open(path, encoding="utf-8") as file:
            return json.load(file)
