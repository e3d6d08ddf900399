# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Converts an official SAM checkpoint (sam_vit_b, sam_vit_l, sam_vit_h or a fine-tune of one) to the format of this package.

Sizes are read from the shapes of the weights, so checkpoints of any width, depth and image size will do, as `.pth` or safetensors.
Fine-tunes may be wrapped ({"model": ...}, {"state_dict": ...}) or prefixed ("module.", "sam.", ...). Converted checkpoints of
transformers (facebook/sam-vit-*) need no conversion: `SamForPromptableSegmentation.from_pretrained` reads them.

    python conversion/convert_sam.py --checkpoint sam_vit_h.pth --output OUT [--dtype float16] [--push-to-hub USER/NAME]
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_segcap import SamForPromptableSegmentation, SamPromptableConfig, SamPromptableProcessor
from hf_segcap.conversion.common import (
    Conversion,
    check_output_folder,
    command_line,
    compare_forward,
    compare_tensors,
    default_dtype,
    dtype_name,
    most_common_dtype,
    num_written,
    read_tensors,
    run,
    shortened,
    write_model_card,
)
from hf_segcap.models.sam.prompt_processing import sam_image_processor

MODEL_CARD = """\
---
license: apache-2.0
tags: [promptable-segmentation, segment-anything]
---

# {name}

A checkpoint of SAM (Segment Anything, ICCV 2023), converted from `{source}` by `hf_segcap` without changing a weight beyond the
dtype: {summary}.

```python
import hf_segcap  # noqa: F401
from transformers import pipeline

pipe = pipeline("promptable-segmentation", model="{model}")
pipe("photo.jpg", points=[[120, 80]])
```
"""

DECODER_HEADS = 8
"""Attention heads of the mask decoder: the one size that leaves no trace in the shapes. All released models have 8."""

# (width, blocks) of the released image encoders
_VARIANTS = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}

_WRAPPERS = ("model", "checkpoint", "state_dict", "model_state_dict", "sam", "net")
_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
# Official code keeps these with the weights in some versions; they are constants of the image processor.
_CONSTANTS = ("pixel_mean", "pixel_std")

# What else looks like a SAM checkpoint: how to recognise it, and what it is.
_RELATIVES = (
    (r"^(image_encoder\.trunk\.|memory_attention\.|memory_encoder\.|sam_mask_decoder\.)", "SAM 2, another network"),
    (r"^detector\.", "SAM 3, another network"),
    (
        r"^mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature)\b",
        "HQ-SAM, whose mask decoder has an additional token and branches",
    ),
    (
        r"^(mask_decoder\.final_output_upscaling_layers|prompt_encoder\.(invalid_points|bbox_top_left_embeddings))\.",
        "EfficientSAM, which has another image encoder and mask decoder",
    ),
    (
        r"^image_encoder\.(patch_embed\.seq\.|layers\.\d+\.(blocks|downsample)\.)",
        "MobileSAM (or another SAM with a TinyViT encoder), which has another image encoder",
    ),
    (
        r"^image_encoder\.(features|stages|backbone)\.",
        "a SAM with another image encoder, such as RepViT-SAM or EdgeSAM",
    ),
    (
        r"(^|\.)lora_|\.linear_[ab]_[qkv]\.|\.Adapter\.|_Adapter\.",
        "a SAM with adapters; merge them into the weights first",
    ),
    (
        r"^(vision_encoder|shared_image_embedding)\.",
        "a checkpoint of transformers, which needs no conversion: give its folder to "
        "SamForPromptableSegmentation.from_pretrained",
    ),
)

