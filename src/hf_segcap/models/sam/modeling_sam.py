# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""SAM, "Segment Anything" (ICCV 2023): points, boxes, masks and text in; masks out.

transformers has SAM's network. This is what the paper does around it: several kinds of prompts per object, a mask prompt
for each object, text prompts (section 7.5), refinement, and the training with its losses and rounds (section 3, appendix A).
"""

import numbers
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedConfig,
    SamConfig,
)
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...prompts import PADDING_LABEL
from .configuration_sam import SamPromptableConfig
from .image_encoder import SamImageEncoder
from .interactive import interactive_loss
from .mask_decoder import RowMasks, SamRowMaskDecoder
from .prompt_encoder import SamPositionEncoding, SamRowPromptEncoder
from .prompt_rows import PromptRows
from .region_model import SamRegionPreTrainedModel
from .two_way import SamTwoWayBlock


@dataclass
class SamPromptableOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): 20 focal + dice + squared IoU error, summed over the rounds, if
            `labels` are given.
        pred_masks (`torch.FloatTensor` of shape `(B, P, M, 4g, 4g)`): low-resolution mask logits, padded frame; M is 3
            with `multimask_output=True`, else 1. Of the last round where `labels` are given.
        iou_scores (`torch.FloatTensor` of shape `(B, P, M)`): predicted IoU of these masks.
        best_mask_index (`torch.LongTensor` of shape `(B, P)`): which of the M masks has the highest predicted IoU.
        image_embeddings (`torch.FloatTensor` of shape `(B, C, g, g)`): output of the image encoder.
        focal_loss, dice_loss, iou_loss (`torch.FloatTensor` of shape `(1,)`): unweighted terms of the loss.
        vision_hidden_states, vision_attentions (`tuple`, *optional*): recorded from the image encoder.
        mask_decoder_attentions (`tuple`, *optional*): token-to-image attention `(R, heads, tokens, g * g)` of the two-way
            mixer (`output_attentions=True`, eager attention); R = prompts that are not padding.

    Rows of padded prompts (`prompt_mask` False) are zero.
    """

    loss: Tensor | None = None
    pred_masks: Tensor | None = None
    iou_scores: Tensor | None = None
    best_mask_index: Tensor | None = None
    image_embeddings: Tensor | None = None
    focal_loss: Tensor | None = None
    dice_loss: Tensor | None = None
    iou_loss: Tensor | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None


