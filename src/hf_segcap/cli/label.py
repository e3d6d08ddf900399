# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap label FOLDER`: segments everything in all images of a folder, as SA-1B files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def label(
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    output: Annotated[Path, typer.Option(help="Folder for one json file per image; files that exist are kept.")],
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the bundled small model.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(help="An option of SAM's generator, such as points_per_side=32; may be repeated."),
    ] = None,
) -> None:
    """Label all images of a folder with masks, in the format of SA-1B. Go on after an interruption by the same command."""
    import yaml
    from transformers import pipeline

    from ..data_engine import label_images, list_images
    from ..everything import GeneratorSettings

    settings: dict[str, Any] = {}
    for text in setting or []:
        name, separator, value = text.partition("=")
        if not separator or name not in GeneratorSettings.names():
            known = ", ".join(GeneratorSettings.names())
            raise ValueError(f"--setting {text!r}: expected name=value with one of {known}")
        settings[name] = yaml.safe_load(value)
    files = label_images(pipeline("promptable-segmentation", model=model), list_images(folder), output, **settings)
    typer.echo(f"{len(files)} files in {output}")
