# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What the conversion scripts share: reading stored tensors, checking what was written, report, model card, upload."""

import argparse
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # of its HTTP library, whose name depends on the version
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from hf_segcap.hub import add_hub_files
from hf_segcap.training.recipe import DTYPES


@dataclass(kw_only=True)
class Conversion:
    """What a conversion did; `table()` is what a script prints."""

    model_class: ClassVar[Any]
    model_card: ClassVar[str]
    """Text of README.md, to be formatted with `name`, `source`, `summary` and `model`."""

    checkpoint: Path
    output: Path
    files: list[str]
    config: PreTrainedConfig
    num_parameters: int
    stored_dtype: torch.dtype
    dtype: torch.dtype
    num_read: int
    num_written: int
    ignored: list[str] = field(default_factory=list)
    max_rounding: float = 0.0

    def summary(self) -> str:
        """One line for the model card: parts, sizes, dtype."""
        raise NotImplementedError

    def details(self) -> list[tuple[str, str]]:
        """Lines of the report that only this kind of checkpoint has, parameters included."""
        raise NotImplementedError

    def source(self) -> str:
        """What the weights are, for the first line of the report."""
        raise NotImplementedError

    def image_encoder(self) -> str:
        vision = self.config.vision_config
        return f"SAM ViT, width {vision.hidden_size}, {vision.num_hidden_layers} layers, {vision.image_size} pixels"

    def table(self) -> str:
        """The whole report, one `what  value` line each."""
        weights = f"{self.num_read} tensors, {dtype_name(self.stored_dtype)}, in {', '.join(self.files)}"
        cast = f", largest rounding {self.max_rounding:.1e}" if self.dtype != self.stored_dtype else ""
        rows = [
            ("read", f"{self.checkpoint} ({self.source()})"),
            ("weights", weights),
            ("image encoder", self.image_encoder()),
            *self.details(),
            ("ignored keys", f"{len(self.ignored)}" + (f": {shortened(self.ignored)}" if self.ignored else "")),
            ("written", f"{self.output} ({self.num_written} tensors, {dtype_name(self.dtype)}{cast})"),
            ("verified", "reloaded: every tensor equal, one forward pass equal"),
        ]
        return "\n".join(f"{what:<14} {value}" for what, value in rows)


def write_model_card(conversion: Conversion, model_id: str) -> None:
    """Writes `README.md` into the converted folder; `model_id` is what the code example of the card loads."""
    name = model_id.rsplit("/", 1)[-1]
    source = conversion.checkpoint.resolve().name
    card = conversion.model_card.format(name=name, source=source, summary=conversion.summary(), model=model_id)
    (conversion.output / "README.md").write_text(card, encoding="utf-8")


def upload(conversion: Conversion, repo_id: str) -> str:
    """Uploads the converted folder, with what a Hub repository has besides (`hf_segcap.hub`); returns its address.

    Raises:
        OSError: The upload failed: no connection, no permission, an impossible name.
    """
    write_model_card(conversion, repo_id)
    add_hub_files(conversion.output, type(conversion.config), repo_id, conversion.model_class.hub_task)
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=conversion.output).repo_url)
    except (HTTPError, OSError, ValueError) as error:
        raise OSError(f"{conversion.output} is written, but was not uploaded to {repo_id!r}: {error}") from error


def check_output_folder(output: Path) -> None:
    """Refuses a folder that holds something."""
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"the output folder {output} is not empty; give a new one, or empty it")


def read_tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields (key, tensor) as they lie in a safetensors file or a pickled dictionary, whose other values come as they are.

    Raises:
        ValueError: The file is damaged, is no dictionary, or would run code.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    yield key, tensors.get_tensor(key)
            return
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(file):
            raise _damaged(file, error) from error
        raise ValueError(
            f"{file} cannot be read: besides tensors it holds Python objects, which could run code; save its state dict alone "
            f"({str(error).splitlines()[0]})"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a dictionary of tensors (a state dict)")
    if not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} holds a dictionary whose keys are no names, expected a state dict")
    yield from content.items()


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read: it is damaged or incomplete; fetch it again ({str(error).split('. ')[0]})"
    )


