# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Configuration of SCA, "Segment and Caption Anything" (CVPR 2024).

Field names and `model_type` are those of the official checkpoints, so that their `config.json` is read as it is.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig, SamPromptEncoderConfig

from ...hub import HubMixin
from ..sam.configuration_sam import SamImageEncoderConfig, fit_prompt_encoder

TASKS = {"recognition": 0, "caption": 1}

# What distinguishes the classes of the official repository (`architectures` of their config.json) from the released one.
OFFICIAL_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ScaMultitaskV2Model": {},
    "ScaModel": {
        "caption_query_type": "learned_per_mask",
        "mixer_context": "sam_inputs",
        "num_task_tokens": 0,
        "label_smoothing": 0.0,
    },
    "ScaMultitaskModel": {"caption_query_type": "learned_per_mask", "mixer_context": "sam_inputs"},
    "ScaMultitaskSplitMixerModel": {"mixer_context": "prompts"},
    "ScaDirectDecodingModel": {
        "caption_query_type": "mask_tokens",
        "mixer_context": "sam_inputs",
        "num_task_tokens": 0,
        "label_smoothing": 0.0,
    },
    "ScaDirectDecodingV2Model": {"caption_query_type": "mask_tokens"},
    "ScaMultitaskROIPoolModel": {"mixer_context": "roi_align"},
}

# Left over in official config.json files from the call that created the model, or written on the Hub (`auto_map`, see
# hub.py); they configure nothing.
_STRAY_KEYS = ("auto_map", "cache_dir", "trust_remote_code", "use_auth_token", "use_decoder_only_language_model")

# Keys that transformers 4 wrote into every (sub-)configuration; without meaning in transformers 5.
_TRANSFORMERS_4_KEYS = {
    "_name_or_path",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "finetuning_task",
    "prefix",
    "pruned_heads",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
}


@strict
class SamCaptionMaskDecoderConfig(SamMaskDecoderConfig):
    r"""
    SAM's mask decoder plus the text feature mixer (SCA, section 3.2).

    Args:
        additional_num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of two-way blocks of the caption mixer.
        num_caption_tokens (`int`, *optional*, defaults to 8):
            Caption queries per head.
        num_caption_heads (`int`, *optional*, defaults to 1):
            Captions per prompt. With `caption_query_type="mask_tokens"`: how many of SAM's mask tokens are decoded.
    """

    model_type = "sca_mask_decoder"
    base_config_key = "mask_caption_decoder_config"

    additional_num_hidden_layers: int = 12
    num_caption_tokens: int = 8
    num_caption_heads: int = 1


@strict
class SamCaptionConfig(HubMixin, PreTrainedConfig):
    r"""
    Args:
        vision_config, prompt_encoder_config, mask_caption_decoder_config, text_config (`dict` or config, *optional*):
            SAM's image encoder, prompt encoder, mask decoder with the caption mixer, and any decoder-only language
            model of transformers (`model_type` decides; default GPT-2). Sizes that `prompt_encoder_config` leaves out are
            those of `vision_config`.
        num_task_tokens (`int`, *optional*, defaults to 6):
            Learnt prefix tokens of each task ("recognition", "caption"); 0 turns tasks off.
        caption_query_type (`str`, *optional*, defaults to `"learned"`):
            What is mixed into a caption. `"learned"`: a table of queries (the published model). `"learned_per_mask"`:
            one group of queries for each mask token, so that every mask has its caption. `"mask_tokens"`: SAM's own
            mask tokens ("SAM query" of the ablation).
        mixer_context (`str`, *optional*, defaults to `"sam_outputs"`):
            What the queries are mixed with. `"sam_outputs"`: output tokens and image stream of SAM's mixer (the
            published model). `"sam_inputs"`: the input tokens of SAM's mixer and its image stream. `"prompts"`: prompt
            tokens and the plain image embedding ("split mixer"). `"roi_align"`: no mixer, 6 x 6 ROI-aligned features.
        vl_projector_type (`str`, *optional*, defaults to `"linear"`):
            Projection to the language model's width: `"linear"`, or `"mlp"` (three layers with GELU).
        vl_projector_norm_type (`str`, *optional*, defaults to `"none"`):
            Layer norm `"pre"` or `"post"` each layer of the projection, or `"none"`.
        roi_size (`int`, *optional*, defaults to 6):
            Side of the ROI-aligned feature map (`mixer_context="roi_align"`).
        label_smoothing (`float`, *optional*, defaults to 0.1):
            Label smoothing of the caption loss, over the whole vocabulary.
        mask_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of SAM's mask loss when `target_masks` are given. SCA trains captions only and never gives them.
        everything (`dict`, *optional*):
            Arguments of the pipeline's "caption everything" mode that fit this checkpoint (for example
            `pred_iou_thresh`); call arguments win.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights.

    Raises:
        ValueError: for `architectures` of the official repository that this class does not cover, and sizes that differ.
    """

    model_type = "sca"
    keys_to_ignore_at_inference = [
        "pred_masks",
        "iou_scores",
        "caption_queries",
        "language_model_inputs",
        "image_embeddings",
        "mask_loss",
        "vision_hidden_states",
        "vision_attentions",
        "mask_decoder_attentions",
        "language_model_hidden_states",
        "language_model_attentions",
    ]
    sub_configs_defaults = {
        "vision_config": SamImageEncoderConfig,
        "prompt_encoder_config": SamPromptEncoderConfig,
        "mask_caption_decoder_config": SamCaptionMaskDecoderConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="gpt2"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    prompt_encoder_config: dict | PreTrainedConfig | None = None
    mask_caption_decoder_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    num_task_tokens: int = 6
    caption_query_type: Literal["learned", "learned_per_mask", "mask_tokens"] = "learned"
    mixer_context: Literal["sam_outputs", "sam_inputs", "prompts", "roi_align"] = "sam_outputs"
    vl_projector_type: Literal["linear", "mlp"] = "linear"
    vl_projector_norm_type: Literal["none", "pre", "post"] = "none"
    roi_size: int = 6
    label_smoothing: float | int = 0.1
    mask_loss_weight: float | int = 1.0
    everything: dict | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        for key in _STRAY_KEYS:
            kwargs.pop(key, None)
        self._read_official_architecture()
        for name in self.sub_configs_defaults:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, {k: v for k, v in value.items() if k not in _TRANSFORMERS_4_KEYS})
        prompt_encoder = self.prompt_encoder_config
        super().__post_init__(**kwargs)
        fit_prompt_encoder(self, prompt_encoder)
        if self.text_config.is_encoder_decoder:
            raise ValueError(
                f"SamCaption needs a decoder-only language model, but text_config is {self.text_config.model_type!r}, "
                "an encoder-decoder. Use e.g. gpt2, llama, opt or qwen2."
            )

    def _read_official_architecture(self):
        names = [name for name in self.architectures or () if name not in OFFICIAL_ARCHITECTURES]
        if any(name.startswith("Sca") or name == "SAMCaptionerModel" for name in names):
            raise ValueError(
                f"config.json names the official class {names[0]}, which is not supported. "
                f"Supported: {', '.join(OFFICIAL_ARCHITECTURES)}."
            )
        for name in self.architectures or ():
            for field, value in OFFICIAL_ARCHITECTURES.get(name, {}).items():
                setattr(self, field, value)  # also over config.json, which may name what the class ignores


__all__ = ["SamCaptionConfig", "SamCaptionMaskDecoderConfig"]
