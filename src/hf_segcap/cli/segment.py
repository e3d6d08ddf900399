# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap segment IMAGE`: masks of what prompts name, or of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BOX_HELP,
    POINT_HELP,
    SETTING_HELP,
    as_one_call,
    check_written,
    generator_settings,
    region_prompts,
    table,
    to_json,
)


def segment(
    image: Annotated[str, typer.Argument(help="Path or URL of a picture.")],
    box: Annotated[list[str] | None, typer.Option(help=BOX_HELP)] = None,
    point: Annotated[list[str] | None, typer.Option(help=POINT_HELP)] = None,
    text: Annotated[list[str] | None, typer.Option(help="A region by words; may be repeated.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Segment all that is found; default if no region is named.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id; default: the bundled small model (with --text: for words).")
    ] = None,
    refine_steps: Annotated[int, typer.Option(min=0, help="How often a mask is handed back for refinement.")] = 0,
    setting: Annotated[list[str] | None, typer.Option(help=f"With --everything: {SETTING_HELP}")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a picture of the masks.")] = None,
    mask_folder: Annotated[
        Path | None,
        typer.Option(help="With --everything: write 0.png, 1.png, ... and metadata.csv into a new folder."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the results as JSON (masks as COCO RLE; everything: as SA-1B)."),
    ] = None,
) -> None:
    """Segment regions of a picture: boxes, points and words in that order, or everything."""
    prompts = region_prompts(box, point)
    prompts += [{"text": [value]} for value in text or []]
    if everything and prompts:
        raise ValueError("--everything takes no --box, --point or --text: leave one of them out.")
    if mask_folder is not None and prompts:
        raise ValueError("--mask-folder is for everything: leave the regions out, or use --json.")
    settings = generator_settings(setting, prompts)
    if refine_steps and not prompts:
        raise ValueError("--refine-steps is for named regions: everything mode has none.")
    if mask_folder is not None and mask_folder.exists():
        raise ValueError(f"--mask-folder {mask_folder} exists already: name a new one.")
    check_written({"--out": out}, {"--json": json_file})

    from transformers import pipeline

    from ..assets import bundled_model
    from ..files import relative_path
    from ..images import load_image
    from ..pipelines.promptable_segmentation import to_official_records
    from ..records import write_mask_folder, write_sa1b
    from ..visualization import draw_regions

    picture = load_image(image)
    if text and model is None:
        model = bundled_model("promptable-segmentation", "text")
    segmenter = pipeline("promptable-segmentation", model=model)
    if prompts:
        results = segmenter(picture, **as_one_call(prompts), refine_steps=refine_steps)
    else:
        results = segmenter(picture, **settings)

    typer.echo(table(results, "area"))
    if out is not None:
        draw_regions(picture, results).save(out)
    if mask_folder is not None:
        write_mask_folder(mask_folder, to_official_records(results))
    if json_file is not None and prompts:
        json_file.write_text(json.dumps([to_json(result) for result in results], indent=2) + "\n", encoding="utf-8")
    elif json_file is not None:
        local = Path(image).exists()  # not a URL
        write_sa1b(
            json_file,
            to_official_records(results),
            image_id=0,
            file_name=relative_path(image, json_file.parent) if local else Path(image).name,
            width=picture.width,
            height=picture.height,
        )
