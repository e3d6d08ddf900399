# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""How ZIM is measured (ICCV 2025, section 4): mattes from recorded points or from a box, at the size of the image.

Each object is asked for once with all its points and once with its box; matte 0 of the model counts, without a choice by
score. Two sets of definitions are reported, see `matting_metrics.py`. Objects are also grouped by the share of pixels whose
alpha is above 0.3: S below 1 %, M below 10 %, L. A segmenter is measured with its masks as mattes of 0 and 1.

Objects without recorded points get three inside and one outside, drawn at random, always the same; those without a recorded
box get that of their matte.

python -m hf_segcap.evaluation.matting [--model FOLDER] [--data micromat3k --root FOLDER] [--output FOLDER]

Results of each image are appended to a file in FOLDER as they are found: the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import pipeline

from ..assets import bundled_alpha, bundled_model, bundled_photograph
from ..data.alpha import alpha_box, alpha_region, decode_alpha
from ..data.matte_collator import sample_points
from ..data.mattes import MatteComposites
from ..data.matting_folders import AIM500, AM2K, MICROMAT_SUBSETS, Composition1K, MicroMat3K
from ..files import atomic_path
from ..images import load_image
from ..masks import upscale_masks
from ..resume import fingerprint
from .contact_sheet import Item, contact_sheet
from .matting_metrics import (
    apply_trimap,
    benchmark_matting_scores,
    gaussian_gradient_error,
    mean_scores,
    zim_matting_scores,
)

PROMPTS = ("point", "box")
DEFINITIONS = {"zim": "definitions of ZIM", "benchmark": "definitions of the matting benchmarks"}
SIZE_GROUPS = ("all", "S", "M", "L")
DATA = ("bundled", "micromat3k", "am2k", "aim500", "composition1k")
_SIZE_LIMITS = {"S": (0.0, 0.01), "M": (0.01, 0.1), "L": (0.1, 1.1)}
_SEEN_ALPHA = 0.3  # pixels above it make the size of an object
_POINTS = {"positives": (3, 3), "negatives": (1, 1)}  # of objects without recorded points
_WORST = 20
_SHOWN = ("sad", "mse", "mae", "grad", "conn")


class MattePredictor:
    """A model that gives one matte per prompt, behind one interface.

    Args:
        model: a `ZimForMatting` or `ZimOnnxForMatting`, or a `SamForPromptableSegmentation`, whose masks become mattes of 0
            and 1; put into eval mode.
        processor: its processor.
        multimask_output: False: matte or mask 0, as the paper evaluates. None: the mask that a segmenter would choose.
    """

    def __init__(self, model: Any, processor: Any, multimask_output: bool | None = False) -> None:
        self.model, self.processor, self.multimask_output = model.eval(), processor, multimask_output

    def encode(self, image: Image.Image) -> EncodedImage:
        """What of an image does not depend on prompts; computed at the first prompt."""
        return EncodedImage(self, image)

    def fingerprint(self) -> str:
        """Differs between models that give different results."""
        return f"{type(self.model).__name__}-{fingerprint(self.model, self.processor, self.multimask_output)}"


