# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Models as ONNX files, for runtimes without PyTorch such as web browsers."""

from .sam import PromptToMask, export_image_encoder_onnx, export_onnx
from .zim import export_zim_onnx

__all__ = ["PromptToMask", "export_image_encoder_onnx", "export_onnx", "export_zim_onnx"]
