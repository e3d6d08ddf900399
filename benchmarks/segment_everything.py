# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Everything mode against the official generator's procedure and transformers' `mask-generation` pipeline.

    python benchmarks/segment_everything.py                                    # random ViT-B weights, 32 x 32 points
    python benchmarks/segment_everything.py --size tiny --points-per-side 8 --image-size small     # in a minute
    python benchmarks/segment_everything.py --model facebook/sam-vit-base --image photo.jpg

All contenders load the same weights and get the same image embedding, so that time and memory are those after the image
encoder: from points to records. Each run is a fresh process and the contenders take turns. Their records must be equal.
Targets: at least twice as fast as either, with a lower peak of memory.

Where torchvision is absent, transformers' pipeline gets an NMS from this package. It compares one image without crop
layers: with them its results differ from the official ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from common import SIZES, Probe, draw_unit_scale, machine, photograph, print_runs, run_worker, sam_parts, work

OFFICIAL, TRANSFORMERS, OURS = "official procedure", "transformers pipeline", "hf_segcap"
CONTENDERS = (OFFICIAL, TRANSFORMERS, OURS)
IMAGE_SIZES = {"small": (240, 320), "medium": (480, 640), "sa1b": (1500, 2250)}
# Part of the masks of random weights that pass the predicted IoU, and part of these that are stable enough: about what
# a trained model lets through before NMS.
FRACTIONS = 0.4, 0.5
# Part of the pixels in which masks may differ: float noise on borders.
PIXELS = 1e-4


