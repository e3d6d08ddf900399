# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Model tests: transformers' `ModelTesterMixin` and `ConfigTester`, and tests that they lack.

What is patched, and why:

- `get_values`: the common tests decide "this class has no loss" by class *name* in `MODEL_MAPPING_NAMES`;
  `ModelSpec.base_classes` adds ours.
- `test_can_init_all_missing_weights` looks at the copyright year of the configuration file and judges all weights; here
  it always runs and leaves out the weights of transformers' own sub-models (GPT-2 does not pass it by itself).
- `additional_model_inputs` is filled in, so that the eager-versus-sdpa cases get every argument of forward.
- Labels are drawn with a fixed seed: the tuple-versus-dict test asks for them twice.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
import unittest
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import TransformersKwargs

from ..generation import GenerationTesterMixin
from ..overlay import common_tests
from ..spec_types import ModelSpec
from . import build_test_class

modeling_common = common_tests("test_modeling_common")
configuration_common = common_tests("test_configuration_common")


class _ModelTester:
    """The `model_tester` object that the common tests expect."""

    def __init__(self, parent: unittest.TestCase, spec: ModelSpec):
        self.parent, self.spec = parent, spec
        self.batch_size = spec.batch_size
        self.is_training = spec.labels is not None
        vars(self).update(spec.tester)

    def get_config(self):
        return self.spec.config()

    def prepare_config_and_inputs_for_common(self):
        torch.manual_seed(0)
        config = self.spec.config()
        return config, self.spec.inputs(config, self.batch_size)

    prepare_config_and_inputs = prepare_config_and_inputs_for_common

    def prepare_config_and_inputs_for_generate(self, batch_size):
        torch.manual_seed(0)
        config = self.spec.config()
        return config, self.spec.generate(config, batch_size)


def _owner(model: torch.nn.Module, key: str) -> torch.nn.Module:
    """The nearest `PreTrainedModel` that contains the tensor `key` of `model`."""
    path = key
    while path:
        path = path.rpartition(".")[0]
        if isinstance(module := model.get_submodule(path), PreTrainedModel):
            return module
    return model


def _auto_classes() -> list[type]:
    classes = (getattr(transformers, name, None) for name in dir(transformers) if name.startswith("AutoModel"))
    return [c for c in classes if isinstance(c, type) and issubclass(c, _BaseAutoModelClass)]


