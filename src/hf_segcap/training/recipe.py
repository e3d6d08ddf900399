# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Training recipes: YAML files read into checked dataclasses."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments

RECIPES = Path(__file__).parent / "recipes"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@strict
@dataclass(kw_only=True)
class ModelSection:
    """Where the model comes from: exactly one of `from_pretrained`, `from_sam` (with `language_model`), `config`.

    Attributes:
        from_pretrained: folder or Hub id of a checkpoint: SamCaption, (promptable-segmentation) any SAM, (image-matting) ZIM.
        from_sam: region-captioning, image-matting: folder or Hub id of a SAM checkpoint to start a new training from;
            image-matting: "bundled" is the segmenter that comes with this package.
        language_model: folder or Hub id of any causal language model, with `from_sam`.
        from_hiera: matte-conversion: folder or Hub id of a Hiera checkpoint to start a new training from.
        config: fields of the model's configuration for a model from scratch; fields to change with `from_sam` and, except
            for region-captioning, with `from_pretrained`.
        double_decoder, insert_layers: promptable-segmentation: let the model of `from_pretrained` grow, see
            `hf_segcap.models.sam.grow`; the numbers of the new layers, inserted one after the other.
        dtype: of the weights, "float32" or "bfloat16", whatever the checkpoint has. Mixed precision is `training: fp16`.
    """

    from_pretrained: str | None = None
    from_sam: str | None = None
    language_model: str | None = None
    from_hiera: str | None = None
    config: dict | None = None
    double_decoder: bool = False
    insert_layers: list[int] = field(default_factory=list)
    dtype: str = "float32"


@strict
@dataclass(kw_only=True)
class TokenizerSection:
    """`from_pretrained` (default: the one of the language model), or `train` ("word" or "bpe") on the captions."""

    from_pretrained: str | None = None
    train: str | None = None
    vocab_size: int = 1000


@strict
@dataclass(kw_only=True)
class SourceSection:
    """One data source: its name in `hf_segcap.data.sources`, its arguments, its weight in the mixture."""

    source: str
    args: dict = field(default_factory=dict)
    weight: float | int = 1.0


@strict
@dataclass(kw_only=True)
class DataSection:
    train: list[SourceSection]
    eval: list[SourceSection] = field(default_factory=list)


@strict
@dataclass(kw_only=True)
class LoraSection:
    """LoRA on the language model (promptable-segmentation, image-matting: on the image encoder); `target_modules` defaults
    to the model's `lora_target_modules`."""

    r: int = 8
    alpha: int = 16
    dropout: float | int = 0.0
    target_modules: str | list[str] | None = None


@strict
@dataclass(kw_only=True)
class CollatorSection:
    """Of region-captioning: arguments of `RegionCollator`."""

    max_regions: int | None = 16
    with_masks: bool = False
    prompt_kinds: dict[str, float | int] | None = None
    task: str = "caption"


@strict
@dataclass(kw_only=True)
class MaskCollatorSection:
    """Of promptable-segmentation: arguments of `MaskCollator`."""

    max_masks: int | None = 64
    prompts_per_mask: int = 1
    label_size: int | None = None
    max_area: float | int = 0.9
    min_area: int = 1
    prompt_kinds: dict[str, float | int] | None = None
    box_noise: str = "normal"
    tight_boxes: float | int = 0.0


@strict
@dataclass(kw_only=True)
class MatteCollatorSection:
    """Of image-matting: arguments of `MatteCollator`."""

    max_mattes: int | None = 16
    label_size: int | None = None
    max_area: float | int = 0.95
    min_area: int = 4
    prompt_kinds: dict[str, float | int] | None = None
    box_jitter: float | int = 0.1
    positives: list[int] = field(default_factory=lambda: [1, 8])
    negatives: list[int] = field(default_factory=lambda: [0, 4])


@strict
@dataclass(kw_only=True)
class LabelCollatorSection:
    """Of matte-conversion: arguments of `LabelCollator`."""

    max_masks: int | None = 1
    sga_probability: float | int = 0.5
    max_area: float | int = 0.95
    min_area: int = 16


@strict
@dataclass(kw_only=True)
class TextSection:
    """Text prompts for promptable-segmentation (SAM, section 7.5).

    Attributes:
        clip: folder or Hub id of a CLIP model.
        min_area, zero_background, noise: arguments of `MaskCropEmbedder`.
        centre: subtract the mean embedding of images (of masks of the data) and of texts (of its phrases).
        memory_scale: train with what CLIP would say of a mask in the words of the data's phrases: `memory_scale` of
            `MaskCropEmbedder`; `None`: with the embedding of the crop itself, as SAM.
    """

    clip: str
    min_area: int = 10000
    zero_background: float | int = 0.5
    noise: float | int = 0.0
    centre: bool = False
    memory_scale: float | int | None = None


