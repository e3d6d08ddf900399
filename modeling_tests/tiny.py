# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Tiny configurations, models, tokenizers and images shared by the tests: everything is built in memory, nothing is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

if TYPE_CHECKING:
    from hf_segcap import (
        SamCaptionConfig,
        SamCaptionForRegionCaptioning,
        SamCaptionProcessor,
        SamForPromptableSegmentation,
        SamPromptableConfig,
        SamPromptableProcessor,
        ZimConfig,
        ZimForMatting,
        ZimLabelConverter,
        ZimLabelConverterConfig,
        ZimLabelConverterProcessor,
        ZimProcessor,
    )

IMAGE_SIZE = 64
PATCH_SIZE = 8
# SAM predicts (and accepts) masks at four times the resolution of its feature grid
LOW_RES_MASK_SIZE = 4 * IMAGE_SIZE // PATCH_SIZE
IMAGE_PROCESSOR_SIZES = {
    "size": {"longest_edge": IMAGE_SIZE},
    "pad_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "mask_size": {"longest_edge": LOW_RES_MASK_SIZE},
    "mask_pad_size": {"height": LOW_RES_MASK_SIZE, "width": LOW_RES_MASK_SIZE},
}

END_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN = "<|endoftext|>", "<|pad|>", "<|unk|>"
END_ID, PAD_ID = 0, 1
WORDS = (
    "a an the and of at in on with small large dark light red green blue yellow white black grey brown plain "
    "striped spotted round square region disc box left right upper lower middle centre cat dog tree sky cup"
)
VOCABULARY = [END_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN, *WORDS.split()]

_WIDTH = 32
_SAM_PARTS: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 24,
        "output_channels": _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "mlp_dim": 48,
        "num_pos_feats": _WIDTH // 2,
        "window_size": 3,
        "global_attn_indexes": [1],
    },
    "prompt_encoder_config": {"mask_input_channels": 8},
    "mask_decoder_config": {
        "hidden_size": _WIDTH,
        "num_attention_heads": 4,
        "mlp_dim": 40,
        "num_hidden_layers": 2,
        "iou_head_hidden_dim": 24,
    },
}
_TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": _WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 64}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    },
    "opt": {
        "hidden_size": _WIDTH,
        "word_embed_proj_dim": _WIDTH,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    },
    "qwen2": {
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}


def tiny_text_config(text: str = "gpt2", **overrides: Any) -> dict[str, Any]:
    """The `text_config` of a two-layer, 32-wide language model over `VOCABULARY`: `text` is its `model_type`."""
    ids = {"vocab_size": len(VOCABULARY), "bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    return {"model_type": text, **ids, **_TEXT_CONFIGS[text], **overrides}


def tiny_sam_caption_config(
    text: str = "gpt2", *, text_config: dict | None = None, decoder_config: dict | None = None, **overrides: Any
) -> SamCaptionConfig:
    """A SamCaption configuration with about 110,000 parameters: 64-pixel images, an 8 x 8 grid, 32-wide mixers.

    `text` selects the language model ("gpt2", "llama", "opt" or "qwen2"); `text_config` and `decoder_config` override
    single fields of `text_config` and `mask_caption_decoder_config`; other keywords are fields of the configuration.
    """
    from hf_segcap import SamCaptionConfig

    return SamCaptionConfig(
        vision_config=_SAM_PARTS["vision_config"],
        prompt_encoder_config=_SAM_PARTS["prompt_encoder_config"],
        mask_caption_decoder_config={
            **_SAM_PARTS["mask_decoder_config"],
            "additional_num_hidden_layers": 2,
            "num_caption_tokens": 4,
            **(decoder_config or {}),
        },
        text_config=tiny_text_config(text, **(text_config or {})),
        **{"num_task_tokens": 3, **overrides},
    )


def tiny_sam_caption(text: str = "gpt2", seed: int = 0, **kwargs: Any) -> SamCaptionForRegionCaptioning:
    """A randomly initialised `SamCaptionForRegionCaptioning` in eval mode; `kwargs` go to `tiny_sam_caption_config`."""
    from hf_segcap import SamCaptionForRegionCaptioning

    torch.manual_seed(seed)
    return SamCaptionForRegionCaptioning(tiny_sam_caption_config(text, **kwargs)).eval()


def tiny_clip_text_config(width: int = 20) -> dict[str, Any]:
    """The configuration of a two-layer CLIP text model over `VOCABULARY` with embeddings of `width` numbers."""
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 24,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }


def tiny_sam_promptable_config(*, text: bool = False, **overrides: Any) -> SamPromptableConfig:
    """A SAM configuration with the sizes of `tiny_sam_caption_config`; `text` adds a tiny CLIP text model.

    `overrides` are fields of the configuration, or fields of its parts as dicts (`mask_decoder_config={...}`).
    """
    from hf_segcap import SamPromptableConfig

    parts = {name: {**fields, **overrides.pop(name, {})} for name, fields in _SAM_PARTS.items()}
    if text:
        parts |= {"text_config": tiny_clip_text_config(), "text_trained": True}
    return SamPromptableConfig(**parts, **overrides)


def tiny_sam_promptable(seed: int = 0, spread: float | None = None, **kwargs: Any) -> SamForPromptableSegmentation:
    """A random `SamForPromptableSegmentation` in eval mode; `kwargs` go to `tiny_sam_promptable_config`.

    `spread`: standard deviation of every parameter but those of norms, so that masks depend much on prompts.
    """
    from hf_segcap import SamForPromptableSegmentation

    torch.manual_seed(seed)
    model = SamForPromptableSegmentation(tiny_sam_promptable_config(**kwargs)).eval()
    if spread is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0, spread)
    return model


