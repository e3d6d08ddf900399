# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ONNX folders and repositories as models of `pipeline("image-matting")`, also the official ones without a config.json."""

from __future__ import annotations

from typing import Any

import transformers.pipelines
from transformers import AutoConfig

from ..models.zim.configuration_zim import ZimConfig
from ..models.zim.onnx_zim import ZimOnnxForMatting, graph_pairs

TASK = "image-matting"
_NOT_FOR_ONNX = ("_from_pipeline", "trust_remote_code", "code_revision", "dtype", "torch_dtype", "device_map")
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


class OnnxMattingModel:
    """How a pipeline loads `ZimOnnxForMatting`: with the arguments of transformers' model classes."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> ZimOnnxForMatting:
        """As [`ZimOnnxForMatting.from_pretrained`]; a `dtype` and a `device_map` have no meaning here."""
        options = {name: value for name, value in kwargs.items() if name not in _NOT_FOR_ONNX}
        return ZimOnnxForMatting.from_pretrained(name, **options)


class _PipelineAutoConfig(AutoConfig):
    """For `transformers.pipeline`, which needs a config.json before it asks the classes of a task for the model.

    In the image-matting task, a folder or repository that has none but the two graphs gets ZIM's configuration. Everything
    else is as before.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return AutoConfig.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (OSError, ValueError):  # no config.json, or no such repository
            if kwargs.get("_from_pipeline") != TASK or not has_graphs(str(pretrained_model_name_or_path), **kwargs):
                raise
            return ZimConfig()


def has_graphs(name: str, **options: Any) -> bool:
    """Whether there is a pair of encoder.onnx and decoder.onnx in a folder or a Hub repository, or in a folder in it."""
    hub = {option: options.get(option) for option in _HUB_OPTIONS}
    try:
        return bool(graph_pairs(name, **hub))
    except OSError:
        return False


def let_pipelines_find_onnx() -> None:
    """Has `transformers.pipeline` use the above; no other part of transformers changes. Harmless when repeated."""
    transformers.pipelines.AutoConfig = _PipelineAutoConfig


__all__ = ["OnnxMattingModel", "has_graphs", "let_pipelines_find_onnx"]
