# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SA-1B (Kirillov et al. 2023) and anything else in its format, such as masks made in everything mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..images import load_image
from ..records import list_sa1b, read_sa1b_file


class SA1BRegions(Dataset):
    """One row per image: all its masks, without words.

    Files are opened when a row is asked for: the whole of SA-1B is 11 million of them.

    Args:
        root: folder of `sa_1.json`, `sa_2.json`, ... with their images next to them.
        max_area: masks that cover more than this part of the image are left out, 0.9 in SAM's training; None: none are.
        limit: use the first files only.

    Raises:
        ValueError: no json files there; when a row is asked for: a damaged file or an image that is missing.
    """

    def __init__(self, root: str | Path, max_area: float | None = 0.9, limit: int | None = None) -> None:
        if max_area is not None and not 0 < max_area <= 1:
            raise ValueError(f"`max_area` is a part of the image in (0, 1], or None, got {max_area!r}")
        self.files = list_sa1b(root)[:limit]
        self.max_area = max_area

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = read_sa1b_file(self.files[index], self.max_area)
        image = load_image(row["image"], name=str(row["image"]))
        if row["regions"] and (image.height, image.width) != (row["height"], row["width"]):
            raise ValueError(
                f"{self.files[index]}: its masks are of an image of {row['height']} x {row['width']} pixels, "
                f"{row['image']} has {image.height} x {image.width}"
            )
        return {**row, "image": image, "image_path": row["image"], "width": image.width, "height": image.height}

    def texts(self) -> Iterator[str]:
        """None: the regions have no words."""
        return iter(())
