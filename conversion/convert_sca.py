# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rewrites an official SCA checkpoint folder in the format of this package.

`SamCaptionForRegionCaptioning.from_pretrained` reads official folders as they are, so nothing needs this script. It is for
keeping a checkpoint: safetensors instead of pickled files, one dtype, a processor, a generation config and a model card that the
official folders lack, and everything verified after writing.

    python conversion/convert_sca.py --checkpoint DIR --output OUT [--dtype float16] [--push-to-hub USER/NAME]
"""

import argparse
import json
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError  # of its HTTP library, whose name depends on the version
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hf_segcap import SamCaptionForRegionCaptioning, SamCaptionProcessor
from hf_segcap.hub import add_hub_files
from hf_segcap.training.recipe import DTYPES

MODEL_CARD = """\
---
license: apache-2.0
tags: [region-captioning, segment-anything]
---

# {name}

A checkpoint of SCA (Segment and Caption Anything, CVPR 2024), converted from the official folder `{source}` by `hf_segcap`
without changing a weight beyond the dtype: {summary}.

```python
import hf_segcap  # noqa: F401
from transformers import pipeline

pipe = pipeline("region-captioning", model="{model}")
pipe("photo.jpg", boxes=[[20, 30, 400, 300]])
```
"""


@dataclass
class Conversion:
    """What a conversion did; `table()` is what the script prints."""

    checkpoint: Path
    output: Path
    files: list[str]
    config: PreTrainedConfig
    architecture: str
    num_parameters: int
    num_caption_parameters: int
    stored_dtype: torch.dtype
    dtype: torch.dtype
    num_read: int
    num_written: int
    ignored: list[str] = field(default_factory=list)
    max_rounding: float = 0.0

    def summary(self) -> str:
        """One line: image encoder, mixer, text decoder, dtype."""
        return (
            f"{self._image_encoder()}; caption mixer of {self._mixer()}; {self._text_decoder()}; {_name(self.dtype)}"
        )

    def table(self) -> str:
        """The whole report, one `what  value` line each."""
        weights = f"{self.num_read} tensors, {_name(self.stored_dtype)}, in {', '.join(self.files)}"
        cast = f", largest rounding {self.max_rounding:.1e}" if self.dtype != self.stored_dtype else ""
        millions = f"{self.num_parameters / 1e6:,.1f} M"
        rows = [
            ("read", f"{self.checkpoint} ({self.architecture})"),
            ("weights", weights),
            ("image encoder", self._image_encoder()),
            ("caption mixer", self._mixer()),
            ("text decoder", self._text_decoder()),
            ("parameters", f"{millions}, of which SCA's own {self.num_caption_parameters:,}"),
            ("ignored keys", f"{len(self.ignored)}" + (f": {_shortened(self.ignored)}" if self.ignored else "")),
            ("written", f"{self.output} ({self.num_written} tensors, {_name(self.dtype)}{cast})"),
            ("verified", "reloaded: every tensor equal, one forward pass equal"),
        ]
        return "\n".join(f"{what:<14} {value}" for what, value in rows)

    def _image_encoder(self) -> str:
        vision = self.config.vision_config
        return f"SAM ViT, width {vision.hidden_size}, {vision.num_hidden_layers} layers, {vision.image_size} pixels"

    def _mixer(self) -> str:
        mixer = self.config.mask_caption_decoder_config
        return (
            f"{mixer.additional_num_hidden_layers} layers, {mixer.num_caption_heads} x {mixer.num_caption_tokens} caption queries, "
            f"{self.config.num_task_tokens} task tokens"
        )

    def _text_decoder(self) -> str:
        text = self.config.text_config
        return (
            f"{text.model_type}, width {text.hidden_size}, {text.num_hidden_layers} layers, {text.vocab_size} tokens"
        )


def convert_sca(checkpoint: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> Conversion:
    """Converts the official folder `checkpoint` and writes model, processor, generation config and model card to `output`.

    Args:
        checkpoint: Folder with `config.json` (`model_type` "sca"), the weights (`.bin` or safetensors, one file or shards, any
            float dtype) and the language model's tokenizer.
        output: Folder to write; made if it is not there, must be empty otherwise.
        dtype: Of the written weights; that of the stored ones by default.

    Returns:
        What was found and written. The written folder has been loaded again, and every tensor and one forward pass were compared.

    Raises:
        ValueError: The folder is no SCA checkpoint, a file of it is damaged, weights are missing, or `output` is not empty.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    raw_config = _read_config(checkpoint)
    files = _weight_files(checkpoint)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"the output folder {output} is not empty; give a new one, or empty it")
    dtypes = Counter(tensor.dtype for _, tensor in _stored_tensors(files) if tensor.is_floating_point())
    stored_dtype = dtypes.most_common(1)[0][0]
    dtype = dtype or stored_dtype

    model, info = SamCaptionForRegionCaptioning.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        raise ValueError(f"{checkpoint} does not fit its own config.json: {problems}")
    processor = SamCaptionProcessor.from_pretrained(checkpoint)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)

    reloaded = SamCaptionForRegionCaptioning.from_pretrained(output, dtype=dtype).eval()
    num_read, ignored, max_rounding = _compare_tensors(files, reloaded, dtype)
    _compare_forward(model, reloaded)
    conversion = Conversion(
        checkpoint=checkpoint,
        output=output,
        files=[file.name for file in files],
        config=model.config,
        architecture=(raw_config.get("architectures") or ["no architecture named"])[0],
        num_parameters=model.num_parameters(),
        num_caption_parameters=_num_caption_parameters(model),
        stored_dtype=stored_dtype,
        dtype=dtype,
        num_read=num_read,
        num_written=sum(1 for _ in _stored_tensors(_weight_files(output))),
        ignored=ignored,
        max_rounding=max_rounding,
    )
    write_model_card(conversion, model_id=str(output))
    return conversion


