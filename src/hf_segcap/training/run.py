# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`hf-segcap train RECIPE`: one recipe -> one trained, saved model."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from ..data.sources import MixedRows, load_source
from ..files import atomic_path, by_number
from .features import FeatureCache
from .recipe import DTYPES, Recipe, SourceSection, changed_settings, dump_recipe, load_recipe
from .tasks import TASKS, Task
from .trainer import SegCapTrainer

logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"  # in the folder of the results
_ROWS_LOOKED_AT = 64


def train(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    output: str | Path = "output",
    resume: bool = False,
) -> dict[str, float]:
    """Trains what a recipe describes and saves model, processor and the complete recipe in `output`.

    Works under `torchrun`; end such a script with [`leave_process_group`]. With LoRA, `output` holds the merged model and
    `output/adapter` the adapter.

    Args:
        recipe: a YAML file, the name of a bundled recipe, or its content.
        overrides: "section.key=value".
        output: folder; checkpoints go there as well.
        resume: continue from the last complete checkpoint in `output` (from the start if the folder holds none yet), with
            the recipe it was begun with: only how long to train, and how to save, log, evaluate and load may change.

    Returns:
        metrics of the training and, with evaluation data, of the final evaluation.

    Raises:
        ValueError: an unusable recipe; data without anything that the task trains on; `output` holds checkpoints of an earlier
            run and `resume` is False, or those of another recipe; `output` holds a model and no checkpoint.
    """
    parsed = load_recipe(recipe, overrides)
    output = Path(output)
    checkpoint = _last_checkpoint(output)
    if checkpoint and not resume:
        raise ValueError(f"{output} holds checkpoints of an earlier run: resume it (--resume) or name another folder")
    if checkpoint and (output / RECIPE_FILE).exists():
        _check_recipe(parsed, output / RECIPE_FILE)
    model_files = [name for name in (CONFIG_NAME, SAFE_WEIGHTS_NAME) if (output / name).exists()]
    if model_files and not checkpoint:
        wish = "nothing to resume" if resume else "it would be overwritten"
        raise ValueError(
            f"{output} holds a model already ({model_files[0]}) and no checkpoint, {wish}: name another folder"
        )

    set_seed(parsed.seed)
    arguments = _training_arguments(parsed, output)
    train_rows = _load_rows(parsed.data.train, parsed.seed)
    eval_rows = _evaluation_rows(parsed)
    task = TASKS[parsed.task]
    _check_rows(task, train_rows)
    model, processor = build_model(parsed, train_rows)
    trained = _with_lora(model, parsed)

    features = None
    if parsed.frozen_features:
        features = _build_features(parsed, model, processor, [train_rows, eval_rows], arguments)
    factor = parsed.new_layers_factor
    trainer = SegCapTrainer(
        model=trained,
        args=arguments,
        data_collator=task.collator(parsed, model, processor, features, train_rows),
        processing_class=processor,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        compute_metrics=None if eval_rows is None else task.metrics(parsed, processor),
        layer_decay=parsed.layer_decay,
        lr_drop_steps=parsed.lr_drop_steps,
        muon_learning_rate=parsed.muon_learning_rate,
        learning_rate_factors=None if factor is None else dict.fromkeys(model.new_modules, float(factor)),
    )
    if trainer.is_world_process_zero():
        with atomic_path(output / RECIPE_FILE) as temporary:
            temporary.write_text(dump_recipe(parsed), encoding="utf-8")
    metrics = dict(trainer.train(resume_from_checkpoint=checkpoint).metrics)
    if eval_rows is not None:
        metrics |= trainer.evaluate()
    if trainer.is_world_process_zero():
        _save(parsed, trained, processor, output)
        trainer.log_metrics("final", metrics)
        trainer.save_metrics("final", metrics, combined=False)
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()  # until the model is there
    return metrics