def most_common_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Dtype of most of the floating-point tensors.

    Raises:
        ValueError: there are none.
    """
    counts = Counter(tensor.dtype for tensor in tensors)
    floating = [dtype for dtype, _ in counts.most_common() if dtype.is_floating_point]
    if not floating:
        raise ValueError(
            f"the weights are {', '.join(map(str, counts))}: expected floating point numbers, not quantised ones"
        )
    return floating[0]


def default_dtype(stored: torch.dtype) -> torch.dtype:
    """What weights are written in if nothing else is asked for: as stored, at most float32."""
    return torch.float32 if stored == torch.float64 else stored


def compare_tensors(
    stored: Iterable[tuple[str, torch.Tensor]], model: torch.nn.Module, dtype: torch.dtype
) -> tuple[int, list[str], float]:
    """Checks that `model` holds exactly the stored tensors, cast to `dtype`.

    Args:
        stored: (key of the model, tensor).

    Returns:
        Number of stored tensors, the stored keys that the model has no place for, the largest rounding of the cast.
    """
    state = model.state_dict()
    num_read, ignored, max_rounding = 0, [], 0.0
    for key, tensor in stored:
        num_read += 1
        if key not in state:
            ignored.append(key)
            continue
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if expected.is_floating_point() and not bool(expected.isfinite().all()):
            raise ValueError(f"the tensor {key!r} holds NaN or infinity")
        if not torch.equal(state[key], expected):
            raise ValueError(f"the tensor {key!r} differs from the official one after writing and loading it again")
        if expected.dtype != tensor.dtype:
            max_rounding = max(max_rounding, (expected.double() - tensor.double()).abs().max().item())
    return num_read, ignored, max_rounding


@torch.inference_mode()
def compare_forward(
    model: PreTrainedModel, reloaded: PreTrainedModel, outputs: tuple[str, ...], **inputs: torch.Tensor
) -> None:
    """Checks that both models say the same about two regions of one random image; `inputs` go to both as well."""
    size, generator = model.config.vision_config.image_size, torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(1, 3, size, size, generator=generator).to(model.dtype),
        "input_boxes": torch.tensor([[[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]]) * size,
        **inputs,
    }
    first, second = model(**inputs), reloaded(**inputs)
    for name in outputs:
        if not torch.equal(first[name], second[name]):
            raise ValueError(
                f"the forward pass of the written model differs from that of the official weights in {name!r}"
            )


def num_written(folder: Path) -> int:
    """Number of tensors in the written folder, which may be sharded."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            total += len(tensors.keys())
    return total


def dtype_name(dtype: torch.dtype) -> str:
    """`"float16"` for `torch.float16`."""
    return str(dtype).removeprefix("torch.")


def shortened(keys: list[str], shown: int = 3) -> str:
    """The first keys and how many more there are."""
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def command_line(description: str, checkpoint: str, option: str = "--checkpoint") -> argparse.ArgumentParser:
    """The options that all scripts have; `checkpoint` says what the first one takes, which may have another name."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument(option, dest="checkpoint", required=True, type=Path, help=checkpoint)
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of the written weights; default: as stored, at most float32"
    )
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload the written folder as this Hub repository")
    return parser


def run(options: argparse.Namespace, convert: Callable[..., Conversion], **kwargs: Any) -> int:
    """Converts, reports, uploads; returns the exit status: 2 after an error, which is one line on standard error."""
    try:
        conversion = convert(options.checkpoint, options.output, DTYPES.get(options.dtype), **kwargs)
        print(conversion.table())
        if options.push_to_hub:
            print(f"{'uploaded':<14} {upload(conversion, options.push_to_hub)}")
    except (ImportError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