@strict
@dataclass(kw_only=True)
class JitterSection:
    min_scale: float | int = 0.1
    max_scale: float | int = 2.0
    flip_probability: float | int = 0.5


@strict
@dataclass(kw_only=True)
class EvaluationSection:
    """`max_rows` bounds the evaluation set (first rows); `generate` writes captions, not only the loss."""

    max_rows: int | None = 800
    generate: bool = True


@strict
@dataclass(kw_only=True)
class Recipe:
    """A complete training run.

    Attributes:
        task: "region-captioning", "promptable-segmentation", "image-matting" or "matte-conversion" (ZIM's label converter).
        model, tokenizer, data, collator, text, evaluation: sections, see their classes.
        freeze: what is trained, a policy of the model's `freeze_for`. Region-captioning: "text_mixer" (the paper, default),
            "text_mixer+lora" or "all"; the other tasks: "all" (the papers, default), "decoder" or "decoder+lora".
        trained: beginnings of the names of parameters: of what `freeze` leaves, only these are trained; absent: all of it.
        lora: with a policy that has "+lora".
        large_scale_jitter: the augmentation of the paper, or absent.
        frozen_features: region-captioning: folder of the feature cache: each image is encoded once; not together with the
            jitter.
        layer_decay: factor of the learning rate from each block of the image encoder to the one before it, or absent.
        muon_learning_rate: matrices of hidden layers are trained by Muon at this rate, the rest by AdamW at that of
            `training`; absent: one optimizer. Not together with layer_decay.
        new_layers_factor: image-matting: how many times as high the learning rate of the layers is that SAM does not have;
            absent: the same. Not together with layer_decay or muon_learning_rate.
        lr_drop_steps: steps at which the learning rate is divided by 10; after the warm-up it is constant otherwise.
        training: keyword arguments of `transformers.TrainingArguments`.
        generation: region-captioning: keyword arguments of the saved `GenerationConfig`, also used in the evaluation.
        save_dtype: of the saved weights (default: as trained).
        seed: of everything.
    """

    model: ModelSection
    data: DataSection
    task: str = "region-captioning"
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    text: TextSection | None = None
    freeze: str | None = None
    trained: list[str] | None = None
    lora: LoraSection | None = None
    collator: CollatorSection | MaskCollatorSection | MatteCollatorSection | LabelCollatorSection | None = None
    large_scale_jitter: JitterSection | None = None
    frozen_features: str | None = None
    layer_decay: float | int | None = None
    muon_learning_rate: float | int | None = None
    new_layers_factor: float | int | None = None
    lr_drop_steps: list[int] | None = None
    training: dict = field(default_factory=dict)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    generation: dict = field(default_factory=dict)
    save_dtype: str | None = None
    seed: int = 42

    # TrainingArguments that the recipe sets in other ways.
    reserved_arguments: ClassVar[tuple[str, ...]] = ("output_dir", "seed", "remove_unused_columns", "label_names")

    def __post_init__(self) -> None:
        rules = _rules(self.task)
        if self.freeze is None:
            self.freeze = rules.freeze
        if self.collator is None:
            self.collator = rules.collator()
        if not isinstance(self.collator, rules.collator):
            raise ValueError(f"collator: {self.task} takes a {rules.collator.__name__}")
        for name in (self.model.dtype, self.save_dtype):
            if name is not None and name not in DTYPES:
                raise ValueError(f"unknown dtype {name!r}, expected one of {sorted(DTYPES)}")
        if self.model.dtype == "float16":
            raise ValueError(
                "model: dtype: float16 weights cannot be trained (small updates are rounded away), use float32, and "
                "training: fp16: true for mixed precision"
            )
        if self.model.from_hiera and self.task != "matte-conversion":
            raise ValueError("model: from_hiera is for matte-conversion, remove it")
        grows = self.model.double_decoder or self.model.insert_layers
        if grows and (self.task != "promptable-segmentation" or not self.model.from_pretrained):
            raise ValueError(
                "model: double_decoder and insert_layers are for promptable-segmentation with from_pretrained, remove them"
            )
        rules.check(self)
        if self.trained is not None and self.lora is not None:
            raise ValueError("trained and lora both choose what is trained: give one of them")
        if self.freeze.endswith("+lora") != (self.lora is not None):
            raise ValueError(f'lora goes with freeze: "{rules.lora}", got freeze: {self.freeze!r}, lora: {self.lora}')
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.muon_learning_rate is not None:
            if self.muon_learning_rate <= 0:
                raise ValueError(f"muon_learning_rate must be above 0, got {self.muon_learning_rate}")
            if self.layer_decay is not None or "optim" in self.training:
                raise ValueError("muon_learning_rate cannot be combined with layer_decay or training: optim")
        if self.new_layers_factor is not None:
            if self.new_layers_factor <= 0 or self.task != "image-matting":
                raise ValueError("new_layers_factor is for image-matting, and must be above 0")
            if self.layer_decay is not None or self.muon_learning_rate is not None:
                raise ValueError("new_layers_factor cannot be combined with layer_decay or muon_learning_rate")
        if self.lr_drop_steps is not None and "lr_scheduler_type" in self.training:
            raise ValueError("lr_drop_steps is a schedule of its own: remove training: lr_scheduler_type")
        if not self.data.train:
            raise ValueError("data: train is empty, expected at least one source")
        allowed = {f.name for f in dataclasses.fields(TrainingArguments) if f.init} - set(self.reserved_arguments)
        _refuse_unknown(self.training, allowed, "training")


