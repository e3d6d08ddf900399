# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Models that see a region and say something exact about it. Importing this registers them with transformers."""

from .models.sam.configuration_sam import SamPromptableConfig
from .models.sam.modeling_sam import SamForPromptableSegmentation
from .models.sam.processing_sam import SamPromptableProcessor
from .models.sam_caption.configuration_sam_caption import SamCaptionConfig, SamCaptionMaskDecoderConfig
from .models.sam_caption.modeling_sam_caption import SamCaptionForRegionCaptioning
from .models.sam_caption.processing_sam_caption import SamCaptionProcessor
from .models.zim.configuration_label_converter import ZimLabelConverterConfig
from .models.zim.configuration_zim import ZimConfig
from .models.zim.modeling_label_converter import ZimLabelConverter
from .models.zim.modeling_zim import ZimForMatting, ZimModel
from .models.zim.onnx_zim import ZimOnnxForMatting
from .models.zim.processing_label_converter import ZimLabelConverterProcessor
from .models.zim.processing_zim import ZimProcessor
from .pipelines.image_matting import ImageMattingPipeline
from .pipelines.promptable_segmentation import PromptableSegmentationPipeline
from .pipelines.region_captioning import RegionCaptioningPipeline
from .registration import register_all

__version__ = "0.1.0"

__all__ = [
    "ImageMattingPipeline",
    "PromptableSegmentationPipeline",
    "RegionCaptioningPipeline",
    "SamCaptionConfig",
    "SamCaptionForRegionCaptioning",
    "SamCaptionMaskDecoderConfig",
    "SamCaptionProcessor",
    "SamForPromptableSegmentation",
    "SamPromptableConfig",
    "SamPromptableProcessor",
    "ZimConfig",
    "ZimForMatting",
    "ZimLabelConverter",
    "ZimLabelConverterConfig",
    "ZimLabelConverterProcessor",
    "ZimModel",
    "ZimOnnxForMatting",
    "ZimProcessor",
    "__version__",
]

register_all()
