# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Converts the two ONNX graphs of a ZIM release (encoder.onnx and decoder.onnx) to the format of this package.

The release has no other form of its weights. Which constant is which weight is read from the flow of data in the graphs, compared
with the names that are left, and proved: the model is only written if it computes what onnxruntime computes. How attention maps are
made is not in the graphs: that part of the configuration is ZIM's default.

    python conversion/convert_zim.py --encoder encoder.onnx --decoder decoder.onnx --output OUT [--verify] [--push-to-hub USER/NAME]
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_segcap import ZimConfig, ZimForMatting, ZimProcessor
from hf_segcap.assets import bundled_photograph
from hf_segcap.conversion.common import (
    Conversion,
    check_output_folder,
    command_line,
    compare_forward,
    compare_tensors,
    dtype_name,
    num_written,
    run,
    shortened,
    write_model_card,
)
from hf_segcap.conversion.convert_sam import attention_windows, rename_keys
from hf_segcap.conversion.onnx_graph import Graph, check_operators, load_graph
from hf_segcap.conversion.onnx_layers import UnclearGraph, Weight
from hf_segcap.conversion.zim_graphs import Found, read_decoder, read_encoder
from hf_segcap.models.sam.prompt_processing import sam_image_processor
from hf_segcap.models.zim.onnx_zim import ZimOnnxForMatting
from hf_segcap.onnx_export.zim import ZimImageGraph, ZimPromptGraph, example_inputs

MODEL_CARD = """\
---
license: cc-by-nc-4.0
tags: [image-matting, segment-anything]
---

# {name}

A checkpoint of ZIM (Zero-Shot Image Matting for Anything, ICCV 2025), converted from the ONNX files `{source}` by `hf_segcap`:
{summary}. The weights of the official release are licensed under CC BY-NC 4.0 (NAVER Cloud), and so is this copy of them; if yours
are others, change the licence above.

```python
import hf_segcap  # noqa: F401
from transformers import pipeline

pipe = pipeline("image-matting", model="{model}")
pipe("photo.jpg", boxes=[[40, 30, 420, 360]])
```
"""

_TOLERANCE = 1e-4  # largest difference as a part of the largest number
_LEMUR = [152, 57, 533, 439]  # of the bundled photograph, pixels
_PARTS = ("", "image_encoder.", "vision_encoder.", "prompt_encoder.", "mask_decoder.")


@dataclass(kw_only=True)
class ZimConversion(Conversion):
    """What the conversion of a pair of ONNX files did."""

    model_class = ZimForMatting
    model_card = MODEL_CARD

    evidence: dict[str, str]
    """What besides its place says which weight a tensor is, see `compare_names`."""
    differences: dict[str, float] = field(default_factory=dict)
    show_differences: bool = False

    def source(self) -> str:
        return f"ZIM, {self.image_encoder()}"

    def summary(self) -> str:
        """One line: image encoder, pixel decoder, dtype."""
        return f"{self.image_encoder()}; {self._decoder()}; {dtype_name(self.dtype)}"

    def details(self) -> list[tuple[str, str]]:
        rows = [
            ("pixel decoder", self._decoder()),
            ("attention map", self._maps()),
            ("parameters", f"{self.num_parameters / 1e6:,.1f} M"),
            ("assigned", self._evidence()),
        ]
        largest = max(self.differences.values(), default=0.0)
        rows.append(
            ("onnxruntime", f"equal up to {largest:.1e} of the largest number, {len(self.differences)} comparisons")
        )
        if self.show_differences:
            rows += [(f"  {name}", f"{value:.1e}") for name, value in self.differences.items()]
        return rows

    def _decoder(self) -> str:
        config = self.config
        return (
            f"details {list(config.detail_hidden_sizes)}, fusion {list(config.fusion_hidden_sizes)} ({config.fusion_mode}), "
            f"norm {config.detail_norm}"
        )

    def _evidence(self) -> str:
        counts = Counter(self.evidence.values())
        unnamed = [key for key, kind in self.evidence.items() if kind == "place"]
        return (
            f"by place in the graph, and by name {counts['name']} weights, by the name of their bias {counts['neighbour']}, by "
            f"nothing else {len(unnamed)}" + (f": {shortened(unnamed)}" if unnamed else "")
        )

    def _maps(self) -> str:
        masked = [*self.config.masked_attention, *(["the last attention"] if self.config.mask_final_attention else [])]
        return f"in {', '.join(masked) or 'no attention'}, {self.config.attention_map_fill:g} outside"


