# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of the hidden layers, AdamW for everything else, as one optimizer for `Trainer`.

Muon (K. Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") makes every update of a matrix
orthogonal. Small transformers trained from scratch need clearly fewer steps with it; `torch.optim.Muon` does the work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .layer_decay import is_position_table


class MuonAdamW(Optimizer):
    """[`torch.optim.Muon`] on the groups marked `muon: True`, [`torch.optim.AdamW`] on the others.

    Args:
        groups: parameter groups with `params`, `lr`, `weight_decay` and `muon`, see [`muon_parameter_groups`]. The
            learning rate of Muon's groups is in AdamW's units: updates have the size (root mean square) of Adam's.
        betas, eps: of AdamW.

    Raises:
        ValueError: a parameter in a group of Muon is no matrix.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        with_muon = [dict(group) for group in groups if group["muon"]]
        others = [dict(group) for group in groups if not group["muon"]]
        self._parts: dict[bool, Optimizer] = {}
        if with_muon:
            self._parts[True] = Muon(with_muon, adjust_lr_fn="match_rms_adamw")
        if others:
            self._parts[False] = AdamW(others, betas=betas, eps=eps)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for muon, part in self._parts.items():
            # Loading a state replaces both, and schedulers change the groups: the parts own neither.
            part.param_groups = [group for group in self.param_groups if group["muon"] is muon]
            part.state = self.state
            part.step()
        return loss


def muon_parameter_groups(
    model: nn.Module, muon_learning_rate: float, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of [`MuonAdamW`]: Muon gets the weights of linear layers between hidden states, AdamW embeddings,
    output vocabularies, convolutions, norms, biases, tokens and position tables. Frozen parameters are left out.

    Args:
        model: any model.
        muon_learning_rate, learning_rate: of Muon and of AdamW.
        weight_decay: of matrices and convolutions; norms, biases and position tables get none.
    """
    vocabularies = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        if head is not None:
            vocabularies.add(id(head.weight))
    hidden = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in vocabularies
    }
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        muon, decays = id(parameter) in hidden, parameter.ndim > 1 and not is_position_table(name)
        new = {
            "params": [],
            "lr": muon_learning_rate if muon else learning_rate,
            "weight_decay": weight_decay if decays else 0.0,
            "muon": muon,
        }
        groups.setdefault((muon, decays), new)["params"].append(parameter)
    return list(groups.values())


__all__ = ["MuonAdamW", "muon_parameter_groups"]
