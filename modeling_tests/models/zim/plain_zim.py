# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM's decoder as its description reads, for one object of one image: nothing shared, folded, padded or split.

Only the image encoder and the embeddings of points are the model's own (they are SAM's, which has golden tests).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segcap import ZimForMatting


def plain_map(model: ZimForMatting, points: Tensor | None, box: Tensor | None) -> Tensor:
    """(S,) attention map: of the points if there are any, else of the box."""
    stride, grid = model.config.vision_config.patch_size, model.config.vision_config.image_size
    grid //= stride
    result = torch.zeros(grid, grid)
    for v in range(grid):
        for u in range(grid):
            if points is not None:
                squares = [(u - int(x / stride)) ** 2 + (v - int(y / stride)) ** 2 for x, y in points.tolist()]
                result[v, u] = torch.tensor(-min(squares) / (2 * model.config.point_sigma**2)).exp()
            else:
                x0, y0, x1, y1 = (int(value / stride) for value in box.tolist())
                result[v, u] = float(x0 <= u <= x1 and y0 <= v <= y1)
    return result.flatten()


def attend(layer, query: Tensor, key: Tensor, value: Tensor, weights: Tensor | None = None) -> Tensor:
    """Multi-head attention; `weights` (queries or 1, keys or 1) multiply the scores, and -1e4 replaces those of 0."""
    query, key, value = layer.q_proj(query), layer.k_proj(key), layer.v_proj(value)
    width = query.shape[-1] // layer.num_attention_heads
    heads = []
    for q, k, v in zip(query.split(width, -1), key.split(width, -1), value.split(width, -1), strict=True):
        scores = q @ k.T / width**0.5
        if weights is not None:
            scores = torch.where(weights == 0, -1e4, weights * scores)
        heads.append(scores.softmax(-1) @ v)
    return layer.out_proj(torch.cat(heads, -1))


def plain_mattes(
    model: ZimForMatting,
    embedding: Tensor,
    details: list[Tensor],
    points: Tensor | None = None,
    labels: Tensor | None = None,
    box: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (4, l, l) and scores (4,) for an embedding (1, C, g, g) and details (1, c, h, w), in eval mode."""
    config, decoder, encoder = model.config, model.mask_decoder, model.prompt_encoder
    position = model.shared_image_embedding
    weights = plain_map(model, points, box)
    if box is not None:
        prompt = encoder.embed_boxes(position, box[None])[0]
    else:
        prompt = torch.cat(
            [encoder.embed_points(position, points[None], labels[None])[0], encoder.not_a_point_embed.weight]
        )
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, prompt])
    first = tokens
    image = embedding[0].flatten(1).T + encoder.no_mask_embed.weight
    where = position.grid(embedding.shape[-1])
    to_image = weights[None] if "token_to_image" in config.masked_attention else None
    to_tokens = weights[:, None] if "image_to_token" in config.masked_attention else None
    for i, block in enumerate(decoder.transformer.layers):
        if i == 0:
            tokens = attend(block.self_attn, tokens, tokens, tokens)
        else:
            tokens = tokens + attend(block.self_attn, tokens + first, tokens + first, tokens)
        tokens = block.layer_norm1(tokens)
        tokens = tokens + attend(block.cross_attn_token_to_image, tokens + first, image + where, image, to_image)
        tokens = block.layer_norm2(tokens)
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        image = image + attend(block.cross_attn_image_to_token, image + where, tokens + first, tokens, to_tokens)
        image = block.layer_norm4(image)
    last = weights[None] if config.mask_final_attention else None
    update = attend(decoder.transformer.final_attn_token_to_image, tokens + first, image + where, image, last)
    tokens = decoder.transformer.layer_norm_final_attn(tokens + update)

    upscaled = image.T.unflatten(1, embedding.shape[-2:])[None]
    if config.pixel_decoder == "sam":
        upscaled = F.gelu(decoder.upscale_layer_norm(decoder.upscale_conv1(upscaled)))
        upscaled = F.gelu(decoder.upscale_conv2(upscaled))
    for block, detail in zip(decoder.fusion_blocks or (), reversed(details)):
        up = F.interpolate(upscaled, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        joined = detail + up if config.fusion_mode == "add" else torch.cat([detail, up], 1)
        upscaled = block.normalise(block.conv(joined)).relu()
    weights = torch.stack([mlp(tokens[1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)])
    return torch.einsum("mc,chw->mhw", weights, upscaled[0]), decoder.iou_prediction_head(tokens[0])
