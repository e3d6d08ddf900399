# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap train RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    override: Annotated[list[str] | None, typer.Option(help="section.key=value; may be repeated.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the trained model.")] = Path("output"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the folder.")] = False,
) -> None:
    """Train a model as a recipe says. Runs under torchrun, too."""
    from ..training.run import leave_process_group
    from ..training.run import train as run

    run(recipe, override or (), output, resume)
    leave_process_group()
