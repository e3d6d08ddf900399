# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM as ONNX files, for runtimes without PyTorch such as web browsers.

`export_onnx` writes everything behind the image encoder: prompts and an image embedding in, masks of image size out. Names,
shapes and meaning of inputs and outputs are those of the official export, so that what was written for one runs with the other.
`export_image_encoder_onnx` writes the encoder.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.sam.modeling_sam import SamForPromptableSegmentation
from .common import MIN_ENCODER_OPSET, check_export, embed_tokens, export_module

INPUT_NAMES = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
OUTPUT_NAMES = ("masks", "iou_predictions", "low_res_masks")
OUTPUT_NAMES_WITH_METRICS = ("masks", "iou_predictions", "stability_scores", "areas", "low_res_masks")

_STABILITY_OFFSET = 1.0
# One point and its padding point, or the two corners of a box: up to two tokens are an ambiguous prompt.
_AMBIGUOUS_TOKENS = 2.5
_MIN_OPSET = 17


class PromptToMask(nn.Module):
    """Prompt encoder, mask decoder and upscaling for one object of one image, of tensors alone; what `export_onnx` exports.

    Args:
        model: source of the weights; copied in float32 to the CPU.
        return_single_mask, use_stability_score, return_extra_metrics, gelu_approximate: see [`export_onnx`].
    """

    def __init__(
        self,
        model: SamForPromptableSegmentation,
        return_single_mask: bool = False,
        use_stability_score: bool = False,
        return_extra_metrics: bool = False,
        gelu_approximate: bool = False,
    ):
        super().__init__()
        parts = (model.shared_image_embedding, model.prompt_encoder, model.mask_decoder)
        self.position_encoding, self.prompt_encoder, self.mask_decoder = copy.deepcopy(parts)
        self.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)
        # plain products with the weights: what runtimes optimise and quantise
        self.mask_decoder.config._attn_implementation = "eager"
        if gelu_approximate:
            self.mask_decoder.activation = nn.GELU(approximate="tanh")
            self.prompt_encoder.mask_embed.activation = nn.GELU(approximate="tanh")
        vision: Any = model.config.vision_config
        self.image_size = vision.image_size
        self.return_single_mask = return_single_mask
        self.use_stability_score = use_stability_score
        self.return_extra_metrics = return_extra_metrics

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results as in [`export_onnx`]."""
        positions = self.position_encoding.grid(image_embeddings.shape[-1])
        tokens = embed_tokens(self.prompt_encoder, self.position_encoding, point_coords, point_labels)
        dense = has_mask_input * self.prompt_encoder.embed_masks(mask_input[:, 0])
        dense = dense + (1 - has_mask_input) * self.prompt_encoder.embed_masks(None)
        stream = image_embeddings.flatten(2).transpose(1, 2) + dense
        low_res, scores = self.mask_decoder(stream, positions, tokens)
        if self.use_stability_score:
            scores = _stability(low_res)
        if self.return_single_mask:
            low_res, scores = self._select(low_res, scores, point_coords.shape[1])
        masks = self._upscale(low_res, orig_im_size)
        if not self.return_extra_metrics:
            return masks, scores, low_res
        return masks, scores, _stability(masks), (masks > 0).sum(dim=(-1, -2)), low_res

    def _select(self, low_res: Tensor, scores: Tensor, num_tokens: Any) -> tuple[Tensor, Tensor]:
        """The best of the three masks for an ambiguous prompt, else the mask for unambiguous ones; (1, 1, ...)."""
        penalty = (num_tokens - _AMBIGUOUS_TOKENS) * torch.tensor([1000.0] + [0.0] * (scores.shape[1] - 1))
        index = (scores + penalty).argmax(dim=1)
        return low_res.index_select(1, index), scores.index_select(1, index)

    def _upscale(self, low_res: Tensor, orig_im_size: Tensor) -> Tensor:
        """To the padded model frame, without the padding, to the image; as `hf_segcap.masks.upscale_masks`."""
        side = self.image_size
        masks = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
        longest = torch.maximum(orig_im_size[0], orig_im_size[1])
        reshaped = torch.floor(orig_im_size * (side / longest) + 0.5).to(torch.int64)
        masks = masks[..., : reshaped[0], : reshaped[1]]
        size = orig_im_size.to(torch.int64)
        return F.interpolate(masks, size=(size[0], size[1]), mode="bilinear", align_corners=False)  # type: ignore[arg-type]


def _stability(logits: Tensor) -> Tensor:
    """`hf_segcap.masks.stability_score` in operations that can be exported; (1, M)."""
    inner = (logits > _STABILITY_OFFSET).sum(dim=(-1, -2))
    outer = (logits > -_STABILITY_OFFSET).sum(dim=(-1, -2))
    return inner.float() / outer.float()


def export_onnx(
    model: SamForPromptableSegmentation,
    path: str | os.PathLike,
    return_single_mask: bool = False,
    use_stability_score: bool = False,
    return_extra_metrics: bool = False,
    opset: int = 17,
    gelu_approximate: bool = False,
    quantize: str | os.PathLike | None = None,
) -> None:
    """Writes prompt encoder, mask decoder and upscaling as one ONNX file.

    Inputs, all float32, for one object of one image (S side of the model, g = S / patch size, C prompt width):

    - `image_embeddings` (1, C, g, g): of the image encoder;
    - `point_coords` (1, n, 2), `point_labels` (1, n): points and box corners together, in pixels of the model frame (longest
      side S); labels 1 inside, 0 outside, 2 and 3 the first and second corner of a box, -1 padding. Without a box, **append the
      padding point** (0, 0) with the label -1;
    - `mask_input` (1, 1, 4g, 4g): logits of an earlier prediction, zeros if there is none; `has_mask_input` (1): 1 or 0;
    - `orig_im_size` (2): height and width of the image in pixels.

    Outputs: `masks` (1, M, height, width) logits (above 0 inside), `iou_predictions` (1, M), `low_res_masks` (1, M, 4g, 4g). Only n,
    height and width vary.

    Args:
        model: any dtype, device and attention; exported in float32.
        path: of the file to write.
        return_single_mask: M = 1, chosen by the number of points (SAM, appendix A): the best of three masks for a point or a box,
            else the one for unambiguous prompts. False: all four masks, that one first.
        use_stability_score: judge masks by their stability score (of the low-resolution logits, offset 1) instead of the predicted
            IoU; `iou_predictions` then are these.
        return_extra_metrics: two more outputs, `stability_scores` (1, M) of the upscaled masks and their `areas` (1, M) in pixels,
            before `low_res_masks`.
        opset: version of the ONNX operators.
        gelu_approximate: the tanh form of GELU, for runtimes that lack the error function.
        quantize: also write a copy with 8-bit weights to this path.

    Raises:
        ImportError: onnx, onnxscript or (for `quantize`) onnxruntime is not installed.
        TypeError: `model` is no `SamForPromptableSegmentation`.
        ValueError: an `opset` below 17.
    """
    check_export(
        model, SamForPromptableSegmentation, opset, _MIN_OPSET, *([] if quantize is None else ["onnxruntime"])
    )
    wrapper = PromptToMask(model, return_single_mask, use_stability_score, return_extra_metrics, gelu_approximate)
    sizes: Any = model.config.prompt_encoder_config
    grid = sizes.image_embedding_size
    inputs = (
        torch.randn(1, sizes.hidden_size, grid, grid),
        torch.rand(1, 3, 2) * wrapper.image_size,
        torch.tensor([[1.0, 0.0, -1.0]]),
        torch.randn(1, 1, 4 * grid, 4 * grid),
        torch.ones(1),
        torch.tensor([0.5, 0.75]).mul(wrapper.image_size).floor(),
    )
    num_points = torch.export.Dim("num_points", min=1, max=4096)
    export_module(
        wrapper,
        inputs,
        path,
        opset,
        input_names=INPUT_NAMES,
        output_names=OUTPUT_NAMES_WITH_METRICS if return_extra_metrics else OUTPUT_NAMES,
        dynamic_shapes=(None, {1: num_points}, {1: num_points}, None, None, None),
        renamed_axes={("masks", 2): "height", ("masks", 3): "width"},
    )
    if quantize is not None:
        _quantize(path, quantize)


class _ImageEncoder(nn.Module):
    def __init__(self, model: SamForPromptableSegmentation):
        super().__init__()
        self.encoder = copy.deepcopy(model.vision_encoder).to(device="cpu", dtype=torch.float32).eval()
        self.encoder.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(pixel_values).last_hidden_state


def export_image_encoder_onnx(model: SamForPromptableSegmentation, path: str | os.PathLike, opset: int = 18) -> None:
    """Writes the image encoder as ONNX: `pixel_values` (1, 3, S, S), as the processor makes them -> `image_embeddings` (1, C, g, g).

    Weights beyond 2 GB (ViT-H) lie in a second file next to `path`.

    Args:
        model, path: as in [`export_onnx`].
        opset: version of the ONNX operators, at least 18.

    Raises:
        ImportError, TypeError, ValueError: as in [`export_onnx`].
    """
    check_export(model, SamForPromptableSegmentation, opset, MIN_ENCODER_OPSET)
    vision: Any = model.config.vision_config
    inputs = (torch.randn(1, vision.num_channels, vision.image_size, vision.image_size),)
    export_module(
        _ImageEncoder(model), inputs, path, opset, input_names=("pixel_values",), output_names=("image_embeddings",)
    )


def _quantize(path: str | os.PathLike, quantized: str | os.PathLike) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    del model.graph.value_info[:]  # inferred shapes that the change of the opset made stale
    quantize_dynamic(model, str(quantized), per_channel=False, reduce_range=False, weight_type=QuantType.QUInt8)


__all__ = ["export_image_encoder_onnx", "export_onnx"]
