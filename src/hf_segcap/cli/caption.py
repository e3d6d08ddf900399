# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap caption IMAGE`: says what is in regions of a picture, or in all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_BOX_HELP = "A region x0,y0,x1,y1 in pixels; may be repeated."
_POINT_HELP = "A region by a point x,y in it, in pixels; may be repeated."


def caption(
    image: Annotated[str, typer.Argument(help="Path or URL of a picture.")],
    box: Annotated[list[str] | None, typer.Option(help=_BOX_HELP)] = None,
    point: Annotated[list[str] | None, typer.Option(help=_POINT_HELP)] = None,
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
    boxes = [_numbers(text, 4, "--box") for text in box or []]
    points = [_numbers(text, 2, "--point") for text in point or []]

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

    typer.echo(json.dumps([to_json(result) for result in results], indent=2) if as_json else table(results))
    if out is not None:
        draw_regions(picture, results).save(out)


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"{option} takes {count} numbers separated by commas, got {text!r}.")
    return numbers


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Results of the pipeline as aligned text, one line per region."""
    if not results:
        return "No region was found."
    rows = [("box (x0 y0 x1 y1)", "score", "caption")]
    for result in results:
        box = " ".join(f"{value:.0f}" for value in result["box"].values())
        rows.append((box, f"{result['score']:.2f}", result["caption"]))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows)


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its mask as COCO RLE."""
    from ..masks import encode_rle

    return {name: encode_rle(value) if name == "mask" else value for name, value in result.items()}
