# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""ZIM, "Zero-Shot Image Matting for Anything" (ICCV 2025): points and boxes in, mattes out.

SAM's encoders and two-way mixer, with attention that follows the prompt (section 3.3) and a pixel decoder that sees the
image (section 3.2). The official release has no network; what the paper leaves open follows `ZimConfig`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SamConfig, SamModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...prompts import PADDING_LABEL
from ..sam.configuration_sam import SamPromptableConfig
from ..sam.image_encoder import SamImageEncoder
from ..sam.mask_decoder import RowMasks
from ..sam.modeling_sam import SamForPromptableSegmentation
from ..sam.prompt_encoder import SamPositionEncoding, SamRowPromptEncoder
from ..sam.prompt_rows import PromptRows
from ..sam.region_model import SamRegionPreTrainedModel
from ..sam.two_way import SamTwoWayBlock
from .attention_maps import prompt_attention_maps
from .configuration_zim import ZimConfig
from .detail_decoder import ZimConvBlock, ZimDetailEncoder, ZimMaskDecoder
from .losses import check_mattes, matting_loss

# Bytes of the pixel decoder's largest maps that are worked on together
_CPU_BUDGET, _GPU_BUDGET = 2**27, 2**30


@dataclass
class ZimMattingOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): L1 + 10 x gradient loss + squared score error, if `labels` are given.
        alphas (`torch.FloatTensor` of shape `(B, P, M, l, l)`): matte logits of the padded model frame at stride 2, so l is
            S / 2; M is 4 with `multimask_output=True`, else 1.
        iou_scores (`torch.FloatTensor` of shape `(B, P, M)`): how well the model expects each matte to fit.
        image_embeddings (`torch.FloatTensor` of shape `(B, C, g, g)`): output of the image encoder.
        detail_features (`tuple` of `torch.FloatTensor` of shape `(B, c_i, S / 2, S / 2)`, `(B, c_i, S / 4, S / 4)`, ...):
            output of the detail encoder.
        l1_loss, gradient_loss, iou_loss (`torch.FloatTensor` of shape `(1,)`): unweighted terms of the loss; with a weight
            `cross_entropy_loss`, too.
        vision_hidden_states, vision_attentions (`tuple`, *optional*): recorded from the image encoder.
        mask_decoder_attentions (`tuple`, *optional*): token-to-image attention `(R, heads, tokens, g * g)` of the two-way
            mixer (`output_attentions=True`, eager attention); R = prompts that are not padding.

    Rows of padded prompts (`prompt_mask` False) are zero.
    """

    loss: Tensor | None = None
    alphas: Tensor | None = None
    iou_scores: Tensor | None = None
    image_embeddings: Tensor | None = None
    detail_features: tuple[Tensor, ...] | None = None
    l1_loss: Tensor | None = None
    gradient_loss: Tensor | None = None
    iou_loss: Tensor | None = None
    cross_entropy_loss: Tensor | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None


class ZimPromptEncoder(SamRowPromptEncoder):
    """SAM's prompt encoder without mask prompts, which ZIM does not have."""

    def __init__(self, config: ZimConfig):
        super().__init__(config)
        del self.mask_embed


