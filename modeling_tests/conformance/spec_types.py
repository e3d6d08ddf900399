# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What a developer fills in to have a model judged: see `specs/` for examples.

A spec module lists `ModelSpec`, `ProcessorSpec`, `ImageProcessorSpec` and `PipelineSpec` objects in its variables
`MODELS`, `PROCESSORS`, `IMAGE_PROCESSORS` and `PIPELINES`. Fields that all of them share:

- `flags`: attributes of the test class (`test_resize_embeddings=False`, ...)
- `skip`: test name or `fnmatch` pattern -> reason. A pattern that matches no test is an error.
- `override`: test name -> function(self, ...)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Spec:
    name: str
    flags: dict[str, Any] = field(default_factory=dict)
    skip: dict[str, str] = field(default_factory=dict)
    override: dict[str, Callable] = field(default_factory=dict)


@dataclass(kw_only=True)
class ModelSpec(Spec):
    """A family of model classes that share one configuration class -> `<name>ConformanceTest`."""

    model_classes: tuple[type, ...]
    config: Callable[[], Any]
    """Builds the tiny configuration: fewer than a million parameters, at most two layers."""
    inputs: Callable[[Any, int], dict]
    """`(config, batch_size)` -> arguments of forward without labels, the batch first in every tensor."""
    labels: Callable[[Any, dict, type], dict] | None = None
    """`(config, inputs, model_class)` -> the arguments that make forward return a loss."""
    base_classes: tuple[type, ...] = ()
    """Classes without a loss: the training tests leave them out."""
    batch_size: int = 2
    tester: dict[str, Any] = field(default_factory=dict)
    """Further attributes of `model_tester` (`num_hidden_layers`, `seq_length`, ...)."""
    generate: Callable[[Any, int], dict] | None = None
    """`(config, batch_size)` -> arguments of generate; turns the generation tests on."""
    vision_embeddings: bool = False
    """`get_input_embeddings()` returns a patch projection, not an `nn.Embedding`."""
    config_tester: dict[str, Any] | None = None
    """Arguments of transformers' `ConfigTester`."""
    overfit: dict[str, Any] | None = None
    """`{"steps": .., "lr": .., "ratio": ..}`: training on one batch must bring the loss below `ratio` times its start."""


@dataclass(kw_only=True)
class ProcessorSpec(Spec):
    """A processor -> `<name>ProcessorConformanceTest`."""

    processor_class: type
    components: Callable[[], dict[str, Any]]
    """Builds the parts: `{"image_processor": ..., "tokenizer": ...}`."""
    init_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class ImageProcessorSpec(Spec):
    """The two backends of an image processor -> `<name>ImageProcessorConformanceTest`."""

    backends: dict[str, type | None]
    """`{"pil": ..., "torchvision": ... or None}`."""
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    output_shape: Callable[[int], tuple[int, ...]] | None = None
    """Number of channels -> shape of `pixel_values` without the batch."""


@dataclass(kw_only=True)
class PipelineSpec(Spec):
    """A registered pipeline -> `<name>PipelineConformanceTest`."""

    task: str
    save: Callable[[str], None]
    """Writes a model and its processor into a folder."""
    calls: list[tuple[Any, dict[str, Any]]]
    """`[(input, call arguments), ...]`, at least two with the same arguments."""
    atol: float = 1e-4
    plain_outputs: bool = True
    """Results hold only Python, Pillow and numpy objects, no tensors."""
