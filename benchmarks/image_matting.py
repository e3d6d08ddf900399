# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Image matting: many prompts per image, the cost of the pixel decoder, and PyTorch against onnxruntime.

    python benchmarks/image_matting.py                          # all sections, ViT-B at 1024 pixels, 32 prompts
    python benchmarks/image_matting.py --size tiny --repeats 1  # the same in a few minutes, to see that it works
    python benchmarks/image_matting.py --section prompts --prompts 8

All contenders get the same random weights, and in the decoding sections the same image embedding and details, so that times
and memory are those after the encoders. Each run is a fresh process and the contenders take turns; a call before the timed
ones warms up. Their answers must be equal up to `TOLERANCE` of the largest value.

Sections:

* `prompts`: boxes, then points, against `official_matting.py`, which decodes all prompts at once (at ViT-B size 32 prompts need
  some 7 GB) or, with the least memory that such code can have, one after the other;
* `pixels`: ZIM's pixel decoder against SAM's own (`pixel_decoder="sam"`) in our model, for one and for all prompts;
* `onnx`: our exported encoder and decoder graphs in onnxruntime, with as many threads, against our model. Needs the extra
  `onnx`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import (
    SIZES,
    PartTimer,
    Probe,
    draw_unit_scale,
    machine,
    median,
    photograph,
    print_runs,
    print_table,
    random_boxes,
    run_worker,
    sam_parts,
    work,
)

SECTIONS = ("prompts", "pixels", "onnx")
PLAIN, PLAIN_SINGLY = "plain procedure", "plain procedure, one by one"
ONNX, OURS, OURS_SAM = "onnxruntime", "hf_segcap", "hf_segcap, SAM's pixel decoder"
KINDS = ("boxes", "points")
POINTS_PER_PROMPT = 2  # one inside, one outside
# Modules whose time is told; what the fusion blocks make of the details alone, once per image, is not in theirs
DECODER_PARTS = (
    "prompt_encoder",
    "mask_decoder.transformer",
    *(f"mask_decoder.fusion_blocks.{i}" for i in range(3)),
)
ENCODER_PARTS = ("vision_encoder", "detail_encoder")
TOLERANCE = 1e-4


def make_model(size: str, folder: Path) -> tuple[str, str]:
    """Saves a `ZimForMatting` with random weights of unit scale, and the same with SAM's pixel decoder.

    The running statistics of the batch norms are random, too: folding them into convolutions changes something.
    """
    import torch

    from hf_segcap import ZimConfig, ZimForMatting

    def build(**fields: Any) -> Any:
        config = ZimConfig(**sam_parts(size), **fields)
        # as in the released models, where the grid has 64 cells
        config.point_sigma = 21 * config.prompt_encoder_config.image_embedding_size / 64
        return draw_unit_scale(ZimForMatting(config))

    torch.manual_seed(0)
    model, with_sam = build(), build(pixel_decoder="sam")
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    with_sam.load_state_dict(model.state_dict(), strict=False)  # all but the pixel decoder
    paths = str(folder / "zim"), str(folder / "zim_sam")
    for module, path in zip((model, with_sam), paths, strict=True):
        module.save_pretrained(path)
    return paths


def _load(contender: str, folder: str) -> Any:
    """The contender's model; for onnxruntime `folder` holds graphs."""
    import torch

    from hf_segcap import ZimForMatting

    if contender == ONNX:
        import onnxruntime

        from hf_segcap import ZimOnnxForMatting

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        return ZimOnnxForMatting.from_pretrained(folder, session_options=options)
    return ZimForMatting.from_pretrained(folder).eval()


def _measure(call: Any, warm_up: Any, calls: int, timer: PartTimer | None) -> tuple[dict[str, Any], Any]:
    """Median seconds of several calls after a warm-up, and of the parts; the peak of memory over all; the last result."""
    times = []
    with Probe() as whole:
        warm_up()
        if timer is not None:
            timer.reset()
        for _ in range(calls):
            result = None  # the last result is not part of the next call's memory
            with Probe() as probe:
                result = call()
            times.append(probe)
    measured = whole.result()
    measured |= {name: median([getattr(probe, name) for probe in times]) for name in ("seconds", "cpu_seconds")}
    measured["parts"] = {} if timer is None else {name: total / calls for name, total in timer.seconds.items()}
    return measured, result


