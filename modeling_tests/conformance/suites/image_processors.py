# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Image-processor tests: transformers' `ImageProcessingTestMixin` for the Pillow and torchvision backends."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np

from ..overlay import common_tests
from ..spec_types import ImageProcessorSpec
from . import build_test_class

image_common = common_tests("test_image_processing_common")

_WITHOUT_TORCHVISION = """
import importlib, pickle, sys
from pathlib import Path
folder, package, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.modules["torchvision"] = None
importlib.import_module(package)
from transformers import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(folder)
assert type(processor).__name__ == name, type(processor)
inputs = pickle.loads((folder / "inputs.pkl").read_bytes())
(folder / "outputs.pkl").write_bytes(pickle.dumps(dict(processor(**inputs, return_tensors=None))))
"""


class _ImageProcessorConformance:
    spec: ImageProcessorSpec

    def test_pil_can_run_without_torchvision(self):
        """Replaces the common test, which never imports a package from outside transformers."""
        processor_class = self.image_processing_classes.get("pil")
        if processor_class is None:
            self.skipTest("no Pillow backend")
        processor = processor_class(**self.image_processor_dict)
        inputs = self.image_processor_tester.prepare_processor_inputs(equal_resolution=False)
        expected = processor(**inputs, return_tensors=None)
        package = processor_class.__module__.partition(".")[0]
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            (Path(folder) / "inputs.pkl").write_bytes(pickle.dumps(inputs))
            command = [sys.executable, "-c", _WITHOUT_TORCHVISION, folder, package, processor_class.__name__]
            result = subprocess.run(command, capture_output=True, text=True)
            self.assertEqual(result.returncode, 0, result.stderr)
            got = pickle.loads((Path(folder) / "outputs.pkl").read_bytes())
        np.testing.assert_equal(got, dict(expected))


def _tester_class(spec: ImageProcessorSpec) -> type:
    class Tester(image_common.ImageProcessingTester):
        def __init__(self, parent, **kwargs):
            sizes = {"batch_size": 3, "min_resolution": 20, "max_resolution": 60}
            super().__init__(parent, **{**sizes, **spec.init_kwargs, **kwargs})

        def _get_image_processing_classes(self):
            return {backend: cls for backend, cls in spec.backends.items() if cls is not None}

        def expected_output_image_shape(self, images):
            if spec.output_shape is None:
                return super().expected_output_image_shape(images)
            return spec.output_shape(self.num_channels)

    return Tester


def test_class(spec: ImageProcessorSpec) -> type[unittest.TestCase]:
    """Builds the test class of one image processor."""
    bases: list[type] = [_ImageProcessorConformance, image_common.ImageProcessingTestMixin]
    if any(hasattr(c, "post_process_semantic_segmentation") for c in spec.backends.values()):
        bases.append(image_common.PostProcessSemanticSegmentationTestMixin)
    namespace: dict[str, Any] = {"spec": spec, "image_processor_tester_class": _tester_class(spec)}
    skip = {}
    if spec.backends.get("torchvision") is None:
        skip["test_new_models_require_torchvision_backend"] = "torchvision is not installed"
    return build_test_class("ImageProcessor", (*bases, unittest.TestCase), spec, namespace, skip)
