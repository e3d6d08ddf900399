# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's image encoder against transformers' own: time, memory, equal features.

    python benchmarks/image_encoder.py                            # ViT-B at 1024 pixels, every contender
    python benchmarks/image_encoder.py --quick                    # a small model, to see that it works
    python benchmarks/image_encoder.py --dtype bfloat16
    python benchmarks/image_encoder.py --device cuda --dtype bfloat16 --repeats 20
    python benchmarks/image_encoder.py --contenders hf_segcap --block-elements 262144 1048576 2097152

Each run is a fresh process with the same random weights, and the contenders take turns. `biased` is a third form of the
attention that is not in the package: PyTorch's fused kernel with the position terms of some queries at a time as its mask.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import Probe, high_water, machine, median, print_table, run_worker, work

EAGER, SDPA, OURS = "transformers eager", "transformers sdpa", "hf_segcap"
FORMS = ("blocked", "folded", "biased")
CONTENDERS = (EAGER, SDPA, OURS, *(f"{OURS}, {form}" for form in FORMS))
QUICK = {
    "hidden_size": 96,
    "output_channels": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 320,
    "mlp_dim": 384,
    "global_attn_indexes": [2],
}
TOLERANCE = 1e-5


def _biased_attention(query: Any, key: Any, value: Any, rows: Any, columns: Any, scale: float) -> Any:
    import torch
    import torch.nn.functional as F

    from hf_segcap.models.sam import relative_attention

    groups, heads, tokens, _ = query.shape
    step = max(1, 16 * relative_attention.BLOCK_ELEMENTS // (groups * heads * tokens))
    parts = []
    for part, part_rows, part_columns in zip(*(x.split(step, dim=2) for x in (query, rows, columns)), strict=True):
        bias = (part_rows[..., :, None] + part_columns[..., None, :]).flatten(-2)
        parts.append(F.scaled_dot_product_attention(part, key, value, attn_mask=bias, scale=scale))
    return torch.cat(parts, dim=2)


def _build(contender: str, quick: bool, device: str, dtype: str) -> Any:
    import torch
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    from hf_segcap.models.sam import image_encoder, relative_attention
    from hf_segcap.models.sam.configuration_sam import SamImageEncoderConfig

    implementation = "eager" if contender == EAGER else "sdpa"
    config = SamImageEncoderConfig(**(QUICK if quick else {}), attn_implementation=implementation)
    forms = {
        "blocked": relative_attention.blocked_attention,
        "folded": relative_attention.folded_attention,
        "biased": _biased_attention,
    }
    form = contender.removeprefix(f"{OURS}, ")
    if form in forms:

        def attend(query: Any, key: Any, value: Any, positions: Any, scale: float) -> Any:
            return forms[form](query, key, value, *positions, scale)

        image_encoder.relative_attention = attend
    torch.manual_seed(0)
    encoder = (image_encoder.SamImageEncoder if contender.startswith(OURS) else SamVisionEncoder)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.ndim > 1:  # activations at unit scale; position terms that matter
                scale = 0.2 if "pos" in name else parameter[0].numel() ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
    return encoder.eval().to(device, getattr(torch, dtype))


def encode_worker(
    contender: str, quick: bool, device: str, dtype: str, block_elements: int, calls: int, train: bool, output: str
) -> dict[str, Any]:
    """Seconds of each call, and memory, after one call that warms up; keeps the features in `output`."""
    import torch
    from safetensors.torch import save_file

    from hf_segcap.models.sam import relative_attention

    relative_attention.BLOCK_ELEMENTS = block_elements
    encoder = _build(contender, quick, device, dtype)
    generator = torch.Generator().manual_seed(1)
    side = encoder.config.image_size
    images = torch.randn(1, 3, side, side, generator=generator).to(device, encoder.dtype)

    def call() -> Any:
        with torch.set_grad_enabled(train):
            features = encoder(images).last_hidden_state
            if train:
                features.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return features.detach()

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Probe() as first:
        features = call()
    times = []
    for _ in range(calls):
        with Probe() as probe:
            call()
        times.append(probe.seconds)
    save_file({"features": features.float().cpu().contiguous()}, output)
    high = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else high_water()
    return {"first": first.seconds, "times": times, "peak": first.peak, "high_water": high}


WORKERS = {"encode": encode_worker}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="a small model at 320 pixels")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--train", action="store_true", help="with a backward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument("--calls", type=int, default=1, help="timed calls per process, after one to warm up")
    parser.add_argument("--block-elements", type=int, nargs="+", default=[2**20], help="scores per block (`blocked`)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, WORKERS)
        return
    print(machine(args.threads))
    print(f"{'small model' if args.quick else 'ViT-B, 1024 pixels'}, {args.device}, {args.dtype}, train={args.train}")
    runs = [(name, size) for name in args.contenders for size in args.block_elements]
    results: dict[tuple[str, int], list[dict[str, Any]]] = {run: [] for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        paths = {run: str(Path(folder) / f"{i}.safetensors") for i, run in enumerate(runs)}
        for _ in range(args.repeats):
            for run in runs:
                settings = {"quick": args.quick, "device": args.device, "dtype": args.dtype, "train": args.train}
                settings |= {"block_elements": run[1], "calls": args.calls, "output": paths[run]}
                results[run].append(run_worker(__file__, "encode", args.threads, contender=run[0], **settings))
        _report(results, paths, args.dtype)


def _report(
    results: dict[tuple[str, int], list[dict[str, Any]]], paths: dict[tuple[str, int], str], dtype: str
) -> None:
    from safetensors.torch import load_file

    features = {run: load_file(path)["features"] for run, path in paths.items()}
    reference = next(iter(features.values()))
    rows = []
    for (name, size), measured in results.items():
        times = [seconds for result in measured for seconds in result["times"]]
        difference = float((features[name, size] - reference).abs().max())
        peaks = [max(result[key] or 0.0 for result in measured) for key in ("peak", "high_water")]
        first = min(result["first"] for result in measured)
        rows.append([name, size, min(times), median(times), first, *peaks, difference])
    print_table(
        [
            "contender",
            "scores per block",
            "min s",
            "median s",
            "first call s",
            "peak above start MiB",
            "process (cuda: device) peak MiB",
            "difference from the first line",
        ],
        rows,
    )
    worst = max(row[-1] for row in rows)
    if dtype == "float32" and worst > TOLERANCE:
        raise SystemExit(f"features differ by {worst:.2g}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