def make_model(size: str, folder: str) -> None:
    """Saves a transformers `SamModel` with random weights of unit scale.

    Upscaling kernels are averaged over their positions: masks then consist of pieces as large as a patch, where random
    kernels would make pixel noise, which no run-length code is meant for.
    """
    import torch
    from transformers import SamConfig, SamModel

    config = SamConfig(**sam_parts(size))
    torch.manual_seed(0)
    model = draw_unit_scale(SamModel(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "upscale_conv" in name and parameter.ndim > 1:
                parameter.copy_(2 * parameter.mean((2, 3), keepdim=True).expand_as(parameter))
    model.save_pretrained(folder)


def _read_image(image: str | None, image_size: str) -> Any:
    from hf_segcap.images import load_image

    return load_image(image) if image else photograph(0, *IMAGE_SIZES[image_size])


def _processor(model: Any) -> Any:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    side = model.config.vision_config.image_size
    return SamImageProcessorPil(size={"longest_edge": side}, pad_size={"height": side, "width": side})


def _sam(folder: str) -> Any:
    from transformers import SamModel

    model = SamModel.from_pretrained(folder, attn_implementation="eager").eval()
    # The official value; transformers' checkpoints say 1e-6.
    for block in model.mask_decoder.transformer.layers:
        for name in ("layer_norm1", "layer_norm2", "layer_norm3", "layer_norm4"):
            getattr(block, name).eps = 1e-5
    return model


def _ours(folder: str) -> Any:
    from hf_segcap.models.sam.modeling_sam import SamForPromptableSegmentation

    return SamForPromptableSegmentation.from_pretrained(folder).eval()


def encode_worker(folder: str, image: str | None, image_size: str, output: str) -> dict[str, Any]:
    """The image embedding that all contenders start from."""
    import torch
    from safetensors.torch import save_file

    model = _ours(folder)
    inputs = _processor(model)(_read_image(image, image_size), return_tensors="pt")
    with torch.no_grad(), Probe() as probe:
        embedding = model.get_image_embeddings(inputs["pixel_values"])
    save_file({"embedding": embedding.contiguous(), "reshaped": inputs["reshaped_input_sizes"][0]}, output)
    return probe.result()


def _run_ours(folder: str, image: Any, embedding: Any, reshaped: tuple[int, int], settings: dict[str, Any]) -> Any:
    """A function from nothing to proposals."""
    import numpy as np
    import torch

    from hf_segcap.everything import GeneratorSettings, generate_masks

    model = _ours(folder)

    def segment(points: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model.segment(embedding, multimask_output=True, input_points=points, point_labels=labels)

    def run() -> Any:
        with torch.no_grad():
            return generate_masks(
                np.asarray(image),
                lambda crop: (segment, reshaped),
                image_size=model.config.vision_config.image_size,
                settings=GeneratorSettings(**settings),
            )

    return run


def _load_embedding(path: str) -> tuple[Any, tuple[int, int]]:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return tensors["embedding"], tuple(tensors["reshaped"].tolist())


def thresholds_worker(
    folder: str, image: str | None, image_size: str, embedding: str, points_per_side: int
) -> dict[str, float]:
    """Thresholds that let `FRACTIONS` of the masks through, each in the middle of a gap between two masks."""
    open_wide = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    settings = {"points_per_side": points_per_side, **open_wide}
    run = _run_ours(folder, _read_image(image, image_size), *_load_embedding(embedding), settings)
    found = run()
    iou = found.predicted_iou  # descending
    cut = max(1, round(FRACTIONS[0] * len(iou)))
    stability = found.stability_score[:cut].nan_to_num(0.0).sort(descending=True).values
    second = max(1, round(FRACTIONS[1] * cut))
    return {
        "pred_iou_thresh": float(iou[cut - 1 : cut + 1].mean()),
        "stability_score_thresh": float(stability[second - 1 : second + 1].mean()),
    }


def everything_worker(
    contender: str,
    folder: str,
    image: str | None,
    image_size: str,
    embedding: str,
    settings: dict[str, Any],
    output: str,
) -> dict[str, Any]:
    """From the image embedding to records with COCO RLE; they go to `output`."""
    import numpy as np
    import torch

    from hf_segcap.masks import MaskRuns
    from hf_segcap.records import to_records

    picture = _read_image(image, image_size)
    features, reshaped = _load_embedding(embedding)
    if contender == OURS:
        run = _run_ours(folder, picture, features, reshaped, settings)
        run_warm = _run_ours(folder, picture, features, reshaped, {**settings, "points_per_side": 1})
    else:
        from official_generator import OfficialGenerator

        from hf_segcap.everything import GeneratorSettings

        model = _sam(folder)
        run_warm = OfficialGenerator(
            model, lambda crop: (features, reshaped), GeneratorSettings(**{**settings, "points_per_side": 1})
        ).generate
        run_warm = _bind(run_warm, np.asarray(picture))
        if contender == OFFICIAL:
            generator = OfficialGenerator(model, lambda crop: (features, reshaped), GeneratorSettings(**settings))
            run = _bind(generator.generate, np.asarray(picture))
        else:
            run = _transformers_pipeline(model, picture, features, settings)
    run_warm()
    with torch.no_grad(), Probe() as probe:
        found = run()
        if contender == OURS:
            found = to_records(found, "coco_rle")
    if contender != OURS:  # writing the text is not part of the peers' work
        size = (picture.height, picture.width)
        codes = MaskRuns.from_rles([record["segmentation"] for record in found], size).to_coco()
        found = [{**record, "segmentation": code} for record, code in zip(found, codes, strict=True)]
    Path(output).write_text(json.dumps(found))
    return probe.result(count=len(found))


def _bind(function: Any, argument: Any) -> Any:
    return lambda: function(argument)


def _transformers_pipeline(model: Any, picture: Any, features: Any, settings: dict[str, Any]) -> Any:
    """transformers' pipeline, its image encoder replaced by the given embedding. What it lacks of a record is left out."""
    from transformers import MaskGenerationPipeline
    from transformers.models.sam import image_processing_pil_sam as module

    processor = _processor(model)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        _stand_in_for_torchvision()
        processor.post_process_for_mask_generation = module._post_process_for_mask_generation
    model.get_image_embeddings = lambda pixel_values: features
    pipe = MaskGenerationPipeline(model=model, image_processor=processor, device="cpu")

    def run() -> list[dict[str, Any]]:
        found = pipe(
            picture,
            points_per_crop=settings["points_per_side"],
            points_per_batch=settings["points_per_batch"],
            pred_iou_thresh=settings["pred_iou_thresh"],
            stability_score_thresh=settings["stability_score_thresh"],
            crops_nms_thresh=settings["box_nms_thresh"],
            output_rle_mask=True,
            output_bboxes_mask=True,
        )
        rows = zip(found["rle_mask"], found["bounding_boxes"].tolist(), found["scores"].tolist(), strict=True)
        return [
            {"segmentation": rle, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]], "predicted_iou": score}
            for rle, box, score in rows
        ]

    return run


def _stand_in_for_torchvision() -> None:
    """A module `torchvision.ops.boxes` with the one function that the pipeline imports from it."""
    from hf_segcap.masks import box_nms

    boxes_module = types.ModuleType("torchvision.ops.boxes")
    boxes_module.batched_nms = lambda boxes, scores, idxs, iou_threshold: box_nms(boxes, scores, iou_threshold)  # type: ignore[attr-defined]
    for name in ("torchvision", "torchvision.ops"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.ops.boxes"] = boxes_module


WORKERS = {"encode": encode_worker, "thresholds": thresholds_worker, "everything": everything_worker}


def compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    """What differs between records, beyond float noise on the borders of masks; "" if nothing does."""
    from hf_segcap.masks import decode_rle

    if len(first) != len(second):
        return f"{len(first)} and {len(second)} masks"
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if (decode_rle(a["segmentation"]) != decode_rle(b["segmentation"])).mean() > PIXELS:
            return f"mask {index}"
        if any(abs(x - y) > 1 for x, y in zip(a["bbox"], b["bbox"], strict=True)):
            return f"the box of mask {index}: {a['bbox']} and {b['bbox']}"
        for name in ("predicted_iou", "stability_score"):
            if name in a and name in b and abs(a[name] - b[name]) > 1e-3:
                return f"{name} of mask {index}: {a[name]} and {b[name]}"
        if "point_coords" in a and "point_coords" in b and a["point_coords"] != b["point_coords"]:
            return f"the point of mask {index}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of a SAM checkpoint instead of random weights")
    parser.add_argument("--size", choices=tuple(SIZES), default="vit_b", help="of the random weights")
    parser.add_argument("--image", help="path or address instead of a generated image")
    parser.add_argument("--image-size", choices=tuple(IMAGE_SIZES), default="medium", help="of the generated image")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, WORKERS)
        return
    print(machine(args.threads))
    with tempfile.TemporaryDirectory() as scratch:
        bench(args, Path(scratch))


