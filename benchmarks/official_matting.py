# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM's decoder, written down plainly as the peer of the benchmark.

ZIM's official release has graphs and no network. This is what its paper (section 3) and its wrapper say, on top of SAM's
official procedure, with the layers of the very model it is compared with:

* the image embedding and the dense position encoding are copied for every prompt, as SAM does;
* attention is written out: scores over all positions and heads, times the prompt's attention map, an explicit softmax;
* the maps are made one object at a time, as in the wrapper: Gaussians of all points by maximum, cells of a box;
* at strides 8, 4, 2 the stream is upsampled, concatenated with the details of the image, which that copies for every prompt,
  and convolved; batch norm and ReLU follow;
* all four mattes are computed.

Nothing here is slowed down on purpose: every step is one tensor operation of the libraries ours uses as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class PlainMatting:
    """Mattes of many prompts of one image.

    Args:
        model: a `ZimForMatting` in eval mode with the default fusion, norm and masked attention; its layers are used one by one,
            none of what is made of them.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.stride = config.vision_config.patch_size
        self.image_size = config.vision_config.image_size
        self.sigma = config.point_sigma
        self.fill = config.attention_map_fill

    @torch.no_grad()
    def __call__(
        self,
        image_embeddings: Tensor,
        detail_features: Sequence[Tensor],
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        prompts_per_batch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            image_embeddings: (1, C, g, g).
            detail_features: (1, c, S / 2, S / 2), (1, c, S / 4, S / 4), ...
            input_points: (P, n, 2) x y in pixels of the model frame, or None.
            point_labels: (P, n) of {0, 1}.
            input_boxes: (P, 4) in pixels of the model frame, instead of points.
            prompts_per_batch: prompts that are decoded together (default: all).

        Returns:
            Matte logits (P, 4, S / 2, S / 2), scores (P, 4).
        """
        if input_boxes is not None:
            tokens, maps = self._box_tokens(input_boxes), [self._box_map(box) for box in input_boxes.tolist()]
        elif input_points is not None and point_labels is not None:
            tokens = self._point_tokens(input_points, point_labels)
            maps = [self._point_map(points) for points in input_points.tolist()]
        else:
            raise ValueError("got neither boxes nor points with labels, expected one of them")
        size = prompts_per_batch or len(tokens)
        parts = [
            self._decode(image_embeddings, detail_features, *part)
            for part in zip(tokens.split(size), torch.stack(maps).split(size), strict=True)
        ]
        mattes, scores = (torch.cat(field) for field in zip(*parts, strict=True))
        return mattes, scores

    def _position(self, coordinates: Tensor) -> Tensor:
        return self.model.shared_image_embedding((coordinates + 0.5) / self.image_size)

    def _point_tokens(self, points: Tensor, labels: Tensor) -> Tensor:
        """(P, n + 1, C): SAM's padding point is the last."""
        encoder = self.model.prompt_encoder
        kinds = torch.cat([encoder.point_embed[0].weight, encoder.point_embed[1].weight])
        padding = encoder.not_a_point_embed.weight.repeat(len(points), 1, 1)
        return torch.cat([self._position(points) + kinds[labels], padding], dim=1)

    def _box_tokens(self, boxes: Tensor) -> Tensor:
        """(P, 2, C): the corners."""
        encoder = self.model.prompt_encoder
        kinds = torch.cat([encoder.point_embed[2].weight, encoder.point_embed[3].weight])
        return self._position(boxes.reshape(-1, 2, 2)) + kinds

    def _point_map(self, points: list[list[float]]) -> Tensor:
        """(g, g)."""
        grid = self.image_size // self.stride
        axis = torch.arange(grid, dtype=torch.float32)
        result = torch.zeros(grid, grid)
        for x, y in points:
            column, row = int(x / self.stride), int(y / self.stride)
            if 0 <= column < grid and 0 <= row < grid:
                squared = (axis[:, None] - row) ** 2 + (axis[None, :] - column) ** 2
                result = torch.maximum(result, torch.exp(-squared / (2 * self.sigma**2)))
        return result

    def _box_map(self, box: list[float]) -> Tensor:
        """(g, g) of {0, 1}; boxes inside the image."""
        grid = self.image_size // self.stride
        x0, y0, x1, y1 = (int(value / self.stride) for value in box)
        result = torch.zeros(grid, grid)
        result[y0 : y1 + 1, x0 : x1 + 1] = 1
        return result

    def _decode(
        self, image_embeddings: Tensor, detail_features: Sequence[Tensor], tokens: Tensor, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        decoder, count = self.model.mask_decoder, len(tokens)
        _, channels, height, width = image_embeddings.shape
        dense = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, channels, 1, 1)
        positions = self.model.shared_image_embedding.grid(height).expand(count, -1, -1)
        stream = (image_embeddings.repeat_interleave(count, 0) + dense).flatten(2).transpose(1, 2)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
        tokens, stream = self._mix(torch.cat([outputs, tokens], dim=1), stream, positions, maps)

        image = stream.transpose(1, 2).reshape(count, channels, height, width)
        for block, details in zip(decoder.fusion_blocks, reversed(detail_features), strict=True):
            image = F.interpolate(image, details.shape[-2:], mode="bilinear", align_corners=False)
            image = torch.cat([details.expand(count, -1, -1, -1), image], dim=1)
            image = F.relu(block.batch_norm(block.conv(image)))
        heads = decoder.output_hypernetworks_mlps
        filters = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
        mattes = (filters @ image.flatten(2)).reshape(count, len(heads), *image.shape[-2:])
        return mattes, decoder.iou_prediction_head(tokens[:, 0])

    def _mix(self, tokens: Tensor, stream: Tensor, positions: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer: tokens (P, n, C), stream (P, S, C)."""
        transformer, own = self.model.mask_decoder.transformer, tokens
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                tokens = self._attend(layer.self_attn, tokens, tokens, tokens)
            else:
                tokens = tokens + self._attend(layer.self_attn, tokens + own, tokens + own, tokens)
            tokens = layer.layer_norm1(tokens)
            update = self._attend(layer.cross_attn_token_to_image, tokens + own, stream + positions, stream, maps)
            tokens = layer.layer_norm2(tokens + update)
            tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
            update = self._attend(layer.cross_attn_image_to_token, stream + positions, tokens + own, tokens)
            stream = layer.layer_norm4(stream + update)
        update = self._attend(transformer.final_attn_token_to_image, tokens + own, stream + positions, stream)
        return transformer.layer_norm_final_attn(tokens + update), stream

    def _attend(self, attention: Any, query: Tensor, key: Tensor, value: Tensor, maps: Tensor | None = None) -> Tensor:
        """Attention over (P, keys, C); `maps` (P, g, g) change the scores of g * g keys."""
        query, key, value = (
            projection(inputs).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for projection, inputs in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value))
        )
        scores = query @ key.transpose(-1, -2) * attention.scaling
        if maps is not None:
            weights = maps.flatten(1)[:, None, None]
            scores = torch.where(weights == 0, self.fill, weights * scores)
        return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
