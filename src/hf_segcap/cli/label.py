# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap label FOLDER`: segments everything in all images of a folder, as SA-1B files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SETTING_HELP, generator_settings


def label(
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    output: Annotated[Path, typer.Option(help="Folder for one json file per image; files that exist are kept.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the bundled small model.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help=SETTING_HELP)] = None,
) -> None:
    """Label all images of a folder with masks, in the format of SA-1B. Go on after an interruption by the same command."""
    settings = generator_settings(setting)

    from transformers import pipeline

    from ..data_engine import label_images, list_images

    files = label_images(pipeline("promptable-segmentation", model=model), list_images(folder), output, **settings)
    typer.echo(f"{len(files)} files in {output}")