def config_from_facts(encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> ZimConfig:
    """The configuration that the two graphs imply.

    Args:
        encoder, decoder: `facts` of `read_encoder` and `read_decoder`.

    Raises:
        ValueError: the two do not belong together.
    """
    side, patch_size = encoder["image_size"], encoder["patch_size"]
    norms = {*encoder["detail_norm"], *decoder["detail_norm"]}
    eps = sorted(set(decoder["layer_norm_eps"]))
    if len(norms) != 1:
        raise UnclearGraph(
            f"the convolutions have different norms, {sorted(norms)}; ZimForMatting has one kind for all"
        )
    if decoder["hidden_size"] != encoder["output_channels"]:
        raise UnclearGraph(
            f"the encoder makes embeddings of {encoder['output_channels']} channels, the decoder takes {decoder['hidden_size']}"
        )
    if decoder["num_point_embeddings"] != 4:
        raise UnclearGraph(
            f"the decoder knows {decoder['num_point_embeddings']} labels of points and corners, expected 4"
        )
    if eps not in ([1e-5], [1e-6], [1e-6, 1e-5]):
        raise UnclearGraph(
            f"the decoder's norms have the epsilons {eps}, expected 1e-5 (the last norm) and 1e-5 or 1e-6"
        )
    global_blocks, window_size = attention_windows(encoder["table_lengths"], side // patch_size)
    sizes = {"image_size": side, "patch_size": patch_size}
    copied = (
        "hidden_size",
        "output_channels",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "qkv_bias",
        "mlp_dim",
    )
    optional = {"attention_map_fill": decoder["attention_map_fill"]} if "attention_map_fill" in decoder else {}
    return ZimConfig(
        vision_config={
            **sizes,
            **{name: encoder[name] for name in (*copied, "use_abs_pos", "layer_norm_eps")},
            "num_pos_feats": decoder["num_pos_feats"],
            "window_size": window_size,
            "global_attn_indexes": global_blocks,
        },
        prompt_encoder_config={**sizes, "hidden_size": decoder["hidden_size"]},
        mask_decoder_config={
            **{name: decoder[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_dim")},
            **{name: decoder[name] for name in ("iou_head_depth", "iou_head_hidden_dim")},
            "attention_downsample_rate": int(decoder["attention_downsample_rate"]),
            "num_multimask_outputs": decoder["num_masks"] - 1,
            "layer_norm_eps": decoder["layer_norm_eps"][0],
        },
        detail_hidden_sizes=encoder["detail_hidden_sizes"],
        fusion_hidden_sizes=decoder["fusion_hidden_sizes"],
        fusion_mode=decoder["fusion_mode"],
        detail_norm=norms.pop(),
        masked_attention=decoder["masked_attention"],
        mask_final_attention=decoder["mask_final_attention"],
        **optional,
    )


def compare_names(graph: Graph, found: Found) -> dict[str, str]:
    """Compares what weights are called in the file with what they are by their place.

    Returns:
        What the names say of each weight: `"name"`: the same; `"neighbour"`: nothing, but the name of the bias (or weight) of
        its layer says the same; `"place"`: nothing.

    Raises:
        UnclearGraph: a name says something else, and the two weights are not equal. (Equal ones are stored once, under the
            name of one of them.)
    """
    meanings = _meanings({name for weight in found.weights.values() for name in weight.names}, found.weights)
    named = set()
    for key, weight in found.weights.items():
        meant = [meanings[name] for name in weight.names if name in meanings]
        if key in meant:
            named.add(key)
            continue
        for other in meant:
            if not np.array_equal(found.weights[other].value, weight.value):
                raise UnclearGraph(
                    f"{graph.file}: by its place {weight.names[0]!r} is {key!r}, by its name it is {other!r}; they are not equal"
                )
    layers = {key.rpartition(".")[0] for key in named}
    return {
        key: "name" if key in named else "neighbour" if key.rpartition(".")[0] in layers else "place"
        for key in found.weights
    }


def _meanings(names: Iterable[str], known: Mapping[str, Any]) -> dict[str, str]:
    """{stored name: weight of this package} of the names that mean one: official, transformers' or our own, with any prefix."""
    candidates: dict[str, list[str]] = {}
    for name in sorted(names):
        parts = name.split(".")
        tails = [".".join(parts[start:]) for start in range(min(4, len(parts)))]
        candidates[name] = [part + tail for tail in tails for part in _PARTS]
    # the same name is another layer of a small network in official files, which have no `proj_in`
    official = not any(".proj_in." in name for name in candidates)
    renamed = rename_keys([key for keys in candidates.values() for key in keys])
    meanings = {}
    for name, keys in candidates.items():
        fitting = [
            new for key in keys for new in ([renamed[key]] if official else [key, renamed[key]]) if new in known
        ]
        if fitting:
            meanings[name] = fitting[0]
    return meanings


def check_leftovers(graph: Graph, found: Found, positions: np.ndarray | None = None) -> list[str]:
    """Checks that every stored tensor belongs to a weight.

    Args:
        positions: (g * g, C) encoding of the grid, which a decoder may hold ready.

    Returns:
        Names of tensors that no operation uses.

    Raises:
        UnclearGraph: the file holds numbers that belong to no weight.
    """
    used = {name for weight in found.weights.values() for name in weight.names} | graph.settings
    for constant in graph.constants.values():
        if positions is not None and _is_grid(constant.value, positions):
            used.update(constant.sources)
    unused: list[str] = []
    left: list[str] = []
    for name, value in graph.stored.items():
        if name in used:
            continue
        (left if name in graph.needed else unused).append(f"{name} {value.shape}")
    if left:
        raise UnclearGraph(
            f"{graph.file}: {len(left)} stored tensors are no weights of ZimForMatting: {shortened(left)}"
        )
    return unused


def _is_grid(value: np.ndarray, positions: np.ndarray) -> bool:
    if value.size != positions.size:
        return False
    return any(np.allclose(value.reshape(grid.shape), grid, atol=1e-4) for grid in (positions, positions.T))


def model_from_graphs(
    encoder: Graph, decoder: Graph
) -> tuple[ZimForMatting, dict[str, Weight], dict[str, str], list[str]]:
    """The model of a pair of graphs, in float32.

    Returns:
        The model, its weights with the names they have in the files, the result of `compare_names`, and names of stored tensors
        that nothing uses.

    Raises:
        ValueError: the graphs are not ZIM's, or something in them is ambiguous; the message names file and node.
    """
    check_operators(encoder)
    check_operators(decoder)
    images, prompts = read_encoder(encoder), read_decoder(decoder)
    config = config_from_facts(images.facts, prompts.facts)
    weights = images.weights | prompts.weights
    with torch.device("meta"):
        model = ZimForMatting(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "num_batches" not in name}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - weights.keys())]
    problems += [f"{name} has no place in the model" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} is {weights[name].value.shape}, expected {shape}"
        for name, shape in expected.items()
        if name in weights and weights[name].value.shape != shape
    ]
    if problems:
        raise UnclearGraph(f"the graphs do not make up a ZimForMatting: {shortened(problems)}")
    # a copy of each: files keep equal weights once
    state = {name: torch.from_numpy(weight.value.astype(np.float32)) for name, weight in weights.items()}
    counters = {name: torch.tensor(0) for name in model.state_dict() if "num_batches" in name}
    model.load_state_dict(state | counters, assign=True)
    model.eval()
    evidence = compare_names(encoder, images) | compare_names(decoder, prompts)
    positions = model.shared_image_embedding.grid(images.facts["image_size"] // images.facts["patch_size"])
    unused = check_leftovers(encoder, images) + check_leftovers(decoder, prompts, positions.numpy())
    return model, weights, evidence, unused


@torch.inference_mode()
def differences(
    model: ZimForMatting, reference: ZimOnnxForMatting, processor: ZimProcessor | None = None
) -> dict[str, float]:
    """The largest difference between the model and onnxruntime in each output, as a part of the largest number of that output.

    Both graphs are compared by themselves on random inputs (boxes, points, a map of zeros), then everything together.

    Args:
        processor: also compares a photograph, which it prepares.
    """
    torch.manual_seed(0)
    vision: Any = model.config.vision_config
    side, result = vision.image_size, {}

    def compare(name: str, ours: Iterable[torch.Tensor], theirs: Iterable[Any]) -> None:
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b = torch.as_tensor(b)
            result[f"{name} {i}"] = ((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item()

    image = torch.randn(1, 3, side, side)
    embeddings, details = reference.encode_image(image)
    compare("encoder output", ZimImageGraph(model)(image), [embeddings, *details])
    decoder = ZimPromptGraph(model)
    for name, count, points in (("boxes", 3, 2), ("points", 2, 4), ("no place", 1, 2)):
        inputs = example_inputs(model, count, points)["decoder"]
        if name == "boxes":
            inputs["point_labels"] = torch.tensor([[2.0, 3.0]]).expand(count, 2).contiguous()
        if name == "no place":
            inputs["attn_mask"] = torch.zeros_like(inputs["attn_mask"])
        compare(f"decoder, {name}, output", decoder(*inputs.values()), reference.run_decoder(inputs))
    prompts = {
        "input_boxes": torch.tensor([[[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]]]) * side,
        "input_points": torch.tensor([[[[0.2, 0.3], [0.7, 0.6]], [[0.1, 0.9], [0.5, 0.5]]]]) * side,
        "point_labels": torch.tensor([[[1, 0], [1, -2]]]),
        "has_box": torch.tensor([[True, False]]),
    }
    ours, theirs = model(pixel_values=image, **prompts), reference(pixel_values=image, **prompts)
    compare("whole, output", (ours.alphas, ours.iou_scores), (theirs.alphas, theirs.iou_scores))
    if processor is not None:
        given = processor(bundled_photograph("lemur"), input_boxes=[_LEMUR])
        inputs = {name: given[name] for name in ("pixel_values", "input_boxes")}
        ours, theirs = model(**inputs), reference(**inputs)
        compare("photograph, output", (ours.alphas, ours.iou_scores), (theirs.alphas, theirs.iou_scores))
    return result


def convert_zim(
    encoder: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    decoder: str | Path | None = None,
    verify: bool = False,
) -> ZimConversion:
    """Converts a pair of ONNX files and writes model, processor and model card to `output`.

    Args:
        encoder: `encoder.onnx`.
        output: Folder to write; made if it is not there, must be empty otherwise.
        dtype: Of the written weights; float32 by default.
        decoder: `decoder.onnx`; by default the one beside the encoder.
        verify: Compares a photograph, too, and lists each comparison with onnxruntime in the report. (The others are made in
            any case.)

    Returns:
        What was found and written. The written folder has been loaded again, and every tensor and one forward pass were compared.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: The files are damaged or not ZIM's as the paper describes it, a weight cannot be told, the model does not
            compute what onnxruntime computes, or `output` is not empty. Nothing is written then.
    """
    encoder, output = Path(encoder), Path(output)
    decoder = encoder.with_name("decoder.onnx") if decoder is None else Path(decoder)
    check_output_folder(output)
    graphs = load_graph(encoder), load_graph(decoder)
    try:
        model, weights, evidence, unused = model_from_graphs(*graphs)
    except ValueError as error:
        hint = "ZimOnnxForMatting runs such files as they are"
        raise ValueError(f"{encoder} and {decoder} cannot be converted: {error}. {hint}") from error
    vision: Any = model.config.vision_config
    processor = ZimProcessor(sam_image_processor(vision.image_size, vision.patch_size))
    found = differences(model, ZimOnnxForMatting(encoder, decoder, model.config), processor if verify else None)
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= _TOLERANCE:
        raise ValueError(
            f"{encoder} and {decoder} cannot be converted: the model differs from onnxruntime by {found[worst]:.1e} of the largest "
            f"number in {worst!r}, allowed {_TOLERANCE:g}; so the network is another one than it seems"
        )
    dtype = dtype or torch.float32
    model.to(dtype).save_pretrained(output)
    processor.save_pretrained(output)

    reloaded = ZimForMatting.from_pretrained(output, dtype=dtype).eval()
    stored = ((name, torch.tensor(weight.value)) for name, weight in weights.items())
    num_read, _, max_rounding = compare_tensors(stored, reloaded, dtype)
    compare_forward(model, reloaded, ("alphas", "iou_scores"))
    conversion = ZimConversion(
        checkpoint=encoder.parent,
        output=output,
        files=[encoder.name, decoder.name],
        config=model.config,
        num_parameters=model.num_parameters(),
        stored_dtype=torch.float32,
        dtype=dtype,
        num_read=num_read,
        num_written=num_written(output),
        ignored=unused,
        max_rounding=max_rounding,
        evidence=evidence,
        differences=found,
        show_differences=verify,
    )
    write_model_card(conversion, model_id=str(output))
    return conversion


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 2 after an error, which is one line on standard error."""
    parser = command_line(__doc__ or "", checkpoint="encoder.onnx", option="--encoder")
    parser.add_argument("--decoder", type=Path, help="decoder.onnx; default: the one beside the encoder")
    parser.add_argument("--verify", action="store_true", help="also compare a photograph, and list each comparison")
    options = parser.parse_args(arguments)
    return run(options, convert_zim, decoder=options.decoder, verify=options.verify)


if __name__ == "__main__":
    sys.exit(main())
