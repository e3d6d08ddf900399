# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Processor tests: transformers' `ProcessorTesterMixin`, and a round trip through `AutoProcessor`."""

from __future__ import annotations

import tempfile
import unittest
from typing import Any

from transformers import AutoProcessor

from ..overlay import common_tests
from ..spec_types import ProcessorSpec
from . import build_test_class


class _ProcessorConformance:
    spec: ProcessorSpec

    @classmethod
    def prepare_processor_dict(cls):
        return dict(cls.spec.init_kwargs)

    def test_auto_processor(self):
        with tempfile.TemporaryDirectory() as folder:
            self.get_processor().save_pretrained(folder)
            again = AutoProcessor.from_pretrained(folder)
        self.assertIs(type(again), self.spec.processor_class)
        self.assertEqual(again.to_dict(), self.get_processor().to_dict())


def _component_setup(spec: ProcessorSpec, attribute: str) -> classmethod:
    return classmethod(lambda cls: spec.components()[attribute])


def test_class(spec: ProcessorSpec) -> type[unittest.TestCase]:
    """Builds the test class of one processor."""
    namespace: dict[str, Any] = {"spec": spec, "processor_class": spec.processor_class}
    for attribute in spec.processor_class.get_attributes():
        namespace[f"_setup_{attribute}"] = _component_setup(spec, attribute)
    mixin = common_tests("test_processing_common").ProcessorTesterMixin
    return build_test_class("Processor", (_ProcessorConformance, mixin, unittest.TestCase), spec, namespace)