# official -> transformers; the first rule that fits is used
_RENAMED_PARTS = (
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^image_encoder\.", "vision_encoder."),
)
_RENAMED = {
    "vision_encoder": {
        r"\.patch_embed\.proj\.": ".patch_embed.projection.",
        r"\.blocks\.": ".layers.",
        r"\.norm(\d)\.": r".layer_norm\1.",
        r"\.neck\.0\.": ".neck.conv1.",
        r"\.neck\.1\.": ".neck.layer_norm1.",
        r"\.neck\.2\.": ".neck.conv2.",
        r"\.neck\.3\.": ".neck.layer_norm2.",
    },
    "prompt_encoder": {
        r"\.point_embeddings\.": ".point_embed.",
        r"\.mask_downscaling\.0\.": ".mask_embed.conv1.",
        r"\.mask_downscaling\.1\.": ".mask_embed.layer_norm1.",
        r"\.mask_downscaling\.3\.": ".mask_embed.conv2.",
        r"\.mask_downscaling\.4\.": ".mask_embed.layer_norm2.",
        r"\.mask_downscaling\.6\.": ".mask_embed.conv3.",
    },
    "mask_decoder": {
        r"\.norm(\d)\.": r".layer_norm\1.",
        r"\.norm_final_attn\.": ".layer_norm_final_attn.",
        r"\.output_upscaling\.0\.": ".upscale_conv1.",
        r"\.output_upscaling\.1\.": ".upscale_layer_norm.",
        r"\.output_upscaling\.3\.": ".upscale_conv2.",
    },
}
_HEAD = re.compile(r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.(\d+)\.(\w+)$")


@dataclass(kw_only=True)
class SamConversion(Conversion):
    """What the conversion of a SAM checkpoint did."""

    model_class = SamForPromptableSegmentation
    model_card = MODEL_CARD

    def source(self) -> str:
        return f"SAM {variant(self.config)}"

    def summary(self) -> str:
        """One line: variant, image encoder, mask decoder, dtype."""
        return f"{variant(self.config)}; {self.image_encoder()}; {self._decoder()}; {dtype_name(self.dtype)}"

    def details(self) -> list[tuple[str, str]]:
        return [("mask decoder", self._decoder()), ("parameters", f"{self.num_parameters / 1e6:,.1f} M")]

    def _decoder(self) -> str:
        decoder = self.config.mask_decoder_config
        return (
            f"mask decoder of {decoder.num_hidden_layers} layers, width {decoder.hidden_size}, "
            f"{decoder.num_attention_heads} heads, {decoder.num_multimask_outputs + 1} masks"
        )


def variant(config: SamPromptableConfig) -> str:
    """`"ViT-B"`, `"ViT-L"`, `"ViT-H"`, or `"of its own size"`."""
    vision: Any = config.vision_config
    return _VARIANTS.get((vision.hidden_size, vision.num_hidden_layers), "of its own size")


def rename_key(key: str, num_head_layers: Mapping[str, int]) -> str:
    """The name of an official weight in this package and in transformers' `SamModel`.

    Args:
        key: official name, without wrapper and prefix.
        num_head_layers: number of layers of each small network of the mask decoder, by its official name, for example
            `{"mask_decoder.iou_prediction_head": 3}`: transformers names its first and its last layer.
    """
    head = _HEAD.match(key)
    if head:
        network, index, kind = head[1], int(head[2]), head[3]
        if index == 0:
            return f"{network}.proj_in.{kind}"
        last = index == num_head_layers[network] - 1
        return f"{network}.proj_out.{kind}" if last else f"{network}.layers.{index - 1}.{kind}"
    for pattern, replacement in _RENAMED_PARTS:
        key = re.sub(pattern, replacement, key)
    for pattern, replacement in _RENAMED.get(key.partition(".")[0], {}).items():
        key = re.sub(pattern, replacement, key)
    return key


def rename_keys(keys: Any) -> dict[str, str]:
    """{official name: name in this package} for all keys of a checkpoint."""
    layers: dict[str, int] = {}
    for head in filter(None, map(_HEAD.match, keys)):
        layers[head[1]] = max(layers.get(head[1], 0), int(head[2]) + 1)
    return {key: rename_key(key, layers) for key in keys}


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], decoder_heads: int = DECODER_HEADS
) -> SamPromptableConfig:
    """The configuration of a checkpoint, from the shapes of its tensors by official name.

    Raises:
        ValueError: The shapes are not those of SAM's network.
    """
    try:
        return _config_from_shapes(shapes, decoder_heads)
    except KeyError as error:
        raise ValueError(f"the weight {error.args[0]!r} is missing: this is no complete SAM checkpoint") from error
    except IndexError as error:
        raise ValueError("the weights have another number of axes than SAM's: this is no SAM checkpoint") from error


