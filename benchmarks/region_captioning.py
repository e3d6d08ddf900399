# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Region captioning against the procedure of the official code: time, memory, equal answers.

    python benchmarks/region_captioning.py                      # all sections, ViT-B size, 64 regions
    python benchmarks/region_captioning.py --size tiny          # the same in a minute, to see that it works
    python benchmarks/region_captioning.py --section regions training --repeats 5

Both contenders get the same random weights and decode the same number of tokens. Each run is a fresh process and the
contenders take turns, so that neither one's caches, memory or a change of the machine's speed favour it.

Sections: `regions` (box prompts, after the image encoder; the encoder by itself), `everything` (caption everything),
`training` (steps per second with and without the frozen-feature cache), `import` (import time).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import (
    PartTimer,
    Probe,
    build_model,
    build_processor,
    generation_kwargs,
    machine,
    median,
    photograph,
    print_table,
    random_boxes,
    run_worker,
    work,
)

SECTIONS = ("regions", "everything", "training", "import")
OFFICIAL, OURS, OURS_NO_MASKS = "official procedure", "hf_segcap", "hf_segcap, captions only"
PARTS = {
    "SAM mixer": "mask_decoder.transformer",
    "caption mixer": "mask_decoder.additional_transformer",
    "mask decoder": "mask_decoder",
    "language model": "language_model",
}
ANSWERS = ("sequences", "pred_masks", "iou_scores")
MASK_TOLERANCE = 1e-4


def _contender(name: str, size: str) -> Any:
    model = build_model(size)
    if name != OFFICIAL:
        return model
    from official_procedure import OfficialProcedure

    return OfficialProcedure(model.config, model.state_dict())


def encode_worker(contender: str, size: str, output: str) -> dict[str, Any]:
    """Seconds and memory of the image encoder; keeps its result in `output`."""
    import torch
    from safetensors.torch import save_file

    model = _contender(contender, size)
    pixel_values = build_processor(model.config)(images=photograph(), return_tensors="pt")["pixel_values"]
    with torch.no_grad(), Probe() as probe:
        embeddings = model.get_image_embeddings(pixel_values)
    save_file({"image_embeddings": embeddings.contiguous()}, output)
    return probe.result()


def regions_worker(contender: str, size: str, regions: int, embeddings: str, output: str) -> dict[str, Any]:
    """Boxes to captions and masks, the image being encoded already."""
    from safetensors.torch import load_file, save_file

    model = _contender(contender, size)
    side = model.image_size if contender == OFFICIAL else model.config.vision_config.image_size
    inputs = {
        "image_embeddings": load_file(embeddings)["image_embeddings"],
        "input_boxes": random_boxes(regions, 0.75 * side, side)[None],
    }
    options = generation_kwargs(model.config)
    timer = None
    if contender != OFFICIAL:
        options["return_dict_in_generate"] = contender == OURS
        timer = PartTimer(model, PARTS.values())
    warm_up = {**inputs, "input_boxes": inputs["input_boxes"][:, :2]}
    model.generate(**warm_up, **{**options, "max_new_tokens": 2})
    if timer:
        timer.reset()
    with Probe() as probe:
        answer = model.generate(**inputs, **options)
    if contender != OURS_NO_MASKS:
        save_file({name: getattr(answer, name).contiguous() for name in ANSWERS}, output)
    parts = {}
    if timer:
        inside = {name: timer.seconds[module] for name, module in PARTS.items()}
        heads = inside.pop("mask decoder") - inside["SAM mixer"] - inside["caption mixer"]
        parts = {**inside, "mask and IoU heads": heads}
        parts["prompts, generation loop"] = probe.seconds - sum(parts.values())
    return probe.result(parts=parts)


