# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SCA, "Segment and Caption Anything" (CVPR 2024): SAM whose prompts also give a sentence.

SAM's image encoder, prompt encoder and mask decoder are untouched; a second two-way mixer gathers the content of a
region into a few caption queries, which are projected into the soft prefix of a language model (SCA, section 3.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel, SamModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..sam.image_encoder import SamImageEncoder
from ..sam.losses import mask_loss
from ..sam.prompt_encoder import SamPositionEncoding, SamRowPromptEncoder
from ..sam.prompt_rows import PromptRows
from ..sam.region_model import SamRegionPreTrainedModel
from ..sam.two_way import SamTwoWayBlock
from .configuration_sam_caption import TASKS, SamCaptionConfig
from .generation_sam_caption import SamCaptionGenerationMixin
from .mask_caption_decoder import RegionFeatures, SamMaskCaptionDecoder, roi_align


@dataclass
class SamCaptionOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): caption loss, plus the weighted mask loss if `target_masks` are given.
        logits (`torch.FloatTensor` of shape `(B, P, L, V)`): `logits[..., j, :]` predicts `labels[..., j]`; without
            `input_ids` L is 1, the first token. With several caption heads `(B, P, H, L, V)`.
        pred_masks (`torch.FloatTensor` of shape `(B, P, 3 or 1, 4g, 4g)`): low-resolution mask logits, padded frame;
            None in train mode with `labels` and without `target_masks`.
        iou_scores (`torch.FloatTensor` of shape `(B, P, 3 or 1)`): predicted IoU of these masks.
        caption_queries (`torch.FloatTensor` of shape `(B, P, H, Q, C)`): output of the caption mixer.
        language_model_inputs (`torch.FloatTensor` of shape `(B, P, H, T + Q, D)`): task tokens and projected queries.
        image_embeddings (`torch.FloatTensor` of shape `(B, C, g, g)`): output of the image encoder.
        mask_loss (`torch.FloatTensor` of shape `(1,)`): SAM's mask loss, unweighted, if `target_masks` are given.
        vision_hidden_states, vision_attentions (`tuple`, *optional*): recorded from the image encoder.
        mask_decoder_attentions (`tuple`, *optional*): token-to-image attention `(R, heads, tokens, g * g)` of SAM's
            mixer and then the caption mixer (`output_attentions=True`, eager attention); R = prompts that are not
            padding.
        language_model_hidden_states, language_model_attentions (`tuple`, *optional*): recorded from the language model.

    Rows of padded prompts (`prompt_mask` False) are zero.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pred_masks: Tensor | None = None
    iou_scores: Tensor | None = None
    caption_queries: Tensor | None = None
    language_model_inputs: Tensor | None = None
    image_embeddings: Tensor | None = None
    mask_loss: Tensor | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None
    language_model_hidden_states: tuple[Tensor, ...] | None = None
    language_model_attentions: tuple[Tensor, ...] | None = None


class SamCaptionPreTrainedModel(SamRegionPreTrainedModel):
    config: SamCaptionConfig
    hub_task = "region-captioning"
    input_modalities = ("image", "text")
    _keys_to_ignore_on_load_unexpected = [
        *SamRegionPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"\.rotary_emb\.inv_freq$",
        r"\.h\.\d+\.attn\.(masked_)?bias$",
    ]


