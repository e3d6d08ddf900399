# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A compact stand-in for transformers' `GenerationTesterMixin`, which the sdist does not ship.

The same hooks, own tests. They suit models whose `generate()` takes no `input_ids` at all (prefix-embedding captioners)
and whose sequences have any number of leading dimensions, e.g. (images, prompts, tokens).
"""

from __future__ import annotations

import tempfile

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList


class _ForceToken(LogitsProcessor):
    token = 3

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.token] = 0
        return forced


class _StopAtOnce(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _rows(sequences: torch.Tensor) -> torch.Tensor:
    return sequences.reshape(-1, sequences.shape[-1])


class GenerationTesterMixin:
    """Mixed into a `ModelTesterMixin` class that defines `all_generative_model_classes`."""

    max_new_tokens = 3

    def prepare_config_and_inputs_for_generate(self, batch_size=2):
        return self.model_tester.prepare_config_and_inputs_for_generate(batch_size)

    def _models(self, batch_size=2):
        for model_class in self.all_generative_model_classes:
            torch.manual_seed(0)
            config, inputs = self.prepare_config_and_inputs_for_generate(batch_size)
            model = model_class(config).eval()
            # never stop early: lengths become predictable
            model.generation_config.eos_token_id = None
            model.generation_config.forced_eos_token_id = None
            if model.generation_config.pad_token_id is None:
                model.generation_config.pad_token_id = 0
            yield model, inputs

    def _generate(self, model, inputs, **kwargs):
        """Runs generate on copies of the inputs with a fixed seed."""
        torch.manual_seed(1)
        inputs = {k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()}
        with torch.no_grad():
            return model.generate(**inputs, **{"max_new_tokens": self.max_new_tokens, **kwargs})

    def _sequences(self, model, inputs, **kwargs):
        return _rows(self._generate(model, inputs, **kwargs))

    def test_greedy_generate(self):
        for model, inputs in self._models():
            first, second = (self._sequences(model, inputs, do_sample=False) for _ in range(2))
            self.assertEqual(first.dtype, torch.long)
            self.assertTrue(torch.equal(first, second))
            short = self._sequences(model, inputs, do_sample=False, max_new_tokens=1)
            self.assertEqual(first.shape[-1] - short.shape[-1], self.max_new_tokens - 1)

    def test_greedy_generate_dict_outputs(self):
        for model, inputs in self._models():
            out = self._generate(
                model, inputs, do_sample=False, return_dict_in_generate=True, output_scores=True, output_logits=True
            )
            sequences = _rows(out.sequences)
            self.assertEqual(len(out.scores), self.max_new_tokens)
            self.assertEqual(len(out.logits), self.max_new_tokens)
            self.assertFalse(torch.isnan(torch.stack(out.logits)).any())
            for step, scores in enumerate(out.scores):
                best = scores.reshape(-1, scores.shape[-1]).argmax(-1)
                self.assertTrue(torch.equal(best, sequences[:, step - self.max_new_tokens]))

    def test_sample_generate(self):
        for model, inputs in self._models():
            first, second = (self._sequences(model, inputs, do_sample=True, top_k=3) for _ in range(2))
            self.assertTrue(torch.equal(first, second), "sampling with the same seed must repeat")

    def test_beam_search_generate(self):
        for model, inputs in self._models():
            one = self._sequences(model, inputs, do_sample=False, num_beams=2)
            two = self._sequences(model, inputs, do_sample=False, num_beams=2, num_return_sequences=2)
            self.assertEqual(two.shape[0], 2 * one.shape[0])
            self.assertTrue(torch.equal(two[::2, : one.shape[1]], one))

    def test_generate_batch_equivalence(self):
        for model, inputs in self._models(2):
            both = self._sequences(model, inputs, do_sample=False)
            single = {k: v[:1] if torch.is_tensor(v) and v.shape[0] == 2 else v for k, v in inputs.items()}
            first = self._sequences(model, single, do_sample=False)
            self.assertEqual(both[: both.shape[0] // 2].tolist(), first.tolist())

    def test_generation_config_round_trip(self):
        for model, inputs in self._models():
            model.generation_config.max_new_tokens = 2
            expected = model.generate(**inputs, do_sample=False)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                again = type(model).from_pretrained(folder).eval()
            self.assertEqual(again.generation_config.max_new_tokens, 2)
            got = again.generate(**inputs, do_sample=False)
            self.assertTrue(torch.equal(expected, got), "the saved generation_config must drive generate() on reload")

    def test_generate_logits_processor(self):
        for model, inputs in self._models():
            forced = LogitsProcessorList([_ForceToken()])
            out = self._sequences(model, inputs, do_sample=False, logits_processor=forced)
            self.assertTrue((out[:, -self.max_new_tokens :] == _ForceToken.token).all())

    def test_generate_stopping_criteria(self):
        for model, inputs in self._models():
            full = self._sequences(model, inputs, do_sample=False)
            stop = StoppingCriteriaList([_StopAtOnce()])
            short = self._sequences(model, inputs, do_sample=False, stopping_criteria=stop)
            self.assertEqual(full.shape[1] - short.shape[1], self.max_new_tokens - 1)

    def test_generate_rejects_typos(self):
        for model, inputs in self._models():
            with self.assertRaises((ValueError, TypeError)):
                self._generate(model, inputs, do_sample=False, definitely_not_an_argument=torch.ones(1))

    def test_generate_static_cache(self):
        for model, inputs in self._models():
            if not getattr(model, "_can_compile_fullgraph", False):
                self.skipTest("the model does not claim static-cache support (_can_compile_fullgraph)")
            dynamic = self._sequences(model, inputs, do_sample=False)
            static = self._sequences(
                model, inputs, do_sample=False, cache_implementation="static", disable_compile=True
            )
            self.assertTrue(torch.equal(dynamic, static))
