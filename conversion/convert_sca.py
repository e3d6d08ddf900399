# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Rewrites an official SCA checkpoint folder in the format of this package.

`SamCaptionForRegionCaptioning.from_pretrained` reads official folders as they are, so nothing needs this script. It is for
keeping a checkpoint: safetensors instead of pickled files, one dtype, a processor, a generation config and a model card that the
official folders lack, and everything verified after writing.

    python conversion/convert_sca.py --checkpoint DIR --output OUT [--dtype float16] [--push-to-hub USER/NAME]
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hf_segcap import SamCaptionForRegionCaptioning, SamCaptionProcessor
from hf_segcap.conversion.common import (
    Conversion,
    check_output_folder,
    command_line,
    compare_forward,
    compare_tensors,
    default_dtype,
    dtype_name,
    most_common_dtype,
    read_tensors,
    run,
    write_model_card,
)

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


@dataclass(kw_only=True)
class ScaConversion(Conversion):
    """What the conversion of an SCA checkpoint did."""

    model_class = SamCaptionForRegionCaptioning
    model_card = MODEL_CARD

    architecture: str
    num_caption_parameters: int

    def source(self) -> str:
        return self.architecture

    def summary(self) -> str:
        """One line: image encoder, mixer, text decoder, dtype."""
        mixer, text = self._mixer(), self._text_decoder()
        return f"{self.image_encoder()}; caption mixer of {mixer}; {text}; {dtype_name(self.dtype)}"

    def details(self) -> list[tuple[str, str]]:
        millions = f"{self.num_parameters / 1e6:,.1f} M"
        return [
            ("caption mixer", self._mixer()),
            ("text decoder", self._text_decoder()),
            ("parameters", f"{millions}, of which SCA's own {self.num_caption_parameters:,}"),
        ]

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


def convert_sca(checkpoint: str | Path, output: str | Path, dtype: torch.dtype | None = None) -> ScaConversion:
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
    check_output_folder(output)
    stored_dtype = most_common_dtype(tensor for _, tensor in _stored_tensors(files))
    dtype = dtype or default_dtype(stored_dtype)

    model, info = SamCaptionForRegionCaptioning.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        raise ValueError(f"{checkpoint} does not fit its own config.json: {problems}")
    processor = SamCaptionProcessor.from_pretrained(checkpoint)
    model.eval().save_pretrained(output)
    processor.save_pretrained(output)

    reloaded = SamCaptionForRegionCaptioning.from_pretrained(output, dtype=dtype).eval()
    num_read, ignored, max_rounding = compare_tensors(_stored_tensors(files), reloaded, dtype)
    captions = torch.arange(2 * 4).reshape(1, 2, 4)
    compare_forward(model, reloaded, ("logits", "pred_masks", "iou_scores"), input_ids=captions)
    conversion = ScaConversion(
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
    """Yields (key, tensor) of all files, without keeping more than one open."""
    for file in files:
        yield from read_tensors(file)


def _num_caption_parameters(model: SamCaptionForRegionCaptioning) -> int:
    """Number of parameters that SCA trains, all others being those of SAM and of the language model."""
    model.freeze_for("text_mixer")
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 2 after an error, which is one line on standard error."""
    parser = command_line(__doc__ or "", checkpoint="folder of the official checkpoint")
    return run(parser.parse_args(arguments), convert_sca)


if __name__ == "__main__":
    sys.exit(main())