def _check_captioning(recipe: Recipe) -> None:
    model, tokenizer = recipe.model, recipe.tokenizer
    given = [name for name in ("from_pretrained", "from_sam") if getattr(model, name)]
    if len(given) > 1 or (not given and not model.config):
        raise ValueError(f"model: expected one of from_pretrained, from_sam, config, got {given or 'none'}")
    if bool(model.from_sam) != bool(model.language_model):
        raise ValueError("model: from_sam and language_model are given together or not at all")
    if model.from_pretrained and model.config:
        raise ValueError("model: config cannot be changed with from_pretrained, remove it")
    if tokenizer.train and (tokenizer.from_pretrained or given):
        raise ValueError("tokenizer: train is for models from scratch (model: config), without from_pretrained")
    if not given and not (tokenizer.train or tokenizer.from_pretrained):
        raise ValueError("tokenizer: a model from scratch needs train or from_pretrained")
    if recipe.large_scale_jitter and recipe.frozen_features:
        raise ValueError(
            "large_scale_jitter changes every image, so frozen_features (each image encoded once) cannot be used "
            "with it: remove one of them"
        )
    if recipe.text is not None:
        raise ValueError("text: is for promptable-segmentation, remove it")


def _check_segmentation(recipe: Recipe) -> None:
    if recipe.model.from_sam or recipe.model.language_model:
        raise ValueError(
            "model: promptable-segmentation starts from from_pretrained (any SAM checkpoint) or from config"
        )
    if not recipe.model.from_pretrained and not recipe.model.config:
        raise ValueError("model: expected one of from_pretrained, config, got none")
    if recipe.tokenizer != TokenizerSection():
        raise ValueError("tokenizer: promptable-segmentation takes the one of the CLIP model (text: clip), remove it")
    if recipe.frozen_features or recipe.generation:
        raise ValueError("frozen_features and generation are for region-captioning, remove them")


def _check_matting(recipe: Recipe) -> None:
    model = recipe.model
    given = [name for name in ("from_pretrained", "from_sam") if getattr(model, name)]
    if len(given) > 1 or (not given and not model.config):
        raise ValueError(f"model: expected one of from_pretrained, from_sam, config, got {given or 'none'}")
    if model.language_model or recipe.tokenizer != TokenizerSection() or recipe.text is not None:
        raise ValueError("image-matting reads no words: remove model: language_model, tokenizer and text")
    if recipe.frozen_features or recipe.generation:
        raise ValueError("frozen_features and generation are for region-captioning, remove them")


def _check_conversion(recipe: Recipe) -> None:
    model = recipe.model
    given = [name for name in ("from_pretrained", "from_hiera") if getattr(model, name)]
    if len(given) > 1 or (not given and not model.config):
        raise ValueError(f"model: expected one of from_pretrained, from_hiera, config, got {given or 'none'}")
    if model.from_sam or model.language_model or recipe.tokenizer != TokenizerSection() or recipe.text is not None:
        raise ValueError(
            "matte-conversion knows neither SAM nor words: remove model: from_sam, language_model, tokenizer and text"
        )
    if recipe.frozen_features or recipe.generation:
        raise ValueError("frozen_features and generation are for region-captioning, remove them")
    if recipe.layer_decay is not None:
        raise ValueError("layer_decay needs a SAM image encoder, remove it")


@dataclass(frozen=True)
class _Rules:
    """What a task does with the sections: its collator's, its default policy, the one with LoRA, its checks."""

    collator: type
    freeze: str
    lora: str
    check: Callable[[Recipe], None]


