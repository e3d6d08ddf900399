# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Pipeline tests. `PipelineTesterMixin` of transformers knows only built-in tasks and fetches models: own tests here."""

from __future__ import annotations

import tempfile
import unittest
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from ..spec_types import PipelineSpec
from . import build_test_class

_LOAD_FLAGS = ("_load_processor", "_load_image_processor", "_load_tokenizer", "_load_feature_extractor")


class _PipelineConformance:
    spec: PipelineSpec

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        torch.manual_seed(0)
        cls.spec.save(cls.folder)
        cls.pipe = cls.load(cls.folder)
        cls.expected = [cls.pipe(x, **kwargs) for x, kwargs in cls.spec.calls]

    @classmethod
    def load(cls, model, **kwargs):
        return pipeline(cls.spec.task, model=model, device="cpu", **kwargs)

    def same(self, got, expected):
        """Compares results: numbers within the tolerance of the spec, anything else exactly."""
        if isinstance(expected, Image.Image):  # the last digit of a grey value may be rounded another way
            self.assertEqual(got.mode, expected.mode)
            np.testing.assert_allclose(np.asarray(got, dtype=int), np.asarray(expected, dtype=int), rtol=0, atol=1)
        elif isinstance(expected, dict):
            self.assertEqual(sorted(got), sorted(expected))
            for key in expected:
                self.same(got[key], expected[key])
        elif isinstance(expected, list | tuple):
            self.assertEqual(len(got), len(expected))
            for one, other in zip(got, expected):
                self.same(one, other)
        elif isinstance(expected, float | np.ndarray | torch.Tensor):
            got, expected = (np.asarray(x, dtype=np.float64) for x in (got, expected))
            np.testing.assert_allclose(got, expected, atol=self.spec.atol)
        else:
            self.assertEqual(got, expected)

    def same_call_items(self):
        """The inputs that share the first call's arguments, those arguments, and the results."""
        kwargs = self.spec.calls[0][1]
        pairs = [(x, r) for (x, k), r in zip(self.spec.calls, self.expected) if k == kwargs]
        self.assertGreater(len(pairs), 1, "the spec needs two calls with the same arguments")
        inputs, results = zip(*pairs)
        return list(inputs), kwargs, list(results)

    def test_task_is_registered(self):
        self.assertIn(self.spec.task, PIPELINE_REGISTRY.get_supported_tasks())
        flags = [getattr(type(self.pipe), name) for name in _LOAD_FLAGS]
        self.assertIn(True, flags, "flags left at None swallow loading errors: one _load_* flag must be True")

    def test_results_are_not_empty(self):
        for result in self.expected:
            self.assertTrue(result)

    def test_repeatable(self):
        for (x, kwargs), expected in zip(self.spec.calls, self.expected):
            self.same(self.pipe(x, **kwargs), expected)

    def test_plain_outputs(self):
        if not self.spec.plain_outputs:
            self.skipTest("tensors are part of the contract")

        def walk(value):
            self.assertFalse(torch.is_tensor(value), "a torch tensor in the result")
            children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            for child in children:
                walk(child)

        walk(self.expected)

    def test_list_input(self):
        inputs, kwargs, expected = self.same_call_items()
        self.same(self.pipe(inputs, **kwargs), expected)

    def test_batch_size(self):
        inputs, kwargs, expected = self.same_call_items()
        self.same(self.pipe(inputs + inputs, batch_size=2, **kwargs), expected + expected)

    def test_generator(self):
        inputs, kwargs, expected = self.same_call_items()
        self.same(list(self.pipe((x for x in inputs), **kwargs)), expected)

    def test_init_kwargs(self):
        x, kwargs = self.spec.calls[0]
        self.same(self.load(self.folder, **kwargs)(x), self.expected[0])

    def test_from_instances(self):
        names = ("processor", "tokenizer", "image_processor")
        parts = {name: part for name in names if (part := getattr(self.pipe, name, None)) is not None}
        x, kwargs = self.spec.calls[0]
        self.same(self.load(self.pipe.model, **parts)(x, **kwargs), self.expected[0])

    def test_save_pretrained_round_trip(self):
        """Reloading what the pipeline saved must not demand `trust_remote_code`: the package is imported."""
        x, kwargs = self.spec.calls[0]
        with tempfile.TemporaryDirectory() as folder:
            self.pipe.save_pretrained(folder)
            self.same(self.load(folder)(x, **kwargs), self.expected[0])

    def test_low_precision(self):
        x, kwargs = self.spec.calls[0]
        result = self.load(self.folder, dtype=torch.bfloat16)(x, **kwargs)
        self.assertIs(type(result), type(self.expected[0]))


def test_class(spec: PipelineSpec) -> type[unittest.TestCase]:
    """Builds the test class of one pipeline."""
    namespace: dict[str, Any] = {"spec": spec}
    return build_test_class("Pipeline", (_PipelineConformance, unittest.TestCase), spec, namespace)
