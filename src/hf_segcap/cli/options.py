# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What commands share: options that hold numbers, tables, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BOX_HELP = "A region x0,y0,x1,y1 in pixels; may be repeated."
POINT_HELP = "A region by a point x,y in it, in pixels; may be repeated."

SETTING_HELP = "An option of SAM's generator, such as points_per_side=32; may be repeated."


def region_prompts(box: Sequence[str] | None, point: Sequence[str] | None) -> list[dict[str, Any]]:
    """One prompt per --box, then one per --point.

    Raises:
        ValueError: wrong numbers.
    """
    prompts: list[dict[str, Any]] = [{"boxes": [numbers(value, 4, "--box")]} for value in box or []]
    return prompts + [{"points": [numbers(value, 2, "--point")]} for value in point or []]


def generator_settings(texts: Sequence[str] | None, prompts: Sequence[Any] = ()) -> dict[str, Any]:
    """The options of SAM's generator from texts `name=value`.

    Raises:
        ValueError: no such option, or one beside prompts, for which there is no generator.
    """
    if texts and prompts:
        raise ValueError("--setting is for everything: leave the regions or the settings out.")

    import yaml

    from ..everything import GeneratorSettings

    settings: dict[str, Any] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or name not in GeneratorSettings.names():
            known = ", ".join(GeneratorSettings.names())
            raise ValueError(f"--setting {text!r}: expected name=value with one of {known}")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--setting {text!r}: {error}") from error
    return settings


def check_written(pictures: Mapping[str, Path | None], others: Mapping[str, Path | None]) -> None:
    """Finds out before the work starts whether its results can be written; makes missing folders.

    Args:
        pictures: files by the names of their options; their suffixes name the format.
        others: files of any name.

    Raises:
        ValueError: no such format, or no folder can be made there.
    """
    from PIL import Image

    formats = Image.registered_extensions()
    for option, file in {**pictures, **others}.items():
        if file is None:
            continue
        if file.is_dir():
            raise ValueError(f"{option} {file}: this is a folder, expected the name of a file.")
        if option in pictures and formats.get(file.suffix.lower()) not in Image.SAVE:  # some formats are read only
            raise ValueError(f"{option} {file}: no picture format has this suffix; .png is one.")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{option} {file}: its folder cannot be made ({error}).") from error


def numbers(text: str, count: int, option: str) -> list[float]:
    """The numbers of an option such as `--box 1,2,3,4`.

    Raises:
        ValueError: not `count` numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} takes {count} numbers separated by commas, got {text!r}.")
    return values


def as_one_call(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object per prompt, each with a single kind: the others have a gap there. The image is encoded once."""
    gaps: dict[str, Any] = {"boxes": None, "points": [], "text": None}
    call: dict[str, Any] = {}
    for name, gap in gaps.items():
        if any(name in prompt for prompt in prompts):
            call[name] = [prompt[name][0] if name in prompt else gap for prompt in prompts]
    if "points" in call:  # [object][point], so that an object may have none
        call["points"] = [[point] if point else [] for point in call["points"]]
    return call


def table(results: Sequence[Mapping[str, Any]], last: str) -> str:
    """Results of a pipeline as aligned text, one line per region; `last` names the result in the last column."""
    if not results:
        return "No region was found."
    rows = [("box (x0 y0 x1 y1)", "score", last)]
    for result in results:
        box = " ".join(f"{value:.0f}" for value in result["box"].values())
        rows.append((box, f"{result['score']:.2f}", str(result[last])))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}" for a, b, c in rows)


def to_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its mask as COCO RLE, and null for the NaN of an empty mask's stability, which JSON does not know."""
    from ..masks import encode_rle
    from ..records import without_nan

    return {name: encode_rle(value) if name == "mask" else value for name, value in without_nan(result).items()}
