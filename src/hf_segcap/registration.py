# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The one table that tells transformers about this package: configurations, models, processors, pipelines."""

from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageMatting,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline
from transformers.utils import is_torchvision_available

from .assets import bundled_model, bundled_tasks
from .models.sam.configuration_sam import SamPromptableConfig
from .models.sam.modeling_sam import SamForPromptableSegmentation
from .models.sam.processing_sam import SamPromptableProcessor
from .models.sam_caption.configuration_sam_caption import SamCaptionConfig
from .models.sam_caption.modeling_sam_caption import SamCaptionForRegionCaptioning
from .models.sam_caption.processing_sam_caption import SamCaptionProcessor
from .models.zim.configuration_label_converter import ZimLabelConverterConfig
from .models.zim.configuration_zim import ZimConfig
from .models.zim.modeling_label_converter import ZimLabelConverter
from .models.zim.modeling_zim import ZimForMatting, ZimModel
from .models.zim.processing_label_converter import ZimLabelConverterProcessor
from .models.zim.processing_zim import ZimProcessor
from .pipelines.image_matting import ImageMattingPipeline
from .pipelines.onnx_models import OnnxMattingModel, let_pipelines_find_onnx
from .pipelines.promptable_segmentation import PromptableSegmentationPipeline
from .pipelines.region_captioning import RegionCaptioningPipeline


@dataclass(frozen=True)
class System:
    """One published system as transformers sees it."""

    config: type[PreTrainedConfig]
    models: dict[Any, type[PreTrainedModel]]  # Auto class -> model class
    processor: type[ProcessorMixin]
    task: str
    pipeline: type[Pipeline] | None = None
    pipeline_type: str = "multimodal"  # transformers' kind of task: "image", "multimodal", ...
    # What the pipeline loads a checkpoint with, if not the Auto classes, which know other classes for peers' checkpoints.
    pipeline_models: tuple[Any, ...] = ()


SYSTEMS = (
    System(
        config=SamCaptionConfig,
        models={
            AutoModel: SamCaptionForRegionCaptioning,
            AutoModelForImageTextToText: SamCaptionForRegionCaptioning,
        },
        processor=SamCaptionProcessor,
        task="region-captioning",
        pipeline=RegionCaptioningPipeline,
        pipeline_type="multimodal",
        pipeline_models=(AutoModelForImageTextToText,),
    ),
    System(
        config=SamPromptableConfig,
        models={AutoModel: SamForPromptableSegmentation, AutoModelForMaskGeneration: SamForPromptableSegmentation},
        processor=SamPromptableProcessor,
        task="promptable-segmentation",
        pipeline=PromptableSegmentationPipeline,
        pipeline_type="multimodal",
        pipeline_models=(
            SamForPromptableSegmentation,
        ),  # facebook/sam-vit-* is transformers' SamModel to Auto classes
    ),
    System(
        config=ZimConfig,
        models={AutoModel: ZimModel, AutoModelForImageMatting: ZimForMatting},
        processor=ZimProcessor,
        task="image-matting",
        pipeline=ImageMattingPipeline,
        pipeline_type="multimodal",
        pipeline_models=(AutoModelForImageMatting, OnnxMattingModel),  # a checkpoint, or else a pair of ONNX files
    ),
    System(
        config=ZimLabelConverterConfig,
        models={AutoModel: ZimLabelConverter, AutoModelForImageMatting: ZimLabelConverter},
        processor=ZimLabelConverterProcessor,
        task="matte-conversion",  # of recipes; there is no pipeline
    ),
)


def _image_processors() -> dict[str, type]:
    """SAM's image processor, with the torchvision backend where torchvision is installed."""
    backends: dict[str, type] = {"pil": SamImageProcessorPil}
    if is_torchvision_available():
        from transformers.models.sam.image_processing_sam import SamImageProcessor

        backends["torchvision"] = SamImageProcessor
    return backends


def register_all() -> None:
    """Registers every system with transformers' Auto classes and `pipeline()`; harmless when repeated."""
    let_pipelines_find_onnx()
    for system in SYSTEMS:
        AutoConfig.register(system.config.model_type, system.config, exist_ok=True)
        for auto_class, model in system.models.items():
            auto_class.register(system.config, model, exist_ok=True)
        AutoProcessor.register(system.config, system.processor, exist_ok=True)
        AutoImageProcessor.register(system.config, image_processor_classes=_image_processors(), exist_ok=True)
        if system.pipeline is None:
            continue
        # a model that is being trained from its recipe is not there yet
        bundled = bundled_model(system.task) if system.task in bundled_tasks() else None
        PIPELINE_REGISTRY.register_pipeline(
            system.task,
            pipeline_class=system.pipeline,
            pt_model=system.pipeline_models or tuple(system.models),
            default={"model": (bundled, "main")} if bundled else None,
            type=system.pipeline_type,
        )
