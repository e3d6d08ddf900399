# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Configurations of SAM (Segment Anything, ICCV 2023) and of the image encoder that the SAM-based models share."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig, SamConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from ...hub import HubMixin


@strict
class SamImageEncoderConfig(SamVisionConfig):
    r"""
    transformers' `SamVisionConfig` with two defaults that allow training from scratch; checkpoints are unaffected.

    Args:
        scale (`float`, *optional*, defaults to 1.0):
            Standard deviation of the random Gaussian matrix of the position encoding (SAM, section 3). transformers
            initialises it with `hidden_size // 2`, which makes the encoding of a new model close to random noise.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights (transformers: 1e-10, from which nothing can be learnt).
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth in training: probability, in [0, 1), that a sample skips a branch of the last block. It grows
            linearly with depth from 0 in the first block (SAM, appendix A: 0.4, ViT-B 0.6).
    """

    model_type = "sca_vision_model"
    base_config_key = "vision_config"

    scale: float | int = 1.0
    initializer_range: float = 0.02
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs):
        scale = self.scale
        super().__post_init__(**kwargs)
        self.scale = scale


@strict
class SamPromptableMaskDecoderConfig(SamMaskDecoderConfig):
    r"""
    transformers' `SamMaskDecoderConfig` with the layer-norm epsilon that SAM was trained with.

    Args:
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Of the two-way blocks. (transformers' default, and converted checkpoints, say 1e-6.)
    """

    model_type = "sam_promptable_mask_decoder"
    base_config_key = "mask_decoder_config"

    layer_norm_eps: float = 1e-5


def fit_prompt_encoder(config: Any, given: dict | PreTrainedConfig | None) -> None:
    """Gives `config.prompt_encoder_config` the sizes of `config.vision_config`, where it was made without them.

    Args:
        config: with both parts.
        given: what its `prompt_encoder_config` was made from.

    Raises:
        ValueError: a size that was given is another one.
    """
    vision = config.vision_config
    sizes = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "image_embedding_size": vision.image_size // vision.patch_size,
        "hidden_size": vision.output_channels,
    }
    for name, size in sizes.items():
        if given is None or isinstance(given, dict) and name not in given:
            setattr(config.prompt_encoder_config, name, size)
        elif (other := getattr(config.prompt_encoder_config, name)) != size:
            raise ValueError(
                f"prompt_encoder_config has {name} {other}, but by vision_config it is {size}: leave it out of "
                "prompt_encoder_config, or change one of them."
            )


@strict
class SamPromptableConfig(HubMixin, PreTrainedConfig):
    r"""
    Args:
        vision_config, prompt_encoder_config, mask_decoder_config (`dict` or config, *optional*):
            SAM's three parts. Sizes that `prompt_encoder_config` leaves out are those of `vision_config`.
        text_config (`dict` or `CLIPTextConfig`, *optional*):
            CLIP text model for text prompts (SAM, section 7.5); its `projection_dim` is the width E of the embeddings. None
            (the released checkpoints): no text prompts, unless `text_embed_dim` is given.
        text_embed_dim (`int`, *optional*):
            Width E of `text_embeds` computed elsewhere; defaults to the `projection_dim` of `text_config`.
        text_scale (`float`, *optional*, defaults to 1.0):
            Fixed factor of the normalised embeddings before their projection, whose entries are otherwise about
            1 / sqrt(E).
        text_centred (`bool`, *optional*, defaults to `False`):
            Subtract the mean text embedding that `centre_text` measured: images and texts lie apart in CLIP's space.
        text_trained (`bool`, *optional*, defaults to `False`):
            False until the first training step with text: text prompts are refused.
        interactive_rounds (`int`, *optional*, defaults to 1):
            Prompting rounds of a training step (SAM, appendix A: 11).
        supervise_all_iou (`bool`, *optional*, defaults to `False`):
            Train the predicted IoU of all masks of a round that compete (as SAM 2 does), not only that of the trained mask
            (as SAM). The ranking of the three masks gets better.
        box_noise (`str`, *optional*, defaults to `"normal"`):
            Noise of the boxes that training draws: `"normal"` (SAM), `"uniform"` (as SAM 2) or `"none"`.
        detach_fed_back_masks (`bool`, *optional*, defaults to `True`):
            No gradient through the mask that a round hands to the next.
        everything (`dict`, *optional*):
            Arguments of the "segment everything" mode that fit this checkpoint (for example `pred_iou_thresh`); call
            arguments win.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights.
    """

    model_type = "sam_promptable"
    keys_to_ignore_at_inference = [
        "best_mask_index",
        "image_embeddings",
        "focal_loss",
        "dice_loss",
        "iou_loss",
        "vision_hidden_states",
        "vision_attentions",
        "mask_decoder_attentions",
    ]
    sub_configs_defaults = {
        "vision_config": SamImageEncoderConfig,
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_decoder_config": SamPromptableMaskDecoderConfig,
        "text_config": SubConfigSpec(config_class=CLIPTextConfig, optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    prompt_encoder_config: dict | PreTrainedConfig | None = None
    mask_decoder_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    text_embed_dim: int | None = None
    text_scale: float | int = 1.0
    text_centred: bool = False
    text_trained: bool = False
    interactive_rounds: int = 1
    supervise_all_iou: bool = False
    box_noise: Literal["normal", "uniform", "none"] = "normal"
    detach_fed_back_masks: bool = True
    everything: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # written on the Hub, see hub.py
        prompt_encoder = self.prompt_encoder_config
        super().__post_init__(**kwargs)
        fit_prompt_encoder(self, prompt_encoder)
        if self.text_config is not None:
            width = self.text_config.projection_dim
            if self.text_embed_dim not in (None, width):
                raise ValueError(
                    f"text_embed_dim is {self.text_embed_dim}, but the projection_dim of text_config is {width}."
                )
            self.text_embed_dim = width
        if self.interactive_rounds < 1:
            raise ValueError(f"interactive_rounds must be at least 1, got {self.interactive_rounds}.")

    @classmethod
    def from_sam(cls, config: SamConfig | dict, **kwargs) -> "SamPromptableConfig":
        """The configuration of a `facebook/sam-vit-*` checkpoint, with the layer-norm epsilon it was trained with."""
        content = config if isinstance(config, dict) else config.to_dict()
        parts = {}
        for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
            part = {k: v for k, v in (content.get(name) or {}).items() if k not in ("model_type", "scale")}
            parts[name] = part
        # both configure new weights only, and transformers' values are not fit for training
        parts["vision_config"].pop("initializer_range", None)
        parts["mask_decoder_config"]["layer_norm_eps"] = 1e-5
        return cls(**parts, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As usual; `facebook/sam-vit-*` folders and repositories are understood, see [`SamPromptableConfig.from_sam`].

        Raises:
            ValueError: another kind of model (SAM-HQ, SAM 2), of which a part would be left out.
        """
        content, rest = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = content.get("model_type")
        if model_type not in (None, SamConfig.model_type, cls.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path} is a model of type {model_type!r}, whose weights {cls.model_type!r} has only "
                "in part: load it as what it is."
            )
        if model_type != SamConfig.model_type:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_dict(cls.from_sam(content).to_dict(), **rest)


__all__ = ["SamImageEncoderConfig", "SamPromptableConfig", "SamPromptableMaskDecoderConfig", "fit_prompt_encoder"]
