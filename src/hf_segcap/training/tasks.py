# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What recipes train: for each task its model, processor, collator and metrics."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel, PreTrainedModel, SamModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..assets import bundled_model
from ..data.augmentation import LargeScaleJitter
from ..data.collator import RegionCollator
from ..data.label_collator import LabelCollator
from ..data.mask_collator import MaskCollator
from ..data.mask_crops import MaskCropEmbedder
from ..data.matte_collator import MatteCollator
from ..data.row_collator import RowCollator
from ..data.sources import iter_phrases, iter_texts
from ..models.sam.frame import change_frame
from ..models.sam.prompt_processing import sam_image_processor
from .recipe import (
    DTYPES,
    CollatorSection,
    LabelCollatorSection,
    MaskCollatorSection,
    MatteCollatorSection,
    ModelSection,
    Recipe,
)
from .tokenizer import train_tokenizer
from .trainer import caption_metrics

if TYPE_CHECKING:
    from .features import FeatureCache


_FRAME = ("image_size", "patch_size")
_KEPT_OF_PROCESSORS = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor", "resample")
_TYPICAL_PHRASES = 2000  # of the data, for `text: centre` and `text: memory_scale`


class Task(Protocol):
    """The parts of a training run that depend on the task; see `run.py` for the rest."""

    needs: str
    """What a region must have to be trained on."""

    def can_train(self, region: Mapping[str, Any]) -> bool:
        """Whether a region of a row has that."""

    def build(self, recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
        """Model and processor, nothing frozen."""

    def trained_with_lora(self, model: Any) -> list[str]:
        """Modules that are trained completely while others get LoRA weights."""

    def collator(
        self, recipe: Recipe, model: Any, processor: Any, features: FeatureCache | None, train_rows: Any
    ) -> RowCollator:
        """The training collator."""

    def metrics(self, recipe: Recipe, processor: Any) -> Callable | None:
        """`compute_metrics` of the evaluation; `None`: the loss only."""
        return None


class RegionCaptioning(Task):
    """SCA."""

    needs = "phrases"

    def can_train(self, region: Mapping[str, Any]) -> bool:
        return bool(region.get("phrases"))

    def build(self, recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
        from ..models.sam_caption.configuration_sam_caption import SamCaptionConfig
        from ..models.sam_caption.modeling_sam_caption import SamCaptionForRegionCaptioning
        from ..models.sam_caption.processing_sam_caption import SamCaptionProcessor

        section, dtype = recipe.model, DTYPES[recipe.model.dtype]
        if section.from_pretrained:
            model = SamCaptionForRegionCaptioning.from_pretrained(section.from_pretrained, dtype=dtype)
            processor = SamCaptionProcessor.from_pretrained(section.from_pretrained)
            if recipe.tokenizer.from_pretrained:
                tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer.from_pretrained)
                processor = SamCaptionProcessor(processor.image_processor, tokenizer)
        elif section.from_sam:
            model = SamCaptionForRegionCaptioning.from_sam_and_language_model(
                SamModel.from_pretrained(section.from_sam, dtype=dtype),
                AutoModelForCausalLM.from_pretrained(str(section.language_model), dtype=dtype),
                **(section.config or {}),
            )
            tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer.from_pretrained or section.language_model)
        else:
            tokenizer = _new_tokenizer(recipe, train_rows)
            config = SamCaptionConfig(**_with_vocabulary(section.config or {}, tokenizer))
            model = SamCaptionForRegionCaptioning(config).to(dtype)
        if not section.from_pretrained:
            vision = model.config.vision_config
            processor = SamCaptionProcessor(sam_image_processor(vision.image_size, vision.patch_size), tokenizer)
        if recipe.generation:
            unknown = model.generation_config.update(**recipe.generation)
            if unknown:
                raise ValueError(f"generation: unknown keys {sorted(unknown)}, expected fields of GenerationConfig")
        return model, processor

    def trained_with_lora(self, model: Any) -> list[str]:
        return list(model.text_mixer_modules)

    def collator(
        self, recipe: Recipe, model: Any, processor: Any, features: FeatureCache | None, train_rows: Any
    ) -> RegionCollator:
        section = recipe.collator
        assert isinstance(section, CollatorSection)
        return RegionCollator(
            processor,
            max_regions=section.max_regions,
            augmentation=_jitter(recipe, processor),
            with_masks=section.with_masks,
            prompt_kinds=section.prompt_kinds,
            features=features,
            task=section.task,
            seed=recipe.seed,
        )

    def metrics(self, recipe: Recipe, processor: Any) -> Callable | None:
        return caption_metrics(processor) if recipe.evaluation.generate else None


