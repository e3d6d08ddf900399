# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: models of a given size, child processes, memory, the machine, tables."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# Random weights: nothing is fetched. Set before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SIZES: dict[str, dict[str, Any]] = {
    # SAM ViT-B, the 12-block caption mixer and the 8 + 6 prefix tokens of the published models, GPT-2 (124M)
    "vit_b": {
        "vision_config": {},
        "prompt_encoder_config": {},
        "mask_caption_decoder_config": {"additional_num_hidden_layers": 12, "num_caption_tokens": 8},
        "text_config": {"model_type": "gpt2"},
    },
    "tiny": {
        "vision_config": {
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 64,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 8},
        "mask_caption_decoder_config": {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "mlp_dim": 64,
            "iou_head_hidden_dim": 32,
            "additional_num_hidden_layers": 2,
            "num_caption_tokens": 4,
        },
        "text_config": {
            "model_type": "gpt2",
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "vocab_size": 300,
            "n_positions": 64,
            "bos_token_id": 299,
            "eos_token_id": 299,
        },
    },
}


def build_model(size: str, seed: int = 0) -> Any:
    """A `SamCaptionForRegionCaptioning` in eval mode with reproducible random weights.

    Matrices outside the language model are drawn with the standard deviation that keeps activations at unit scale, so
    that masks and captions differ from region to region (with 0.02 everything would be close to constant).
    """
    import torch

    from hf_segcap.models.sam_caption.configuration_sam_caption import SamCaptionConfig
    from hf_segcap.models.sam_caption.modeling_sam_caption import SamCaptionForRegionCaptioning

    config = SamCaptionConfig(**SIZES[size])
    torch.manual_seed(seed)
    model = SamCaptionForRegionCaptioning(config)
    return draw_unit_scale(model, seed, skip="language_model.").eval()


def sam_parts(size: str) -> dict[str, Any]:
    """SAM's three sub-configurations of a size, without captions."""
    parts = SIZES[size]
    foreign = ("additional_num_hidden_layers", "num_caption_tokens")
    decoder = {name: value for name, value in parts["mask_caption_decoder_config"].items() if name not in foreign}
    return {
        "vision_config": dict(parts["vision_config"]),
        "prompt_encoder_config": dict(parts["prompt_encoder_config"]),
        "mask_decoder_config": {**decoder, "layer_norm_eps": 1e-5},
    }