def encode_worker(contender: str, folder: str, calls: int, output: str) -> dict[str, Any]:
    """One image through image encoder and detail encoder; embeddings and details go to `output`."""
    import torch
    from safetensors.torch import save_file
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    from hf_segcap import ZimForMatting, ZimProcessor

    model = _load(contender, folder)
    side = model.config.vision_config.image_size
    resize = SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    inputs = ZimProcessor(resize)(photograph(), return_tensors="pt")
    pixels = inputs["pixel_values"]

    def encode() -> list[torch.Tensor]:
        embeddings, details = model.encode_image(pixels)
        return [embeddings, *details]

    timer = PartTimer(model, ENCODER_PARTS) if isinstance(model, ZimForMatting) else None
    with torch.no_grad():
        measured, (embeddings, *details) = _measure(encode, encode, calls, timer)
    tensors = {f"details_{i}": item.contiguous() for i, item in enumerate(details)}
    reshaped = torch.as_tensor(inputs["reshaped_input_sizes"])[0].clone()
    save_file({"embeddings": embeddings.contiguous(), "reshaped": reshaped, **tensors}, output)
    return measured


def _prompts(kind: str, count: int, reshaped: tuple[int, int]) -> dict[str, Any]:
    """Prompts (count, ...) inside an image of this height and width."""
    import torch

    boxes = random_boxes(count, *reshaped)
    if kind == "boxes":
        return {"input_boxes": boxes}
    points = random_boxes(count * POINTS_PER_PROMPT, *reshaped, seed=1)[:, :2].reshape(count, POINTS_PER_PROMPT, 2)
    return {"input_points": points, "point_labels": torch.tensor([1, 0]).repeat(count, 1)}