def tiny_sam_processor(*, text: bool = False) -> SamPromptableProcessor:
    """A `SamPromptableProcessor` that fits `tiny_sam_promptable`; `text` gives it a tokenizer."""
    from hf_segcap import SamPromptableProcessor

    return SamPromptableProcessor(tiny_image_processor(), tiny_tokenizer(add_end=True) if text else None)


def tiny_zim_config(**overrides: Any) -> ZimConfig:
    """A ZIM configuration: 64-pixel images, a 4 x 4 grid, details at strides 2, 4, 8.

    `overrides` are fields of the configuration, or fields of its parts as dicts (`vision_config={...}`).
    """
    from hf_segcap import ZimConfig

    own = {"vision_config": {"patch_size": 16}}
    parts = {name: {**fields, **own.get(name, {}), **overrides.pop(name, {})} for name, fields in _SAM_PARTS.items()}
    return ZimConfig(**parts, **{"point_sigma": 1.5, **overrides})


def tiny_zim(seed: int = 0, spread: float | None = None, **kwargs: Any) -> ZimForMatting:
    """A random `ZimForMatting` in eval mode; `kwargs` go to `tiny_zim_config`.

    `spread`: standard deviation of every parameter but those of norms, so that mattes depend much on prompts; the running
    statistics of batch norms are then random, too.
    """
    from hf_segcap import ZimForMatting

    torch.manual_seed(seed)
    model = ZimForMatting(tiny_zim_config(**kwargs)).eval()
    if spread is not None:
        _spread(model, spread)
    return model


def _spread(model: torch.nn.Module, spread: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, spread)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)


def tiny_zim_processor() -> ZimProcessor:
    """A `ZimProcessor` that fits `tiny_zim`."""
    from hf_segcap import ZimProcessor

    return ZimProcessor(tiny_image_processor())


def tiny_label_converter_config(**overrides: Any) -> ZimLabelConverterConfig:
    """A label converter for 64-pixel images with about 70,000 parameters; `overrides` are fields of the configuration, or
    of its backbone as a dict (`backbone_config={...}`)."""
    from hf_segcap import ZimLabelConverterConfig

    backbone = {
        "embed_dim": 8,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 2, 4],
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
    }
    backbone |= {"mlp_ratio": 2.0, **overrides.pop("backbone_config", {})}
    sizes = {"decoder_hidden_sizes": [16, 12, 8], "detail_hidden_size": 4, "training_refinement_width": [1, 5]}
    return ZimLabelConverterConfig(backbone_config=backbone, **{**sizes, "refinement_width": 3, **overrides})


def tiny_label_converter(seed: int = 0, spread: float | None = None, **kwargs: Any) -> ZimLabelConverter:
    """A random `ZimLabelConverter` in eval mode; `kwargs` go to `tiny_label_converter_config`.

    `spread`: standard deviation of every parameter but those of norms, so that mattes depend much on the input; the
    running statistics of batch norms are then random, too.
    """
    from hf_segcap import ZimLabelConverter

    torch.manual_seed(seed)
    model = ZimLabelConverter(tiny_label_converter_config(**kwargs)).eval()
    if spread is not None:
        _spread(model, spread)
    return model


def tiny_label_converter_processor() -> ZimLabelConverterProcessor:
    """A `ZimLabelConverterProcessor` that fits `tiny_label_converter`."""
    from hf_segcap import ZimLabelConverterProcessor

    return ZimLabelConverterProcessor(tiny_image_processor())


def tiny_tokenizer(*, pad_token: bool = True, add_bos: bool = False, add_end: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `VOCABULARY`.

    It adds no end token by itself, as GPT-2's; `pad_token=False` leaves the pad token undefined, as GPT-2's;
    `add_bos=True` starts every text with the end token, as LLaMA tokenizers start with theirs; `add_end=True` ends every
    text with it, as CLIP's.
    """
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if add_bos or add_end:
        template = f"{END_TOKEN if add_bos else ''} $A {END_TOKEN if add_end else ''}".strip()
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(END_TOKEN, END_ID)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        padding_side="right",
        **({"pad_token": PAD_TOKEN} if pad_token else {}),
    )


def sam_image_processors() -> dict[str, type]:
    """SAM's image processors by backend: "pil", and "torchvision" where that is installed."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    if not is_torchvision_available():
        return {"pil": SamImageProcessorPil}
    from transformers.models.sam.image_processing_sam import SamImageProcessor

    return {"pil": SamImageProcessorPil, "torchvision": SamImageProcessor}


def tiny_image_processor() -> Any:
    """SAM's image processor for 64-pixel images: the torchvision backend where torchvision is installed, else Pillow's."""
    backends = sam_image_processors()
    return backends.get("torchvision", backends["pil"])(**IMAGE_PROCESSOR_SIZES)


def tiny_processor(**tokenizer_kwargs: Any) -> SamCaptionProcessor:
    """A `SamCaptionProcessor` that fits `tiny_sam_caption`; `tokenizer_kwargs` go to `tiny_tokenizer`."""
    from hf_segcap import SamCaptionProcessor

    return SamCaptionProcessor(image_processor=tiny_image_processor(), tokenizer=tiny_tokenizer(**tokenizer_kwargs))


def random_image(seed: int = 0, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """An RGB picture of `size` (width, height) pixels: smooth coloured noise, the same for the same seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
