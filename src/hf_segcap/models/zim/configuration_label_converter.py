# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Configuration of ZIM's label converter (ICCV 2025, section 3.1): an image and a coarse mask in, a matte out."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import HieraConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...hub import HubMixin

# Hiera-B+, which the paper names, at the paper's resolution
BASE_PLUS = {
    "embed_dim": 112,
    "depths": [2, 3, 16, 3],
    "num_heads": [2, 4, 8, 16],
    "image_size": [1024, 1024],
    "num_channels": 4,
}
STRIDES = (4, 8, 16, 32)  # of the backbone's four stages
REFINED_STRIDES = (8, 4, 1)  # of the three mattes
_LAYOUT = {"patch_stride": [4, 4], "query_stride": [2, 2], "num_query_pool": 3}  # what makes these strides


@strict
class ZimLabelConverterConfig(HubMixin, PreTrainedConfig):
    r"""
    The paper says "based on MGMatting, with a Hiera-B+ backbone" and no more: sizes of the decoder are ours.

    Args:
        backbone_config (`dict` or `HieraConfig`, *optional*, defaults to Hiera-B+ for 1024 x 1024 pixels):
            Four stages of strides 4, 8, 16, 32; a dict says only what differs from transformers' `HieraConfig`.
            `image_size` is the only size of images the model takes, sides multiples of 32. `num_channels` becomes 4: red,
            green, blue, and the mask.
        decoder_hidden_sizes (`list[int]`, *optional*, defaults to `(256, 128, 64)`):
            Channels of the decoder at strides 16, 8, 4.
        detail_hidden_size (`int`, *optional*, defaults to 32):
            Channels of the decoder, and of what is taken from the input itself, at strides 2 and 1.
        decoder_norm (`str`, *optional*, defaults to `"batch"`):
            Norm after each convolution of the decoder: `"batch"`, `"layer"` (over channels) or `"none"`.
        unknown_range (`list[float]`, *optional*, defaults to `(0.01, 0.99)`):
            Where a matte lies strictly between, the next finer one replaces it (progressive refinement of MGMatting).
        refinement_width (`int`, *optional*, defaults to 15):
            Side of the square, in pixels, by which these places grow in inference.
        training_refinement_width (`list[int]`, *optional*, defaults to `(1, 30)`):
            Least and largest side in training, drawn for each step.
        refinement_loss_weights (`list[float]`, *optional*, defaults to `(1, 2, 3)`):
            Of the mattes at strides 8, 4, 1.
        gradient_loss_weight (`float`, *optional*, defaults to 10):
            Lambda of the gradient loss (section 3.1).
        gradient_filter (`str`, *optional*, defaults to `"sobel"`):
            Derivative of the gradient loss: `"sobel"` (divided by 8) or `"forward"` differences.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights (3 x 3 convolutions before a norm: Kaiming).

    Raises:
        ValueError: a backbone with other strides or sides, or numbers out of range.
    """

    model_type = "zim_label_converter"
    keys_to_ignore_at_inference = ["side_alphas", "l1_loss", "gradient_loss", "hidden_states", "attentions"]
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=HieraConfig, init_kwargs=BASE_PLUS)}

    backbone_config: dict | PreTrainedConfig | None = None
    decoder_hidden_sizes: list[int] | tuple[int, ...] = (256, 128, 64)
    detail_hidden_size: int = 32
    decoder_norm: Literal["batch", "layer", "none"] = "batch"
    unknown_range: list[float] | tuple[float, ...] = (0.01, 0.99)
    refinement_width: int = 15
    training_refinement_width: list[int] | tuple[int, ...] = (1, 30)
    refinement_loss_weights: list[float | int] | tuple[float | int, ...] = (1.0, 2.0, 3.0)
    gradient_loss_weight: float | int = 10.0
    gradient_filter: Literal["sobel", "forward"] = "sobel"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # written on the Hub, see hub.py
        if isinstance(self.backbone_config, dict):
            self.backbone_config = {"model_type": "hiera", **self.backbone_config}
        super().__post_init__(**kwargs)
        self.backbone_config.num_channels = 4
        self._check_backbone()
        self._check_numbers()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images the model takes, pixels."""
        height, width = self.backbone_config.image_size
        return height, width

    def _check_backbone(self) -> None:
        backbone = self.backbone_config
        if not isinstance(backbone, HieraConfig):
            raise ValueError(f"backbone_config must describe a Hiera, got model_type {backbone.model_type!r}.")
        layout = {name: getattr(backbone, name) for name in _LAYOUT}
        layout = {name: value if isinstance(value, int) else list(value) for name, value in layout.items()}
        if layout != _LAYOUT or len(backbone.depths) != len(STRIDES):
            raise ValueError(
                f"The backbone needs {len(STRIDES)} stages with strides {STRIDES}, that is {_LAYOUT}, got {layout} and "
                f"{len(backbone.depths)} stages."
            )
        unit = [side * 4 for side in backbone.masked_unit_size]  # pixels
        if len(backbone.image_size) != 2 or any(
            side < 1 or side % piece for side, piece in zip(backbone.image_size, unit)
        ):
            raise ValueError(
                f"image_size of the backbone must be (height, width) in multiples of {unit} pixels, got "
                f"{list(backbone.image_size)}."
            )

    def _check_numbers(self) -> None:
        for name, count in (("decoder_hidden_sizes", 3), ("refinement_loss_weights", 3)):
            values = getattr(self, name)
            if len(values) != count or min(values) <= 0:
                raise ValueError(f"{name} needs {count} numbers above 0, got {list(values)}.")
        if self.detail_hidden_size < 1 or self.refinement_width < 1:
            raise ValueError(
                "detail_hidden_size and refinement_width must be at least 1, got "
                f"{self.detail_hidden_size} and {self.refinement_width}."
            )
        widths, limits = self.training_refinement_width, self.unknown_range
        if len(widths) != 2 or not 1 <= widths[0] <= widths[1]:
            raise ValueError(f"training_refinement_width must be a least and a largest side, got {list(widths)}.")
        if len(limits) != 2 or not 0 <= limits[0] < limits[1] <= 1:
            raise ValueError(f"unknown_range must be two numbers in [0, 1], the lower first, got {list(limits)}.")


__all__ = ["ZimLabelConverterConfig"]