def thresholds_worker(size: str, points_per_side: int, fraction: float, embeddings: str) -> dict[str, float]:
    """The predicted IoU that `fraction` of the masks of a point grid exceed, in the middle of a gap."""
    import torch
    from safetensors.torch import load_file

    from hf_segcap.masks import build_point_grid

    model = build_model(size)
    points = (build_point_grid(points_per_side) * model.config.vision_config.image_size).float()
    points[:, 1] *= 0.75  # the image is 4:3
    with torch.no_grad():
        _, scores = model.segment(load_file(embeddings)["image_embeddings"], input_points=points[None, :, None])
    ordered = scores.flatten().sort(descending=True).values
    cut = max(1, round(fraction * len(ordered)))
    return {"iou": float(ordered[cut - 1 : cut + 1].mean())}


def everything_worker(
    contender: str, size: str, points_per_side: int, points_per_batch: int, num_beams: int, iou: float, output: str
) -> dict[str, Any]:
    """From the image to captions of everything in it."""
    import torch
    from safetensors.torch import save_file

    from hf_segcap.pipelines.region_captioning import RegionCaptioningPipeline

    model = _contender(contender, size)
    processor = build_processor(model.config)
    image = photograph()
    settings: dict[str, Any] = {"points_per_side": points_per_side, "points_per_batch": points_per_batch}
    # The noise masks of random weights are unstable and share one box: those two filters are opened for both.
    if contender == OFFICIAL:
        settings |= {"iou_threshold": iou, "stability_threshold": 0.0, "nms_threshold": 1.0}
    else:
        settings |= {"pred_iou_thresh": iou, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
        pipe = RegionCaptioningPipeline(model=model, processor=processor)
    settings |= generation_kwargs(model.config, num_beams)
    with Probe() as probe:
        if contender == OFFICIAL:
            inputs = processor(images=image, return_tensors="pt")
            sizes = [tuple(inputs[name][0].tolist()) for name in ("original_sizes", "reshaped_input_sizes")]
            answer = model.caption_everything(inputs["pixel_values"], *sizes, **settings)
            captions = processor.tokenizer.batch_decode(answer.sequences, skip_special_tokens=True)
            scores, masks = answer.iou_scores, answer.masks
        else:
            found = pipe(image, **settings)
            captions = [region["caption"] for region in found]
            scores = torch.tensor([region["score"] for region in found])
            masks = torch.stack([torch.as_tensor(region["mask"]) for region in found])
    save_file({"masks": masks.contiguous(), "scores": scores.contiguous()}, output)
    return probe.result(captions=captions)


def training_worker(size: str, regions: int, source: str, steps: int) -> dict[str, Any]:
    """Training steps of the text mixer on images with `regions` regions, collator and optimizer included.

    `source` is one of `TRAINING_SOURCES`; the official code trains with transformers' encoder and eager attention.
    """
    import torch

    from hf_segcap.data.collator import RegionCollator
    from hf_segcap.training.features import FeatureCache

    model = build_model(size)
    cached = source == "frozen features"
    if source == "images, official encoder":
        model.config.vision_config._attn_implementation = "eager"
    processor = build_processor(model.config)
    rows = []
    for seed in range(2):
        image = photograph(seed)
        boxes = random_boxes(regions, image.height, image.width, seed).tolist()
        # 18 words and the end token: the longest caption of the paper's data pipeline
        phrases = [" ".join(f"w{(7 * seed + 11 * i + j) % 300}" for j in range(18)) for i in range(regions)]
        found = [{"box": box, "phrases": [phrase], "mask": None} for box, phrase in zip(boxes, phrases, strict=True)]
        size_of = {"width": image.width, "height": image.height}
        rows.append({"image": image, "image_id": seed, "caption": None, "regions": found, **size_of})
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache.build(model, processor, rows, folder, progress=False) if cached else None
        collator = RegionCollator(processor, max_regions=regions, features=cache)
        model.freeze_for("text_mixer")
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        probes, losses = [], []
        for step in range(steps + 1):
            with Probe() as probe:
                loss = model(**collator([rows[step % len(rows)]])).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            probes.append(probe)
            losses.append(loss.item())
    # the first step warms up
    return min(probes[1:], key=lambda probe: probe.seconds).result(losses=losses)


TRAINING_SOURCES = ("images, official encoder", "images", "frozen features")
WORKERS = {
    "encode": encode_worker,
    "regions": regions_worker,
    "thresholds": thresholds_worker,
    "everything": everything_worker,
    "training": training_worker,
}


class Bench:
    """The sections, run by the parent process, which loads no model itself."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args = args
        self.folder = Path(folder)

    def file(self, *names: str) -> str:
        return str(self.folder / ("_".join(names).replace(" ", "_").replace(",", "") + ".safetensors"))

    def run(self, task: str, **parameters: Any) -> dict[str, Any]:
        result = run_worker(__file__, task, self.args.threads, size=self.args.size, **parameters)
        print(f"  {task}: {result.get('seconds', 0):.2f} s  {parameters.get('contender', '')}", flush=True)
        return result

    def turns(self, task: str, contenders: tuple[str, ...], **parameters: Any) -> dict[str, list[dict[str, Any]]]:
        """Every contender `repeats` times, in turn."""
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(self.args.repeats):
            for name in contenders:
                output = self.file(task, name)
                results[name].append(self.run(task, contender=name, output=output, **parameters))
        return results

    def report(self, title: str, results: dict[str, list[dict[str, Any]]]) -> float:
        """Prints times and memory, returns the median of the paired ratios of the first two contenders."""
        rows = []
        for name, runs in results.items():
            seconds = [run["seconds"] for run in runs]
            cpu = min(run["cpu_seconds"] for run in runs)
            peaks = [max(run[key] or 0 for run in runs) for key in ("peak", "high_water")]
            rows.append((name, min(seconds), median(seconds), cpu, *(f"{peak:.0f}" for peak in peaks)))
        print_table(
            [title, "min s", "median s", "min processor s", "peak above start, MiB", "process peak, MiB"], rows
        )
        first, second = list(results.values())[:2]
        ratio = median([a["seconds"] / b["seconds"] for a, b in zip(first, second, strict=True)])
        best, cpu = (min(a[key] for a in first) / min(b[key] for b in second) for key in ("seconds", "cpu_seconds"))
        print(
            f"{title}: {ratio:.2f} x faster (median of pairs), {best:.2f} x (ratio of minima), {cpu:.2f} x less "
            "processor time",
            flush=True,
        )
        return ratio

    def regions(self) -> None:
        encoders = self.turns("encode", (OFFICIAL, OURS))
        embeddings = self.file("encode", OURS)
        self.report("image encoder", encoders)
        print(f"encoder: largest difference {_difference(self.file('encode', OFFICIAL), embeddings):.1e}")
        count = self.args.regions
        contenders = (OFFICIAL, OURS, OURS_NO_MASKS)
        results = self.turns("regions", contenders, regions=count, embeddings=embeddings)
        self.report(f"{count} regions after the encoder", results)
        fastest = min(results[OURS], key=lambda run: run["seconds"])
        print_table(
            [f"part of hf_segcap, {count} regions", "s"], [(name, value) for name, value in fastest["parts"].items()]
        )
        self._compare_regions()

    def _compare_regions(self) -> None:
        official, ours = (_load(self.file("regions", name)) for name in (OFFICIAL, OURS))
        same = (official["sequences"] == ours["sequences"]).all(-1)
        distinct = len(set(map(tuple, ours["sequences"][0].tolist())))
        differences = {name: _max_difference(official[name], ours[name]) for name in ("pred_masks", "iou_scores")}
        print(
            f"equal captions: {int(same.sum())} of {same.numel()} ({distinct} distinct); largest difference: masks "
            f"{differences['pred_masks']:.1e}, IoU {differences['iou_scores']:.1e}"
        )
        if not same.all() or max(differences.values()) > MASK_TOLERANCE:
            raise SystemExit("the contenders disagree: the times above compare different things")

    def everything(self) -> None:
        embeddings = self.file("everything", "embeddings")
        self.run("encode", contender=OURS, output=embeddings)
        grid = self.args.points_per_side
        cut = run_worker(
            __file__,
            "thresholds",
            self.args.threads,
            size=self.args.size,
            points_per_side=grid,
            fraction=self.args.survivors,
            embeddings=embeddings,
        )
        results = self.turns(
            "everything",
            (OFFICIAL, OURS),
            points_per_side=grid,
            points_per_batch=self.args.points_per_batch,
            num_beams=self.args.beams,
            iou=cut["iou"],
        )
        batches = -(-(grid**2) // self.args.points_per_batch)
        title = f"everything, {grid} x {grid} points in {batches} batches, {self.args.beams} beams, encoder included"
        self.report(title, results)
        official, ours = (_load(self.file("everything", name)) for name in (OFFICIAL, OURS))
        captions = [results[name][0]["captions"] for name in (OFFICIAL, OURS)]
        same_masks = official["masks"].shape == ours["masks"].shape and bool(
            ((official["masks"] != ours["masks"]).float().mean((1, 2)) < 1e-4).all()
        )
        print(
            f"survivors: {len(captions[0])} and {len(captions[1])} of {3 * grid**2} masks; equal captions: "
            f"{captions[0] == captions[1]}; masks equal but for 1 pixel in 10,000: {same_masks}"
        )
        if captions[0] != captions[1] or not same_masks:
            raise SystemExit("the contenders disagree: the times above compare different things")

    def training(self) -> None:
        rows: list[tuple[Any, ...]] = []
        ratios = []
        for regions in (4, 16):
            runs: dict[str, list[dict[str, Any]]] = {source: [] for source in TRAINING_SOURCES}
            for _ in range(self.args.repeats):
                for source in runs:
                    runs[source].append(self.run("training", regions=regions, source=source, steps=self.args.steps))
            best = {source: min(results, key=lambda run: run["seconds"]) for source, results in runs.items()}
            for source, run in best.items():
                memory, loss = f"{run['high_water']:.0f}", f"{run['losses'][0]:.5f}"
                rows.append((regions, source, 1 / run["seconds"], run["seconds"], run["cpu_seconds"], memory, loss))
            *slower, fastest = best.items()
            ratios += [(regions, source, run["seconds"] / fastest[1]["seconds"]) for source, run in slower]
        print_table(
            ["regions", "trained from", "steps/s", "s/step", "processor s/step", "process peak, MiB", "first loss"],
            rows,
        )
        for regions, source, ratio in ratios:
            print(f"training, {regions} regions: {ratio:.2f} x steps/s from frozen features against {source}")


def _load(path: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _max_difference(first: Any, second: Any) -> float:
    return float((first - second).abs().max())


def _difference(first: str, second: str) -> float:
    return _max_difference(*(_load(path)["image_embeddings"] for path in (first, second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--size", choices=("vit_b", "tiny"), default="vit_b")
    parser.add_argument("--regions", type=int, default=64, help="boxes in the section `regions`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender; 7 in the section `import`")
    parser.add_argument("--points-per-side", type=int, default=8, help="grid of everything mode (the demo's: 32)")
    parser.add_argument("--points-per-batch", type=int, default=16, help="points per encoder pass (the demo's: 64)")
    parser.add_argument("--beams", type=int, default=3, help="beams of everything mode")
    parser.add_argument("--survivors", type=float, default=0.07, help="part of all masks that the filters let through")
    parser.add_argument("--steps", type=int, default=2, help="timed training steps per run")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, WORKERS)
        return
    print(machine(args.threads))
    print(f"size {args.size}, random weights, {args.repeats} runs each in fresh processes, taking turns", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, folder)
        for section in args.section:
            if section == "import":
                from import_time import measure

                measure(7)
            else:
                getattr(bench, section)()


if __name__ == "__main__":
    main()
