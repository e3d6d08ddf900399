# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The label converter of ZIM (ICCV 2025, section 3.1): a matte for an image and a coarse mask of an object.

As in MGMatting (CVPR 2021), the mask is a fourth channel of the input, and mattes of three resolutions correct each other:
where the coarser one is unsure, the finer one takes its place. The backbone is transformers' Hiera. Sizes, and whatever else
the paper leaves open, follow `ZimLabelConverterConfig`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import HieraConfig, HieraModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.hiera.modeling_hiera import HieraMaskUnitAttention
from transformers.models.sam.modeling_sam import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ...hub import CompleteCheckpointMixin, HubMixin
from ..sam.frame import resize_positions
from ..sam.losses import resize_logits
from ..sam.region_model import check_policy, keep_frozen_norms
from .configuration_label_converter import STRIDES, ZimLabelConverterConfig
from .detail_decoder import ZimConvBlock, ZimFusionBlock
from .losses import check_mattes, gradient_loss, l1_loss

# Pixels that are converted together where no gradient is kept
_CPU_PIXELS, _GPU_PIXELS = 2**20, 2**23


@dataclass
class ZimLabelConverterOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): L1 + 10 x gradient loss, summed over the three mattes with weights 1,
            2, 3, if `labels` are given.
        alphas (`torch.FloatTensor` of shape `(B, P, H, W)`): matte logits of the padded model frame.
        side_alphas (`tuple` of `torch.FloatTensor` of shapes `(B, P, H / 8, W / 8)`, `(B, P, H / 4, W / 4)`, `(B, P, H, W)`):
            the logits of which `alphas` are composed.
        l1_loss, gradient_loss (`torch.FloatTensor` of shape `(1,)`): terms of the loss, summed with the weights of the
            mattes, without lambda.
        hidden_states, attentions (`tuple`, *optional*): of the backbone, one row per mask; see `HieraModel`.

    Rows of padded masks (`prompt_mask` False) are zero.
    """

    loss: Tensor | None = None
    alphas: Tensor | None = None
    side_alphas: tuple[Tensor, ...] | None = None
    l1_loss: Tensor | None = None
    gradient_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ZimLabelConverterAttention(HieraMaskUnitAttention):
    """Hiera's attention through transformers' attention interface: the global one of stage 3 sees 4096 tokens at 1024
    pixels, whose scores would need 0.5 GB per layer and mask."""

    def __init__(self, config: HieraConfig, replaced: HieraMaskUnitAttention):
        super().__init__(
            hidden_size=replaced.qkv.in_features,
            hidden_size_output=replaced.hidden_size_output,
            num_heads=replaced.num_heads,
            query_stride=replaced.query_stride,
            window_size=replaced.window_size,
            use_mask_unit_attn=replaced.use_mask_unit_attn,
        )
        self.config = config

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """(N, tokens, C) in the order of Hiera -> (N, tokens / query stride, C'), and eager attention's weights (N, heads,
        windows, queries, keys)."""
        num_rows, num_tokens, _ = hidden_states.shape
        windows = num_tokens // (self.query_stride * self.window_size) if self.use_mask_unit_attn else 1
        qkv = self.qkv(hidden_states).reshape(num_rows, -1, windows, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(3, 0, 2, 4, 1, 5).flatten(
            1, 2
        )  # each (N * windows, heads, tokens, head width)
        if self.query_stride > 1:
            query = query.unflatten(2, (self.query_stride, -1)).amax(2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        result, weights = attend(
            self, query, key, value, attention_mask=None, scaling=self.scale, dropout=0.0, is_causal=False
        )
        result = (
            result.unflatten(0, (num_rows, windows)).transpose(1, 2).reshape(num_rows, -1, self.hidden_size_output)
        )
        if weights is not None:
            weights = weights.unflatten(0, (num_rows, windows)).transpose(1, 2)
        return self.proj(result), weights if output_attentions else None


class ZimLabelConverterBackbone(HieraModel):
    """transformers' `HieraModel` (same weights) with the attention above.

    (`HieraBackbone` does not bring its tokens into Hiera's order before the encoder, so its windows are no windows.)
    """

    _supports_sdpa = True

    def __init__(self, config: HieraConfig):
        super().__init__(config, add_pooling_layer=False)
        for stage in self.encoder.stages:
            for layer in stage.layers:
                layer.attn = ZimLabelConverterAttention(config, layer.attn)
        self.post_init()


class ZimLabelConverterHead(nn.Module):
    """3 x 3 convolution, norm, ReLU, 3 x 3 convolution to one channel of matte logits."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.block = ZimConvBlock(channels, channels, norm)
        self.projection = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, 1, h, w)."""
        return self.projection(self.block(x))


class ZimLabelConverterDecoder(nn.Module):
    """From the features of the backbone and the input itself to matte logits at strides 8, 4, 1."""

    def __init__(self, config: ZimLabelConverterConfig):
        super().__init__()
        backbone, norm = config.backbone_config, config.decoder_norm
        channels = [int(backbone.embed_dim * backbone.embed_dim_multiplier**i) for i in range(len(STRIDES))][::-1]
        sizes, detail = list(config.decoder_hidden_sizes), config.detail_hidden_size
        self.norms = nn.ModuleList(nn.LayerNorm(size, eps=backbone.layer_norm_eps) for size in channels)
        self.laterals = nn.ModuleList(nn.Conv2d(given, size, 1) for given, size in zip(channels[1:], sizes))
        self.details = nn.ModuleList(
            ZimConvBlock(backbone.num_channels, detail, norm, stride=stride) for stride in (2, 1)
        )
        joined = [*sizes, detail, detail]
        self.fusion_blocks = nn.ModuleList(
            ZimFusionBlock(size, before, size, norm, "concat") for before, size in zip([channels[0], *joined], joined)
        )
        self.heads = nn.ModuleList(ZimLabelConverterHead(size, norm) for size in (sizes[1], sizes[2], detail))

    def forward(self, features: tuple[Tensor, ...], inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            features: (N, H / s, W / s, c_i) of the backbone at strides s of 4, 8, 16, 32.
            inputs: (N, 4, H, W), what the backbone saw.

        Returns:
            Logits (N, 1, H / 8, W / 8), (N, 1, H / 4, W / 4), (N, 1, H, W).
        """
        x, *finer = (norm(stage).permute(0, 3, 1, 2) for norm, stage in zip(self.norms, features[::-1]))
        maps = []
        for i, block in enumerate(self.fusion_blocks):
            own = self.laterals[i](finer[i]) if i < len(finer) else self.details[i - len(finer)](inputs)
            x = block(x, block.project_details(own))
            maps.append(x)
        coarse, middle, fine = (head(maps[i]) for head, i in zip(self.heads, (1, 2, 4)))
        return coarse, middle, fine


def refine(coarse: Tensor, fine: Tensor, unknown_range: Sequence[float], width: int) -> Tensor:
    """Replaces a matte by a finer one where it is unsure, or near such a place.

    Args:
        coarse, fine: logits (N, 1, h, w).
        unknown_range: alphas strictly between are unsure.
        width: side, in pixels, of the square around each such place; even ones count as the next larger.

    Returns:
        (N, 1, h, w). Gradients reach the finer matte where it is used, and nowhere the coarser one, which has a loss of
        its own.
    """
    alphas = coarse.detach().sigmoid()
    unsure = ((alphas > unknown_range[0]) & (alphas < unknown_range[1])).to(coarse.dtype)
    reach = width // 2
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        unsure = F.max_pool2d(unsure, kernel, stride=1, padding=padding)
    return torch.where(unsure > 0, fine, coarse.detach())


class ZimLabelConverter(HubMixin, CompleteCheckpointMixin, PreTrainedModel):
    """Turns coarse masks into mattes, any number of masks per image; each mask is a pass of its own."""

    config: ZimLabelConverterConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    incomplete_checkpoint_hint = "To start a training from a Hiera checkpoint use ZimLabelConverter.from_hiera(hiera). No label converter was released."
    accepts_loss_kwargs = False  # as in `SamRegionPreTrainedModel`
    supports_gradient_checkpointing = True
    _no_split_modules = ["HieraLayer"]
    _supports_sdpa = True

    # For `peft.LoraConfig(target_modules=...)`: the attention projections of the backbone.
    lora_target_modules = r"backbone\..*\.qkv"

    def __init__(self, config: ZimLabelConverterConfig):
        super().__init__(config)
        self.backbone = ZimLabelConverterBackbone._from_config(config.backbone_config)
        self.decoder = ZimLabelConverterDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ZimConvBlock):
            init.kaiming_normal_(module.conv.weight, nonlinearity="relu")

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def train(self, mode: bool = True):
        super().train(mode)
        return keep_frozen_norms(self)

    @classmethod
    def from_hiera(cls, hiera: str | os.PathLike | HieraModel, image_size: int = 1024, **config_kwargs: Any):
        """A model for a new training: the backbone from a checkpoint, the decoder at random.

        The patch projection gets a fourth channel of zeros, the position table is interpolated (bicubic).

        Args:
            hiera: `facebook/hiera-base-plus-224-in1k-hf`, any other Hiera or a folder of it, or a loaded `HieraModel`.
            image_size: side of the images that the new model takes, a multiple of 32 pixels.
            **config_kwargs: further fields of `ZimLabelConverterConfig`.

        Raises:
            TypeError: no Hiera.
            ValueError: fields that do not fit.
        """
        if not isinstance(hiera, PreTrainedModel):
            hiera = HieraModel.from_pretrained(hiera, add_pooling_layer=False)
        if not isinstance(hiera, HieraModel):
            raise TypeError(f"Expected a HieraModel or the name or folder of one, got {type(hiera).__name__}.")
        own = {field.name for field in fields(HieraConfig)} - {field.name for field in fields(PreTrainedConfig)}
        sizes = {name: getattr(hiera.config, name) for name in own if not name.startswith("_")}
        backbone = HieraConfig(**{**sizes, "image_size": [image_size, image_size]})
        model = cls(ZimLabelConverterConfig(backbone_config=backbone, **config_kwargs)).to(
            device=hiera.device, dtype=hiera.dtype
        )
        weights = {name: value for name, value in hiera.state_dict().items() if not name.startswith("pooler.")}
        projection, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
        missing = 4 - weights[projection].shape[1]
        weights[projection] = F.pad(weights[projection], (0, 0, 0, 0, 0, missing))
        grids = [[side // 4 for side in size] for size in (hiera.config.image_size, backbone.image_size)]
        weights[positions] = resize_positions(weights[positions].unflatten(1, grids[0]), grids[1]).flatten(1, 2)
        model.backbone.load_state_dict(weights)
        return model.train(hiera.training)

    def freeze_for(self, policy: str):
        """Chooses what is trained.

        Args:
            policy: `"all"`: everything. `"decoder"`: everything but the backbone. `"decoder+lora"`: the decoder, and LoRA
                weights that are already in the backbone.

        Raises:
            ValueError: for an unknown policy, or "+lora" without LoRA weights.
        """
        check_policy(self, policy)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(policy == "all" or "lora_" in name or not name.startswith("backbone."))
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        coarse_masks: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        labels: Tensor | None = None,
        masks_per_batch: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ZimLabelConverterOutput:
        """
        Args:
            pixel_values (B, 3, H, W): normalised and padded images.
            coarse_masks (B, P, H, W): 1 inside the object, 0 outside and in the padding; P masks per image, usually 1 in
                training.
            prompt_mask (B, P): False for masks that only pad the batch.
            labels (B, P, H, W): target mattes in [0, 1]. -1: the pixel does not count (use it for padding).
            masks_per_batch: without gradients, at most so many masks are converted at a time (default: what makes a
                megapixel on a CPU, eight elsewhere).

        Raises:
            ValueError: missing inputs, or shapes or values other than these.
        """
        kwargs.pop("num_items_in_batch", None)  # Trainer sets it
        flags = {
            name: bool(getattr(self.config, name) if kwargs.get(name) is None else kwargs[name])
            for name in ("output_attentions", "output_hidden_states")
        }
        pixel_values, coarse_masks = self._check_inputs(pixel_values, coarse_masks)
        if masks_per_batch is not None and masks_per_batch < 1:
            raise ValueError(f"masks_per_batch must be at least 1, got {masks_per_batch}.")
        batch_size, num_masks, *frame = coarse_masks.shape
        counted = _check_mask_of(prompt_mask, coarse_masks)
        targets = None if labels is None else _check_labels(labels, coarse_masks)
        # a batch of padding alone trains nothing, but every parameter takes part
        places = counted.flatten().nonzero()[:, 0] if bool(counted.any()) else counted.new_zeros(1, dtype=torch.long)
        inputs = torch.cat(
            [pixel_values[places // num_masks], coarse_masks.flatten(0, 1)[places, None].to(pixel_values.dtype)], dim=1
        )

        whole = torch.is_grad_enabled() or self.training or any(flags.values())
        size = masks_per_batch or max(
            1, (_CPU_PIXELS if inputs.device.type == "cpu" else _GPU_PIXELS) // inputs[0, 0].numel()
        )
        parts = [self._convert(part, flags) for part in inputs.split(len(inputs) if whole else size)]
        sides = tuple(torch.cat(maps) for maps in zip(*(side for side, _ in parts)))
        refined = self._refine(sides)
        terms: dict[str, Tensor] = {}
        if targets is not None:
            terms = self._loss(refined, targets.flatten(0, 1)[places], counted.any())

        def scatter(rows: Tensor) -> Tensor:
            result = rows.new_zeros(batch_size * num_masks, *rows.shape[2:])
            return result.index_copy(0, places, rows[:, 0] * counted.any()).unflatten(0, (batch_size, num_masks))

        recorded = parts[0][1]
        return ZimLabelConverterOutput(
            **terms,
            alphas=scatter(refined[-1]),
            side_alphas=tuple(scatter(side) for side in sides),
            hidden_states=recorded.hidden_states if flags["output_hidden_states"] else None,
            attentions=recorded.attentions,
        )

    def _convert(self, inputs: Tensor, flags: dict[str, bool]) -> tuple[tuple[Tensor, ...], ModelOutput]:
        """(N, 4, H, W) -> logits at strides 8, 4, 1, each (N, 1, h, w), and what the backbone gave."""
        # dtypes of weights: the replicas of DataParallel have no parameters to ask
        backbone: Any = self.backbone.embeddings.patch_embeddings.projection.weight
        decoder: Any = self.decoder.laterals[0].weight
        encoded = self.backbone(
            inputs.to(backbone.dtype),
            output_attentions=flags["output_attentions"],
            output_hidden_states=True,
            return_dict=True,
        )
        return self.decoder(encoded.reshaped_hidden_states[1:], inputs.to(decoder.dtype)), encoded

    def _refine(self, sides: tuple[Tensor, ...]) -> list[Tensor]:
        """The matte after each step, logits (N, 1, H, W): that of stride 8, corrected by stride 4, corrected by stride 1."""
        coarse, *finer = (resize_logits(side, sides[-1].shape[-2:]) for side in sides)
        refined, config = [coarse], self.config
        low, high = config.training_refinement_width
        for side in finer:
            width = config.refinement_width
            if self.training:
                width = int(torch.randint(low, high + 1, ()))
            refined.append(refine(refined[-1], side, config.unknown_range, width))
        return refined

    def _loss(self, refined: list[Tensor], targets: Tensor, any_counted: Tensor) -> dict[str, Tensor]:
        config = self.config
        targets = targets.to(refined[0].dtype)
        l1, gradient = targets.new_zeros(()), targets.new_zeros(())
        for logits, weight in zip(refined, config.refinement_loss_weights):
            alphas = logits[:, 0].sigmoid()
            l1 = l1 + weight * l1_loss(alphas, targets).mean()
            gradient = gradient + weight * gradient_loss(alphas, targets, config.gradient_filter).mean()
        l1, gradient = l1 * any_counted, gradient * any_counted
        return {"loss": l1 + config.gradient_loss_weight * gradient, "l1_loss": l1, "gradient_loss": gradient}

    def _check_inputs(self, pixel_values: Tensor | None, coarse_masks: Tensor | None) -> tuple[Tensor, Tensor]:
        if pixel_values is None or coarse_masks is None:
            raise ValueError("Give pixel_values (B, 3, H, W) and coarse_masks (B, P, H, W), both.")
        height, width = self.config.image_size
        if pixel_values.shape[1:] != (3, height, width):
            raise ValueError(
                f"pixel_values must have shape (B, 3, {height}, {width}), the image_size of config.backbone_config, got "
                f"{tuple(pixel_values.shape)}."
            )
        batch_size = len(pixel_values)
        if coarse_masks.ndim != 4 or (len(coarse_masks), *coarse_masks.shape[2:]) != (batch_size, height, width):
            raise ValueError(
                f"coarse_masks must have shape (B, P, H, W) = ({batch_size}, P, {height}, {width}), got "
                f"{tuple(coarse_masks.shape)}."
            )
        if coarse_masks.shape[1] == 0:
            raise ValueError("coarse_masks hold no mask (P = 0): expected at least one; pad with prompt_mask False.")
        if coarse_masks.dtype != torch.bool:
            low, high = coarse_masks.min(), coarse_masks.max()
            if not bool((low >= 0) & (high <= 1)):  # also false for NaN
                raise ValueError(
                    f"coarse_masks must be 1 inside and 0 outside, got values from {low.item():g} to {high.item():g}."
                )
        return pixel_values, coarse_masks


def _check_mask_of(prompt_mask: Tensor | None, coarse_masks: Tensor) -> Tensor:
    """(B, P) bool: the masks that are not padding."""
    shape = coarse_masks.shape[:2]
    if prompt_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=coarse_masks.device)
    if prompt_mask.shape != shape:
        raise ValueError(f"prompt_mask must have shape (B, P) = {tuple(shape)}, got {tuple(prompt_mask.shape)}.")
    return prompt_mask.bool()


def _check_labels(labels: Tensor, coarse_masks: Tensor) -> Tensor:
    if labels.shape != coarse_masks.shape:
        raise ValueError(
            f"labels must have the shape of coarse_masks, {tuple(coarse_masks.shape)}, got {tuple(labels.shape)}."
        )
    return check_mattes(labels)


__all__ = ["ZimLabelConverter", "ZimLabelConverterOutput"]