class PromptableSegmentation(Task):
    """SAM."""

    needs = "a mask"

    def can_train(self, region: Mapping[str, Any]) -> bool:
        return region.get("mask") is not None

    def build(self, recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
        from ..models.sam.configuration_sam import SamPromptableConfig
        from ..models.sam.grow import double_decoder, insert_layer
        from ..models.sam.modeling_sam import SamForPromptableSegmentation
        from ..models.sam.processing_sam import SamPromptableProcessor

        section, dtype = recipe.model, DTYPES[recipe.model.dtype]
        tokenizer = None
        if section.from_pretrained:
            model = _load_changed(SamForPromptableSegmentation, section, dtype)
            if section.double_decoder:
                model = double_decoder(model)
            for index in section.insert_layers:
                model = insert_layer(model, index)
            if model.config.text_config is not None:
                tokenizer = AutoTokenizer.from_pretrained(section.from_pretrained)
        else:
            model = SamForPromptableSegmentation(SamPromptableConfig(**(section.config or {}))).to(dtype)
        if recipe.text is not None:
            clip = CLIPModel.from_pretrained(recipe.text.clip, dtype=dtype)
            if model.config.text_config is None:
                model.add_text_prompts(clip)
            elif not _has_text_model_of(model, clip):
                raise ValueError(
                    f"text: clip: {recipe.text.clip} is not the CLIP whose text model {section.from_pretrained} has: images and "
                    "words would be embedded by different models"
                )
            tokenizer = AutoTokenizer.from_pretrained(recipe.text.clip)
            if recipe.text.centre:
                model.centre_text(*_typical_phrases(train_rows, tokenizer))
        image_processor = _image_processor(section.from_pretrained, model.config.vision_config)
        return model, SamPromptableProcessor(image_processor, tokenizer)

    def trained_with_lora(self, model: Any) -> list[str]:
        names = ["prompt_encoder", "mask_decoder", "text_projection"]
        return [name for name in names if hasattr(model, name)]

    def collator(
        self, recipe: Recipe, model: Any, processor: Any, features: FeatureCache | None, train_rows: Any
    ) -> MaskCollator:
        section = recipe.collator
        assert isinstance(section, MaskCollatorSection)
        return MaskCollator(
            processor,
            **dataclasses.asdict(section),
            augmentation=_jitter(recipe, processor),
            text_embedder=_text_embedder(recipe, model, processor, train_rows),
            seed=recipe.seed,
        )


class ImageMatting(Task):
    """ZIM."""

    needs = "a matte or a mask"

    def can_train(self, region: Mapping[str, Any]) -> bool:
        return region.get("alpha") is not None or region.get("mask") is not None

    def build(self, recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
        from ..models.sam.modeling_sam import SamForPromptableSegmentation
        from ..models.zim.configuration_zim import ZimConfig
        from ..models.zim.modeling_zim import ZimForMatting
        from ..models.zim.processing_zim import ZimProcessor

        section, dtype, folder = recipe.model, DTYPES[recipe.model.dtype], None
        if section.from_pretrained:
            model = _load_changed(ZimForMatting, section, dtype)
        elif section.from_sam:
            frame, fields = _split_frame(section.config)
            bundled = section.from_sam == "bundled"
            folder = bundled_model("promptable-segmentation") if bundled else section.from_sam
            sam = SamForPromptableSegmentation.from_pretrained(folder, dtype=dtype)
            model = ZimForMatting.from_sam(change_frame(sam, **frame) if frame else sam, **fields)
        else:
            model = ZimForMatting(ZimConfig(**(section.config or {}))).to(dtype)
        return model, ZimProcessor(_image_processor(section.from_pretrained or folder, model.config.vision_config))

    def trained_with_lora(self, model: Any) -> list[str]:
        names = ["prompt_encoder", "detail_encoder", "mask_decoder"]
        return [name for name in names if getattr(model, name) is not None]

    def collator(
        self, recipe: Recipe, model: Any, processor: Any, features: FeatureCache | None, train_rows: Any
    ) -> MatteCollator:
        section = recipe.collator
        assert isinstance(section, MatteCollatorSection)
        return MatteCollator(
            processor, **dataclasses.asdict(section), augmentation=_jitter(recipe, processor), seed=recipe.seed
        )


class MatteConversion(Task):
    """ZIM's label converter."""

    needs = ImageMatting.needs
    can_train = ImageMatting.can_train

    def build(self, recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
        from ..models.zim.configuration_label_converter import ZimLabelConverterConfig
        from ..models.zim.modeling_label_converter import ZimLabelConverter
        from ..models.zim.processing_label_converter import ZimLabelConverterProcessor

        section, dtype = recipe.model, DTYPES[recipe.model.dtype]
        changes = section.config or {}
        if section.from_pretrained:
            model = _load_changed(ZimLabelConverter, section, dtype)
        elif section.from_hiera:
            model = ZimLabelConverter.from_hiera(section.from_hiera, **changes).to(dtype)
        else:
            model = ZimLabelConverter(ZimLabelConverterConfig(**changes)).to(dtype)
        height, width = model.config.image_size
        if height != width:
            raise ValueError(f"model: config: the images of the data are padded to squares, got {height} x {width}")
        return model, ZimLabelConverterProcessor(sam_image_processor(height, 4))

    def trained_with_lora(self, model: Any) -> list[str]:
        return ["decoder"]

    def collator(
        self, recipe: Recipe, model: Any, processor: Any, features: FeatureCache | None, train_rows: Any
    ) -> LabelCollator:
        section = recipe.collator
        assert isinstance(section, LabelCollatorSection)
        return LabelCollator(
            processor, **dataclasses.asdict(section), augmentation=_jitter(recipe, processor), seed=recipe.seed
        )


TASKS: dict[str, Task] = {
    "region-captioning": RegionCaptioning(),
    "promptable-segmentation": PromptableSegmentation(),
    "image-matting": ImageMatting(),
    "matte-conversion": MatteConversion(),
}


def _jitter(recipe: Recipe, processor: Any) -> LargeScaleJitter | None:
    if recipe.large_scale_jitter is None:
        return None
    side = processor.image_processor.pad_size["height"]  # of the model frame
    return LargeScaleJitter(side, **dataclasses.asdict(recipe.large_scale_jitter))


def _text_embedder(recipe: Recipe, model: Any, processor: Any, train_rows: Any) -> MaskCropEmbedder | None:
    section = recipe.text
    if section is None:
        return None
    try:
        image_processor = CLIPImageProcessorPil.from_pretrained(section.clip)
    except OSError:  # no settings next to the weights: those of OpenAI's CLIP
        image_processor = None
    embedder = MaskCropEmbedder(
        CLIPModel.from_pretrained(section.clip),
        image_processor,
        min_area=section.min_area,
        zero_background=section.zero_background,
        noise=section.noise,
    )
    if section.centre:
        embedder.measure_centre(train_rows)
    if section.memory_scale is not None:
        embedder.memory_scale = section.memory_scale
        with torch.no_grad():
            embedder.memory = model.get_text_embeds(*_typical_phrases(train_rows, processor.tokenizer)).cpu()
    return embedder


def _typical_phrases(rows: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of different phrases of the first regions that have some."""
    found = sorted(set(itertools.islice(iter_phrases(rows), _TYPICAL_PHRASES)))
    if not found:
        raise ValueError("text: centre and memory_scale need phrases, the regions of this data have none")
    tokens = tokenizer(found, padding=True, truncation=True, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def _load_changed(model_class: type[PreTrainedModel], section: ModelSection, dtype: torch.dtype) -> Any:
    """The model `section.from_pretrained` with the fields of `section.config` changed; weights are fitted to another model
    frame or patch size."""
    name = str(section.from_pretrained)
    config = model_class.config_class.from_pretrained(name)
    frame: dict[str, int] = {}
    changes = dict(section.config or {})
    if hasattr(config, "vision_config"):
        frame, changes = _split_frame(changes)
        frame = {name: size for name, size in frame.items() if size != getattr(config.vision_config, name)}
    _change(config, changes, "model: config")
    model = model_class.from_pretrained(name, config=config, dtype=dtype)
    return change_frame(model, **frame) if frame else model


def _image_processor(name: str | None, vision: Any) -> Any:
    """That of a checkpoint, which knows how its pixels are normalised, for the frame of `vision`; without one SAM's."""
    from ..models.zim.processing_zim import ZimProcessor  # needs no tokenizer

    kept = {}
    if name is not None:
        saved = ZimProcessor.from_pretrained(name).image_processor
        kept = {option: getattr(saved, option) for option in _KEPT_OF_PROCESSORS}
    return sam_image_processor(vision.image_size, vision.patch_size, **kept)


def _has_text_model_of(model: Any, clip: CLIPModel) -> bool:
    """Whether the text model of a segmenter is that of this CLIP, up to the rounding of half precision."""
    own = model.text_model.state_dict()
    wanted = {f"text_model.{name}": value for name, value in clip.text_model.state_dict().items()}
    wanted["text_projection.weight"] = clip.text_projection.weight
    return all(
        name in own and own[name].shape == value.shape and torch.allclose(own[name], value, rtol=1e-2, atol=1e-2)
        for name, value in wanted.items()
    )


def _split_frame(config: Mapping[str, Any] | None) -> tuple[dict[str, int], dict[str, Any]]:
    """The settings of `vision_config` that weights have to be fitted to, and all others."""
    fields = dict(config or {})
    vision = fields.get("vision_config")
    if not isinstance(vision, Mapping):
        return {}, fields
    frame = {name: vision[name] for name in _FRAME if name in vision}
    fields["vision_config"] = {name: value for name, value in vision.items() if name not in frame}
    if not fields["vision_config"]:
        del fields["vision_config"]
    return frame, fields


def _change(config: Any, changes: Mapping[str, Any], where: str) -> None:
    """Sets fields of a configuration, also of the configurations inside it."""
    for name, value in changes.items():
        if not hasattr(config, name):
            raise ValueError(f"{where}: {type(config).__name__} has no field {name!r}")
        if isinstance(value, Mapping) and hasattr(getattr(config, name), "to_dict"):
            _change(getattr(config, name), value, f"{where}.{name}")
        else:
            setattr(config, name, value)


def _new_tokenizer(recipe: Recipe, train_rows: Any) -> Any:
    if recipe.tokenizer.from_pretrained:
        return AutoTokenizer.from_pretrained(recipe.tokenizer.from_pretrained)
    return train_tokenizer(iter_texts(train_rows), str(recipe.tokenizer.train), recipe.tokenizer.vocab_size)


def _with_vocabulary(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The configuration with the tokenizer's size and ids in its `text_config`."""
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**config, "text_config": {**ids, **config.get("text_config", {})}}
