# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Replacements of shipped tests that several specs need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from transformers import PreTrainedModel

from ..overlay import common_tests


def recorded(test: Any, model_class: type[PreTrainedModel], **flags: bool) -> tuple[Any, Any]:
    """The configuration of a test, and what a model with eager attention returns for its inputs."""
    config, batch = test.model_tester.prepare_config_and_inputs_for_common()
    model = model_class._from_config(config, attn_implementation="eager").eval()
    return config, model(**batch, **flags)


def retains_gradients(model_class: type[PreTrainedModel], result: str, *names: str) -> Callable[[Any], None]:
    """A test: gradients of `result` reach the first of each of the recorded tensors."""

    def test(self: Any) -> None:
        _, out = recorded(self, model_class, output_hidden_states=True, output_attentions=True)
        tensors = {name: out[name][0] for name in names}
        for tensor in tensors.values():
            tensor.retain_grad()
        out[result].sum().backward()
        self.assertEqual([name for name, tensor in tensors.items() if tensor.grad is None], [])

    return test


def reloads_behind_the_refusal(model_class: type[PreTrainedModel]) -> Callable[[Any], None]:
    """The shipped test of reloading for a class that refuses checkpoints without weights, with which that test works."""

    def test(self: Any) -> None:
        accept_all = classmethod(PreTrainedModel.from_pretrained.__func__)
        shipped = common_tests(
            "test_modeling_common"
        ).ModelTesterMixin.test_model_weights_reload_no_missing_tied_weights
        with mock.patch.object(model_class, "from_pretrained", accept_all):
            shipped(self)

    return test
