# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap`: the command line."""

from __future__ import annotations

import sys

import typer

from .caption import caption
from .demo import demo
from .label import label
from .label_mattes import label_mattes
from .matte import matte
from .segment import segment
from .train import train

app = typer.Typer(
    name="hf-segcap",
    help="Models that see a region and say something exact about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(caption)
app.command()(segment)
app.command()(matte)
app.command()(label)
app.command("label-mattes")(label_mattes)
app.command()(train)
app.command()(demo)


def main() -> None:
    """Entry point: unusable input is one line on standard error and exit status 2, not a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        print(f"hf-segcap: {message}", file=sys.stderr)
        sys.exit(2)


__all__ = ["app", "main"]