def draw_unit_scale(model: Any, seed: int = 0, skip: str | None = None) -> Any:
    """Draws the matrices of a SAM-like model anew so that activations stay at unit scale; vectors keep their values.

    Args:
        skip: parameters whose names begin like this keep theirs, too.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or (skip is not None and name.startswith(skip)):
                continue
            fan_in = parameter[0].numel()
            table = name.endswith(("_tokens.weight", "_token.weight", "_embed.weight")) or "point_embed." in name
            scale = 1.0 if table else 0.2 if "pos" in name else fan_in**-0.5
            parameter.normal_(0.0, scale, generator=generator)
    return model


def generation_kwargs(config: Any, num_beams: int = 1, new_tokens: int = 19) -> dict[str, Any]:
    """Greedy or beam decoding of exactly `new_tokens` tokens: the end token is never chosen."""
    end = config.text_config.eos_token_id
    return {
        "max_new_tokens": new_tokens,
        "num_beams": num_beams,
        "do_sample": False,
        "suppress_tokens": [end],
        "pad_token_id": end,
    }


def build_processor(config: Any) -> Any:
    """A `SamCaptionProcessor` whose vocabulary is `w0`, `w1`, ...: captions show their ids, and nothing is fetched."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SamImageProcessor

    from hf_segcap.models.sam_caption.processing_sam_caption import SamCaptionProcessor

    vocabulary = {f"w{i}": i for i in range(config.text_config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = f"w{config.text_config.eos_token_id}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end, padding_side="right")
    side = config.vision_config.image_size
    image_processor = SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    return SamCaptionProcessor(image_processor=image_processor, tokenizer=tokenizer)


def photograph(seed: int = 0, height: int = 480, width: int = 640) -> Any:
    """A PIL image of smooth coloured noise in the size of a Visual Genome photograph."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def random_boxes(count: int, height: float, width: float, seed: int = 0) -> Any:
    """`(count, 4)` float32 xyxy boxes, each side between 5 % and 50 % of the image."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height])
    sides = (0.05 + 0.45 * torch.rand(count, 2, generator=generator)) * extent
    corners = torch.rand(count, 2, generator=generator) * (extent - sides)
    return torch.cat([corners, corners + sides], dim=1)


class Probe:
    """Time of a `with` block, and the highest resident memory inside it above what the process held on entering.

    A thread reads the resident set every few milliseconds; where the system offers no such reading (anything but
    Linux) `peak` stays None.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: processor time of all threads: what to compare on a machine that others use too.
        peak: MiB, or None.
    """

    def __init__(self, interval: float = 0.004) -> None:
        self.interval = interval
        self.seconds = self.cpu_seconds = 0.0
        self.peak: float | None = None
        self._statm = Path("/proc/self/statm")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _resident(self) -> float:
        return int(self._statm.read_text().split()[1]) * resource.getpagesize() / 2**20

    def _watch(self, base: float) -> None:
        while not self._stop.wait(self.interval):
            self.peak = max(self.peak or 0.0, self._resident() - base)

    def __enter__(self) -> Probe:
        if self._statm.exists():
            self._thread = threading.Thread(target=self._watch, args=(self._resident(),), daemon=True)
            self._thread.start()
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def result(self, **more: Any) -> dict[str, Any]:
        """Everything measured, with the highest resident memory of the process so far."""
        measured = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "peak": self.peak}
        return {**measured, "high_water": high_water(), **more}


def high_water() -> float:
    """Highest resident memory of this process so far, MiB (`ru_maxrss`: bytes on macOS, KiB elsewhere)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class PartTimer:
    """Adds up the time inside named submodules of a model, per name."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self.seconds: dict[str, float] = {}
        for name in names:
            self.seconds[name] = 0.0
            module = model.get_submodule(name)
            started: list[float] = []
            module.register_forward_pre_hook(lambda *_, started=started: started.append(time.perf_counter()))
            module.register_forward_hook(lambda *_, started=started, name=name: self._add(name, started.pop()))

    def _add(self, name: str, start: float) -> None:
        self.seconds[name] += time.perf_counter() - start

    def reset(self) -> None:
        self.seconds = dict.fromkeys(self.seconds, 0.0)


def run_worker(script: str | os.PathLike[str], task: str, threads: int, **parameters: Any) -> dict[str, Any]:
    """Runs `script --worker` in a fresh process, so that contenders do not share memory, caches or threads.

    Returns:
        What the worker function of that task returned.

    Raises:
        RuntimeError: the process failed; the message ends with its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        job = {"task": task, "threads": threads, "answer": str(answer), "parameters": parameters}
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        command = [sys.executable, str(script), "--worker", json.dumps(job)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode or not answer.exists():
            raise RuntimeError(f"worker {task} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads(answer.read_text())


def work(job: str, functions: dict[str, Any]) -> None:
    """The other side of `run_worker`: one task in this process."""
    import torch

    task = json.loads(job)
    torch.set_num_threads(task["threads"])
    result = functions[task["task"]](**task["parameters"])
    Path(task["answer"]).write_text(json.dumps(result))


def machine(threads: int) -> str:
    """One line: processor, threads, memory, versions."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{name}, {os.cpu_count()} cores ({threads} threads used), {memory:.0f} GiB, {platform.system()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; float32"
    )


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A Markdown table on standard output; floats with three significant digits."""
    print("\n| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def print_runs(title: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Times and memory of the runs of each contender, and how the last compares with every other, pair by pair."""
    rows = []
    for name, results in runs.items():
        seconds = [run["seconds"] for run in results]
        cpu = min(run["cpu_seconds"] for run in results)
        peaks = [max(run[key] or 0 for run in results) for key in ("peak", "high_water")]
        rows.append((name, min(seconds), median(seconds), cpu, *(f"{peak:.0f}" for peak in peaks)))
    print_table([title, "min s", "median s", "min processor s", "peak above start, MiB", "process peak, MiB"], rows)
    last = list(runs)[-1]
    for name in list(runs)[:-1]:
        pairs = list(zip(runs[name], runs[last], strict=True))
        faster, cpu = (median([a[key] / b[key] for a, b in pairs]) for key in ("seconds", "cpu_seconds"))
        memory = median([(b["peak"] or 0) / (a["peak"] or 1) for a, b in pairs])
        print(
            f"{last} against {name}: {faster:.2f} x faster, {cpu:.2f} x less processor time, {memory:.2f} of the memory",
            flush=True,
        )
