# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap label-mattes FOLDER`: mattes for all masks of a folder in the format of SA-1B."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def label_mattes(
    folder: Annotated[Path, typer.Argument(help="Folder of SA-1B: json files with their images next to them.")],
    output: Annotated[Path, typer.Option(help="Folder for the shards; images that are in them already are skipped.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of a label converter.")],
    max_area: Annotated[float, typer.Option(help="Leave out masks that cover more of the image.")] = 0.95,
    limit: Annotated[int | None, typer.Option(help="Use the first images only.")] = None,
    masks_per_batch: Annotated[int | None, typer.Option(help="Masks converted at a time.")] = None,
    bits: Annotated[int, typer.Option(help="Of the mattes: 8 or 16.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: the first accelerator, if any.")] = None,
) -> None:
    """Turn the masks of SA-1B into mattes, as training data. Go on after an interruption by the same command.

    Under torchrun, each process converts its share.
    """
    import torch

    from ..matte_engine import label_mattes as run
    from ..models.zim.modeling_label_converter import ZimLabelConverter
    from ..models.zim.processing_label_converter import ZimLabelConverterProcessor

    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    converter = ZimLabelConverter.from_pretrained(model).to(device)
    processor = ZimLabelConverterProcessor.from_pretrained(model)
    shards = run(
        converter,
        processor,
        folder,
        output,
        max_area=max_area,
        limit=limit,
        masks_per_batch=masks_per_batch,
        bits=bits,
        process_index=int(os.environ.get("RANK", 0)),
        num_processes=int(os.environ.get("WORLD_SIZE", 1)),
    )
    typer.echo(f"{len(shards)} shards in {output}")
