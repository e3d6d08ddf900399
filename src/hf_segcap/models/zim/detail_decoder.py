# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The hierarchical pixel decoder (ZIM, section 3.2): convolutions keep what the image shows at strides 2, 4, 8, and the
decoder's image stream is upsampled step by step and joined with it.

Mattes of stride 2 for many prompts per image are affordable because nothing of the image is repeated for a prompt: a
convolution over [details, upsampled stream] is the sum of two convolutions, and that of the details runs once per image.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamFeedForward, SamLayerNorm
from transformers.utils.import_utils import is_tracing

from ..sam.mask_decoder import MixedTokens, RowMasks, SamRowMaskDecoder, compare
from ..sam.two_way import SharedImage, is_plain
from .configuration_zim import ZimConfig, detail_strides
from .masked_attention import ZimTwoWayMixer

_STRIP_BYTES = 2 << 20  # of an upsampled map at a time: what the cache of a processor core holds


class ZimConvBlock(nn.Module):
    """3 x 3 convolution, norm, ReLU. `norm`: "batch", "layer" (over the channels) or "none" (the convolution has a bias)."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=norm == "none")
        if norm == "batch":
            self.batch_norm = nn.BatchNorm2d(out_channels)
        elif norm == "layer":
            self.layer_norm = SamLayerNorm(out_channels, data_format="channels_first")

    def normalise(self, x: Tensor) -> Tensor:
        """(N, out_channels, h, w) -> the same shape."""
        for name in ("batch_norm", "layer_norm"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h / stride, w / stride)."""
        return F.relu(self.normalise(self.conv(x)))