class _ModelConformance:
    """Lets the common tests see classes of this package the way they see those of transformers; adds own tests."""

    spec: ModelSpec

    def setUp(self):
        super().setUp()
        self.model_tester = _ModelTester(self, self.spec)
        original = modeling_common.get_values
        names = [c.__name__ for c in self.spec.base_classes]

        def get_values(mapping):
            return [*original(mapping), *(names if mapping is modeling_common.MODEL_MAPPING_NAMES else [])]

        modeling_common.get_values = get_values
        self.addCleanup(setattr, modeling_common, "get_values", original)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        # classes of one family share inputs(): drop what this class's forward does not name (never the output_* flags)
        accepted = {*inspect.signature(model_class.forward).parameters, *TransformersKwargs.__annotations__}
        inputs = {k: v for k, v in inputs.items() if k in accepted}
        if return_labels and self.spec.labels is not None and model_class not in self.spec.base_classes:
            torch.manual_seed(7)
            inputs.update(self.spec.labels(self.spec.config(), inputs, model_class))
        return inputs

    def test_can_init_all_missing_weights(self):
        for model_class in self.all_model_classes:
            config = self.spec.config()
            with modeling_common.seeded_weight_init():
                built = model_class(copy.deepcopy(config))
                loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
            meta = [k for k, v in [*loaded.named_parameters(), *loaded.named_buffers()] if v.device.type == "meta"]
            self.assertEqual(meta, [], "still on the meta device")
            expected, got = built.state_dict(), loaded.state_dict()
            self.assertEqual(sorted(expected), sorted(got))
            bad = [k for k in expected if not torch.equal(expected[k], got[k])]
            if not model_class.__module__.startswith("transformers."):
                bad = [k for k in bad if not type(_owner(built, k)).__module__.startswith("transformers.")]
            self.assertEqual(bad, [], "not (fully) handled by _init_weights")

    def test_registered_in_auto_config(self):
        config = self.spec.config()
        self.assertIn(config.model_type, CONFIG_MAPPING)
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            self.assertIs(type(AutoConfig.from_pretrained(folder)), type(config))

    def test_reachable_through_auto_class(self):
        config = self.spec.config()
        configs = [type(c) for c in (config, *(getattr(config, name) for name in config.sub_configs))]
        for model_class in self.all_model_classes:
            found = []
            for auto in _auto_classes():
                for config_class in configs:
                    classes = auto._model_mapping.get(config_class, ())
                    if model_class in (classes if isinstance(classes, tuple) else (classes,)):
                        found.append(auto.__name__)
            self.assertNotEqual(found, [], f"{model_class.__name__} is not reachable through any AutoModel* class")

    def test_two_instances_same_seed(self):
        for model_class in self.all_model_classes:
            states = []
            for _ in range(2):
                torch.manual_seed(0)
                states.append(model_class(self.spec.config()).state_dict())
            different = [k for k in states[0] if not torch.equal(states[0][k], states[1][k])]
            self.assertEqual(different, [])

    def test_low_precision_forward(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            with tempfile.TemporaryDirectory() as folder:
                model_class(config).save_pretrained(folder)
                model = model_class.from_pretrained(folder, dtype=torch.bfloat16).eval()
            inputs = self._prepare_for_class(inputs, model_class)
            floats = {k for k, v in inputs.items() if torch.is_tensor(v) and v.is_floating_point()}
            with torch.no_grad():
                out = model(**{k: v.to(torch.bfloat16) if k in floats else v for k, v in inputs.items()})
            for name, value in out.items():
                if torch.is_tensor(value):
                    self.assertFalse(torch.isnan(value.float()).any(), name)

    def test_eager_matches_sdpa_in_every_output(self):
        """The common tests of the two attention implementations compare a single output."""
        for model_class in self.all_model_classes:
            if not model_class._supports_sdpa:
                self.skipTest(f"{model_class.__name__} does not support sdpa")
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = self._prepare_for_class(inputs, model_class)
            outputs = []
            for implementation in ("eager", "sdpa"):
                torch.manual_seed(0)
                model = model_class._from_config(copy.deepcopy(config), attn_implementation=implementation).eval()
                with torch.no_grad():
                    outputs.append(model(**inputs).to_tuple())
            torch.testing.assert_close(*([v for v in out if torch.is_tensor(v)] for out in outputs))

    def test_overfit(self):
        if self.spec.overfit is None:
            self.skipTest("the spec sets no overfit=")
        options = {"steps": 60, "lr": 3e-3, "ratio": 0.7, **self.spec.overfit}
        for model_class in self.all_model_classes:
            if model_class in self.spec.base_classes:
                continue
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            inputs = self._prepare_for_class(inputs, model_class, return_labels=True)
            model = model_class(config).train()
            optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=options["lr"])
            losses = []
            for _ in range(options["steps"]):
                optimizer.zero_grad()
                loss = model(**inputs).loss
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            self.assertLess(losses[-1], options["ratio"] * losses[0])


def _vision_get_set_embeddings(self):
    """Replaces the common test where the input embedding is a patch projection."""
    for model_class in self.all_model_classes:
        model = model_class(self.spec.config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
        output = model.get_output_embeddings()
        self.assertTrue(output is None or isinstance(output, torch.nn.Linear))


def _config_test(self):
    kwargs = {"config_class": type(self.spec.config()), **self.spec.config_tester}
    configuration_common.ConfigTester(self, **kwargs).run_common_tests()


def test_class(spec: ModelSpec) -> type[unittest.TestCase]:
    """Builds the test class of one model family."""
    bases: list[type] = [_ModelConformance, modeling_common.ModelTesterMixin]
    config = spec.config()
    main_inputs = {c.main_input_name for c in spec.model_classes}
    namespace: dict[str, Any] = {
        "spec": spec,
        "all_model_classes": tuple(spec.model_classes),
        "_is_composite": bool(config.sub_configs),
        # the eager-versus-sdpa tests feed the main input and these
        "additional_model_inputs": [k for k in spec.inputs(config, 1) if k not in main_inputs],
    }
    if spec.generate is not None:
        bases.append(GenerationTesterMixin)
    elif any(c.can_generate() for c in spec.model_classes):
        namespace["all_generative_model_classes"] = ()
    if spec.vision_embeddings:
        namespace["test_model_get_set_embeddings"] = _vision_get_set_embeddings
    if spec.config_tester is not None:
        namespace["test_config"] = _config_test
    return build_test_class("", (*bases, unittest.TestCase), spec, namespace)
