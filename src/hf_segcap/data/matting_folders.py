# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Matting data sets as they are published, and your own foregrounds over your own backgrounds.

All give the rows of `sources.py`. A region also has `alpha`, its matte (H, W) float32 in 0..1, and `name`, the file of the
matte; with a trimap `trimap` (H, W) uint8 (0 background, 255 object, others unknown); with recorded prompts `points` [[x, y],
...] and `point_labels` (1 inside, 0 outside), pixels. Files are looked for when the data set is made, and opened when a row
is asked for.

```
MicroMat3K/                        Combined_Dataset/ (Composition-1k, Deep Image Matting)
  data_list.txt                      Test_set/
  img/0001.png                         test_fg_names.txt, test_bg_names.txt
  matte/{fine,coarse}/0001_01.png      Adobe-licensed images/
  prompt/{fine,coarse}/0001_01.json      fg/NAME.png, alpha/NAME.png (or alpha_copy/NAME_0.png, ...)
                                         trimaps/NAME_0.png, ..., NAME_19.png
AM-2k/                                 merged/NAME_0.png, ..., NAME_19.png (if composed already)
  train/{original,mask}/
  validation/{original,mask,trimap}/ AIM-500/{original,mask,trimap}/
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..files import image_files
from ..images import load_image
from .alpha import alpha_region, decode_alpha
from .matte_degradations import composite, fit_background
from .sources import check_box

MICROMAT_SUBSETS = ("fine", "coarse")
AM2K_SPLITS = ("train", "validation")


class MattingRows(Dataset):
    """Rows whose images and mattes are opened when a row is asked for; mattes that are 0 everywhere are left out.

    Args:
        items: per image `image` (a path), `image_id` and `regions`, dicts of `alpha` (a path) and optionally `trimap` (a
            path), `box`, `points`, `point_labels`.

    Raises:
        ValueError: no items; when a row is asked for: a damaged file, or sizes that differ.
    """

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        if not items:
            raise ValueError("there is no image with a matte")
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = self.open_image(item)
        size = (image.height, image.width)
        return {
            "image": image,
            "image_id": item["image_id"],
            "width": image.width,
            "height": image.height,
            "caption": None,
            "regions": [found for region in item["regions"] if (found := _read_region(region, size)) is not None],
        }

    def open_image(self, item: dict[str, Any]) -> Image.Image:
        """The picture of an item."""
        return load_image(item["image"], name=str(item["image"]))

    def texts(self) -> Iterator[str]:
        """None: the regions have no words."""
        return iter(())


class MicroMat3K(MattingRows):
    """MicroMat-3K (ZIM, ICCV 2025): 3,000 high-resolution images, each object with recorded points and a box.

    One row per image. `box` is the recorded one.

    Args:
        root: the folder of `data_list.txt`.
        subset: "fine" (hair, leaves) or "coarse"; `None`: both.
        limit: use the first images only.

    Raises:
        ValueError: a file is missing, an unknown subset or an unusable prompt file.
    """

    def __init__(self, root: str | Path, subset: str | None = None, limit: int | None = None) -> None:
        if subset is not None and subset not in MICROMAT_SUBSETS:
            raise ValueError(f"unknown subset {subset!r}, expected one of {MICROMAT_SUBSETS} or None for both")
        root = Path(root)
        items: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(_lines(root / "data_list.txt", "the list of MicroMat-3K"), start=1):
            if subset is not None and subset not in line:
                continue
            paths = line.split()
            if len(paths) < 3:
                raise ValueError(
                    f"{root / 'data_list.txt'}, line {number}: expected the paths of an image, a matte and a prompt, got "
                    f"{line!r}"
                )
            image, matte, prompt = (_existing(root / path, f"line {number} of data_list.txt") for path in paths[:3])
            if paths[0] not in items and limit is not None and len(items) >= limit:
                continue
            item = items.setdefault(paths[0], {"image": image, "image_id": image.stem, "regions": []})
            item["regions"].append({"alpha": matte, **_read_prompt(prompt)})
        if not items:
            raise ValueError(f"{root / 'data_list.txt'} has no line of the subset {subset or 'fine or coarse'!r}")
        super().__init__(list(items.values()))


class AM2K(MattingRows):
    """AM-2K (Li et al., Bridging Composite and Real, IJCV 2022): 2,000 photographs of animals, one matte each.

    Args:
        root: the folder of `train` and `validation`, each with `original` (jpg), `mask` (png) and in validation `trimap`.
        split: "train" (1,800) or "validation" (200).
        limit: use the first images only.

    Raises:
        ValueError: a folder or a file is missing, or an unknown split.
    """

    def __init__(self, root: str | Path, split: str = "validation", limit: int | None = None) -> None:
        if split not in AM2K_SPLITS:
            raise ValueError(f"unknown split {split!r}, expected one of {AM2K_SPLITS}")
        folder = Path(root) / split
        super().__init__(_paired(folder / "original", folder / "mask", folder / "trimap", limit))


class AIM500(MattingRows):
    """AIM-500 (Li et al., Deep Automatic Natural Image Matting, IJCAI 2021): 500 photographs of all kinds, one matte each.

    Args:
        root: the folder of `original` (jpg), `mask` and `trimap` (png).
        limit: use the first images only.

    Raises:
        ValueError: a folder or a file is missing.
    """

    def __init__(self, root: str | Path, limit: int | None = None) -> None:
        root = Path(root)
        super().__init__(_paired(root / "original", root / "mask", root / "trimap", limit))


class Composition1K(MattingRows):
    """The test set of Deep Image Matting (Xu et al., CVPR 2017): 50 foregrounds on 20 backgrounds each.

    The set is published without its pictures. If they were composed already, into `Test_set/merged` or `Test_set/
    Adobe-licensed images/merged`, these are read; otherwise they are composed when they are asked for, from `backgrounds`.

    Args:
        root: the folder of `Test_set`, see the module's description.
        backgrounds: the folder of the images of `test_bg_names.txt` (PASCAL VOC).
        limit: use the first pictures only.

    Raises:
        ValueError: a folder or a file is missing, or lists that do not fit each other.
    """

    def __init__(self, root: str | Path, backgrounds: str | Path | None = None, limit: int | None = None) -> None:
        test = _existing(Path(root) / "Test_set", "Composition-1k")
        licensed = _existing(test / "Adobe-licensed images", "Composition-1k")
        merged = next((path for path in (test / "merged", licensed / "merged") if path.is_dir()), None)
        if merged is None and backgrounds is None:
            raise ValueError(
                f"there is no {test / 'merged'}: give `backgrounds`, the folder of the images of test_bg_names.txt (PASCAL "
                "VOC), to compose the pictures"
            )
        foregrounds = [Path(name).stem for name in _lines(test / "test_fg_names.txt", "the foregrounds")]
        names = _lines(test / "test_bg_names.txt", "the backgrounds")
        if not foregrounds or len(names) % len(foregrounds):
            raise ValueError(
                f"{test}: expected the same number of backgrounds for each foreground, got {len(names)} for "
                f"{len(foregrounds)}"
            )
        each = len(names) // len(foregrounds)
        items = []
        for number, background in enumerate(names[:limit]):
            foreground, place = foregrounds[number // each], number % each
            name = f"{foreground}_{place}.png"
            alphas = (
                licensed / "alpha_copy" / name,
                licensed / "alpha" / f"{foreground}.png",
                test / "alpha_copy" / name,
            )
            trimaps = (licensed / "trimaps" / name, test / "trimaps" / name)
            item: dict[str, Any] = {
                "image_id": Path(name).stem,
                "regions": [{"alpha": _first(alphas), "trimap": _first(trimaps), "name": name}],
            }
            if merged is not None:
                item["image"] = _existing(merged / name, "Composition-1k")
            else:
                item["image"] = _existing(licensed / "fg" / f"{foreground}.png", "Composition-1k")
                item["background"] = _existing(Path(str(backgrounds)) / background, "test_bg_names.txt")
            items.append(item)
        super().__init__(items)

    def open_image(self, item: dict[str, Any]) -> Image.Image:
        image = super().open_image(item)
        if "background" not in item:
            return image
        size = (image.height, image.width)
        alpha = decode_alpha(item["regions"][0]["alpha"], str(item["regions"][0]["alpha"]), size)
        background = fit_background(load_image(item["background"], name=str(item["background"])), size)
        return Image.fromarray(composite(np.asarray(image), alpha, background))


class ForegroundComposites(Dataset):
    """Rows of foregrounds with mattes over random backgrounds, as matting models are usually trained.

    The foregrounds take turns. Row i depends on `seed` and i only: mirrored or not, which background and which part of it.

    Args:
        foregrounds: a folder of images whose colours are those of the object, also where it is see-through. Of images with
            transparency the bare colours count, not laid over anything, and the lower of transparency and matte (they are
            one and the same where cut-outs come with their mattes).
        alphas: a folder of mattes with the same file names (their endings may differ).
        backgrounds: a folder of images without the objects.
        n: number of rows; default: one per foreground.
        seed: of all random decisions.
        max_size: larger foregrounds are scaled down to this longest side, pixels.

    Raises:
        ValueError: a folder is missing or empty, a foreground has no matte, or a setting is out of range; when a row is
            asked for: a damaged file, or sizes that differ.
    """

    def __init__(
        self,
        foregrounds: str | Path,
        alphas: str | Path,
        backgrounds: str | Path,
        n: int | None = None,
        seed: int = 0,
        max_size: int = 1024,
    ) -> None:
        if (n is not None and n < 1) or max_size < 1:
            raise ValueError(f"expected n >= 1 and max_size >= 1, got {n} and {max_size}")
        self.foregrounds = _paired(Path(foregrounds), Path(alphas), None, None)
        self.backgrounds = image_files(backgrounds)
        self.n, self.seed, self.max_size = len(self.foregrounds) if n is None else n, seed, max_size

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.n:
            raise IndexError(f"row {index} of {self.n}")
        rng = np.random.default_rng([self.seed, index])
        item = self.foregrounds[index % len(self.foregrounds)]
        foreground, cover = _read_foreground(item["image"])
        path = item["regions"][0]["alpha"]
        alpha = decode_alpha(path, str(path), (foreground.height, foreground.width))
        matte = Image.fromarray(alpha if cover is None else np.minimum(alpha, cover))
        scale = self.max_size / max(foreground.size)
        if scale < 1:
            size = (max(1, round(foreground.width * scale)), max(1, round(foreground.height * scale)))
            foreground, matte = (picture.resize(size, Image.Resampling.BILINEAR) for picture in (foreground, matte))
        alpha, colours = np.asarray(matte).clip(0, 1), np.asarray(foreground)
        if rng.random() < 0.5:
            alpha, colours = np.ascontiguousarray(alpha[:, ::-1]), colours[:, ::-1]
        picked = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        background = fit_background(load_image(picked, name=str(picked)), alpha.shape, rng)
        return {
            "image": Image.fromarray(composite(colours, alpha, background)),
            "image_id": index,
            "width": foreground.width,
            "height": foreground.height,
            "caption": None,
            "regions": [alpha_region(alpha, alpha) | {"name": path.name}],
        }

    def texts(self) -> Iterator[str]:
        """None: the regions have no words."""
        return iter(())


# --- files ------------------------------------------------------------------------------------------------------------


def _read_foreground(path: Path) -> tuple[Image.Image, np.ndarray | None]:
    """Colours, also of transparent pixels, and the transparency (H, W) float32, 0..1, if there is any."""
    colours = load_image(path, name=str(path))
    with Image.open(path) as picture:
        if not picture.has_transparency_data:
            return colours, None
        layer = ImageOps.exif_transpose(picture).convert("RGBA")
    return layer.convert("RGB"), np.asarray(layer.getchannel("A"), dtype=np.float32) / np.float32(255)


def _read_region(region: dict[str, Any], size: tuple[int, int]) -> dict[str, Any] | None:
    """None for a matte that is 0 everywhere."""
    path = region["alpha"]
    alpha = decode_alpha(path, str(path), size)
    if not alpha.any():
        return None
    found = alpha_region(alpha, alpha, box=region.get("box"))
    found["name"] = region.get("name", path.name)
    if region.get("trimap") is not None:
        trimap = decode_alpha(region["trimap"], str(region["trimap"]), size)
        found["trimap"] = np.rint(trimap * 255).astype(np.uint8)
    return found | {key: region[key] for key in ("points", "point_labels") if key in region}


def _read_prompt(path: Path) -> dict[str, Any]:
    """`box`, `points` and `point_labels` of a prompt file; points with a negative label are padding."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        points = np.array(content["point"], dtype=np.float64).reshape(-1, 3)
        box = content["bbox"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected {{"point": [[x, y, label], ...], "bbox": [x0, y0, x1, y1]}}, got something else ({error})'
        ) from error
    points = points[points[:, 2] >= 0]
    corners = check_box(box, str(path))
    # first and last pixel of objects as wide as one: officially, such a box still marks a cell
    corners[2:] += corners[2:] == corners[:2]
    return {
        "box": corners.tolist(),
        "points": points[:, :2].tolist(),
        "point_labels": points[:, 2].astype(int).tolist(),
    }


def _paired(images: Path, alphas: Path, trimaps: Path | None, limit: int | None) -> list[dict[str, Any]]:
    """Items of all images of a folder with the matte, and the trimap if that folder exists, of the same name."""
    mattes = {path.stem: path for path in image_files(alphas)}
    hints = {path.stem: path for path in image_files(trimaps)} if trimaps is not None and trimaps.is_dir() else {}
    pictures = image_files(images)
    for name, found, folder in (("matte", mattes, alphas), ("trimap", hints, trimaps)):
        missing = [path.name for path in pictures if path.stem not in found]
        if missing and found:
            raise ValueError(
                f"{images}: {len(missing)} of {len(pictures)} images have no {name} of the same name in {folder}, the first "
                f"is {missing[0]}"
            )
    return [
        {
            "image": path,
            "image_id": path.stem,
            "regions": [{"alpha": mattes[path.stem], "trimap": hints.get(path.stem)}],
        }
        for path in pictures[:limit]
    ]


def _lines(path: Path, what: str) -> list[str]:
    _existing(path, what)
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _existing(path: Path, needed_by: str) -> Path:
    if not path.exists():
        raise ValueError(
            f"there is no {path} (named by {needed_by}): see the layout in hf_segcap.data.matting_folders"
        )
    return path


def _first(paths: Sequence[Path]) -> Path:
    """The first path that exists."""
    for path in paths:
        if path.exists():
            return path
    raise ValueError("expected one of these files, none exists: " + ", ".join(str(path) for path in paths))