class ZimDetailEncoder(nn.Module):
    """What the image shows, at strides 2, 4, 8, ...

    Args:
        config: channels (`detail_hidden_sizes`) and norm.
    """

    def __init__(self, config: ZimConfig):
        super().__init__()
        sizes = [config.vision_config.num_channels, *(config.detail_hidden_sizes or ())]
        self.convs = nn.ModuleList(
            ZimConvBlock(before, after, config.detail_norm, stride=2) for before, after in zip(sizes, sizes[1:])
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) normalised pixels -> (B, c_i, S / 2, S / 2), (B, c_i, S / 4, S / 4), ..."""
        weight: Any = self.convs[0].conv.weight  # the replicas of DataParallel have no parameters to ask for a dtype
        features = pixel_values.to(weight.dtype)
        result = []
        for conv in self.convs:
            features = conv(features)
            result.append(features)
        return tuple(result)


class ZimFusionBlock(ZimConvBlock):
    """Upsamples, joins with the details of that resolution, then convolution, norm, ReLU.

    `block(x, block.project_details(d))` is `relu(norm(conv([d, up(x)])))`.

    Args:
        detail_channels, in_channels, out_channels: of the details, of what is upsampled, and of the result.
        norm: see [`ZimConvBlock`].
        mode: `"concat"`, or `"add"` (as many channels of details as of what is upsampled).
        factor: of the upsampling.
    """

    def __init__(
        self, detail_channels: int, in_channels: int, out_channels: int, norm: str, mode: str, factor: int = 2
    ):
        super().__init__(in_channels + (detail_channels if mode == "concat" else 0), out_channels, norm)
        self.in_channels = in_channels
        self.factor = factor
        # input channels of the convolution that see the details, and those that see what is upsampled
        self.detail_part = slice(detail_channels) if mode == "concat" else slice(None)
        self.upsampled_part = slice(detail_channels, None) if mode == "concat" else slice(None)

    def project_details(self, details: Tensor) -> Tensor:
        """Details (B, detail_channels, h, w) -> their part of the result of the convolution, (B, out_channels, h, w)."""
        shift = self._affine()[1]
        return self._convolve(_layout(details), self.detail_part, self.conv.bias if shift is None else shift)

    def forward(
        self, x: Tensor, projected_details: Tensor, finish: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """
        Args:
            x: (R, in_channels, h, w).
            projected_details: of `project_details` in the same mode (training or not), (R, out_channels, factor * h,
                factor * w), or (1, ...) for all rows.
            finish: what becomes of the result, a function of each pixel alone: (R, out_channels, rows, w') -> (R, c, rows,
                w'). Where the result would only pass through memory it is never there as a whole.

        Returns:
            (R, out_channels, factor * h, factor * w), or what `finish` makes of it.
        """
        x, finish = _layout(x), finish or (lambda result: result)
        if torch.is_grad_enabled() or self.training or not self._is_foldable or not _on_processor(x):
            upsampled = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
            return finish(self._join(self._convolve(upsampled, self.upsampled_part), projected_details))
        return torch.cat([finish(strip) for strip in self._strips(x, projected_details)], dim=2)

    def _strips(self, x: Tensor, projected_details: Tensor) -> Iterator[Tensor]:
        """The result from top to bottom, some rows at a time: so few that all intermediate maps stay in the cache."""
        height, width = (self.factor * side for side in x.shape[2:])
        rows = max(_STRIP_BYTES // (len(x) * self.in_channels * width * x.element_size()), 8)
        weight = self._weight(self.upsampled_part)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # the convolution sees one row more on either side, except outside the image, where it sees zeros
            upsampled = self._upsample_rows(x, max(top - 1, 0), min(bottom + 1, height))
            if top == 0 or bottom == height:
                upsampled = F.pad(upsampled, (0, 0, int(top == 0), int(bottom == height)))
            yield self._join(F.conv2d(upsampled, weight, padding=(0, 1)), projected_details[:, :, top:bottom])

    def _upsample_rows(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top..bottom - 1 of the upsampled map."""
        first, last = ((2 * row + 1 - self.factor) // (2 * self.factor) for row in (top, bottom - 1))
        first = max(first, 0)
        source = x[:, :, first : last + 2]
        upsampled = F.interpolate(source, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return upsampled[:, :, top - self.factor * first : bottom - self.factor * first]

    def _join(self, convolved: Tensor, projected_details: Tensor) -> Tensor:
        """The whole convolution, norm, ReLU; in place unless gradients may need what was there."""
        gradients = torch.is_grad_enabled()
        joined = convolved + projected_details if gradients else convolved.add_(projected_details)
        return F.relu(joined if self._folds_norm else self.normalise(joined), inplace=not gradients)

    @property
    def _is_foldable(self) -> bool:
        return is_plain(self.conv, nn.Conv2d)

    @property
    def _folds_norm(self) -> bool:
        return not self.training and hasattr(self, "batch_norm") and self._is_foldable

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Scale and shift (out_channels,) of the batch norm where they are constant, to become part of the convolution."""
        if not self._folds_norm:
            return None, None
        norm = self.batch_norm
        scale = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()
        shift = norm.bias.float() - norm.running_mean.float() * scale
        return scale, shift.to(norm.bias.dtype)

    def _weight(self, channels: slice) -> Tensor:
        weight, (scale, _) = self.conv.weight[:, channels], self._affine()
        return weight if scale is None else (weight * scale[:, None, None, None]).to(weight.dtype)

    def _convolve(self, x: Tensor, channels: slice, bias: Tensor | None = None) -> Tensor:
        """The convolution of a part of its input channels; the others are zero."""
        if self._is_foldable:
            return F.conv2d(x, self._weight(channels), bias, padding=1)
        # adapters and hooks need the whole module, which adds its bias by itself
        inputs = x.new_zeros(len(x), self.conv.weight.shape[1], *x.shape[2:])
        inputs[:, channels] = x
        result = self.conv(inputs)
        unwanted = self.conv.bias if bias is None else None
        return result if unwanted is None else result - unwanted[:, None, None]


def _layout(x: Tensor) -> Tensor:
    """(N, c, h, w) in the memory format in which a processor upsamples and convolves large maps a third faster."""
    return x.contiguous(memory_format=torch.channels_last) if _on_processor(x) and not torch.is_grad_enabled() else x


def _on_processor(x: Tensor) -> bool:
    """Whether it is computed here and now, so that the size of the caches matters."""
    return x.device.type == "cpu" and not is_tracing(x)


class ZimMaskDecoder(SamRowMaskDecoder):
    """SAM's mask decoder with prompt-aware attention and, unless `pixel_decoder="sam"`, details of the image.

    Args:
        config: that of the whole model.
    """

    def __init__(self, config: ZimConfig):
        super().__init__(config.mask_decoder_config)
        self.transformer = ZimTwoWayMixer(config)
        self.fusion_blocks = None
        if config.pixel_decoder == "sam":
            return
        del self.upscale_conv1, self.upscale_conv2, self.upscale_layer_norm
        width, out = self.config.hidden_size, list(config.fusion_hidden_sizes or ())
        details = list(config.detail_hidden_sizes or ())[::-1]
        self.output_hypernetworks_mlps = nn.ModuleList(
            SamFeedForward(width, width, out[-1], 3) for _ in range(self.num_mask_tokens)
        )
        strides = detail_strides(config.vision_config.patch_size)
        factors = [before // after for before, after in zip([config.vision_config.patch_size, *strides], strides)]
        self.fusion_blocks = nn.ModuleList(
            ZimFusionBlock(*sizes, norm=config.detail_norm, mode=config.fusion_mode, factor=factor)
            for *sizes, factor in zip(details, [width, *out], out, factors)
        )

    def project_details(self, detail_features: Sequence[Tensor]) -> list[Tensor]:
        """What of each fusion block depends on the image alone.

        Args:
            detail_features: (B, c_i, S / 2, S / 2), (B, c_i, S / 4, S / 4), ... of [`ZimDetailEncoder`].

        Returns:
            (B, c, h, w) for each block, coarsest first; nothing with SAM's pixel decoder.
        """
        blocks = self.fusion_blocks or ()
        return [block.project_details(details) for block, details in zip(blocks, reversed(detail_features))]

    def forward(
        self,
        stream: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        prompt_token_mask: Tensor | None = None,
        shared: SharedImage | None = None,
        attention_maps: Tensor | None = None,
        projected_details: Sequence[Tensor] = (),
        selected: slice = slice(None),
    ) -> RowMasks:
        """
        Args:
            stream, image_positions, prompt_tokens, prompt_token_mask, shared: as [`SamRowMaskDecoder`].
            attention_maps: (R, g, g) in [0, 1], or None.
            projected_details: of `project_details`, one entry per row or (1, ...) for all of them.
            selected: which mattes.

        Returns:
            Logits (R, M, l, l) of the selected mattes, l half the side of the model frame, and their scores (R, M).
        """
        mixed = self.mix(
            stream, image_positions, prompt_tokens, prompt_token_mask, shared, attention_maps=attention_maps
        )
        return RowMasks(self.predict_mattes(mixed, projected_details, selected), self.predict_iou(mixed)[:, selected])

    def predict_mattes(
        self, mixed: MixedTokens, projected_details: Sequence[Tensor], selected: slice = slice(None)
    ) -> Tensor:
        """Logits (R, M, l, l) of the selected mattes."""
        if self.fusion_blocks is None:
            return self.predict_masks(mixed, selected)
        image, weights = self.image_map(mixed), self.mask_weights(mixed, selected)
        *blocks, last_block = self.fusion_blocks
        *details, last_details = projected_details
        for block, projected in zip(blocks, details, strict=True):
            image = block(image, projected)
        return last_block(image, last_details, finish=lambda rows: compare(weights, rows))


__all__ = ["ZimDetailEncoder", "ZimFusionBlock", "ZimMaskDecoder"]
