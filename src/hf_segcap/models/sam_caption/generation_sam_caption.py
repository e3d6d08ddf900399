# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Caption generation: one decoding batch for all regions of all images."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from ..sam.prompt_rows import PromptRows

DEFAULT_MAX_NEW_TOKENS = 19  # the official max_length of 20 counts a begin token that is never fed
_TRAINING_INPUTS = ("labels", "input_ids", "attention_mask", "target_masks")


@dataclass
class SamCaptionGenerateOutput(ModelOutput):
    """
    Args:
        sequences (`torch.LongTensor` of shape `(B, P, T)`): new tokens, padded at the end with the pad id. With several
            heads `(B, P, H, T)`, with `num_return_sequences=N > 1` an axis N before the last.
        sequences_scores (`torch.FloatTensor`, shape of `sequences` without T): beam scores.
        scores, logits (`tuple` of T tensors `(rows, V)`): per step, if asked for; rows are the prompts that are not
            padding (times heads and beams). A chunk that ended earlier (`prompts_per_batch`) adds zeros.
        pred_masks (`torch.FloatTensor` of shape `(B, P, 3 or 1, 4g, 4g)`): low-resolution mask logits.
        iou_scores (`torch.FloatTensor` of shape `(B, P, 3 or 1)`): predicted IoU of these masks.
        language_model_inputs (`torch.FloatTensor` of shape `(B, P, H, T + Q, D)`): the prefix.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    pred_masks: Tensor | None = None
    iou_scores: Tensor | None = None
    language_model_inputs: Tensor | None = None


class SamCaptionGenerationMixin:
    """`generate` of `SamCaptionForRegionCaptioning`."""

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_masks: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        task: str | list[str] | Tensor | None = None,
        multimask_output: bool = True,
        prompts_per_batch: int | None = None,
        output_masks: bool = True,
        generation_config: GenerationConfig | None = None,
        **kwargs,
    ) -> Tensor | SamCaptionGenerateOutput:
        """Captions for all prompts.

        Args:
            pixel_values, ..., multimask_output: as in `forward`. Training inputs (labels, ...) are ignored.
            prompts_per_batch: at most so many prompts are decoded together. Bounds memory; greedy and beam results
                do not change. Default: all.
            output_masks: False leaves `pred_masks` out of a dict output (scores stay), which saves their computation.
            generation_config, **kwargs: anything `transformers` generation takes (num_beams, do_sample,
                num_return_sequences, max_new_tokens, logits_processor, stopping_criteria, streamer for a single
                prompt, return_dict_in_generate, ...). Without a length, 19 new tokens.

        Returns:
            New tokens (B, P, T), see `SamCaptionGenerateOutput.sequences`; or that output with
            `return_dict_in_generate=True`.
        """
        for name in _TRAINING_INPUTS:
            kwargs.pop(name, None)
        if prompts_per_batch is not None and prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, got {prompts_per_batch}.")
        image_embeddings, _ = self.encode_or_reuse(pixel_values, image_embeddings)
        rows = PromptRows.from_inputs(
            len(image_embeddings),
            input_boxes=input_boxes,
            input_points=input_points,
            point_labels=point_labels,
            input_masks=input_masks,
            prompt_mask=prompt_mask,
        )
        task_index = self.task_index(task, len(image_embeddings))
        config, kwargs = self._generation_settings(generation_config, kwargs)
        as_dict = bool(config.return_dict_in_generate)

        parts = []
        for index in torch.arange(len(rows), device=rows.image_index.device).split(prompts_per_batch or len(rows)):
            part = rows.select(index)
            features = self.region_features(
                image_embeddings, part, multimask_output, output_masks=output_masks and as_dict
            )
            prefix = self.prefix(features.caption_queries, task_index[part.image_index])
            embeds = prefix.flatten(0, 1)
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            output = self.language_model.generate(
                inputs_embeds=embeds, attention_mask=mask, generation_config=config, **kwargs
            )
            parts.append((features, prefix, output))
        return self._collect(rows, parts, config)

    def _generation_settings(self, given: GenerationConfig | None, kwargs: dict) -> tuple[GenerationConfig, dict]:
        """One configuration from the saved one, a given one and keyword arguments, and the arguments that are no part of it."""
        # the inner model fills unset values from its own configuration
        self.language_model.generation_config = self.generation_config
        config = copy.deepcopy(self.generation_config)
        for changes in (given.to_diff_dict() if given is not None else {}, kwargs):
            if changes.get("max_length") is not None and changes.get("max_new_tokens") is None:
                config.max_new_tokens = None
            kwargs = config.update(**changes)
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        return config, kwargs

    def _collect(self, rows: PromptRows, parts: list, config: GenerationConfig):
        features, prefixes, outputs = zip(*parts)
        as_dict = config.return_dict_in_generate
        num_returned = config.num_return_sequences or 1
        num_heads = prefixes[0].shape[1]
        pad_id = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
        pad_id = pad_id[0] if isinstance(pad_id, list) else (pad_id or 0)

        def per_prompt(values: Tensor) -> Tensor:
            """(R * H * N, ...) -> (R, [H,] [N,] ...)."""
            axes = [-1, *([num_heads] if num_heads > 1 else []), *([num_returned] if num_returned > 1 else [])]
            return values.unflatten(0, axes)

        chunks = [output.sequences if as_dict else output for output in outputs]
        length = max(chunk.shape[1] for chunk in chunks)
        chunks = [torch.nn.functional.pad(chunk, (0, length - chunk.shape[1]), value=pad_id) for chunk in chunks]
        sequences = rows.scatter(per_prompt(torch.cat(chunks)), fill=pad_id)
        if not as_dict:
            return sequences
        beam_scores: list[Any] = [getattr(output, "sequences_scores", None) for output in outputs]
        return SamCaptionGenerateOutput(
            sequences=sequences,
            sequences_scores=None if beam_scores[0] is None else rows.scatter(per_prompt(torch.cat(beam_scores))),
            scores=_concatenate_steps([output.scores for output in outputs]),
            logits=_concatenate_steps([output.logits for output in outputs]),
            pred_masks=rows.scatter(torch.cat([f.pred_masks for f in features]))
            if features[0].pred_masks is not None
            else None,
            iou_scores=rows.scatter(torch.cat([f.iou_scores for f in features])),
            language_model_inputs=rows.scatter(torch.cat(prefixes)),
        )


def _concatenate_steps(parts: list) -> tuple[Tensor, ...] | None:
    """Joins the per-step tensors (rows, V) of chunks along the rows; chunks that ended earlier get zeros."""
    if parts[0] is None:
        return None
    steps = max(len(part) for part in parts)
    return tuple(
        torch.cat([part[i] if i < len(part) else torch.zeros_like(part[0]) for part in parts]) for i in range(steps)
    )
