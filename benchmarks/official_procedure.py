# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The inference procedure of the official SCA code, written down plainly as the peer of the benchmarks.

It is a transcription of a *description* of that procedure, on top of transformers' own SAM parts with eager attention,
and runs the very weights of the model it is compared with:

* regions in chunks of 8: prompt encoding, both mixers, masks and one `generate` call per chunk;
* the image stream and the dense position encoding are copied for every region and rewritten in every block;
* attention written out with an explicit softmax, `keys + position` and `queries + position` added anew each time;
* all four masks are computed and upscaled, whether they are wanted or not;
* *everything* mode encodes the image once per batch of 64 points and captions all points before any filter.

Nothing here is slowed down on purpose: every step is one tensor operation of the libraries ours uses as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
    SamTwoWayTransformer,
    SamVisionEncoder,
)

from hf_segcap.masks import box_nms, build_point_grid, mask_to_box, stability_score, upscale_masks

MASK_DECODER_FIELDS = (
    "hidden_size",
    "hidden_act",
    "mlp_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_downsample_rate",
    "num_multimask_outputs",
    "iou_head_depth",
    "iou_head_hidden_dim",
    "layer_norm_eps",
)
CAPTION_TASK = 1


@dataclass
class RegionCaptions:
    """What one call returns: ids `(B, P, T)`, mask logits `(B, P, 3, h, w)` and predicted IoU `(B, P, 3)`."""

    sequences: torch.Tensor
    pred_masks: torch.Tensor
    iou_scores: torch.Tensor


@dataclass
class EverythingCaptions:
    """Survivors of *everything* mode, best first: ids `(S, T)`, masks `(S, H, W)`, IoU `(S,)`, boxes, points `(S, 2)`."""

    sequences: torch.Tensor
    masks: torch.Tensor
    iou_scores: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor
    captioned: int