def bench(args: argparse.Namespace, scratch: Path) -> None:
    folder = args.model
    if folder is None:
        folder = str(scratch / "model")
        make_model(args.size, folder)
    source = {"folder": folder, "image": args.image, "image_size": args.image_size}
    embedding = str(scratch / "embedding.safetensors")
    encoder = run_worker(__file__, "encode", args.threads, **source, output=embedding)
    print(f"image encoder, once, not part of what follows: {encoder['seconds']:.2f} s", flush=True)
    settings = {"points_per_side": args.points_per_side, "points_per_batch": args.points_per_batch}
    settings |= {"pred_iou_thresh": 0.88, "stability_score_thresh": 0.95, "box_nms_thresh": 0.7}
    if args.model is None:
        # The masks of random weights nearly all span the image: NMS would leave one.
        settings["box_nms_thresh"] = 1.0
        settings |= run_worker(
            __file__, "thresholds", args.threads, **source, embedding=embedding, points_per_side=args.points_per_side
        )
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.contenders}
    files = {name: str(scratch / f"{index}.json") for index, name in enumerate(args.contenders)}
    for _ in range(args.repeats):
        for name in args.contenders:
            result = run_worker(
                __file__,
                "everything",
                args.threads,
                contender=name,
                **source,
                embedding=embedding,
                settings=settings,
                output=files[name],
            )
            runs[name].append(result)
            print(f"  {name}: {result['seconds']:.2f} s, {result['count']} masks", flush=True)
    print_runs(f"{args.points_per_side} x {args.points_per_side} points after the encoder", runs)
    records = {name: json.loads(Path(path).read_text()) for name, path in files.items()}
    last = args.contenders[-1]
    for name in args.contenders[:-1]:
        difference = compare(records[name], records[last])
        print(f"records of {name} and {last}: {difference or 'equal'} ({len(records[last])} masks)")
        if difference:
            raise SystemExit("the contenders disagree: the times above compare different things")


if __name__ == "__main__":
    main()
