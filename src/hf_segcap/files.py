# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Files that are whole or not there, whenever a run is killed; folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def image_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder, by name; not hidden ones, nor those of folders inside it.

    Raises:
        ValueError: no folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: expected one of images")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
    if not found:
        raise ValueError(f"{folder} holds no image, expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def by_number(path: Path) -> tuple[int, str]:
    """Sorts files by the number in their name: "sa_9.json" comes before "sa_10.json"."""
    digits = "".join(character for character in path.stem if character.isascii() and character.isdigit())
    return int(digits or 0), path.stem


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """The path as files in `folder` name it, with slashes on every system."""
    path = Path(path)
    # Of folders that are links, the one behind the link counts: that is where ".." leads from. A file keeps its name.
    real = Path(os.path.realpath(path.parent)) / path.name
    return Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place, written through to the disk, when the block ends without an
    error. Folders are made as needed.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
