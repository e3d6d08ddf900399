# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Configuration of ZIM, "Zero-Shot Image Matting for Anything" (ICCV 2025)."""

from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.models.sam.configuration_sam import SamPromptEncoderConfig

from ...hub import HubMixin
from ..sam.configuration_sam import (
    SamImageEncoderConfig,
    SamPromptableConfig,
    SamPromptableMaskDecoderConfig,
    fit_prompt_encoder,
)

MASKABLE = ("token_to_image", "image_to_token")


def detail_strides(patch_size: int) -> list[int]:
    """Strides of the image details, coarsest first: the powers of two that divide the patch size and are smaller, as 8, 4, 2
    for 16, or 4, 2 for 12."""
    return [2**i for i in range(patch_size.bit_length(), 0, -1) if patch_size % 2**i == 0 and 2**i < patch_size]


@strict
class ZimConfig(HubMixin, PreTrainedConfig):
    r"""
    The official release has no network, only graphs: where the paper leaves something open, the default is ours.

    Args:
        vision_config, prompt_encoder_config, mask_decoder_config (`dict` or config, *optional*):
            SAM's three parts. Sizes that `prompt_encoder_config` leaves out are those of `vision_config`.
        pixel_decoder (`str`, *optional*, defaults to `"hierarchical"`):
            `"hierarchical"`: image details at strides 2, 4, 8, ... join the decoder, mattes have stride 2 (ZIM, section
            3.2). `"sam"`: SAM's two transposed convolutions, a quarter of the patch size as stride (ablation).
        detail_hidden_sizes (`list[int]`, *optional*, defaults to `(C / 8, C / 4, C / 2)`):
            Channels of the image details at strides 2, 4, ... up to half the patch size; C is the decoder's width. A patch
            size that is no power of two has strides up to the largest power that divides it: 2 and 4 for 12 pixels.
        fusion_hidden_sizes (`list[int]`, *optional*, defaults to `(C / 2, C / 4, C / 8)`):
            Channels of the decoder at the same strides, coarsest first. SAM's weights need the last to be C / 8.
        detail_norm (`str`, *optional*, defaults to `"batch"`):
            Norm after each of these convolutions: `"batch"`, `"layer"` (over channels) or `"none"` (a bias instead).
        fusion_mode (`str`, *optional*, defaults to `"concat"`):
            How details join: `"concat"` (the paper's text) or `"add"` (its figure). To add, the details need the channels
            of what they join: `detail_hidden_sizes` from coarse to fine are `(C, *fusion_hidden_sizes[:-1])`.
        masked_attention (`list[str]`, *optional*, defaults to `("token_to_image",)`):
            Which cross attentions of the blocks the prompt's attention map changes: `"token_to_image"`,
            `"image_to_token"`, both or none (section 3.3 and its ablation).
        mask_final_attention (`bool`, *optional*, defaults to `False`):
            Whether it changes the last token-to-image attention, too.
        attention_map_fill (`float`, *optional*, defaults to -1e4):
            Score of positions where the map is 0.
        point_sigma (`float`, *optional*, defaults to 21):
            Standard deviation of the Gaussian around points, in cells of the model's feature grid (the paper's: 64 x 64).
        official_box_slicing (`bool`, *optional*, defaults to `False`):
            Box maps as in the official wrapper also for boxes left of or above the image, where a negative index wraps
            around.
        joint_prompts (`bool`, *optional*, defaults to `False`):
            What an object with points and a box means. False, as officially: the box is the prompt, and the points only
            make the attention map. True: both are prompts, and the map is the larger of both.
        gradient_loss_weight (`float`, *optional*, defaults to 10):
            Lambda of the gradient loss (section 3.1).
        gradient_filter (`str`, *optional*, defaults to `"sobel"`):
            Derivative of the gradient loss: `"sobel"` (divided by 8) or `"forward"` differences.
        multimask_loss (`bool`, *optional*, defaults to `True`):
            Train the best of mattes 1, 2, 3 besides matte 0.
        iou_loss_weight (`float`, *optional*, defaults to 1):
            Weight of the squared error of the predicted scores.
        cross_entropy_loss_weight (`float`, *optional*, defaults to 0):
            Weight of a binary cross entropy, which is not the paper's: small models on random layers need it, as the other
            terms hardly have gradients at mattes that are empty.
        everything (`dict`, *optional*):
            Arguments of the "matte everything" mode that fit this checkpoint; call arguments win.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights (convolutions: Kaiming).

    Raises:
        ValueError: for channels, sizes or names that do not fit together.
    """

    model_type = "zim"
    keys_to_ignore_at_inference = [
        "image_embeddings",
        "detail_features",
        "l1_loss",
        "gradient_loss",
        "iou_loss",
        "cross_entropy_loss",
        "vision_hidden_states",
        "vision_attentions",
        "mask_decoder_attentions",
    ]
    sub_configs_defaults = {
        "vision_config": SamImageEncoderConfig,
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_decoder_config": SamPromptableMaskDecoderConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    prompt_encoder_config: dict | PreTrainedConfig | None = None
    mask_decoder_config: dict | PreTrainedConfig | None = None
    pixel_decoder: Literal["hierarchical", "sam"] = "hierarchical"
    detail_hidden_sizes: list[int] | tuple[int, ...] | None = None
    fusion_hidden_sizes: list[int] | tuple[int, ...] | None = None
    detail_norm: Literal["batch", "layer", "none"] = "batch"
    fusion_mode: Literal["concat", "add"] = "concat"
    masked_attention: list[str] | tuple[str, ...] = ("token_to_image",)
    mask_final_attention: bool = False
    attention_map_fill: float | int = -1e4
    point_sigma: float | int = 21
    official_box_slicing: bool = False
    joint_prompts: bool = False
    gradient_loss_weight: float | int = 10.0
    gradient_filter: Literal["sobel", "forward"] = "sobel"
    multimask_loss: bool = True
    iou_loss_weight: float | int = 1.0
    cross_entropy_loss_weight: float | int = 0.0
    everything: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # written on the Hub, see hub.py
        prompt_encoder = self.prompt_encoder_config
        super().__post_init__(**kwargs)
        fit_prompt_encoder(self, prompt_encoder)
        unknown = [name for name in self.masked_attention if name not in MASKABLE]
        if unknown:
            raise ValueError(f"masked_attention may name {' and '.join(MASKABLE)}, got {unknown[0]!r}.")
        if self.point_sigma <= 0:
            raise ValueError(f"point_sigma must be above 0 cells, got {self.point_sigma}.")
        if self.pixel_decoder == "hierarchical":
            self._set_hidden_sizes()

    def _set_hidden_sizes(self) -> None:
        """Fills in what was not given, and checks the rest."""
        width, patch_size = self.mask_decoder_config.hidden_size, self.vision_config.patch_size
        levels = len(detail_strides(patch_size))
        if levels < 1:
            raise ValueError(f"Details at strides 2, 4, ... need an even patch size of at least 4, got {patch_size}.")
        finest_first = [width // 8 * 2**i for i in range(levels)]
        if self.fusion_hidden_sizes is None:
            self.fusion_hidden_sizes = finest_first[::-1]
        if self.detail_hidden_sizes is None:
            add = self.fusion_mode == "add"
            self.detail_hidden_sizes = [width, *self.fusion_hidden_sizes[:-1]][::-1] if add else finest_first
        for name in ("detail_hidden_sizes", "fusion_hidden_sizes"):
            sizes = getattr(self, name)
            if len(sizes) != levels or min(sizes) < 1:
                raise ValueError(
                    f"{name} needs {levels} positive numbers, one for each stride from 2 to {2**levels}, got {sizes}."
                )
        joined = [width, *self.fusion_hidden_sizes[:-1]][::-1]
        if self.fusion_mode == "add" and list(self.detail_hidden_sizes) != joined:
            raise ValueError(
                f"fusion_mode='add' needs detail_hidden_sizes={joined}, got {list(self.detail_hidden_sizes)}."
            )

    @classmethod
    def from_sam(cls, config: SamPromptableConfig, **kwargs: Any) -> "ZimConfig":
        """The parts of a SAM configuration; `kwargs` are further fields, see [`ZimForMatting.from_sam`].

        Raises:
            ValueError: a field that ZIM does not have, or has from SAM.
        """
        unknown = sorted(set(kwargs) - ({field.name for field in fields(cls)} - set(cls.sub_configs_defaults)))
        if unknown:
            raise ValueError(f"beside what it has from SAM, {cls.__name__} has no {', '.join(unknown)}")
        parts = {name: getattr(config, name).to_dict() for name in cls.sub_configs_defaults}
        return cls(**parts, **kwargs)


__all__ = ["ZimConfig"]
