# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM's prompt encoder for rows of prompts: one mask per prompt, ragged points, no duplicated position matrix."""

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamMaskEmbedding, SamPositionalEmbedding

from ...prompts import PADDING_LABEL
from .prompt_rows import PromptRows

NOT_A_POINT_LABEL = -1
ZERO_TOKEN_LABEL = -10  # transformers' padding: a zero vector that still takes part in attention


def table(embedding: nn.Embedding) -> Tensor:
    """All rows (n, C). Weights that accelerate keeps elsewhere (`device_map`) come when the module is called only."""
    if not hasattr(embedding, "_hf_hook"):
        return embedding.weight
    return embedding(torch.arange(embedding.num_embeddings))


class SamPositionEncoding(SamPositionalEmbedding):
    """Random Fourier features of points in [0, 1]^2 (SAM, section 3).

    The Gaussian matrix is a buffer, as in the official code: transformers makes it a trainable parameter.
    """

    def __init__(self, config):
        nn.Module.__init__(self)
        self.scale = config.scale
        self.register_buffer("positional_embedding", self.scale * torch.randn(2, config.num_pos_feats))

    def forward(self, input_coords: Tensor) -> Tensor:
        """Points (..., 2) in [0, 1] -> (..., 2 * num_pos_feats), float32 whatever the model's dtype or autocast.

        In bfloat16 the phases alone would be off by as much as a shift of one pixel in 1024. (A model in bfloat16 has a rounded
        matrix, as transformers' has: autocast keeps it exact.)
        """
        with torch.autocast(input_coords.device.type, enabled=False):
            phases = 2 * torch.pi * (2 * input_coords - 1).float() @ self.positional_embedding.float()
            return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def grid(self, size: int) -> Tensor:
        """Encoding of the centres of a `size` x `size` feature grid, (size * size, 2 * num_pos_feats), float32."""
        centres = (torch.arange(size, device=self.positional_embedding.device, dtype=torch.float32) + 0.5) / size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1)).flatten(0, 1)


class SamRowPromptEncoder(nn.Module):
    """SAM's prompt encoder over rows (one row = one prompt of one image), SAM appendix A, "prompt encoder".

    transformers' `SamPromptEncoder` knows one mask per image and keeps a second copy of the position matrix; the
    other state-dict keys are the same. Nothing is clipped or rounded here.
    """

    def __init__(self, config):
        super().__init__()
        config = config.prompt_encoder_config
        self.mask_embed = SamMaskEmbedding(config)
        self.no_mask_embed = nn.Embedding(1, config.hidden_size)
        self.image_size = config.image_size
        self.point_embed = nn.ModuleList(
            nn.Embedding(1, config.hidden_size) for _ in range(config.num_point_embeddings)
        )
        self.not_a_point_embed = nn.Embedding(1, config.hidden_size)

    def _encode_positions(self, position_encoding: SamPositionEncoding, coordinates: Tensor) -> Tensor:
        encoded = position_encoding((coordinates + 0.5) / self.image_size)  # + 0.5: the centre of the pixel
        return encoded.to(table(self.not_a_point_embed))  # with a device_map on another device

    def embed_points(self, position_encoding: SamPositionEncoding, points: Tensor, labels: Tensor) -> Tensor:
        """points (R, n, 2) in pixels of the model frame, labels (R, n) -> tokens (R, n, C)."""
        labels = labels[..., None]
        tokens = self._encode_positions(position_encoding, points)
        tokens = torch.where(labels == NOT_A_POINT_LABEL, table(self.not_a_point_embed), tokens)
        tokens = torch.where(labels == ZERO_TOKEN_LABEL, torch.zeros_like(tokens), tokens)
        for label in (0, 1):
            tokens = torch.where(labels == label, tokens + table(self.point_embed[label]), tokens)
        return tokens

    def embed_boxes(self, position_encoding: SamPositionEncoding, boxes: Tensor) -> Tensor:
        """boxes (R, 4) x0 y0 x1 y1 in pixels of the model frame -> corner tokens (R, 2, C)."""
        corners = self._encode_positions(position_encoding, boxes.unflatten(-1, (2, 2)))
        return corners + torch.cat([table(self.point_embed[2]), table(self.point_embed[3])])

    def embed_masks(self, masks: Tensor | None, has_mask: Tensor | None = None) -> Tensor:
        """Mask logits (R, 4g, 4g) -> dense prompt embedding (R, g * g, C); the no-mask embedding (1, C) without, and
        in rows whose `has_mask` (R,) is False."""
        no_mask = table(self.no_mask_embed)
        if masks is None:
            return no_mask
        dense = self.mask_embed(masks[:, None].to(no_mask.dtype)).flatten(2).transpose(1, 2)
        return dense if has_mask is None else torch.where(has_mask[:, None, None], dense, no_mask)

    def forward(
        self, position_encoding: SamPositionEncoding, rows: PromptRows, text_tokens: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """
        Args:
            rows: R prompts; point labels: 1 inside, 0 outside, -1 "not a point", -10 a zero token, -2 absent.
            text_tokens: (R, 1, C) projected text prompts, or None.

        Returns:
            Prompt tokens (R, N, C), or None without points, boxes and text; a mask (R, N) bool that is False for what a
            row does not have, or None if there is no such thing. A row with points and without a box gets SAM's padding
            point; a box appends its two corners, a text one token.
        """
        tokens, present = [], []
        boxed = None
        if rows.boxes is not None:
            boxed = torch.ones_like(rows.image_index, dtype=torch.bool) if rows.has_box is None else rows.has_box
        if rows.points is not None and rows.point_labels is not None:
            tokens.append(self.embed_points(position_encoding, rows.points, rows.point_labels))
            given = torch.ne(rows.point_labels, PADDING_LABEL)
            present.append(given)
            if rows.has_box is not None or boxed is None:
                tokens.append(table(self.not_a_point_embed).expand(len(rows), 1, -1))
                padded = given.any(1, keepdim=True)
                present.append(padded if boxed is None else padded & ~boxed[:, None])
        if rows.boxes is not None and boxed is not None:
            tokens.append(self.embed_boxes(position_encoding, rows.boxes))
            present.append(boxed[:, None].expand(-1, 2))
        if text_tokens is not None:
            tokens.append(text_tokens)
            known = torch.ones_like(rows.image_index, dtype=torch.bool) if rows.has_text is None else rows.has_text
            present.append(known[:, None])
        if not tokens:
            return None, None
        mask = torch.cat(present, dim=1)
        return torch.cat(tokens, dim=1), None if mask.all() else mask


__all__ = ["SamPositionEncoding", "SamRowPromptEncoder", "table"]
