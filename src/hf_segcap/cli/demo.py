# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap demo`: the bundled model on the bundled photograph. `make demo` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Regions of the lemur photograph (680 x 440): face, one eye, light fur on the left leg, leaves, bright stalks.
BOXES = [[265, 125, 410, 278], [284, 186, 308, 212], [160, 290, 250, 410], [0, 20, 150, 180], [475, 0, 560, 125]]


def demo(
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("demo.png"),
) -> None:
    """Caption several boxes and then everything in a bundled photograph; print a table, write a picture."""
    from transformers import pipeline

    from ..assets import bundled_photograph
    from ..images import load_image
    from ..visualization import draw_regions
    from .options import table

    picture = load_image(bundled_photograph("lemur"))
    captioner = pipeline("region-captioning")
    boxes = captioner(picture, boxes=BOXES)
    everything = captioner(picture)
    typer.echo(f"Boxes\n{table(boxes, 'caption')}\n\nEverything\n{table(everything, 'caption')}")

    panels = [draw_regions(picture, results) for results in (boxes, everything)]
    sheet = panels[0].resize((panels[0].width, panels[0].height * 2))
    for index, panel in enumerate(panels):
        sheet.paste(panel, (0, index * panel.height))
    sheet.save(out)
    typer.echo(f"\n{out}: the boxes above, everything below.")