def _config_from_shapes(shapes: Mapping[str, tuple[int, ...]], decoder_heads: int) -> SamPromptableConfig:
    _, grid, columns, width = _axes(shapes, "image_encoder.pos_embed", 4)
    if grid != columns:
        raise ValueError(f"the position table is {grid} x {columns}, but SAM works on squares")
    patch_size = shapes["image_encoder.patch_embed.proj.weight"][2]
    depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\.norm1\.weight")
    tables = [_axes(shapes, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    global_blocks, window_size = attention_windows([table[0] for table in tables], grid)
    hidden_size = shapes["image_encoder.neck.0.weight"][0]
    decoder_layers = _count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\.norm1\.weight")
    if decoder_heads < 1 or hidden_size % decoder_heads:
        raise ValueError(f"a mask decoder of width {hidden_size} cannot have {decoder_heads} heads")
    inner = shapes["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"][0]
    sizes = {"image_size": grid * patch_size, "patch_size": patch_size}
    return SamPromptableConfig(
        vision_config={
            **sizes,
            "hidden_size": width,
            "output_channels": hidden_size,
            "num_hidden_layers": depth,
            "num_attention_heads": width // tables[0][1],
            "num_channels": shapes["image_encoder.patch_embed.proj.weight"][1],
            "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in shapes,
            "mlp_dim": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
            "num_pos_feats": shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"][1],
            "window_size": window_size,
            "global_attn_indexes": global_blocks,
        },
        prompt_encoder_config={
            **sizes,
            "hidden_size": hidden_size,
            "mask_input_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
            "num_point_embeddings": _count(shapes, r"prompt_encoder\.point_embeddings\.(\d+)\.weight"),
        },
        mask_decoder_config={
            "hidden_size": hidden_size,
            "num_attention_heads": decoder_heads,
            "attention_downsample_rate": hidden_size // inner,
            "num_hidden_layers": decoder_layers,
            "mlp_dim": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            "num_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
            "iou_head_depth": _count(shapes, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight"),
            "iou_head_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        },
    )


def attention_windows(lengths: list[int], grid: int) -> tuple[list[int], int]:
    """Global blocks and window size from the lengths of the relative position tables, 2 n - 1 for n positions."""
    whole = 2 * grid - 1
    windowed = sorted({length for length in lengths if length != whole})
    if len(windowed) > 1:
        raise ValueError(
            f"the relative position tables of the image encoder have the lengths {sorted(set(lengths))}: expected that of one "
            f"window size and {whole} (the whole grid of {grid} x {grid})"
        )
    window_size = (windowed[0] + 1) // 2 if windowed else grid
    return [i for i, length in enumerate(lengths) if length == whole], window_size


def _axes(shapes: Mapping[str, tuple[int, ...]], key: str, number: int) -> tuple[int, ...]:
    if len(shapes[key]) != number:
        raise ValueError(f"{key!r} has the shape {tuple(shapes[key])}, expected {number} axes")
    return shapes[key]


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """Number of layers, of which `pattern` finds the indices."""
    found = sorted(int(match[1]) for match in (re.fullmatch(pattern, key) for key in shapes) if match)
    if not found:
        raise KeyError(pattern.replace("\\", "").replace("(d+)", "0"))
    if found != list(range(len(found))):
        raise ValueError(f"the checkpoint is incomplete: of {pattern!r} it holds {found}")
    return len(found)


def official_state_dict(content: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of SAM in what a file holds, by official name, and the keys that are none of them.

    Args:
        content: state dict, or a dictionary with one, and with any prefix before its keys.

    Raises:
        ValueError: there is no SAM state dict; the message says what else it looks like.
    """
    ignored: list[str] = []
    while wrapped := [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]:
        ignored += [key for key in content if content[key] is not wrapped[0]]
        content = wrapped[0]
    inner = {name: value for name, value in content.items() if isinstance(value, Mapping) and _looks_like_sam(value)}
    if inner and not _looks_like_sam(content):  # under a name of somebody's own, such as "module" or "model_ema"
        if len(inner) > 1:
            raise ValueError(f"the file holds several SAM checkpoints, {sorted(inner)}: save one of them by itself")
        ignored += [key for key in content if key not in inner]
        (content,) = inner.values()
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    ignored += [key for key in content if key not in tensors]
    if not tensors:
        raise ValueError("the file holds no tensors; expected the state dict of a SAM checkpoint")
    prefix = _prefix(tensors)
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    ignored += [key for key in tensors if not key.startswith(prefix)]
    for pattern, what in _RELATIVES:
        if any(re.search(pattern, key) for key in (*inside, *tensors)):
            raise ValueError(f"this is {what}")
    if not all(any(key.startswith(part) for key in inside) for part in _PARTS):
        raise ValueError(
            f"this is no SAM checkpoint: expected keys image_encoder.*, prompt_encoder.* and mask_decoder.*, got "
            f"{shortened(sorted(tensors))}"
        )
    state = {key: value for key, value in inside.items() if key.startswith(_PARTS)}
    ignored += [prefix + key for key in inside if key not in state]
    return state, ignored


def _looks_like_sam(content: Mapping[str, Any]) -> bool:
    keys = [key for key in content if isinstance(key, str) and isinstance(content[key], torch.Tensor)]
    return all(any(part in key for key in keys) for part in _PARTS)


def _prefix(tensors: Mapping[str, Any]) -> str:
    """What stands before the official names: "" or "module.", "sam.", ... and combinations."""
    found = {
        match[1] for match in (re.match(r"(.*?)(?:image_encoder|mask_decoder)\.", key) for key in tensors) if match
    }
    return min(found, key=len) if found else ""


def convert_sam(
    checkpoint: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    decoder_heads: int = DECODER_HEADS,
) -> SamConversion:
    """Converts the file `checkpoint` and writes model, processor and model card to `output`.

    Args:
        checkpoint: `.pth` (or any file of `torch.save`) or safetensors file with an official SAM state dict.
        output: Folder to write; made if it is not there, must be empty otherwise.
        dtype: Of the written weights; that of the stored ones by default (float32 for float64).
        decoder_heads: Attention heads of the mask decoder, which the weights do not tell.

    Returns:
        What was found and written. The written folder has been loaded again, and every tensor and one forward pass were compared.

    Raises:
        ValueError: The file is damaged, holds more than tensors, is no SAM checkpoint or an incomplete one, or `output` is not
            empty.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint} is no file; give an official SAM checkpoint such as sam_vit_b_01ec64.pth")
    check_output_folder(output)
    content = dict(read_tensors(checkpoint))
    try:
        official, ignored = official_state_dict(content)
        shapes = {key: tuple(tensor.shape) for key, tensor in official.items()}
        config = config_from_shapes(shapes, decoder_heads)
    except ValueError as error:
        raise ValueError(f"{checkpoint} cannot be converted: {error}") from error
    names = rename_keys(official)
    weights = {names[key]: tensor for key, tensor in official.items()}
    stored_dtype = most_common_dtype(weights.values())
    dtype = dtype or default_dtype(stored_dtype)
    model = _model_with_weights(checkpoint, config, weights, dtype)
    model.save_pretrained(output)
    vision: Any = config.vision_config
    SamPromptableProcessor(sam_image_processor(vision.image_size, vision.patch_size)).save_pretrained(output)

    reloaded = SamForPromptableSegmentation.from_pretrained(output, dtype=dtype).eval()
    num_read, _, max_rounding = compare_tensors(weights.items(), reloaded, dtype)
    compare_forward(model, reloaded, ("pred_masks", "iou_scores"))
    conversion = SamConversion(
        checkpoint=checkpoint,
        output=output,
        files=[checkpoint.name],
        config=config,
        num_parameters=model.num_parameters(),
        stored_dtype=stored_dtype,
        dtype=dtype,
        num_read=num_read,
        num_written=num_written(output),
        ignored=[key for key in ignored if not key.endswith(_CONSTANTS)],
        max_rounding=max_rounding,
    )
    write_model_card(conversion, model_id=str(output))
    return conversion


def _model_with_weights(
    checkpoint: Path, config: SamPromptableConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> SamForPromptableSegmentation:
    with torch.device("meta"):  # the weights take the place of the parameters: nothing is allocated twice
        model = SamForPromptableSegmentation(config)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & weights.keys() if expected[key] != tuple(weights[key].shape))
    problems = []
    if missing:
        problems.append(f"{len(missing)} weights are missing: {shortened(missing)}")
    if unknown:
        problems.append(f"{len(unknown)} weights have no place in SAM: {shortened(unknown)}")
    for key in wrong[:1]:
        shape = tuple(weights[key].shape)
        problems.append(f"{key!r} has the shape {shape}, by those of the other weights it must be {expected[key]}")
    if problems:
        raise ValueError(f"{checkpoint} is no complete SAM checkpoint: {'; '.join(problems)}")
    cast = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    model.load_state_dict(cast, assign=True)
    return model.eval()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 2 after an error, which is one line on standard error."""
    parser = command_line(__doc__ or "", checkpoint="official checkpoint, .pth or .safetensors")
    parser.add_argument(
        "--decoder-heads", type=int, default=DECODER_HEADS, help="attention heads of the mask decoder (default 8)"
    )
    options = parser.parse_args(arguments)
    return run(options, convert_sam, decoder_heads=options.decoder_heads)


if __name__ == "__main__":
    sys.exit(main())