_TASKS = {
    "region-captioning": _Rules(CollatorSection, "text_mixer", "text_mixer+lora", _check_captioning),
    "promptable-segmentation": _Rules(MaskCollatorSection, "all", "decoder+lora", _check_segmentation),
    "image-matting": _Rules(MatteCollatorSection, "all", "decoder+lora", _check_matting),
    "matte-conversion": _Rules(LabelCollatorSection, "all", "decoder+lora", _check_conversion),
}


def _rules(task: Any) -> _Rules:
    if task not in _TASKS:
        raise ValueError(f"task: unknown task {task!r}, expected one of {sorted(_TASKS)}")
    return _TASKS[task]


# What a resumed run may be told anew: how long to train, and what changes no weights.
_MAY_CHANGE = (
    "evaluation",
    "data.eval",
    "save_dtype",
    *(
        f"training.{name}"
        for name in (
            "max_steps",
            "num_train_epochs",
            "save_",
            "eval_",
            "logging_",
            "per_device_eval_batch_size",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "disable_tqdm",
            "report_to",
            "run_name",
        )
    ),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 4e-4 as a text; people mean the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: a YAML file, the name of a bundled recipe ("region_captioning_default"), or the content as a mapping.
        overrides: "section.key=value", the value in YAML; sections are made where they are missing, list items are
            numbered: "data.train.0.args.n=100".

    Raises:
        ValueError: unreadable file, unknown key (the message names it and the allowed ones), wrong type, contradiction.
    """
    if isinstance(source, Mapping):
        try:
            content = yaml.load(yaml.safe_dump(_plain(source)), _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"recipe: {error}: expected texts, numbers, lists and mappings") from error
    else:
        content = _read(source)
    for override in overrides:
        _apply_override(content, override)
    return _build(Recipe, content, "recipe")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, all defaults written out."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False)


def changed_settings(before: Recipe, after: Recipe) -> list[str]:
    """Names ("training.learning_rate") of what differs between two recipes and decides what a resumed run computes."""
    first, second = (_named(dataclasses.asdict(recipe)) for recipe in (before, after))
    changed = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    return [name for name in changed if not name.startswith(_MAY_CHANGE)]


def _named(content: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their places, with dots between keys and numbers."""
    if not isinstance(content, (dict, list)) or not content:
        return {prefix: content}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {k: v for key, value in items for k, v in _named(value, f"{prefix}.{key}" if prefix else str(key)).items()}


def _plain(value: Any) -> Any:
    """What YAML can hold: paths as texts, numbers of numpy as numbers, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not path.exists():
        bundled = RECIPES / f"{source}.yaml"
        if not bundled.exists():
            names = sorted(p.stem for p in RECIPES.glob("*.yaml"))
            raise ValueError(f"there is no recipe {str(source)!r}: expected a YAML file or one of {names}")
        path = bundled
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping with the sections of a recipe, got {type(content).__name__}")
    return content


def _apply_override(content: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ValueError(f"override {override!r}: expected key=value, for example training.max_steps=100")
    *parents, last = name.split(".")
    target: Any = content
    for key in parents:
        if isinstance(target, dict) and target.get(key) is None:
            target[key] = {}
        target = target[_item(target, key, override)]
    target[_item(target, last, override)] = yaml.load(text, _Loader)


def _item(target: Any, key: str, override: str) -> str | int:
    if isinstance(target, dict):
        return key
    if isinstance(target, list) and key.isdigit() and int(key) < len(target):
        return int(key)
    raise ValueError(f"override {override!r}: {key!r} is not inside a section or an item of a list of the recipe")


def _refuse_unknown(given: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}, allowed are {', '.join(sorted(allowed))}")


_SECTIONS: dict[tuple[type, str], type] = {
    (Recipe, "model"): ModelSection,
    (Recipe, "tokenizer"): TokenizerSection,
    (Recipe, "data"): DataSection,
    (Recipe, "lora"): LoraSection,
    (Recipe, "text"): TextSection,
    (Recipe, "large_scale_jitter"): JitterSection,
    (Recipe, "evaluation"): EvaluationSection,
    (DataSection, "train"): SourceSection,
    (DataSection, "eval"): SourceSection,
}


def _build(cls: type, content: Any, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected a mapping, got {content!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    _refuse_unknown(content, set(fields), where)
    values = {}
    for key, value in content.items():
        section = _SECTIONS.get((cls, key))
        if (cls, key) == (Recipe, "collator"):
            section = _rules(content.get("task", Recipe.task)).collator
        if section is not None and isinstance(value, list):
            value = [_build(section, item, f"{where}.{key}[{i}]") for i, item in enumerate(value)]
        elif section is not None and value is not None:
            value = _build(section, value, f"{where}.{key}")
        values[key] = value
    try:
        return cls(**values)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