def matte_worker(
    contender: str,
    folder: str,
    features: str,
    kind: str,
    count: int,
    prompts_per_batch: int | None,
    calls: int,
    output: str,
) -> dict[str, Any]:
    """From the encoders' results to mattes and scores, which go to `output`."""
    import torch
    from safetensors.torch import load_file, save_file

    model = _load(contender, folder)
    tensors = load_file(features)
    embeddings, reshaped = tensors.pop("embeddings"), tuple(tensors.pop("reshaped").tolist())
    details = tuple(tensors[name] for name in sorted(tensors)) if contender != OURS_SAM else ()
    timer = None
    if contender in (PLAIN, PLAIN_SINGLY):
        from official_matting import PlainMatting

        plain = PlainMatting(model)

        def matte(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            size = 1 if contender == PLAIN_SINGLY else None
            return plain(embeddings, details, **_prompts(kind, number, reshaped), prompts_per_batch=size)
    else:
        if contender == OURS:
            timer = PartTimer(model, DECODER_PARTS)

        def matte(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            prompts = {name: value[None] for name, value in _prompts(kind, number, reshaped).items()}
            given = {"image_embeddings": embeddings, "detail_features": details, **prompts}
            answer = model(**given, prompts_per_batch=prompts_per_batch)
            return answer.alphas[0], answer.iou_scores[0]

    few = min(count, 4)  # what onnxruntime decodes together
    with torch.no_grad():
        measured, (mattes, scores) = _measure(lambda: matte(count), lambda: matte(few), calls, timer)
    save_file({"mattes": mattes.contiguous(), "scores": scores.contiguous()}, output)
    return measured


def export_worker(folder: str, output: str) -> dict[str, Any]:
    """Writes both graphs of the model in `folder` to the folder `output`."""
    from hf_segcap import ZimForMatting
    from hf_segcap.onnx_export import export_zim_onnx

    model = ZimForMatting.from_pretrained(folder).eval()
    with Probe() as probe:
        export_zim_onnx(model, output)
    return probe.result()


WORKERS = {"encode": encode_worker, "matte": matte_worker, "export": export_worker}


class Bench:
    """The sections, run by the parent process."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.args = args
        self.folder = Path(folder)
        self.zim, self.zim_sam = make_model(args.size, self.folder)
        self.features = self.file("features")
        encoded = self.run("encode", contender=OURS, folder=self.zim, calls=1, output=self.features)
        print_table(["once per image", "s"], encoded["parts"].items())

    def file(self, *names: str) -> str:
        return str(self.folder / ("_".join(names).replace(" ", "_").replace(",", "") + ".safetensors"))

    def run(self, task: str, **parameters: Any) -> dict[str, Any]:
        result = run_worker(__file__, task, self.args.threads, **parameters)
        print(f"  {task}: {result['seconds']:.3g} s  {parameters.get('contender', '')}", flush=True)
        return result

    def turns(self, title: str, task: str, folders: dict[str, str], **parameters: Any) -> dict[str, float]:
        """Every contender `repeats` times in turn, the last being what the others are compared with.

        Returns:
            Median seconds of each.
        """
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
        for _ in range(self.args.repeats):
            for name, folder in folders.items():
                output = self.file(task, name)
                results[name].append(self.run(task, contender=name, folder=folder, output=output, **parameters))
        print_runs(title, results)
        last = list(folders)[-1]
        fastest = min(results[last], key=lambda run: run["seconds"])
        if fastest["parts"]:
            print_table([f"parts of {last}, {title}", "s"], fastest["parts"].items())
        self._compare([self.file(task, name) for name in folders], list(folders))
        return {name: median([run["seconds"] for run in runs]) for name, runs in results.items()}

    def _compare(self, paths: list[str], names: list[str]) -> None:
        """Everything that both sides have must agree; mattes of different strides (another pixel decoder) do not count."""
        from safetensors.torch import load_file

        reference = load_file(paths[-1])
        if len(reference.get("mattes", ())) > 1:
            mattes = reference["mattes"]
            spread = float(mattes.std(0).mean() / mattes.std())
            print(f"mattes differ from prompt to prompt by {spread:.2f} of their standard deviation")
        for path, name in zip(paths[:-1], names[:-1], strict=True):
            found = load_file(path)
            differences = {
                key: float((found[key] - value).abs().max() / value.abs().max())
                for key, value in reference.items()
                if key != "reshaped" and not (key == "mattes" and name == OURS_SAM)
            }
            text = ", ".join(f"{key} {difference:.1e}" for key, difference in differences.items())
            print(f"{name} and {names[-1]}, largest difference over largest value: {text}", flush=True)
            if not max(differences.values()) <= TOLERANCE:  # also for NaN
                raise SystemExit("the contenders disagree: the times above compare different things")

    def matte(self, title: str, folders: dict[str, str], count: int, kind: str) -> dict[str, float]:
        return self.turns(
            title,
            "matte",
            folders,
            features=self.features,
            kind=kind,
            count=count,
            prompts_per_batch=self.args.prompts_per_batch,
            calls=self.args.calls,
        )

    def prompts(self) -> None:
        count = self.args.prompts
        for kind in KINDS:
            contenders = dict.fromkeys((PLAIN, PLAIN_SINGLY, OURS), self.zim)
            self.matte(f"{count} prompts ({kind}) after the encoders", contenders, count, kind)

    def pixels(self) -> None:
        for count in sorted({1, self.args.prompts}):
            title = f"{count} prompt(s), pixel decoders"
            seconds = self.matte(title, {OURS_SAM: self.zim_sam, OURS: self.zim}, count, KINDS[0])
            more = (seconds[OURS] - seconds[OURS_SAM]) / count
            print(
                f"{title}: ZIM's takes {1000 * more:.3g} ms per prompt more than SAM's, the whole decoder "
                f"{seconds[OURS] / seconds[OURS_SAM]:.2f} x as long",
                flush=True,
            )

    def onnx(self) -> None:
        graphs = str(self.folder / "graphs")
        self.run("export", folder=self.zim, output=graphs)
        folders = {ONNX: graphs, OURS: self.zim}
        seconds = {"encoders": self.turns("image, both encoders", "encode", folders, calls=self.args.calls)}
        for count in sorted({1, self.args.prompts}):
            title = f"{count} prompt(s) after the encoders"
            seconds[title] = self.matte(title, folders, count, KINDS[0])
        for title, pair in seconds.items():
            print(f"{title}: {OURS} takes {pair[OURS] / pair[ONNX]:.2f} x the time of {ONNX}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--size", choices=tuple(SIZES), default="vit_b")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of the image")
    parser.add_argument(
        "--prompts-per-batch", type=int, help="that ours and onnxruntime decode together (default: their own choice)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument("--calls", type=int, default=1, help="timed calls per process, after one to warm up")
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
            getattr(bench, section)()


if __name__ == "__main__":
    main()