def _load(module: Any, weights: Mapping[str, torch.Tensor], prefix: str) -> Any:
    """Gives an empty module the tensors below `prefix` (shared, not copied)."""
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    missing, _ = module.load_state_dict(own, strict=False, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    absent = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if absent:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors of {prefix!r}, the first is {absent[0]!r}")
    return module.eval()


class OfficialProcedure:
    """Captions regions the way the official code does.

    Args:
        config: configuration with `vision_config`, `prompt_encoder_config`, `mask_caption_decoder_config`,
            `text_config`, `num_task_tokens` (a `SamCaptionConfig`, or anything with these attributes).
        weights: state dict with the keys of the official checkpoints; the tensors are used in place.
    """

    def __init__(self, config: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self.config = config
        caption_config = config.mask_caption_decoder_config
        vision_config = SamVisionConfig(**_plain(config.vision_config), attn_implementation="eager")
        prompt_config = SimpleNamespace(
            vision_config=vision_config,
            prompt_encoder_config=SamPromptEncoderConfig(**_plain(config.prompt_encoder_config)),
        )
        fields = {name: getattr(caption_config, name) for name in MASK_DECODER_FIELDS}
        decoder_config = SamMaskDecoderConfig(**fields, attn_implementation="eager")
        fields["num_hidden_layers"] = caption_config.additional_num_hidden_layers
        mixer_config = SamMaskDecoderConfig(**fields, attn_implementation="eager")

        with init_empty_weights():
            vision_encoder = SamVisionEncoder(vision_config)
            shared_embedding = SamPositionalEmbedding(vision_config)
            prompt_encoder = SamPromptEncoder(prompt_config)
            mask_decoder = SamMaskDecoder(decoder_config)
            caption_mixer = SamTwoWayTransformer(mixer_config)
            language_model = AutoModelForCausalLM.from_config(config.text_config, attn_implementation="eager")
        self.vision_encoder = _load(vision_encoder, weights, "vision_encoder.")
        self.shared_embedding = _load(shared_embedding, weights, "shared_image_embedding.")
        prompt_encoder.shared_embedding = self.shared_embedding
        self.prompt_encoder = _load(prompt_encoder, weights, "prompt_encoder.")
        self.mask_decoder = _load(mask_decoder, weights, "mask_decoder.")
        self.caption_mixer = _load(caption_mixer, weights, "mask_decoder.additional_transformer.")
        self.language_model = _load(language_model, weights, "language_model.")
        self.caption_tokens = weights["mask_decoder.caption_tokens.weight"]
        self.task_tokens = weights["task_tokens.weight"]
        self.project_weight = weights["language_project.weight"]
        self.project_bias = weights["language_project.bias"]
        self.num_heads = getattr(caption_config, "num_caption_heads", 1)
        self.num_task_tokens = config.num_task_tokens
        self.image_size = vision_config.image_size
        self.grid_size = vision_config.image_size // vision_config.patch_size

    @torch.no_grad()
    def get_image_embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, S, S)` -> `(B, C, g, g)`, relative positions and softmax written out."""
        return self.vision_encoder(pixel_values).last_hidden_state

    def _dense_encoding(self) -> torch.Tensor:
        centres = (torch.arange(self.grid_size, dtype=torch.float32) + 0.5) / self.grid_size
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return self.shared_embedding(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1).unsqueeze(0)

    def _decode(self, image_embeddings, points, labels, boxes, masks, multimask_output):
        """One chunk: mask logits, IoU scores and caption queries `(B, P, H * Q, C)`."""
        batch_size, channels, height, width = image_embeddings.shape
        dense_encoding = self._dense_encoding().repeat(batch_size, 1, 1, 1)
        sparse, dense = self.prompt_encoder(points, labels, boxes, masks)
        decoder = self.mask_decoder
        regions = sparse.shape[1] if sparse is not None else 1
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).repeat(batch_size, regions, 1, 1)
        tokens = torch.cat([outputs, sparse], dim=2) if sparse is not None else outputs

        stream = (image_embeddings + dense).repeat_interleave(regions, 0)
        dense_encoding = dense_encoding.repeat_interleave(regions, 0)
        mixed, stream = decoder.transformer(tokens, stream, dense_encoding, None)
        stream = stream.transpose(2, 3).reshape(batch_size * regions, channels, height, width)

        queries = self.caption_tokens.repeat(batch_size, regions, 1, 1)
        captions, _ = self.caption_mixer(torch.cat([queries, mixed], dim=2), stream, dense_encoding, None)
        captions = captions[:, :, : queries.shape[2]]

        upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(stream)))
        upscaled = decoder.activation(decoder.upscale_conv2(upscaled))
        count = decoder.num_mask_tokens
        filters = [decoder.output_hypernetworks_mlps[i](mixed[:, :, 1 + i]) for i in range(count)]
        filters = torch.stack(filters, dim=2)
        upscaled = upscaled.reshape(batch_size, regions, filters.shape[-1], -1)
        low_res = (filters @ upscaled).reshape(batch_size, regions, count, 4 * height, 4 * width)
        iou_scores = decoder.iou_prediction_head(mixed[:, :, 0])
        kept = slice(1, None) if multimask_output else slice(0, 1)
        return low_res[:, :, kept], iou_scores[:, :, kept], captions

    def _prefix(self, captions: torch.Tensor, task: int) -> torch.Tensor:
        """`(B, P, H * Q, C)` -> rows of `[task tokens | projected queries]`, `(B * P * H, T + Q, D)`."""
        batch_size, regions, count, channels = captions.shape
        queries = captions.reshape(batch_size * regions * self.num_heads, count // self.num_heads, channels)
        projected = nn.functional.linear(queries, self.project_weight, self.project_bias)
        rows = self.task_tokens[task * self.num_task_tokens : (task + 1) * self.num_task_tokens]
        return torch.cat([rows.repeat(len(projected), 1, 1), projected], dim=1)

    @torch.no_grad()
    def generate(
        self,
        image_embeddings: torch.Tensor,
        input_boxes: torch.Tensor | None = None,
        input_points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        multimask_output: bool = True,
        chunk_size: int = 8,
        task: int = CAPTION_TASK,
        **generation_kwargs: Any,
    ) -> RegionCaptions:
        """Masks, scores and captions of all regions, chunk by chunk.

        Args:
            image_embeddings: `(B, C, g, g)`.
            input_boxes: `(B, P, 4)` in pixels of the model frame, or None.
            input_points: `(B, P, n, 2)` in pixels of the model frame, or None.
            point_labels: `(B, P, n)`.
            multimask_output: three masks per region instead of one.
            chunk_size: regions that are mixed and decoded together.
            task: 0 recognition, 1 caption.
            generation_kwargs: for the language model's `generate`.
        """
        prompts = input_boxes if input_boxes is not None else input_points
        if prompts is None:
            raise ValueError("got neither boxes nor points, expected at least one of them")
        masks, scores, ids = [], [], []
        for start in range(0, prompts.shape[1], chunk_size):
            part = slice(start, start + chunk_size)
            boxes, points, labels = (
                None if x is None else x[:, part] for x in (input_boxes, input_points, point_labels)
            )
            low_res, iou, captions = self._decode(image_embeddings, points, labels, boxes, None, multimask_output)
            prefix = self._prefix(captions, task)
            attention_mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
            new = self.language_model.generate(
                inputs_embeds=prefix, attention_mask=attention_mask, **generation_kwargs
            )
            masks.append(low_res)
            scores.append(iou)
            ids.append(new.reshape(*captions.shape[:2], *([self.num_heads] if self.num_heads > 1 else []), -1))
        longest = max(x.shape[-1] for x in ids)
        pad_id = generation_kwargs.get("pad_token_id", self.language_model.config.eos_token_id)
        ids = [nn.functional.pad(x, (0, longest - x.shape[-1]), value=pad_id) for x in ids]
        return RegionCaptions(torch.cat(ids, 1), torch.cat(masks, 1), torch.cat(scores, 1))

    @torch.no_grad()
    def caption_everything(
        self,
        pixel_values: torch.Tensor,
        original_size: tuple[int, int],
        reshaped_size: tuple[int, int],
        points_per_side: int = 32,
        points_per_batch: int = 64,
        iou_threshold: float = 0.88,
        stability_threshold: float = 0.95,
        nms_threshold: float = 0.7,
        **generation_kwargs: Any,
    ) -> EverythingCaptions:
        """Captions every point of a grid, then keeps what the filters let through.

        The crop-border filter of SAM's generator is inactive here as it is there: the only crop is the image itself.

        Args:
            pixel_values: `(1, 3, S, S)`.
            original_size: height and width of the image in pixels.
            reshaped_size: height and width of the resized image inside the model frame.
            points_per_side: grid points per row and column.
            points_per_batch: points that share one pass of the image encoder.
            iou_threshold: predicted IoU that a mask must exceed.
            stability_threshold: stability score that a mask must reach.
            nms_threshold: IoU above which the worse of two boxes goes.
            generation_kwargs: for the language model's `generate`.
        """
        height, width = reshaped_size
        grid = torch.as_tensor(build_point_grid(points_per_side)) * torch.tensor([width, height])
        kept: dict[str, list[torch.Tensor]] = {"ids": [], "masks": [], "iou": [], "boxes": [], "points": []}
        for points in grid.split(points_per_batch):
            image_embeddings = self.get_image_embeddings(pixel_values)
            labels = torch.ones(1, len(points), 1, dtype=torch.long)
            answer = self.generate(
                image_embeddings, input_points=points[None, :, None], point_labels=labels, **generation_kwargs
            )
            logits = upscale_masks(answer.pred_masks[0], reshaped_size, original_size, self.image_size)
            logits, iou = logits.flatten(0, 1), answer.iou_scores[0].flatten()
            ids = answer.sequences[0].repeat_interleave(answer.pred_masks.shape[2], 0)
            origin = points.repeat_interleave(answer.pred_masks.shape[2], 0)
            good = iou > iou_threshold
            logits, iou, ids, origin = logits[good], iou[good], ids[good], origin[good]
            good = stability_score(logits) >= stability_threshold
            masks = logits[good] > 0
            found = (ids[good], masks, iou[good], mask_to_box(masks), origin[good])
            for name, value in zip(kept, found, strict=True):
                kept[name].append(value)
        longest = max(x.shape[-1] for x in kept["ids"])
        pad_id = generation_kwargs.get("pad_token_id", self.language_model.config.eos_token_id)
        kept["ids"] = [nn.functional.pad(x, (0, longest - x.shape[-1]), value=pad_id) for x in kept["ids"]]
        ids, masks, iou, boxes, points = (torch.cat(values) for values in kept.values())
        order = box_nms(boxes.float(), iou, nms_threshold)
        return EverythingCaptions(ids[order], masks[order], iou[order], boxes[order], points[order], len(grid))


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a sub-configuration without what belongs to the configuration class itself."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    foreign = {"model_type", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation"}
    return {key: value for key, value in values.items() if key not in foreign and not key.startswith("_")}