def leave_process_group() -> None:
    """Ends what `torchrun` began, as the last thing a script does after [`train`]: see [`SegCapTrainer.end`]."""
    gc.collect()  # wrapped models, which hold the group
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _last_checkpoint(output: Path) -> str | None:
    """The newest checkpoint that is complete: one that was being written when the run was killed lacks its last file."""
    folders = [
        folder for folder in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.name.rpartition("-")[2].isdecimal()
    ]
    for folder in sorted(folders, key=by_number, reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning(f"{folder} is incomplete and left out: the run was killed while it wrote this checkpoint")
        else:
            return str(folder)
    return None


def _check_recipe(recipe: Recipe, file: Path) -> None:
    changed = changed_settings(load_recipe(file), recipe)
    if changed:
        raise ValueError(
            f"{file.parent} holds checkpoints of a run with another recipe ({', '.join(changed)} in {file.name}): resume "
            f"with the same one, or name another folder (if only paths or machine changed: correct them in {file.name} there)"
        )


def _check_rows(task: Task, rows: Any) -> None:
    """A batch without anything to train on has a loss of zero: a whole run of them would pass for a training."""
    first = min(len(rows), _ROWS_LOOKED_AT)
    if not any(task.can_train(region) for index in range(first) for region in rows[index]["regions"]):
        raise ValueError(
            f"data: train: none of the first {first} rows has a region with {task.needs}: nothing to train on"
        )


def build_model(recipe: Recipe, train_rows: Any) -> tuple[Any, Any]:
    """Model (policy of `freeze` and `trained` applied, without LoRA) and processor of a recipe.

    Args:
        recipe: see [`Recipe`].
        train_rows: the data whose captions a new tokenizer is learnt from.
    """
    model, processor = TASKS[recipe.task].build(recipe, train_rows)
    if recipe.lora is None:
        model.freeze_for(recipe.freeze)
    if recipe.trained is not None:
        _train_only(model, recipe.trained)
    return model, processor


def _train_only(model: torch.nn.Module, names: Sequence[str]) -> None:
    known = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    useless = [name for name in names if not any(parameter.startswith(name) for parameter in known)]
    if useless or not names:
        raise ValueError(f"trained: no parameter that freeze leaves begins with {useless or 'any of an empty list'}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith(tuple(names)))


def _with_lora(model: Any, recipe: Recipe) -> Any:
    if recipe.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    # What is trained besides LoRA is saved with the adapter.
    config = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules or model.lora_target_modules,
        modules_to_save=TASKS[recipe.task].trained_with_lora(model),
    )
    wrapped = get_peft_model(model, config)
    model.freeze_for(recipe.freeze)
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # the copy from before the training, which `modules_to_save` keeps
            parameter.requires_grad_(False)
    return wrapped


def _save(recipe: Recipe, trained: Any, processor: Any, output: Path) -> None:
    if recipe.lora is not None:
        trained.save_pretrained(output / "adapter")
        trained = trained.merge_and_unload()
    if recipe.save_dtype:
        trained = trained.to(DTYPES[recipe.save_dtype])
    trained.save_pretrained(output)
    if recipe.save_dtype:  # stored in save_dtype, loaded in the dtype of the training
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = recipe.model.dtype
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    processor.save_pretrained(output)


def _training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    options = {"report_to": "none", **recipe.training}
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        options.pop("ddp_backend", None)  # asks for a process group even where one process trains
    return TrainingArguments(
        output_dir=str(output), seed=recipe.seed, remove_unused_columns=False, label_names=["labels"], **options
    )


def _load_rows(sources: Sequence[SourceSection], seed: int) -> Any:
    loaded = [load_source(section.source, **section.args) for section in sources]
    if len(loaded) == 1:
        return loaded[0]
    return MixedRows(loaded, [float(section.weight) for section in sources], seed)


def _evaluation_rows(recipe: Recipe) -> Any:
    """All evaluation sources one after the other, cut to the first `max_rows` of each."""
    limit = recipe.evaluation.max_rows
    rows: list[Dataset] = []
    for section in recipe.data.eval:
        source = load_source(section.source, **section.args)
        rows.append(source if limit is None or len(source) <= limit else Subset(source, range(limit)))
    if len(rows) > 1:
        return ConcatDataset(rows)
    return rows[0] if rows else None


def _build_features(
    recipe: Recipe, model: Any, processor: Any, data: Sequence[Any], arguments: TrainingArguments
) -> FeatureCache:
    if recipe.freeze == "all":
        raise ValueError('frozen_features needs a frozen image encoder, but freeze is "all"')
    directory = Path(str(recipe.frozen_features))
    model.to(arguments.device)
    for rows in data:
        if rows is not None:
            FeatureCache.build(
                model,
                processor,
                rows,
                directory,
                batch_size=arguments.per_device_eval_batch_size,
                process_index=arguments.process_index,
                num_processes=arguments.world_size,
            )
    if arguments.world_size > 1:
        torch.distributed.barrier()
    return FeatureCache.open(model, processor, directory)