class SamCaptionForRegionCaptioning(SamCaptionGenerationMixin, SamCaptionPreTrainedModel, GenerationMixin):
    """Box, point or mask in; mask and sentence out, for any number of regions of an image at once."""

    _can_record_outputs = {"mask_decoder_attentions": OutputRecorder(SamTwoWayBlock, index=2)}

    # What the paper trains (section 3.3); everything else comes from SAM and the language model.
    text_mixer_modules = (
        "mask_decoder.additional_transformer",
        "mask_decoder.caption_tokens",
        "language_project",
        "task_tokens",
    )
    incomplete_checkpoint_hint = (
        "To start a new training from a SAM checkpoint and a language model use "
        "SamCaptionForRegionCaptioning.from_sam_and_language_model(sam, language_model)."
    )
    # For `peft.LoraConfig(target_modules=...)`: attention projections of the language model (GPT-2: c_proj of its MLP, too).
    lora_target_modules = r"language_model\..*\.(c_attn|c_proj|q_proj|k_proj|v_proj|o_proj|out_proj|query_key_value)"

    def __init__(self, config: SamCaptionConfig):
        super().__init__(config)
        decoder_config = config.mask_caption_decoder_config
        decoder_config._attn_implementation = config._attn_implementation  # its modules are no PreTrainedModel
        self.shared_image_embedding = SamPositionEncoding(config.vision_config)
        self.vision_encoder = SamImageEncoder(config.vision_config)
        self.prompt_encoder = SamRowPromptEncoder(config)
        self.mask_decoder = SamMaskCaptionDecoder(config)
        self.language_project = _build_projector(config)
        if config.num_task_tokens:
            self.task_tokens = nn.Embedding(len(TASKS) * config.num_task_tokens, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self._frozen_in_eval: tuple[str, ...] = ()
        self.post_init()

    @classmethod
    def from_sam_and_language_model(cls, sam: str | SamModel, language_model: str | PreTrainedModel, **config_kwargs):
        """A model for a new training: SAM and the language model from checkpoints, the text mixer at random.

        Args:
            sam: `facebook/sam-vit-*`, a folder, or a loaded `SamModel`.
            language_model: name or folder of any decoder-only language model, or a loaded one.
            **config_kwargs: fields of `SamCaptionConfig`, or of its mask decoder (`num_caption_tokens`,
                `additional_num_hidden_layers`, `num_caption_heads`).
        """
        if isinstance(sam, str):
            sam = SamModel.from_pretrained(sam)
        if isinstance(language_model, str):
            language_model = AutoModelForCausalLM.from_pretrained(language_model)
        decoder_config = sam.config.mask_decoder_config.to_dict()
        decoder_config["layer_norm_eps"] = 1e-5  # what SAM was trained with; converted checkpoints say 1e-6
        for name in ("num_caption_tokens", "additional_num_hidden_layers", "num_caption_heads"):
            if name in config_kwargs:
                decoder_config[name] = config_kwargs.pop(name)
        decoder_config.pop("model_type", None)
        vision_config = {k: v for k, v in sam.config.vision_config.to_dict().items() if k != "model_type"}
        config = cls.config_class(
            vision_config=vision_config,
            prompt_encoder_config=sam.config.prompt_encoder_config.to_dict(),
            mask_caption_decoder_config=decoder_config,
            text_config=language_model.config,
            **config_kwargs,
        )
        model = cls(config).to(device=sam.device, dtype=sam.dtype)
        own = {name: value for name, value in sam.state_dict().items() if "shared_embedding" not in name}
        own.update({f"language_model.{name}": value for name, value in language_model.state_dict().items()})
        result = model.load_state_dict(own, strict=False)
        unfilled = [n for n in result.missing_keys if not n.startswith(cls.text_mixer_modules)]
        if unfilled or result.unexpected_keys:
            raise ValueError(
                f"These weights do not fit: missing {unfilled[:3]}, unexpected {result.unexpected_keys[:3]}."
            )
        return model

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.language_model.set_output_embeddings(value)

    def freeze_for(self, policy: str, frozen_in_eval: bool = True):
        """Chooses what is trained.

        Args:
            policy: `"text_mixer"`: what the paper trains (caption mixer and queries, projection, task tokens).
                `"text_mixer+lora"`: these and LoRA weights that are already in the model. `"all"`: everything.
            frozen_in_eval: keeps frozen parts in eval mode during training, so that a frozen language model has no
                dropout. (The official training leaves it on.)

        Raises:
            ValueError: for an unknown policy, or "+lora" without LoRA weights.
        """
        if policy not in ("text_mixer", "text_mixer+lora", "all"):
            raise ValueError(f"policy must be 'text_mixer', 'text_mixer+lora' or 'all', got {policy!r}.")
        with_lora = policy.endswith("+lora")
        if with_lora and not any("lora_" in name for name, _ in self.named_parameters()):
            raise ValueError(
                "policy 'text_mixer+lora' needs LoRA weights in the model: add them first, e.g. with "
                "model.add_adapter(LoraConfig(target_modules=model.lora_target_modules))."
            )
        for name, parameter in self.named_parameters():
            trained = policy == "all" or name.startswith(self.text_mixer_modules) or (with_lora and "lora_" in name)
            parameter.requires_grad_(trained)
        frozen = []
        if policy != "all" and frozen_in_eval:
            frozen = ["vision_encoder", "prompt_encoder", "mask_decoder.transformer"]
            frozen += [] if with_lora else ["language_model"]
        self._frozen_in_eval = tuple(frozen)
        return self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        for name in self._frozen_in_eval if mode else ():
            self.get_submodule(name).eval()
        return self

    def segment(self, image_embeddings: Tensor, multimask_output: bool = True, **prompts) -> tuple[Tensor, Tensor]:
        """SAM alone, without captions.

        Args:
            image_embeddings: (B, C, g, g).
            **prompts: `input_boxes`, `input_points`, `point_labels`, `input_masks`, `prompt_mask` as in `forward`.

        Returns:
            `pred_masks` (B, P, 3 or 1, 4g, 4g) logits, `iou_scores` (B, P, 3 or 1).
        """
        rows = PromptRows.from_inputs(len(image_embeddings), **prompts)
        features = self.region_features(image_embeddings, rows, multimask_output, output_captions=False)
        return rows.scatter(features.pred_masks), rows.scatter(features.iou_scores)

    def region_features(
        self,
        image_embeddings: Tensor,
        rows: PromptRows,
        multimask_output: bool = True,
        output_masks: bool = True,
        output_captions: bool = True,
    ) -> RegionFeatures:
        """Prompt encoder, SAM's mixer and mask head, caption mixer, for rows of prompts."""

        def decode(stream, positions, part, shared):
            stream, tokens, token_mask = self.encode_prompts(stream, part, shared)
            return self.mask_decoder(
                stream,
                positions,
                tokens,
                token_mask,
                shared,
                multimask_output=multimask_output,
                output_masks=output_masks,
                output_captions=output_captions,
            )

        features = _concatenate(self.decode_in_parts(image_embeddings, rows, decode))
        if output_captions and self.config.mixer_context == "roi_align":
            features = features._replace(caption_queries=self._roi_queries(image_embeddings, rows))
        return features

    def _roi_queries(self, image_embeddings: Tensor, rows: PromptRows) -> Tensor:
        """ROI-aligned image features of the boxes, (R, 1, roi_size^2, C) (ablation "ROI align")."""
        if rows.boxes is None:
            raise ValueError("mixer_context='roi_align' describes boxes: input_boxes are required.")
        boxes = rows.boxes / self.config.vision_config.patch_size
        features = roi_align(image_embeddings[rows.image_index], boxes, self.config.roi_size)
        return features.flatten(2).transpose(1, 2)[:, None]

    def prefix(self, caption_queries: Tensor, task: Tensor) -> Tensor:
        """Soft prefix of the language model (SCA, section 3.2).

        Args:
            caption_queries: (R, H, Q, C).
            task: (R,) 0 recognition, 1 caption.

        Returns:
            (R, H, T + Q, D): task tokens, then the projected queries.
        """
        projected = self.language_project(caption_queries)
        if not self.config.num_task_tokens:
            return projected
        tokens = self.task_tokens.weight.unflatten(0, (len(TASKS), -1))[task]
        tokens = tokens[:, None].expand(-1, projected.shape[1], -1, -1).to(projected.dtype)
        return torch.cat([tokens, projected], dim=2)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
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
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        target_masks: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SamCaptionOutput:
        """
        Args:
            pixel_values (B, 3, S, S): normalised and padded images, or
            image_embeddings (B, C, g, g): result of `get_image_embeddings`. Exactly one of the two.
            input_boxes (B, P, 4): x0 y0 x1 y1 in pixels of the padded model frame.
            input_points (B, P, n, 2): x y in pixels of the padded model frame.
            point_labels (B, P, n): 1 inside, 0 outside, -1 not a point, -2 absent (padding); default all 1.
            input_masks (B, P, 4g, 4g) or (B, 1, 4g, 4g): mask logits of an earlier prediction, one per prompt or shared.
            prompt_mask (B, P): False for prompts that only pad the batch.
            task: "caption" (default) or "recognition", one for all or one per image, or (B,) 0 recognition, 1 caption.
            multimask_output: three masks for ambiguous prompts, or one. Captions do not depend on it, except where
                `caption_query_type` ties them to masks.
            input_ids, attention_mask, labels (B, P, L): caption tokens with the end token; labels are -100 where
                nothing is to be predicted, and `logits[..., j, :]` predicts `labels[..., j]`.
            target_masks (B, P, h, w): in {0, 1}, padded model frame at any resolution; adds SAM's mask loss. Prompts
                whose target contains NaN have none.

        Raises:
            ValueError: for missing or contradicting inputs.
        """
        for name in ("num_items_in_batch", "use_cache"):  # Trainer sets them
            kwargs.pop(name, None)
        image_embeddings, vision_outputs = self.encode_or_reuse(pixel_values, image_embeddings, **kwargs)
        batch_size = len(image_embeddings)
        rows = PromptRows.from_inputs(
            batch_size,
            input_boxes=input_boxes,
            input_points=input_points,
            point_labels=point_labels,
            input_masks=input_masks,
            prompt_mask=prompt_mask,
        )
        task_index = self.task_index(task, batch_size)

        # a caption loss alone needs no masks, whose upscaling is a good part of a training step
        output_masks = target_masks is not None or not (self.training and labels is not None)
        features = self.region_features(image_embeddings, rows, multimask_output, output_masks=output_masks)
        prefix = self.prefix(features.caption_queries, task_index[rows.image_index])
        if labels is not None and input_ids is None:  # e.g. Trainer's label smoothing hands labels over alone
            input_ids, attention_mask = labels.clamp(min=0), (labels != -100).long()
        logits, language_outputs = self._predict_tokens(
            prefix, rows.gather(input_ids), rows.gather(attention_mask), kwargs
        )

        loss = None if labels is None else self._caption_loss(logits, rows.gather(labels))
        masks_loss = None
        if target_masks is not None:
            masks_loss = self._mask_loss(features, rows.gather(target_masks))
            loss = self.config.mask_loss_weight * masks_loss + (0 if loss is None else loss)
        if loss is not None and rows.empty:
            loss = loss * 0
        logits = logits[:, 0] if logits.shape[1] == 1 else logits
        return SamCaptionOutput(
            loss=loss,
            logits=rows.scatter(logits),
            pred_masks=rows.scatter(features.pred_masks) if output_masks else None,
            iou_scores=rows.scatter(features.iou_scores),
            caption_queries=rows.scatter(features.caption_queries),
            language_model_inputs=rows.scatter(prefix),
            image_embeddings=image_embeddings,
            mask_loss=masks_loss,
            vision_hidden_states=getattr(vision_outputs, "hidden_states", None),
            vision_attentions=getattr(vision_outputs, "attentions", None),
            language_model_hidden_states=language_outputs.hidden_states,
            language_model_attentions=language_outputs.attentions,
        )

    def task_index(self, task: str | list[str] | Tensor | None, batch_size: int) -> Tensor:
        """Task per image, (B,) 0 recognition or 1 caption."""
        device = self.device
        if torch.is_tensor(task):
            if task.shape != (batch_size,) or task.is_floating_point():
                raise ValueError(
                    f"task must be one integer per image, shape ({batch_size},), got {tuple(task.shape)}."
                )
            return task.to(device).clamp(0, len(TASKS) - 1)
        names = [task or "caption"] * batch_size if task is None or isinstance(task, str) else list(task)
        unknown = [name for name in names if name not in TASKS]
        if unknown or len(names) != batch_size:
            raise ValueError(f"task must be one of {list(TASKS)} per image ({batch_size} images), got {task!r}.")
        return torch.tensor([TASKS[name] for name in names], device=device)

    def _predict_tokens(self, prefix: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None, kwargs):
        """Next-token logits (R, H, L, V) for the caption tokens (R, L) behind the prefix (R, H, T + Q, D)."""
        num_heads = prefix.shape[1]
        embeds, length = prefix.flatten(0, 1), 0
        mask = None
        if input_ids is not None:
            length = input_ids.shape[1]
            tokens = self.get_input_embeddings()(input_ids).to(embeds.dtype).repeat_interleave(num_heads, 0)
            if attention_mask is not None:
                mask = attention_mask.repeat_interleave(num_heads, 0)
                mask = torch.cat([mask.new_ones(embeds.shape[:2]), mask], dim=1)
            embeds = torch.cat([embeds, tokens], dim=1)
        outputs = self.language_model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False, logits_to_keep=length + 1, **kwargs
        )
        logits = outputs.logits[:, -(length + 1) :]
        logits = logits[:, :-1] if length else logits  # the prediction behind the last token is not used
        return logits.unflatten(0, (-1, num_heads)), outputs

    def _caption_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean label-smoothed cross entropy over all labels that are not -100, in float32 (SCA, section 3.3)."""
        if labels.shape[-1] != logits.shape[-2]:
            raise ValueError(f"labels have {labels.shape[-1]} tokens per caption, but input_ids {logits.shape[-2]}.")
        labels = labels[:, None].expand(logits.shape[:-1]).flatten()
        total = nn.functional.cross_entropy(
            logits.float().flatten(0, -2), labels, label_smoothing=self.config.label_smoothing, reduction="sum"
        )
        return total / (labels != -100).sum().clamp(min=1)

    @staticmethod
    def _mask_loss(features: RegionFeatures, targets: Tensor) -> Tensor:
        known = ~targets.flatten(1).isnan().any(1)
        if not known.any():  # zero, with gradients for every parameter that a known mask would reach
            return (features.iou_scores.float().sum() + features.pred_masks.float().sum()) * 0
        return mask_loss(features.pred_masks[known], features.iou_scores[known], targets[known]).total.mean()


def _build_projector(config: SamCaptionConfig) -> nn.Module:
    """One linear layer, or the ROI-align ablation's stack with optional norms (keys `language_project.0...`)."""
    width, text_width = config.mask_caption_decoder_config.hidden_size, config.text_config.hidden_size
    norm = config.vl_projector_norm_type
    if config.vl_projector_type == "linear" and norm == "none" and config.mixer_context != "roi_align":
        return nn.Linear(width, text_width)
    layers: list[nn.Module] = []
    for i in range(3 if config.vl_projector_type == "mlp" else 1):
        input_width = text_width if i else width
        layers += [nn.GELU()] if i else []
        layers += [nn.LayerNorm(input_width)] if norm == "pre" else []
        layers += [nn.Linear(input_width, text_width)]
        layers += [nn.LayerNorm(text_width)] if norm == "post" else []
    return nn.Sequential(*layers)


def _concatenate(parts: list[RegionFeatures]) -> RegionFeatures:
    masks, queries = (
        None if field[0] is None else torch.cat(field)
        for field in ([part.pred_masks for part in parts], [part.caption_queries for part in parts])
    )
    return RegionFeatures(masks, torch.cat([part.iou_scores for part in parts]), queries)


__all__ = ["SamCaptionForRegionCaptioning", "SamCaptionOutput", "SamCaptionPreTrainedModel"]