class ZimModel(SamRegionPreTrainedModel):
    """Mattes of what points and boxes name, for any number of objects of an image at once; without a loss."""

    config: ZimConfig
    hub_task = "image-matting"
    input_modalities = ("image",)
    incomplete_checkpoint_hint = (
        "To start a training from a SAM checkpoint use ZimForMatting.from_sam(sam). The official ONNX files are not "
        "checkpoints of this class."
    )
    _can_record_outputs = {"mask_decoder_attentions": OutputRecorder(SamTwoWayBlock, index=2)}

    # For `peft.LoraConfig(target_modules=...)`: the attention projections of the image encoder.
    lora_target_modules = r"vision_encoder\..*\.qkv"

    # What SAM does not have, and what of SAM is left out (with SAM's own pixel decoder: less of both).
    new_modules = ("detail_encoder.", "mask_decoder.fusion_blocks.")
    dropped_modules = ("prompt_encoder.mask_embed.", "mask_decoder.upscale_", "text_")

    def __init__(self, config: ZimConfig):
        super().__init__(config)
        config.mask_decoder_config._attn_implementation = (
            config._attn_implementation
        )  # its modules are no PreTrainedModel
        self.shared_image_embedding = SamPositionEncoding(config.vision_config)
        self.vision_encoder = SamImageEncoder(config.vision_config)
        self.prompt_encoder = ZimPromptEncoder(config)
        self.detail_encoder = ZimDetailEncoder(config) if config.pixel_decoder == "hierarchical" else None
        self.mask_decoder = ZimMaskDecoder(config)
        self.post_init()

    @classmethod
    def from_sam(cls, sam: str | os.PathLike | PreTrainedModel, **config_kwargs: Any):
        """A model for a new training: everything that SAM has from a checkpoint, the detail convolutions at random.

        Args:
            sam: `facebook/sam-vit-*`, a folder of it or of `SamForPromptableSegmentation`, or a loaded model of either.
            **config_kwargs: fields of `ZimConfig`.

        Raises:
            ValueError: the weights do not fit these fields.
        """
        if not isinstance(sam, PreTrainedModel):
            sam = SamForPromptableSegmentation.from_pretrained(sam)
        if not isinstance(sam, (SamModel, SamForPromptableSegmentation)):
            raise TypeError(f"Expected a SAM model or the name or folder of one, got {type(sam).__name__}.")
        sam_config = sam.config
        if isinstance(sam_config, SamConfig):
            sam_config = SamPromptableConfig.from_sam(sam_config)
        model = cls(ZimConfig.from_sam(sam_config, **config_kwargs)).to(device=sam.device, dtype=sam.dtype)
        own = model.state_dict()
        # transformers' SamModel has a second copy of the position matrix
        weights = {name: value for name, value in sam.state_dict().items() if "shared_embedding" not in name}
        shapes = [name for name in weights if name in own and own[name].shape != weights[name].shape]
        if shapes:
            raise ValueError(
                f"{shapes[0]} is {tuple(weights[shapes[0]].shape)} in SAM, but these fields make it "
                f"{tuple(own[shapes[0]].shape)}: fusion_hidden_sizes must end with the width of SAM's hypernetworks, "
                f"{sam_config.mask_decoder_config.hidden_size // 8}."
            )
        result = model.load_state_dict(weights, strict=False)
        missing = [name for name in result.missing_keys if not name.startswith(cls.new_modules)]
        unexpected = [name for name in result.unexpected_keys if not name.startswith(cls.dropped_modules)]
        if missing or unexpected:
            raise ValueError(f"These weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}.")
        return model.train(sam.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ZimConvBlock):
            init.kaiming_normal_(module.conv.weight, nonlinearity="relu")

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_encoder.get_input_embeddings()

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, S, S) normalised pixels -> `image_embeddings` and `detail_features`, all that prompts need of an image."""
        return self.get_image_embeddings(pixel_values), self.get_detail_features(pixel_values)

    def get_detail_features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) normalised pixels -> (B, c_i, S / 2, S / 2), (B, c_i, S / 4, S / 4), ...; once per image.

        Nothing with SAM's own pixel decoder.
        """
        return () if self.detail_encoder is None else self.detail_encoder(pixel_values)

    def decode_rows(
        self,
        image_embeddings: Tensor,
        detail_features: Sequence[Tensor],
        rows: PromptRows,
        selected: slice = slice(None),
        prompts_per_batch: int | None = None,
    ) -> RowMasks:
        """Mattes of each row of prompts: (R, M, l, l) logits and (R, M) scores. Differentiable.

        Args:
            image_embeddings, detail_features: of B images.
            rows: R prompts.
            selected: which of the four mattes.
            prompts_per_batch: without gradients, at most so many prompts of an image at a time (default: what fits into
                about 128 MiB on a CPU, 1 GiB elsewhere; all with eager attention, whose weights are recorded in one piece).
        """
        config, dtype = self.config, self._stream_dtype
        projected = self.mask_decoder.project_details([features.to(dtype) for features in detail_features])
        grid = image_embeddings.shape[-1]

        def decode(stream, positions, part, shared):
            maps = None
            if self.mask_decoder.transformer.uses_maps:
                maps = prompt_attention_maps(
                    part,
                    grid,
                    config.vision_config.patch_size,
                    config.point_sigma,
                    config.joint_prompts,
                    config.official_box_slicing,
                )
            stream, tokens, token_mask = self.encode_prompts(stream, self._token_prompts(part), shared)
            details = _details_of(projected, part.image_index)
            return self.mask_decoder(stream, positions, tokens, token_mask, shared, maps, details, selected)

        parts = self.decode_in_parts(
            image_embeddings,
            rows,
            decode,
            rows_per_part=prompts_per_batch or self._prompts_per_part(image_embeddings),
            in_one_part=self.training,  # batch norms see all prompts
        )
        return RowMasks(*(torch.cat(field) for field in zip(*parts)))

    def _token_prompts(self, rows: PromptRows) -> PromptRows:
        """The prompts that become tokens: officially, a box replaces the points of its object."""
        if rows.boxes is None or rows.point_labels is None or self.config.joint_prompts:
            return rows
        if rows.has_box is None:
            return replace(rows, points=None, point_labels=None)
        return replace(rows, point_labels=rows.point_labels.masked_fill(rows.has_box[:, None], PADDING_LABEL))

    def _prompts_per_part(self, image_embeddings: Tensor) -> int | None:
        if self.mask_decoder.config._attn_implementation == "eager":
            return None
        side = self.config.vision_config.image_size // 2
        channels = sum((self.config.fusion_hidden_sizes or (self.config.mask_decoder_config.hidden_size // 8,))[-2:])
        budget = _CPU_BUDGET if image_embeddings.device.type == "cpu" else _GPU_BUDGET
        return max(1, budget // (channels * side**2 * image_embeddings.element_size()))

    def _encode(
        self,
        pixel_values: Tensor | None,
        image_embeddings: Tensor | None,
        detail_features: Sequence[Tensor] | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...], ModelOutput | None]:
        """Image embeddings, detail features, and the output of the image encoder if it ran."""
        image_embeddings, vision_outputs = self.encode_or_reuse(pixel_values, image_embeddings, **kwargs)
        if pixel_values is not None:
            if detail_features is not None:
                raise ValueError("Give pixel_values, or image_embeddings with detail_features, not both.")
            return image_embeddings, self.get_detail_features(pixel_values), vision_outputs
        wanted = () if self.detail_encoder is None else self.config.detail_hidden_sizes or ()
        side = self.config.vision_config.image_size
        shapes = [(len(image_embeddings), c, side >> i + 1, side >> i + 1) for i, c in enumerate(wanted)]
        given = [tuple(features.shape) for features in detail_features or ()]
        if given != shapes:
            raise ValueError(
                f"image_embeddings come with detail_features of shapes {shapes}, got {given}: pass both results of "
                "encode_image(pixel_values)."
            )
        return image_embeddings, tuple(detail_features or ()), vision_outputs

    def _matte(
        self,
        pixel_values: Tensor | None,
        image_embeddings: Tensor | None,
        detail_features: Sequence[Tensor] | None,
        multimask_output: bool,
        prompts_per_batch: int | None,
        labels: Tensor | None,
        kwargs: dict[str, Any],
        **prompts: Any,
    ) -> ZimMattingOutput:
        kwargs.pop("num_items_in_batch", None)  # Trainer sets it
        if prompts_per_batch is not None and prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, got {prompts_per_batch}.")
        image_embeddings, detail_features, vision_outputs = self._encode(
            pixel_values, image_embeddings, detail_features, kwargs
        )
        rows = PromptRows.from_inputs(len(image_embeddings), **prompts)
        if kwargs.get("output_attentions", self.config.output_attentions):
            prompts_per_batch = None
        selected = slice(None) if multimask_output else slice(1)
        terms: dict[str, Any] = {}
        if labels is None:
            decoded = self.decode_rows(image_embeddings, detail_features, rows, selected, prompts_per_batch)
        else:
            targets = check_mattes(rows.gather_labels(labels, "matte", "MatteCollator"))
            decoded = self.decode_rows(image_embeddings, detail_features, rows, prompts_per_batch=prompts_per_batch)
            terms = self._loss(decoded, targets, rows)
            decoded = RowMasks(decoded.pred_masks[:, selected].detach(), decoded.iou_scores[:, selected].detach())
        return ZimMattingOutput(
            **terms,
            alphas=rows.scatter(decoded.pred_masks),
            iou_scores=rows.scatter(decoded.iou_scores),
            image_embeddings=image_embeddings,
            detail_features=detail_features,
            vision_hidden_states=getattr(vision_outputs, "hidden_states", None),
            vision_attentions=getattr(vision_outputs, "attentions", None),
        )

    def _loss(self, decoded: RowMasks, targets: Tensor, rows: PromptRows) -> dict[str, Tensor]:
        config = self.config
        result = matting_loss(
            decoded.pred_masks,
            decoded.iou_scores,
            targets,
            gradient_weight=config.gradient_loss_weight,
            gradient_filter=config.gradient_filter,
            multimask=config.multimask_loss,
            iou_weight=config.iou_loss_weight,
            cross_entropy_weight=config.cross_entropy_loss_weight,
        )
        # a batch of padding alone trains nothing, but every parameter takes part
        weight = 0.0 if rows.empty else 1.0
        terms = {
            "loss": result.total,
            "l1_loss": result.l1,
            "gradient_loss": result.gradient,
            "iou_loss": result.iou,
            "cross_entropy_loss": result.cross_entropy,
        }
        return {name: value.mean() * weight for name, value in terms.items() if value is not None}

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        detail_features: Sequence[Tensor] | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        has_box: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        multimask_output: bool = True,
        prompts_per_batch: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ZimMattingOutput:
        """As [`ZimForMatting.forward`], without `labels`."""
        return self._matte(
            pixel_values,
            image_embeddings,
            detail_features,
            multimask_output,
            prompts_per_batch,
            None,
            kwargs,
            input_points=input_points,
            point_labels=point_labels,
            input_boxes=input_boxes,
            has_box=has_box,
            prompt_mask=prompt_mask,
        )


class ZimForMatting(ZimModel):
    """Mattes of what points and boxes name, for any number of objects of an image at once, and their training."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        detail_features: Sequence[Tensor] | None = None,
        input_points: Tensor | None = None,
        point_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        has_box: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        multimask_output: bool = True,
        prompts_per_batch: int | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ZimMattingOutput:
        """
        Args:
            pixel_values (B, 3, S, S): normalised and padded images, or
            image_embeddings (B, C, g, g) and detail_features (tuple of (B, c_i, S / 2, S / 2), (B, c_i, S / 4, S / 4), ...):
                results of `encode_image`.
            input_points (B, P, n, 2): x y in pixels of the padded model frame.
            point_labels (B, P, n): 1 inside, 0 outside, -1 not a point, -2 absent (padding); default all 1.
            input_boxes (B, P, 4): x0 y0 x1 y1 in pixels of the padded model frame. See `config.joint_prompts` for objects
                with points and a box.
            has_box (B, P): False for objects without a box; default: all have one (if `input_boxes` are given).
            prompt_mask (B, P): False for objects that only pad the batch.
            multimask_output: True: all four mattes. False: the first, which the paper evaluates.
            prompts_per_batch: without gradients, at most so many prompts are decoded at a time, to bound memory (with
                `output_attentions` all at once).
            labels (B, P, h, h): target mattes in [0, 1], padded model frame at any resolution. -1: the pixel does not count
                (use it for padding). With transformers' own `Trainer`, give
                `TrainingArguments(label_names=["labels"])`: it would count `point_labels` among the labels and report no
                `eval_loss` without them; and `processing_class=processor.image_processor`: it fails with a processor that
                has no tokenizer.

        Raises:
            ValueError: for missing or contradicting inputs, or labels that are no mattes of the model frame.
        """
        return self._matte(
            pixel_values,
            image_embeddings,
            detail_features,
            multimask_output,
            prompts_per_batch,
            labels,
            kwargs,
            input_points=input_points,
            point_labels=point_labels,
            input_boxes=input_boxes,
            has_box=has_box,
            prompt_mask=prompt_mask,
        )


def _details_of(projected: Sequence[Tensor], image_index: Tensor) -> list[Tensor]:
    """Details (B, c, h, w) for rows of these images: a view (1, c, h, w) if it is one image, else a copy per row."""
    first = int(image_index[0])
    if bool((image_index == first).all()):
        return [details[first : first + 1] for details in projected]
    return [details[image_index] for details in projected]


__all__ = ["ZimForMatting", "ZimMattingOutput", "ZimModel"]