def write_model_card(conversion: Conversion, model_id: str) -> None:
    """Writes `README.md` into the converted folder; `model_id` is what the code example of the card loads."""
    name = model_id.rsplit("/", 1)[-1]
    card = MODEL_CARD.format(
        name=name, source=conversion.checkpoint.resolve().name, summary=conversion.summary(), model=model_id
    )
    (conversion.output / "README.md").write_text(card, encoding="utf-8")


def upload(conversion: Conversion, repo_id: str) -> str:
    """Uploads the converted folder, with what a Hub repository has besides (`hf_segcap.hub`); returns its address.

    Raises:
        OSError: The upload failed: no connection, no permission, an impossible name.
    """
    write_model_card(conversion, repo_id)
    add_hub_files(conversion.output, type(conversion.config), repo_id, SamCaptionForRegionCaptioning.hub_task)
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=conversion.output).repo_url)
    except (HTTPError, OSError, ValueError) as error:
        raise OSError(f"{conversion.output} is written, but was not uploaded to {repo_id!r}: {error}") from error


def _read_config(checkpoint: Path) -> dict:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{checkpoint} has no config.json; give the folder of an official SCA checkpoint "
            "(hf download USER/NAME --local-dir DIR fetches one)"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "sca":
        raise ValueError(
            f"{checkpoint} is no SCA checkpoint: its config.json says model_type {config.get('model_type')!r}, expected 'sca'"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, in transformers' order of preference."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
            shards = [folder / name for name in sorted(set(weight_map.values()))]
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing:
                raise ValueError(
                    f"{folder} lacks {', '.join(missing)}, which {index} lists; fetch the checkpoint again"
                )
            return shards
    raise ValueError(f"{folder} holds no weights; expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, or their shards")


def _stored_tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (key, tensor) as they lie in the files, without keeping more than one file open."""
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118 (not a dict)
                        yield key, tensors.get_tensor(key)
            else:
                yield from torch.load(
                    file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
                ).items()
        except (RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise ValueError(
                f"{file} cannot be read: it is damaged or incomplete; fetch it again ({error})"
            ) from error


def _compare_tensors(files: list[Path], model: torch.nn.Module, dtype: torch.dtype) -> tuple[int, list[str], float]:
    """Checks that `model` holds exactly the stored tensors, cast to `dtype`.

    Returns:
        Number of stored tensors, the stored keys that the model has no place for, the largest rounding of the cast.
    """
    state = model.state_dict()
    num_read, ignored, max_rounding = 0, [], 0.0
    for key, stored in _stored_tensors(files):
        num_read += 1
        if key not in state:
            ignored.append(key)
            continue
        expected = stored.to(dtype) if stored.is_floating_point() else stored
        if not torch.equal(state[key], expected):
            raise ValueError(f"the tensor {key!r} differs from the official one after writing and loading it again")
        if expected.dtype != stored.dtype:
            max_rounding = max(max_rounding, (expected.double() - stored.double()).abs().max().item())
    return num_read, ignored, max_rounding


@torch.inference_mode()
def _compare_forward(model: SamCaptionForRegionCaptioning, reloaded: SamCaptionForRegionCaptioning) -> None:
    """Checks that both models say the same about two regions of one random image."""
    vision: PreTrainedConfig = model.config.vision_config
    size, generator = vision.image_size, torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(1, 3, size, size, generator=generator).to(model.dtype),
        "input_boxes": torch.tensor([[[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]]) * size,
        "input_ids": torch.arange(2 * 4).reshape(1, 2, 4),
    }
    first, second = model(**inputs), reloaded(**inputs)
    for name in ("logits", "pred_masks", "iou_scores"):
        if not torch.equal(first[name], second[name]):
            raise ValueError(
                f"the forward pass of the written model differs from that of the official weights in {name!r}"
            )


def _num_caption_parameters(model: SamCaptionForRegionCaptioning) -> int:
    """Number of parameters that SCA trains, all others being those of SAM and of the language model."""
    model.freeze_for("text_mixer")
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shortened(keys: list[str], shown: int = 3) -> str:
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 2 after an error, which is one line on standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder of the official checkpoint")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the written weights; default: as stored")
    parser.add_argument("--push-to-hub", metavar="ID", help="also upload the written folder as this Hub repository")
    options = parser.parse_args(arguments)
    try:
        conversion = convert_sca(options.checkpoint, options.output, DTYPES.get(options.dtype))
        print(conversion.table())
        if options.push_to_hub:
            print(f"{'uploaded':<14} {upload(conversion, options.push_to_hub)}")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