class SamForPromptableSegmentation(SamRegionPreTrainedModel):
    """Segments what points, boxes, masks or words name, for any number of objects of an image at once.

    `from_pretrained` reads `facebook/sam-vit-*` checkpoints directly.
    """

    config: SamPromptableConfig
    hub_task = "promptable-segmentation"
    never_trained = ("text_model",)
    input_modalities = ("image", "text")
    _can_record_outputs = {"mask_decoder_attentions": OutputRecorder(SamTwoWayBlock, index=2)}

    # For `peft.LoraConfig(target_modules=...)`: the attention projections of the image encoder.
    lora_target_modules = r"vision_encoder\..*\.qkv"

    def __init__(self, config: SamPromptableConfig):
        super().__init__(config)
        config.mask_decoder_config._attn_implementation = (
            config._attn_implementation
        )  # its modules are no PreTrainedModel
        self.shared_image_embedding = SamPositionEncoding(config.vision_config)
        self.vision_encoder = SamImageEncoder(config.vision_config)
        self.prompt_encoder = SamRowPromptEncoder(config)
        self.mask_decoder = SamRowMaskDecoder(config.mask_decoder_config)
        if config.text_config is not None:
            self.text_model = CLIPTextModelWithProjection(config.text_config)
            self.text_model.requires_grad_(False)
            if config.text_centred:
                self.register_buffer("text_centre", torch.zeros(config.text_config.projection_dim))
        if config.text_embed_dim is not None:
            self.text_projection = nn.Linear(config.text_embed_dim, config.mask_decoder_config.hidden_size)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        if isinstance(config, SamConfig):  # what AutoConfig makes of facebook/sam-vit-*
            config = SamPromptableConfig.from_sam(config)
        elif config is not None and not isinstance(config, (SamPromptableConfig, str, os.PathLike)):
            raise ValueError(f"{pretrained_model_name_or_path} is no SAM: it has a {type(config).__name__}.")
        return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    def add_text_prompts(self, clip: str | os.PathLike | CLIPModel | CLIPTextModelWithProjection) -> None:
        """Adds CLIP's text model and a new projection of its embeddings (SAM, section 7.5), to be trained.

        Args:
            clip: folder or Hub id, or a loaded model. SAM used ViT-L/14 at 336 pixels.

        Raises:
            ValueError: the model has text prompts already.
        """
        if self.config.text_embed_dim is not None:
            raise ValueError("This model has text prompts already.")
        if isinstance(clip, (str, os.PathLike)):
            config = AutoConfig.from_pretrained(clip)
            clip = CLIPTextModelWithProjection.from_pretrained(clip, config=_text_config_of(config))
        elif isinstance(clip, CLIPModel):
            text_model = CLIPTextModelWithProjection(_text_config_of(clip.config))
            text_model.text_model.load_state_dict(clip.text_model.state_dict())
            text_model.text_projection.load_state_dict(clip.text_projection.state_dict())
            clip = text_model
        self.text_model = clip.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)
        self.config.text_config = clip.config
        self.config.text_embed_dim = clip.config.projection_dim
        self.config.text_trained = False
        self.text_projection = nn.Linear(clip.config.projection_dim, self.config.mask_decoder_config.hidden_size)
        nn.init.normal_(self.text_projection.weight, std=self.config.initializer_range)
        nn.init.zeros_(self.text_projection.bias)
        self.text_projection.to(device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self and self.config.text_centred:
            init.zeros_(self.text_centre)

    @torch.no_grad()
    def centre_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Makes the mean embedding of typical phrases (N, L) the centre that is subtracted from text embeddings.

        The image embeddings that the model is trained with need the same, see `MaskCropEmbedder.measure_centre`.
        """
        self.config.text_centred = False
        centre = self.get_text_embeds(input_ids, attention_mask).mean(0)
        self.register_buffer("text_centre", centre)
        self.config.text_centred = True

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_encoder.get_input_embeddings()

    def get_text_embeds(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids (..., L) -> CLIP text embeddings (..., E), of length one.

        Raises:
            ValueError: the model has no text model.
        """
        if self.config.text_config is None:
            raise ValueError(
                "This checkpoint has no text model, as the released SAM checkpoints: pass text_embeds if it was trained "
                "with them, or add_text_prompts(clip) and train."
            )
        flat = input_ids.flatten(0, -2)
        mask = None if attention_mask is None else attention_mask.flatten(0, -2)
        embeds = self.text_model(input_ids=flat, attention_mask=mask).text_embeds
        embeds = nn.functional.normalize(embeds.float(), dim=-1)
        if self.config.text_centred:
            embeds = nn.functional.normalize(embeds - self.text_centre.float(), dim=-1)
        return embeds.unflatten(0, input_ids.shape[:-1])

    def decode_rows(self, image_embeddings: Tensor, rows: PromptRows) -> RowMasks:
        """All four masks of each row of prompts: (R, 4, 4g, 4g) logits and (R, 4) scores. Differentiable."""

        def decode(stream, positions, part, shared):
            text = None if part.text_embeds is None else self._text_tokens(part.text_embeds)
            stream, tokens, token_mask = self.encode_prompts(stream, part, shared, text)
            return self.mask_decoder(stream, positions, tokens, token_mask, shared)

        parts = self.decode_in_parts(image_embeddings, rows, decode)
        return RowMasks(*(torch.cat(field) for field in zip(*parts)))

    def _check_text(self, trained: bool) -> None:
        """Refuses text prompts without a projection for them, or with `trained` one that nothing trained yet. (The flag in the
        configuration is not there where weights were saved alone, as adapters are: a bias that is not zero any more tells.)"""
        if self.config.text_embed_dim is None or (
            trained and not (self.config.text_trained or self.text_projection.bias.any())
        ):
            raise ValueError(
                "This checkpoint was not trained with text prompts (the released SAM checkpoints were not): use points, "
                "boxes or masks, or add_text_prompts(clip) and train. (Trained elsewhere: config.text_trained = True.)"
            )

    def _text_tokens(self, text_embeds: Tensor) -> Tensor:
        """(R, E) -> prompt tokens (R, 1, C)."""
        if text_embeds.shape[-1] != self.config.text_embed_dim:
            raise ValueError(
                f"text_embeds must have {self.config.text_embed_dim} numbers each, got {text_embeds.shape[-1]}."
            )
        embeds = nn.functional.normalize(text_embeds.float(), dim=-1) * self.config.text_scale
        return self.text_projection(embeds.to(self.text_projection.weight.dtype))[:, None]

    def segment(
        self, image_embeddings: Tensor, multimask_output: bool | None = True, **prompts
    ) -> tuple[Tensor, Tensor]:
        """Masks without the rest of `forward`.

        Args:
            image_embeddings: (B, C, g, g).
            multimask_output: as in `forward`.
            **prompts: prompts as in `forward`.

        Returns:
            `pred_masks` (B, P, M, 4g, 4g) logits, `iou_scores` (B, P, M).
        """
        if prompts.get("text_embeds") is not None:
            self._check_text(trained=True)
        rows = PromptRows.from_inputs(len(image_embeddings), **prompts)
        masks, scores, _ = select_masks(self.decode_rows(image_embeddings, rows), rows, multimask_output)
        return rows.scatter(masks), rows.scatter(scores)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        has_box: Tensor | None = None,
        input_masks: Tensor | None = None,
        has_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_text: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        multimask_output: bool | None = None,
        refine_steps: int = 0,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SamPromptableOutput:
        """
        Args:
            pixel_values (B, 3, S, S): normalised and padded images, or
            image_embeddings (B, C, g, g): result of `get_image_embeddings`. Exactly one of the two.
            input_points (B, P, n, 2): x y in pixels of the padded model frame.
            point_labels (B, P, n): 1 inside, 0 outside, -1 not a point, -2 absent (padding); default all 1. `input_labels`,
                their name in transformers, is understood.
            input_boxes (B, P, 4): x0 y0 x1 y1 in pixels of the padded model frame.
            input_masks (B, P, 4g, 4g) or (B, 1, 4g, 4g): mask logits of an earlier prediction, one per object or shared.
            text_embeds (B, P, E): CLIP embeddings (image or text), or
            input_ids, attention_mask (B, P, L): tokenized text prompts.
            has_box, has_mask, has_text (B, P): False for objects without this kind of prompt; default: all have it.
            prompt_mask (B, P): False for objects that only pad the batch. Without any prompt there is one object per image
                (or, with `labels`, as many as labels).
            multimask_output: True: three masks for ambiguous prompts. False: the one mask for unambiguous prompts. None:
                one mask per object, the best of three if it has a single prompt (a point, a box, a text), else the one
                for unambiguous prompts (SAM, appendix A).
            refine_steps: so many times, the best mask is fed back as mask prompt. The answer to it is, unless
                `multimask_output` is True, the mask for unambiguous prompts, as in training.
            labels (B, P, h, h): target masks in {0, 1}, padded model frame at any resolution. The loss is that of
                `config.interactive_rounds` rounds; the first uses the prompts given, or one drawn from the label.
                With transformers' own `Trainer`, give `TrainingArguments(label_names=["labels"])`: it would
                count `point_labels` among the labels and report no `eval_loss` without them; and
                `processing_class=processor.image_processor`: it fails with a processor that has no tokenizer.

        Raises:
            ValueError: for missing or contradicting inputs.
        """
        kwargs.pop("num_items_in_batch", None)  # Trainer sets it
        # transformers' name, which its pipeline "mask-generation" gives; as an argument, Trainer would take it for a label
        input_labels = kwargs.pop("input_labels", None)
        if input_labels is not None and point_labels is not None:
            raise ValueError("Give point_labels or input_labels (their name in transformers), not both.")
        point_labels = input_labels if point_labels is None else point_labels
        if not isinstance(refine_steps, numbers.Integral) or refine_steps < 0:
            raise ValueError(f"refine_steps must be a whole number of 0 or more, got {refine_steps!r}.")
        if refine_steps and labels is not None:
            raise ValueError(
                "refine_steps are for predictions: with labels, config.interactive_rounds feed masks back."
            )
        image_embeddings, vision_outputs = self.encode_or_reuse(pixel_values, image_embeddings, **kwargs)
        if input_ids is not None:
            if text_embeds is not None:
                raise ValueError("Give text_embeds or input_ids, not both.")
            text_embeds = self.get_text_embeds(input_ids, attention_mask)
        if text_embeds is not None:
            self._check_text(trained=labels is None)
        prompts = (input_points, input_boxes, input_masks, text_embeds)
        if prompt_mask is None and all(prompt is None for prompt in prompts):
            objects = 1 if labels is None else labels.shape[1]
            prompt_mask = torch.ones(len(image_embeddings), objects, dtype=torch.bool, device=image_embeddings.device)
        rows = PromptRows.from_inputs(
            len(image_embeddings),
            input_boxes=input_boxes,
            input_points=input_points,
            point_labels=point_labels,
            input_masks=input_masks,
            prompt_mask=prompt_mask,
            has_box=has_box,
            has_mask=has_mask,
            text_embeds=text_embeds,
            has_text=has_text,
            prompts_required=False,
        )
        terms: dict[str, Any] = {}
        if labels is None:
            masks, scores, best = self._predict(image_embeddings, rows, multimask_output, refine_steps)
        else:
            terms, decoded, asked = self._loss(image_embeddings, rows, labels)
            masks, scores, best = select_masks(decoded, asked, multimask_output)
        return SamPromptableOutput(
            **terms,
            pred_masks=rows.scatter(masks),
            iou_scores=rows.scatter(scores),
            best_mask_index=rows.scatter(best),
            image_embeddings=image_embeddings,
            vision_hidden_states=getattr(vision_outputs, "hidden_states", None),
            vision_attentions=getattr(vision_outputs, "attentions", None),
        )

    def _predict(self, image_embeddings, rows: PromptRows, multimask_output: bool | None, refine_steps: int):
        masks, scores, best = select_masks(self.decode_rows(image_embeddings, rows), rows, multimask_output)
        # training answers a fed back mask with the mask for unambiguous prompts alone
        multimask_output = bool(multimask_output)
        for _ in range(refine_steps):
            fed_back = masks[torch.arange(len(rows), device=masks.device), best]
            rows = replace(rows, masks=fed_back, has_mask=None)
            masks, scores, best = select_masks(self.decode_rows(image_embeddings, rows), rows, multimask_output)
        return masks, scores, best

    def _loss(
        self, image_embeddings, rows: PromptRows, labels: Tensor
    ) -> tuple[dict[str, Tensor], RowMasks, PromptRows]:
        """Terms, and masks of the last round with its prompts."""
        targets, config = rows.gather_labels(labels, "mask", "MaskCollator"), self.config
        generator = None
        if self.training:
            if rows.text_embeds is not None and self.text_projection.weight.requires_grad:
                config.text_trained = True
        else:  # the same prompts in every evaluation
            generator = torch.Generator(labels.device).manual_seed(0)
        result = interactive_loss(
            lambda part: self.decode_rows(image_embeddings, part),
            rows,
            targets,
            image_size=config.vision_config.image_size,
            num_rounds=config.interactive_rounds,
            all_iou=config.supervise_all_iou,
            box_noise=config.box_noise,
            detach_fed_back_masks=config.detach_fed_back_masks,
            generator=generator,
        )
        weight = 0 if rows.empty else 1
        terms = {"loss": result.loss, "focal_loss": result.focal, "dice_loss": result.dice, "iou_loss": result.iou}
        decoded = RowMasks(result.pred_masks.detach(), result.iou_scores.detach())
        return {name: value * weight for name, value in terms.items()}, decoded, result.rows


def _text_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """That of CLIP's text model with projection; in a whole CLIP, the width of the projection stands elsewhere."""
    if not isinstance(config, CLIPConfig):
        return config
    return CLIPTextConfig(**{**config.text_config.to_dict(), "projection_dim": config.projection_dim})


def select_masks(decoded: RowMasks, rows: PromptRows, multimask_output: bool | None) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (R, M, 4g, 4g), scores (R, M) and the best of them (R,), as `multimask_output` of the model's `forward` says."""
    masks, scores = decoded
    if multimask_output is None:
        # one point and its padding point, or one box: two tokens; more are unambiguous
        index = torch.where(num_prompt_tokens(rows) > 2, 0, 1 + scores[:, 1:].argmax(1))
        chosen = torch.arange(len(masks), device=masks.device)
        masks, scores = masks[chosen, index][:, None], scores[chosen, index][:, None]
    else:
        selected = slice(1, None) if multimask_output else slice(0, 1)
        masks, scores = masks[:, selected], scores[:, selected]
    return masks, scores, scores.argmax(1)


def num_prompt_tokens(rows: PromptRows) -> Tensor:
    """Sparse tokens of each row, the padding point of points without a box included; masks do not count. (R,)"""
    ones = torch.ones(len(rows), dtype=torch.long, device=rows.image_index.device)
    boxes = ones * 0 if rows.boxes is None else (ones if rows.has_box is None else rows.has_box.long())
    texts = ones * 0 if rows.text_embeds is None else (ones if rows.has_text is None else rows.has_text.long())
    points = ones * 0 if rows.point_labels is None else (rows.point_labels != PADDING_LABEL).sum(1)
    return points + ((points > 0) & (boxes == 0)).long() + 2 * boxes + texts


__all__ = ["SamForPromptableSegmentation", "SamPromptableOutput", "num_prompt_tokens", "select_masks"]
