# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap matte IMAGE`: cuts out what prompts name, or mattes everything."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

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
)

_TRANSPARENT = (".png", ".webp", ".tif", ".tiff")


def matte(
    image: Annotated[str, typer.Argument(help="Path or URL of a picture.")],
    box: Annotated[list[str] | None, typer.Option(help=BOX_HELP)] = None,
    point: Annotated[list[str] | None, typer.Option(help=POINT_HELP)] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Matte all that is found; default if no region is named.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id, also of ONNX files; default: the bundled small model.")
    ] = None,
    guided: Annotated[
        bool, typer.Option("--guided", help="Follow the edges of pictures that are larger than the model sees.")
    ] = False,
    setting: Annotated[list[str] | None, typer.Option(help=f"With --everything: {SETTING_HELP}")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the named objects, cut out together, as PNG, WebP or TIFF. --everything: a picture of all mattes."
        ),
    ] = None,
    alpha: Annotated[Path | None, typer.Option(help="Write the matte of the named objects together.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results as JSON (mattes as PNG in data URLs).")
    ] = None,
) -> None:
    """Matte regions of a picture, boxes and points in that order, or everything."""
    prompts = region_prompts(box, point)
    if everything and prompts:
        raise ValueError("--everything takes no --box or --point: leave one of them out.")
    settings = generator_settings(setting, prompts)
    if alpha is not None and not prompts:
        raise ValueError("--alpha is for named objects: give --box or --point, or use --json for all mattes.")
    if out is not None and prompts and out.suffix.lower() not in _TRANSPARENT:
        raise ValueError(
            f"--out {out} cannot hold the transparency of cut-outs: give a name with {', '.join(_TRANSPARENT)}."
        )
    check_written({"--out": out, "--alpha": alpha}, {"--json": json_file})

    from transformers import pipeline

    from ..foreground import cut_out
    from ..images import load_image
    from ..visualization import draw_mattes

    picture = load_image(image)
    matter = pipeline("image-matting", model=model)
    results = matter(picture, **as_one_call(prompts), upscaling="guided" if guided else "bilinear", **settings)

    rows = [{**result, "alpha": f"{_coverage(result['alpha']):.1%}"} for result in results]
    typer.echo(table(rows, "alpha"))
    if prompts:
        together = _union([result["alpha"] for result in results])
        if alpha is not None:
            together.save(alpha)
        if out is not None:
            cut_out(picture, together).save(out)
    elif out is not None:
        draw_mattes(picture, results).save(out)
    if json_file is not None:
        json_file.write_text(json.dumps([_to_json(result) for result in results], indent=2) + "\n", encoding="utf-8")


def _coverage(alpha: Any) -> float:
    """The share of the picture that an object covers."""
    from PIL import ImageStat

    return ImageStat.Stat(alpha).mean[0] / 255


def _union(alphas: list[Any]) -> Any:
    from PIL import ImageChops

    together = alphas[0]
    for alpha in alphas[1:]:
        together = ImageChops.lighter(together, alpha)
    return together


def _to_json(result: dict[str, Any]) -> dict[str, Any]:
    """A result with its matte as the data URL of a grey PNG, which `load_image` and browsers read."""
    import numpy as np

    from ..data.alpha import encode_alpha
    from ..records import without_nan

    png = encode_alpha(np.asarray(result["alpha"], dtype=np.float32) / 255)
    return {**without_nan(result), "alpha": "data:image/png;base64," + base64.b64encode(png).decode("ascii")}
