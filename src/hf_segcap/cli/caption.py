# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap caption IMAGE`: says what is in regions of a picture, or in all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import BOX_HELP, POINT_HELP, check_written, numbers, table, to_json


def caption(
    image: Annotated[str, typer.Argument(help="Path or URL of a picture.")],
    box: Annotated[list[str] | None, typer.Option(help=BOX_HELP)] = None,
    point: Annotated[list[str] | None, typer.Option(help=POINT_HELP)] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub id; default: the bundled small model.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Caption all that is found; default if no region is named.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write a picture of the results.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (masks as COCO RLE).")] = False,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the caption search.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest caption, in tokens.")] = None,
) -> None:
    """Caption regions of a picture: boxes, then points, then everything, in that order."""
    boxes = [numbers(text, 4, "--box") for text in box or []]
    points = [numbers(text, 2, "--point") for text in point or []]
    check_written({"--out": out}, {})

    from transformers import pipeline

    from ..images import load_image
    from ..visualization import draw_regions

    picture = load_image(image)
    captioner = pipeline("region-captioning", model=model)
    options: dict[str, Any] = {"num_beams": num_beams}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    results: list[dict[str, Any]] = []
    if boxes:
        results += captioner(picture, boxes=boxes, **options)
    if points:
        results += captioner(picture, points=points, **options)
    if everything or not (boxes or points):
        results += captioner(picture, **options)

    typer.echo(json.dumps([to_json(result) for result in results], indent=2) if as_json else table(results, "caption"))
    if out is not None:
        draw_regions(picture, results).save(out)
