# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Mattes that a label converter made of the masks of SA-1B, as in SA1B-Matte (ZIM, ICCV 2025), in shards.

`hf_segcap.matte_engine` writes them. A shard is a zip file that any program opens:
```
mattes-2f1c....zip
  sa_1.json        {"image": "../sa1b/sa_1.jpg", "image_id": 1, "width": .., "height": .., "regions": [{"box": .., ...}, ..]}
  sa_1/0.png       the matte of the first region, grey, of the size of the image
  sa_1/1.png
  sa_2.json        ...
```
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..files import by_number
from ..images import load_image


def shard_rows(path: Path) -> list[str]:
    """The names of the rows of a shard.

    Raises:
        ValueError: a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as shard:
            return [name.removesuffix(".json") for name in shard.namelist() if name.endswith(".json")]
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"the shard {path} is damaged ({error}): delete it and make the mattes again")


class MatteShards(Dataset):
    """One row per image: all its mattes, without words. Files are opened when a row is asked for.

    The row format is that of `hf_segcap.data.sources`. A region has `alpha`, the bytes of a grey PNG; `box` is around the
    pixels above 0.1 and `mask` the COCO RLE of those above 0.5; `coarse_mask` is the mask it was made of and `mask_iou`
    their IoU; `points`, `predicted_iou` and `stability_score` are those of SA-1B.

    Args:
        root: folder of the shards.
        images: folder of the images, if they are not where they were when the mattes were made.
        min_iou: mattes that agree less with their mask are left out: the converter has probably failed.
        limit: use the first images only.

    Raises:
        ValueError: no shards there, or a damaged one; when a row is asked for: an image that is missing or has another size.
    """

    def __init__(
        self, root: str | Path, images: str | Path | None = None, min_iou: float = 0.0, limit: int | None = None
    ) -> None:
        if not 0 <= min_iou <= 1:
            raise ValueError(f"min_iou must be between 0 and 1, got {min_iou}")
        self.root, self.min_iou = Path(root), min_iou
        self.images = None if images is None else Path(images)
        found = {name: path for path in sorted(self.root.glob("*.zip")) for name in shard_rows(path)}
        if not found:
            raise ValueError(f"there are no mattes at {self.root}: expected the output of `hf-segcap label-mattes`")
        names = sorted(found, key=lambda name: by_number(Path(f"{name}.json")))
        self.rows = [(name, found[name]) for name in names[:limit]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, path = self.rows[index]
        try:
            with zipfile.ZipFile(path) as shard:
                row = json.loads(shard.read(f"{name}.json"))
                regions = [
                    {**region, "alpha": shard.read(f"{name}/{i}.png")}
                    for i, region in enumerate(row["regions"])
                    if region["mask_iou"] >= self.min_iou
                ]
        except (zipfile.BadZipFile, OSError, KeyError) as error:
            raise _damaged(path, error) from error
        source = self.root / row["image"] if self.images is None else self.images / Path(row["image"]).name
        image = load_image(source, name=str(source))
        if (image.height, image.width) != (row["height"], row["width"]):
            raise ValueError(
                f"{path}: the mattes of {name} are of an image of {row['height']} x {row['width']} pixels, {source} has "
                f"{image.height} x {image.width}"
            )
        return {**row, "image": image, "regions": regions}

    def texts(self) -> Iterator[str]:
        """None: the regions have no words."""
        return iter(())
