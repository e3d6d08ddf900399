# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""A thin `Trainer` for models whose labels are per image and region: (B, P, L) tokens or (B, P, h, w) masks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import EvalPrediction, ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..data.row_collator import RowCollator
from .layer_decay import layer_decay_parameter_groups, scaled_parameter_groups
from .muon import MuonAdamW, muon_parameter_groups

# Everything a model's `generate` takes of a batch; the rest are targets.
_TARGETS = ("input_ids", "attention_mask", "labels", "target_masks")
_IGNORE = -100


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch it is, so that its draws are the same after a resume."""

    def __init__(self, collator: RowCollator) -> None:
        self.collator = collator

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # counted here: of data without a length, `state.epoch` is a share of the steps
        self.collator.set_epoch(self.epoch)
        self.epoch += 1


class SegCapTrainer(Trainer):
    """`transformers.Trainer` with these additions: evaluation by generation for (B, P, L) labels, an evaluation collator
    of its own, an evaluation loss that is the mean over objects, a training collator whose draws survive a resume, two parts
    of SAM's recipe (layer-wise learning rates, a stepwise schedule), and Muon.

    With `compute_metrics`, evaluation passes it `predictions` (N, P, T) and `label_ids` (N, P, L), int64 token ids with
    -100 on padding (of tokens and of regions); [`decode_captions`] turns them into texts.

    Args:
        eval_collator: batches of `evaluate` and `predict`. Default: the evaluation rules of a [`RegionCollator`] or
            [`MaskCollator`] given as `data_collator`, else the same `data_collator`.
        predict_with_generate: write captions when predictions are asked for; otherwise (and for models that write none)
            they are the model's outputs.
        generation_kwargs: keyword arguments of the model's `generate`.
        max_caption_length: longest caption in tokens, of labels and predictions; arrays of predictions are padded to it.
        layer_decay: factor of the learning rate from each block of the image encoder to the one before it, see
            [`layer_decay_parameter_groups`]; `None`: one learning rate.
        lr_drop_steps: the learning rate warms up linearly, stays, and is divided by 10 at each of these steps; `None`: the
            schedule of `args`.
        muon_learning_rate: train the matrices of hidden layers with Muon at this rate, the rest with AdamW at that of
            `args`, see [`muon_parameter_groups`]; `None`: the optimizer of `args` for all.
        learning_rate_factors: of parameters by the beginning of their names, see [`scaled_parameter_groups`].

    Raises:
        ValueError: more than one of `layer_decay`, `muon_learning_rate` and `learning_rate_factors`; (in evaluation) a caption
            longer than `max_caption_length`.
    """

    def __init__(
        self,
        *args: Any,
        eval_collator: Callable | None = None,
        predict_with_generate: bool = True,
        generation_kwargs: dict[str, Any] | None = None,
        max_caption_length: int = 64,
        layer_decay: float | None = None,
        lr_drop_steps: Sequence[int] | None = None,
        muon_learning_rate: float | None = None,
        learning_rate_factors: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        processor = kwargs.get("processing_class")
        if isinstance(processor, ProcessorMixin) and getattr(processor, "tokenizer", None) is None:
            # Trainer takes special tokens from a processor, and fails where there is no tokenizer
            kwargs["processing_class"] = processor.image_processor
        super().__init__(*args, **kwargs)
        self.data_collator: Callable
        self.optimizer: Any
        self.lr_scheduler: Any
        # Rows have other columns than the model's forward has arguments: the collator needs them all.
        self.args.remove_unused_columns = False
        if self.args.label_names is None:
            # The default is every argument with "label" in its name, `point_labels` included.
            self.label_names = ["labels"]
        self._evaluated: list[torch.Tensor] = []  # of each batch: sum of the losses of its objects, their number
        self.predict_with_generate = predict_with_generate
        self.generation_kwargs = dict(generation_kwargs or {})
        self.max_caption_length = max_caption_length
        self.layer_decay = layer_decay
        self.lr_drop_steps = lr_drop_steps
        self.muon_learning_rate = muon_learning_rate
        self.learning_rate_factors = learning_rate_factors
        if sum(value is not None for value in (layer_decay, muon_learning_rate, learning_rate_factors)) > 1:
            raise ValueError(
                "layer_decay, muon_learning_rate and learning_rate_factors cannot be combined: give one of them"
            )
        self.eval_collator = eval_collator
        if isinstance(self.data_collator, RowCollator):
            self.eval_collator = eval_collator or self.data_collator.for_evaluation()
            self.add_callback(_EpochCallback(self.data_collator))

    def create_accelerator_and_postprocess(self) -> None:
        # Beyond the text mixer a step leaves parts unused (points in a batch of boxes, mask prompts): without gradients
        # they stop distributed training. Trainer does not look for them when activations are checkpointed.
        if self.args.ddp_find_unused_parameters is None and _trains_more_than_text_mixer(self.model):
            self.args.ddp_find_unused_parameters = True
        super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        model = self.model if model is None else model
        rate, weight_decay = self.args.learning_rate, self.args.weight_decay
        groups = None
        if self.optimizer is None and self.layer_decay is not None:
            groups = layer_decay_parameter_groups(model, rate, self.layer_decay, weight_decay)
        if self.optimizer is None and self.learning_rate_factors is not None:
            groups = scaled_parameter_groups(model, rate, self.learning_rate_factors, weight_decay)
        if groups is not None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        if self.optimizer is None and self.muon_learning_rate is not None:
            args = self.args
            groups = muon_parameter_groups(model, self.muon_learning_rate, rate, weight_decay)
            self.optimizer = MuonAdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
        return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None and self.lr_drop_steps is not None:
            drops, warmup = list(self.lr_drop_steps), self.args.get_warmup_steps(num_training_steps)

            def factor(step: int) -> float:
                return min(1.0, (step + 1) / max(warmup, 1)) * 0.1 ** sum(step >= drop for drop in drops)

            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`. Whoever evaluates first gets the same training: `Trainer` leaves the model marked as prepared,
        and several processes would each train a model of their own."""
        if self.model_wrapped is self.model:
            self.model._is_accelerate_prepared = False
            self.accelerator._models = [model for model in self.accelerator._models if model is not self.model]
        return super().train(*args, **kwargs)

    def end(self) -> None:
        """As `Trainer.end`: call it last. Beyond the process group it ends the threads of gloo, which live as long as the
        wrapped model: while they hold a tensor they abort a process that ends, be its training ever so successful."""
        # The model first: as the last one to hold the group it would wait for its threads without letting go of the
        # interpreter's lock, for which a thread may wait that still holds a tensor, so that neither ever ends.
        self.accelerator.free_memory()
        self.model_wrapped = self.model
        gc.collect()
        super().end()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = self.eval_collator or collator
        try:
            yield
        finally:
            self.data_collator = collator

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`, but the loss is the mean over objects, of captions over their tokens: `Trainer`
        counts each image as much, those without any object, whose loss is 0, as well."""
        self._evaluated = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._evaluated and output.metrics is not None:
            total, weight = self.accelerator.reduce(torch.stack(self._evaluated).sum(0)).tolist()
            output.metrics[f"{metric_key_prefix}_loss"] = total / weight if weight else float("nan")
        return output

    def _evaluation_weight(self, inputs: dict[str, Any]) -> int:
        """What the loss of a batch is the mean of: tokens of captions (B, P, L), else objects. Images that several processes
        see again to fill up their last batch do not count."""
        labels, state = inputs["labels"], self.accelerator.gradient_state
        count = len(labels)
        if self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0:
            count = min(max(state.remainder - self.accelerator.process_index * count, 0), count)
        if labels.dtype == torch.long:
            return int((labels[:count] != _IGNORE).sum())
        mask = inputs.get("prompt_mask")
        return count if mask is None else int(mask[:count].sum())

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Loss by a forward pass, predictions by `generate`: (B, P, T) and (B, P, L), -100 on padding.

        Without `prompt_mask` every region counts. Images are encoded once: `generate` gets the `image_embeddings` of the
        forward pass.
        """
        captioner: Any = self.accelerator.unwrap_model(self.model)
        generate = self.predict_with_generate and not prediction_loss_only and hasattr(captioner, "generate")
        with _seen_image_embeddings(captioner) as embeddings:
            loss, outputs, labels = super().prediction_step(
                model, inputs, prediction_loss_only=prediction_loss_only or generate, ignore_keys=ignore_keys
            )
        if loss is not None:
            weight = loss.new_tensor(float(self._evaluation_weight(inputs)))
            self._evaluated.append(torch.stack([loss.detach() * weight, weight]))
        if not generate:
            return loss, outputs, labels
        inputs = self._prepare_inputs(inputs)
        prompts = {name: value for name, value in inputs.items() if name not in _TARGETS}
        if len(embeddings) == 1 and "pixel_values" in prompts:
            del prompts["pixel_values"]
            prompts["image_embeddings"] = embeddings[0]
        with torch.no_grad(), self.compute_loss_context_manager():
            sequences = captioner.generate(**prompts, **self.generation_kwargs)
        if sequences.ndim == 4:  # several heads or returned sequences: the first
            sequences = sequences[:, :, 0]
        sequences = _mask_after_end(sequences, captioner.generation_config.eos_token_id)
        if inputs.get("prompt_mask") is not None:
            sequences = sequences.masked_fill(~inputs["prompt_mask"][..., None], _IGNORE)
        return loss, self._pad(sequences), self._pad(inputs["labels"]) if "labels" in inputs else None

    def _pad(self, ids: torch.Tensor) -> torch.Tensor:
        # Batches are concatenated by code that pads dimension 1 (regions) only.
        missing = self.max_caption_length - ids.shape[-1]
        if missing < 0:
            raise ValueError(
                f"a caption has {ids.shape[-1]} tokens, more than max_caption_length={self.max_caption_length}: "
                "raise it, or bound the captions (max_new_tokens in generation_kwargs)"
            )
        return F.pad(ids, (0, missing), value=_IGNORE)


def _trains_more_than_text_mixer(model: nn.Module | None) -> bool:
    mixer = tuple(getattr(model, "text_mixer_modules", ()))
    named = () if model is None else model.named_parameters()
    return any(parameter.requires_grad and not name.startswith(mixer) for name, parameter in named)


@contextmanager
def _seen_image_embeddings(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the `image_embeddings` of every forward pass: `Trainer` keeps outputs without their names."""
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, dict) and output.get("image_embeddings") is not None:
            seen.append(output["image_embeddings"])

    handle = model.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def _mask_after_end(ids: torch.Tensor, end: int | list[int] | None) -> torch.Tensor:
    """-100 on everything after the first end token: what is there is padding, whatever its id."""
    if end is None:
        return ids
    is_end = torch.isin(ids, torch.as_tensor(end, device=ids.device))
    after = is_end.long().cumsum(dim=-1) - is_end.long() > 0
    return ids.masked_fill(after, _IGNORE)


def decode_captions(processor: Any, ids: np.ndarray) -> list[list[str]]:
    """Token ids (N, P, T) with -100 on padding -> for every image the captions of its regions (padded regions, all
    -100, are left out)."""
    ids = np.asarray(ids)
    return processor.post_process_captions(ids, prompt_mask=(ids >= 0).any(axis=-1))


def caption_metrics(processor: Any) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for quick monitoring: the share of captions equal to their reference, and the mean F1 of their
    words. Not comparable with published caption metrics."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        candidates = sum(decode_captions(processor, prediction.predictions), [])
        references = sum(decode_captions(processor, prediction.label_ids), [])
        pairs = list(zip(candidates, references, strict=True))
        return {
            "exact_match": float(np.mean([a == b for a, b in pairs])) if pairs else float("nan"),
            "word_f1": float(np.mean([_word_f1(a.split(), b.split()) for a, b in pairs])) if pairs else float("nan"),
        }

    return compute


def _word_f1(candidate: list[str], reference: list[str]) -> float:
    common = len(set(candidate) & set(reference))
    return 2 * common / max(len(set(candidate)) + len(set(reference)), 1)
