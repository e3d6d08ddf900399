# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""What models on top of SAM share: one image encoding, and rows of prompts that are decoded from it."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ...hub import CompleteCheckpointMixin, HubMixin
from .mask_decoder import SamRowMaskDecoder
from .prompt_encoder import SamPositionEncoding, SamRowPromptEncoder
from .prompt_rows import PromptRows
from .two_way import SharedImage

Result = TypeVar("Result")
Model = TypeVar("Model", bound=nn.Module)


class SamRegionPreTrainedModel(HubMixin, CompleteCheckpointMixin, PreTrainedModel):
    """Base of models with `vision_encoder`, `shared_image_embedding`, `prompt_encoder` and `mask_decoder` of SAM."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # losses are means: Trainer itself divides by accumulation steps and processes
    supports_gradient_checkpointing = True
    _no_split_modules = ["SamImageLayer", "SamTwoWayBlock"]
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [
        r"^prompt_encoder\.shared_embedding\.positional_embedding$",  # a second copy of shared_image_embedding
    ]

    never_trained: ClassVar[tuple[str, ...]] = ()
    """Modules, where the model has them, that no policy of `freeze_for` trains."""
    _frozen_in_eval: tuple[str, ...] = ()

    vision_encoder: Any
    shared_image_embedding: SamPositionEncoding
    prompt_encoder: SamRowPromptEncoder
    mask_decoder: SamRowMaskDecoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SamPositionEncoding):
            init.normal_(module.positional_embedding, std=module.scale)

    def freeze_for(self, policy: str, frozen_in_eval: bool = True):
        """Chooses what is trained, among what is not in `never_trained` (a text model of CLIP).

        Args:
            policy: `"decoder"`: everything but the image encoder. `"decoder+lora"`: the same and LoRA weights that are
                already in the image encoder. `"all"`: everything.
            frozen_in_eval: keeps the frozen image encoder in eval mode during training.

        Raises:
            ValueError: for an unknown policy, or "+lora" without LoRA weights.
        """
        check_policy(self, policy)
        for name, parameter in self.named_parameters():
            encoder = name.startswith("vision_encoder") and policy != "all"
            trained = "lora_" in name if encoder else not name.startswith(self.never_trained)
            parameter.requires_grad_(trained)
        self._frozen_in_eval = ("vision_encoder",) if policy == "decoder" and frozen_in_eval else ()
        return self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        for name in (*self._frozen_in_eval, *self.never_trained) if mode else ():
            if hasattr(self, name.partition(".")[0]):
                self.get_submodule(name).eval()
        return keep_frozen_norms(self)

    def get_image_embeddings(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, C, g, g). Differentiable; the expensive pass, once per image."""
        return self.encode_or_reuse(pixel_values, None, **kwargs)[0]

    def encode_or_reuse(
        self, pixel_values: Tensor | None, image_embeddings: Tensor | None, **kwargs
    ) -> tuple[Tensor, ModelOutput | None]:
        """Image embeddings from exactly one of the two, and the encoder's output if it ran.

        Raises:
            ValueError: both or none of them.
            TypeError: a prompt among the other arguments, which the encoder would ignore: transformers' `input_labels`.
        """
        for name in kwargs:
            if name.startswith(("input_", "point", "box", "mask", "text")):
                hint = "point_labels are meant" if "label" in name else "this model knows no such prompt"
                raise TypeError(f"{type(self).__name__} has no argument {name}: {hint}.")
        if pixel_values is None and image_embeddings is not None:
            return image_embeddings.to(self._stream_dtype), None
        if pixel_values is None or image_embeddings is not None:
            raise ValueError("Give exactly one of pixel_values and image_embeddings.")
        # of a weight: the replicas of DataParallel have no parameters to ask
        dtype = self.vision_encoder.patch_embed.projection.weight.dtype
        outputs = self.vision_encoder(pixel_values.to(dtype), **kwargs)
        return outputs.last_hidden_state, outputs

    @property
    def _stream_dtype(self) -> torch.dtype:
        return self.mask_decoder.iou_token.weight.dtype

    def decode_in_parts(
        self,
        image_embeddings: Tensor,
        rows: PromptRows,
        decode: Callable[[Tensor, Tensor, PromptRows, SharedImage | None], Result],
        rows_per_part: int | None = None,
        in_one_part: bool = False,
    ) -> list[Result]:
        """Applies `decode(stream, positions, rows, shared)` to the rows, in one or several parts, in their order.

        With gradients all rows go through at once. Without, image by image and few rows at a time: the image streams
        of a part stay in the processor's cache, and the first block projects each image once.

        `stream` is (1, S, C) with the no-mask embedding and `shared`, or the raw image of each row (R, S, C).

        Args:
            rows_per_part: at most so many rows at a time. Default: by the size of the image streams; all rows with eager
                attention, whose weights are recorded in one piece.
            in_one_part: all rows at once, without gradients, too.
        """
        side = 4 * image_embeddings.shape[-1]
        if rows.masks is not None and rows.masks.shape[1:] != (side, side):
            raise ValueError(
                f"input_masks must be logits of shape (B, P, {side}, {side}), as the model predicts them, got masks of "
                f"{tuple(rows.masks.shape[1:])}."
            )
        image_embeddings = image_embeddings.to(self._stream_dtype)
        # with a device_map its parts may lie on several devices
        positions = self.shared_image_embedding.grid(image_embeddings.shape[-1]).to(image_embeddings)
        images = image_embeddings.flatten(2).transpose(1, 2)  # (B, S, C)
        recorded = rows_per_part is None and self.mask_decoder.config._attn_implementation == "eager"
        if in_one_part or recorded or torch.is_grad_enabled():  # gradients need all streams anyway
            return [decode(images[rows.image_index.to(images.device)], positions, rows, None)]
        parts = []
        for index in rows.image_index.unique().tolist():
            image, shared = images[index : index + 1], None
            if rows.masks is None:
                prompted = image + self.prompt_encoder.embed_masks(None)
                shared = self.mask_decoder.transformer.project_shared(prompted, positions)
                image = image if shared is None else prompted
            of_image = (rows.image_index == index).nonzero()[:, 0]
            for chunk in of_image.split(rows_per_part or _rows_per_part(image)):
                part = rows.select(chunk)
                stream = image if shared is not None else image.expand(len(part), -1, -1)
                parts.append(decode(stream, positions, part, shared))
        return parts

    def encode_prompts(
        self, stream: Tensor, rows: PromptRows, shared: SharedImage | None, text_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Stream with the dense prompt embedding, prompt tokens and their mask: what the mask decoder starts from."""
        tokens, token_mask = self.prompt_encoder(self.shared_image_embedding, rows, text_tokens)
        if shared is None:
            stream = stream + self.prompt_encoder.embed_masks(rows.masks, rows.has_mask)
        return stream, tokens, token_mask


def keep_frozen_norms(model: Model) -> Model:
    """Puts batch norms that are not trained into eval mode: their statistics are part of what is frozen, and an adapter, which
    saves what is trained alone, would lose what they became."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.train(module.training and module.weight.requires_grad)
    return model


def check_policy(model: nn.Module, policy: str) -> None:
    """
    Raises:
        ValueError: for an unknown policy of `freeze_for`, or "+lora" without LoRA weights in the model.
    """
    if policy not in ("decoder", "decoder+lora", "all"):
        raise ValueError(f"policy must be 'decoder', 'decoder+lora' or 'all', got {policy!r}.")
    if policy == "decoder+lora" and not any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError(
            "policy 'decoder+lora' needs LoRA weights in the model: add them first, e.g. with "
            "model.add_adapter(LoraConfig(target_modules=model.lora_target_modules))."
        )


def _rows_per_part(image: Tensor) -> int:
    """Rows whose image streams are worked on together: about 8 MiB on a CPU (cache), 512 MiB elsewhere."""
    budget = 2**23 if image.device.type == "cpu" else 2**29
    return max(1, budget // (image[0].numel() * image.element_size()))


__all__ = ["SamRegionPreTrainedModel", "check_policy", "keep_frozen_norms"]