class EncodedImage:
    """One image for a [`MattePredictor`]."""

    def __init__(self, predictor: MattePredictor, image: Image.Image) -> None:
        self.predictor = predictor
        inputs = predictor.processor(images=[image])
        self._sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes")}
        self._image: dict[str, Any] = {"pixel_values": inputs["pixel_values"].to(predictor.model.device)}

    @torch.no_grad()
    def alphas(self, prompts: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
        """One matte (H, W) float32 in [0, 1] for each prompt.

        Args:
            prompts: all with the same of these keys: `input_boxes` (x0, y0, x1, y1), or `input_points` [[x, y], ...] with
                `point_labels`; pixels of the image.
        """
        model, processor = self.predictor.model, self.predictor.processor
        given = {name: [[prompt[name] for prompt in prompts]] for name in prompts[0]}
        inputs = processor(original_sizes=self._sizes["original_sizes"].tolist(), **given)
        inputs = {
            name: value.to(model.device)
            for name, value in inputs.items()
            if name not in self._sizes and isinstance(value, Tensor)
        }
        output = model(**self._image, **inputs, multimask_output=self.predictor.multimask_output)
        self._image = {
            name: output[name] for name in ("image_embeddings", "detail_features") if output.get(name) is not None
        }
        if "alphas" in output:
            mattes = processor.post_process_alphas(output.alphas, **self._sizes)[0][:, 0]
        else:
            size, reshaped = (self._sizes[name][0].tolist() for name in ("original_sizes", "reshaped_input_sizes"))
            frame = model.config.vision_config.image_size
            mattes = (upscale_masks(output.pred_masks[0], reshaped, size, frame)[:, 0] > 0).float()
        return list(mattes.cpu().numpy())


def evaluate_mattes(
    predictors: Mapping[str, MattePredictor],
    rows: Any,
    output: str | Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    trimaps: bool = False,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    progress: str | None = None,
) -> list[dict[str, Any]]:
    """Scores of every object, prompt and model.

    Args:
        predictors: models by the names that the results call them.
        rows: map-style data set of rows (see `hf_segcap.data.sources`); regions without `alpha` and empty mattes are left
            out.
        output: a JSON-lines file to which the results of each row are appended. If it exists, its rows are not computed
            again.
        prompts: "point", "box" or both.
        trimaps: benchmark definitions: only the unknown pixels of an object's trimap count, the others are put into the
            matte. Without: the whole image.
        seed: of points, where none are recorded.
        about: what else the results depend on, written into `output`.
        progress: name of a progress bar.

    Returns:
        Dicts of `row`, `region` (indices), `image_id`, `name`, `prompt`, `model`, `ratio` (share of pixels above 0.3),
        `zim` and `benchmark` (dicts of the five metrics).

    Raises:
        ValueError: an unknown prompt; no object in `rows`, or with `trimaps` one without; `output` holds results of another
            evaluation.
        ImportError: scikit-image is missing.
    """
    if not predictors or not prompts or set(prompts) - set(PROMPTS):
        raise ValueError(f"expected at least one model and prompts among {PROMPTS}, got {list(prompts)}")
    settings = {
        "models": {name: predictor.fingerprint() for name, predictor in predictors.items()},
        "rows": len(rows),
        "prompts": list(prompts),
        "trimaps": trimaps,
        "seed": seed,
        **(about or {}),
    }
    log = ResultLog(output, settings)
    results: list[dict[str, Any]] = []
    for index in tqdm(range(len(rows)), desc=progress, disable=progress is None):
        if index not in log.rows:
            log.append(index, list(_row_results(predictors, rows[index], index, prompts, trimaps, seed)))
        results += log.rows[index]
    if not results:
        raise ValueError("no region of these rows has a matte: there is nothing to measure")
    return results


def _row_results(
    predictors: Mapping[str, MattePredictor],
    row: Mapping[str, Any],
    index: int,
    prompts: Sequence[str],
    trimaps: bool,
    seed: int,
) -> Iterator[dict[str, Any]]:
    image = load_image(row["image"], name=f"row {index}")
    objects = matte_objects(row, (image.height, image.width), seed)
    if not objects:
        return
    bare = [each["region"] for each in objects if each["trimap"] is None] if trimaps else []
    if bare:
        raise ValueError(f"row {index}, region {bare[0]} has no trimap: measure the whole image, without trimaps")
    encoded = {name: predictor.encode(image) for name, predictor in predictors.items()}
    for kind in prompts:
        for model, features in encoded.items():
            try:
                found = features.alphas([each[kind] for each in objects])
            except ValueError as error:
                raise ValueError(f"row {index} (image {row.get('image_id')}), {kind} prompts: {error}") from error
            for each, alpha in zip(objects, found):
                target, trimap = each["alpha"], each["trimap"] if trimaps else None
                yield {
                    "row": index,
                    "region": each["region"],
                    "image_id": row.get("image_id"),
                    "name": each["name"],
                    "prompt": kind,
                    "model": model,
                    "ratio": float((target > _SEEN_ALPHA).mean()),
                    **_scores(alpha, target, trimap),
                }


def matte_objects(row: Mapping[str, Any], size: tuple[int, int], seed: int = 0) -> list[dict[str, Any]]:
    """What of a row is measured.

    Args:
        row: see `hf_segcap.data.sources`.
        size: (height, width) of its image.
        seed: of points, where none are recorded.

    Returns:
        Per region with a matte that is not empty: `region` (its index), `name`, `alpha` (H, W), `trimap` (or None), and
        the prompts `point` and `box` as [`EncodedImage.alphas`] takes them.
    """
    objects = []
    for index, region in enumerate(row["regions"]):
        if region.get("alpha") is None:
            continue
        alpha = decode_alpha(region["alpha"], f"image {row.get('image_id')}, region {index}", size)
        box = alpha_box(alpha)
        if box is None:
            continue
        if region.get("points"):
            points, labels = region["points"], region.get("point_labels") or [1] * len(region["points"])
        else:
            key = zlib.crc32(f"{row.get('image_id')} {index}".encode())
            pixels, drawn = sample_points(alpha, np.random.default_rng([seed, key]), **_POINTS)
            points, labels = pixels.tolist(), drawn.tolist()
        objects.append(
            {
                "region": index,
                "name": region.get("name") or region.get("category"),
                "alpha": alpha,
                "trimap": region.get("trimap"),
                "point": {"input_points": points, "point_labels": labels},
                "box": {"input_boxes": list(region.get("box") or box)},
            }
        )
    return objects


def _scores(alpha: np.ndarray, target: np.ndarray, trimap: np.ndarray | None) -> dict[str, dict[str, float]]:
    scores = zim_matting_scores(alpha, target)
    if trimap is None:  # on the whole image, only the gradient differs
        return {"zim": scores, "benchmark": {**scores, "grad": gaussian_gradient_error(alpha, target)}}
    return {"zim": scores, "benchmark": benchmark_matting_scores(apply_trimap(alpha, trimap), target, trimap)}


class ResultLog:
    """Results in a JSON-lines file, one line per row of the data: what is there is not computed again.

    Args:
        path: the file; None: nothing is kept.
        settings: what the results depend on.

    Raises:
        ValueError: the file holds results of other settings, or something else.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.rows: dict[int, list[dict[str, Any]]] = {}
        self.path = None if path is None else Path(path)
        if self.path is None:
            return
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a killed run may leave half a line
        if not whole:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(_line({"settings": settings}))
            return
        try:
            first, *lines = (json.loads(line) for line in whole.splitlines())
            stored = first["settings"]
            self.rows = {line["row"]: line["results"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a file of results: remove it or name another folder") from error
        wanted = json.loads(_line(settings))
        differing = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
        if differing:
            raise ValueError(
                f"{self.path} holds results of another evaluation ({', '.join(differing)} differ): remove it or name "
                "another folder"
            )
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def append(self, row: int, results: list[dict[str, Any]]) -> None:
        """Keeps the results of a row, on the disk before it returns."""
        self.rows[row] = results
        if self.path is not None:
            with open(self.path, "ab") as file:
                file.write(_line({"row": row, "results": results}))
                file.flush()
                os.fsync(file.fileno())


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over objects.

    Args:
        results: of [`evaluate_mattes`].

    Returns:
        For each prompt, size group that has objects, and model: `prompt`, `group`, `model`, `num_objects`, `zim` and
        `benchmark` (dicts of the five metrics).
    """
    entries = []
    for prompt in dict.fromkeys(result["prompt"] for result in results):
        for group in SIZE_GROUPS:
            low, high = _SIZE_LIMITS.get(group, (0.0, 1.1))
            for model in dict.fromkeys(result["model"] for result in results):
                chosen = [r for r in results if r["prompt"] == prompt and r["model"] == model]
                chosen = [r for r in chosen if low <= r["ratio"] < high]
                if chosen:
                    means = {name: mean_scores(r[name] for r in chosen) for name in DEFINITIONS}
                    entries.append(
                        {"prompt": prompt, "group": group, "model": model, "num_objects": len(chosen), **means}
                    )
    return entries


def sad_ratios(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """SAD of the first model divided by that of each other one, by prompt and by the other model's name."""
    ratios: dict[str, dict[str, float]] = {}
    totals: dict[tuple[str, str], float] = {}
    for result in results:
        key = (result["prompt"], result["model"])
        totals[key] = totals.get(key, 0.0) + result["zim"]["sad"]
    first = results[0]["model"]
    for (prompt, model), total in totals.items():
        if model != first:
            ratios.setdefault(prompt, {})[model] = totals[prompt, first] / max(total, 1e-12)
    return ratios


def markdown_tables(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Results of [`summarise`] by the name of their data set, one table per set of definitions."""
    tables = []
    head = ["data", "prompt", "size", "objects", "model", "SAD", "MSE", "MAE", "Grad", "Conn"]
    for definition, title in DEFINITIONS.items():
        lines = [f"{title[0].upper()}{title[1:]} (lower is better)", "", f"| {' | '.join(head)} |"]
        lines.append("|" + " --- |" * len(head))
        for name, entries in summaries.items():
            for e in entries:
                cells = [name, e["prompt"], e["group"], str(e["num_objects"]), e["model"]]
                cells += [f"{e[definition][metric]:.4f}" for metric in _SHOWN]
                lines.append(f"| {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def worst_mattes(
    predictors: Mapping[str, MattePredictor],
    rows: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    count: int = _WORST,
    seed: int = 0,
) -> Image.Image:
    """The objects with the highest SAD of the first model as one picture: image with the prompt, truth, each model.

    Args:
        predictors: as in [`evaluate_mattes`].
        rows, results: data sets and their results by name.
        count: number of objects.
        seed: as in [`evaluate_mattes`].
    """
    first = next(iter(predictors))
    ranked = [(name, r) for name, found in results.items() for r in found if r["model"] == first]
    ranked.sort(key=lambda item: -item[1]["zim"]["sad"])
    return contact_sheet(_items(predictors, rows, ranked[:count], seed))


def _items(
    predictors: Mapping[str, MattePredictor],
    rows: Mapping[str, Any],
    ranked: Sequence[tuple[str, Mapping[str, Any]]],
    seed: int,
) -> Iterator[Item]:
    """Objects at full size, one at a time: many of them do not fit into memory together."""
    for name, result in ranked:
        row = rows[name][result["row"]]
        image = load_image(row["image"])
        objects = {each["region"]: each for each in matte_objects(row, (image.height, image.width), seed)}
        each = objects[result["region"]]
        prompt = each[result["prompt"]]
        mattes = {"truth": each["alpha"]}
        for model, predictor in predictors.items():
            mattes[model] = predictor.encode(image).alphas([prompt])[0]
        title = f"{name} {result['image_id']} {each['name'] or ''}, {result['prompt']}: SAD {result['zim']['sad']:.2f}"
        yield title, image, prompt, mattes


def photograph_rows() -> list[dict[str, Any]]:
    """A real photograph with its matte, which comes with this package and is in no training data."""
    image = load_image(bundled_photograph("lemur"))
    alpha = decode_alpha(bundled_alpha("lemur"), "lemur", (image.height, image.width))
    return [{"image": image, "image_id": "lemur", "regions": [alpha_region(alpha, alpha)]}]


def load_data(
    name: str, root: Path | None = None, rows: int | None = None, seed: int = 12345, backgrounds: Path | None = None
) -> dict[str, Any]:
    """The data sets of a benchmark by name.

    Args:
        name: one of `DATA`. "bundled": generated mattes over photographs that were not trained on, and the bundled
            photograph.
        root: folder of the benchmark.
        rows: number of generated pictures (200 if not given), or the first so many of each data set.
        seed: of the generated pictures.
        backgrounds: for Composition-1k, see [`Composition1K`].

    Raises:
        ValueError: an unknown name, a missing root, or files that are not there.
    """
    if name == "bundled":
        generated = MatteComposites(200 if rows is None else rows, split="held_out", seed=seed)
        return {"generated": generated, "photograph": photograph_rows()}
    if name not in DATA:
        raise ValueError(f"unknown data {name!r}, expected one of {DATA}")
    if root is None:
        raise ValueError(f"{name} needs --root, the folder it was unpacked to")
    if name == "micromat3k":
        return {subset: MicroMat3K(root, subset, limit=rows) for subset in MICROMAT_SUBSETS}
    if name == "composition1k":
        return {name: Composition1K(root, backgrounds, limit=rows)}
    return {name: (AM2K if name == "am2k" else AIM500)(root, limit=rows)}


def _load_predictors(model: str | None, segmenter: str | None) -> dict[str, MattePredictor]:
    # no device: a pair of ONNX files may not run where PyTorch does
    zim = pipeline("image-matting", model=model or bundled_model("image-matting"), dtype=torch.float32)
    predictors = {"ZIM": MattePredictor(zim.model, zim.processor)}
    if segmenter != "none":
        sam = pipeline("promptable-segmentation", model=segmenter, dtype=torch.float32)
        predictors["SAM"] = MattePredictor(sam.model, sam.processor, multimask_output=None)
        predictors["SAM, mask 0"] = MattePredictor(sam.model, sam.processor)
    return predictors


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures a matting model beside a segmenter and prints tables; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a ZIM (also ONNX); default: the bundled one")
    parser.add_argument(
        "--segmenter", help='folder or Hub id of a SAM to compare with, or "none"; default: the bundled one'
    )
    parser.add_argument("--data", choices=DATA, default="bundled")
    parser.add_argument("--root", type=Path, help="folder of the data")
    parser.add_argument("--backgrounds", type=Path, help="Composition-1k: folder of the background images")
    parser.add_argument("--rows", type=int, help="pictures of each data set; default: all, or 200 generated ones")
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--trimaps", action="store_true", help="benchmark definitions: unknown pixels only")
    parser.add_argument("--seed", type=int, default=12345, help="of generated pictures and points")
    parser.add_argument(
        "--output", type=Path, help="folder for results of objects, scores.json, table.md and worst.png"
    )
    options = parser.parse_args(arguments)

    predictors = _load_predictors(options.model, options.segmenter)
    data = load_data(options.data, options.root, options.rows, options.seed, options.backgrounds)
    results = {}
    for name, rows in data.items():
        file = None if options.output is None else options.output / f"{name}.jsonl"
        about = {"data": options.data, "root": str(options.root), "backgrounds": str(options.backgrounds)}
        results[name] = evaluate_mattes(
            predictors, rows, file, options.prompts, options.trimaps, options.seed, about, progress=name
        )
    summaries = {name: summarise(found) for name, found in results.items()}
    scores: dict[str, dict[str, Any]] = {
        name: {"scores": summaries[name], "sad_ratio": sad_ratios(found)} for name, found in results.items()
    }
    tables = markdown_tables(summaries)
    print(tables)
    for name, found in scores.items():
        for prompt, ratios in found["sad_ratio"].items():
            shown = ", ".join(f"{ratio:.3f} of {model}" for model, ratio in ratios.items())
            print(f"SAD, {name}, {prompt}: {shown}")
    if options.output is not None:
        worst = worst_mattes(predictors, data, results, seed=options.seed)
        for file, content in (("scores.json", json.dumps(scores, indent=2)), ("table.md", tables)):
            with atomic_path(options.output / file) as path:
                path.write_text(content + "\n", encoding="utf-8")
        with atomic_path(options.output / "worst.png") as path:
            worst.save(path, "PNG")
    return scores


if __name__ == "__main__":
    main()
