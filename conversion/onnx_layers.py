# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Layers with weights in an ONNX graph: linear layers, convolutions and norms, however an exporter wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_segcap.conversion.onnx_graph import MOVES, Graph, Node


class UnclearGraph(ValueError):
    """The graph is not ZIM's, or says two things."""


@dataclass
class Weight:
    """A tensor as PyTorch keeps it, and the names that it has in the file."""

    value: np.ndarray
    names: tuple[str, ...]


@dataclass(eq=False)
class Layer:
    """One layer.

    Attributes:
        kind: "linear", "conv" or "norm" (over channels).
        weights: by the names of PyTorch's modules: "weight", "bias"; of batch norms "weight", "bias", "running_mean",
            "running_var" in the layer `norm` of the convolution before.
        node: its first operation.
        input, output: names of its data.
        eps: of norms.
        norm: the batch norm right behind a convolution.
    """

    kind: str
    node: Node
    input: str
    output: str
    weights: dict[str, Weight]
    eps: float = 0.0
    norm: Layer | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights["weight"].value.shape

    def __str__(self) -> str:
        return f"{self.kind} {self.shape} at {self.node}"


@dataclass
class Layers:
    """All layers of a graph, in its order, and how to find them."""

    graph: Graph
    found: list[Layer]
    of_node: dict[Node, Layer] = field(init=False)
    of_output: dict[str, Layer] = field(init=False)

    def __post_init__(self) -> None:
        self.of_node = {layer.node: layer for layer in self.found}
        self.of_output = {layer.output: layer for layer in self.found}

    def of_kind(self, kind: str) -> list[Layer]:
        return [layer for layer in self.found if layer.kind == kind]

    def behind(self, name: str, kind: str, through: tuple[str, ...] = MOVES) -> Layer | None:
        """The one layer that makes `name`, up to the operations `through`.

        Raises:
            UnclearGraph: there are several.
        """
        layers = [self.of_output[origin] for origin in self.graph.back(name, through) if origin in self.of_output]
        fitting = list(dict.fromkeys(layer for layer in layers if layer.kind == kind))
        if len(fitting) > 1:
            raise UnclearGraph(f"{name!r} is made by {fitting[0]} and by {fitting[1]}: expected one {kind}")
        return fitting[0] if fitting else None

    def chain_behind(self, name: str) -> list[Layer]:
        """The linear layers, with ReLU between, that end in `name`; the first of them first."""
        chain: list[Layer] = []
        layer = self.behind(name, "linear", (*MOVES, "Relu"))
        while layer is not None and layer not in chain:
            chain.insert(0, layer)
            layer = self.behind(layer.input, "linear", (*MOVES, "Relu"))
        return chain

    def conv_behind(self, name: str) -> tuple[Layer, Layer | None] | None:
        """The convolution that makes `name`, by way of a norm and ReLU; and that norm."""
        norm = self.behind(name, "norm", (*MOVES, "Relu"))
        conv = self.behind(name if norm is None else norm.input, "conv", (*MOVES, "Relu"))
        return None if conv is None else (conv, norm or conv.norm)


def find_layers(graph: Graph) -> Layers:
    """All linear layers, convolutions and norms.

    Raises:
        UnclearGraph: one has a form that has no place in PyTorch's layers.
    """
    readers: dict[str, Callable[[Graph, Node], Layer | None]] = {
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Conv": _conv,
        "LayerNormalization": _layer_norm,
        "Mul": _written_out_norm,
    }
    found = [readers[node.operator](graph, node) for node in graph.nodes if node.operator in readers]
    return Layers(graph, [layer for layer in found if layer is not None])


def weight_of(graph: Graph, name: str, change: Callable[[np.ndarray], Any] = lambda value: value) -> Weight:
    """A constant, with a change that PyTorch's form of it needs."""
    constant = graph.constants[name]
    return Weight(np.ascontiguousarray(change(constant.value)), tuple(dict.fromkeys((name, *constant.sources))))


def _matmul(graph: Graph, node: Node) -> Layer | None:
    data, matrix = node.inputs
    if matrix not in graph.constants or data in graph.constants or graph.constants[matrix].value.ndim != 2:
        return None
    layer = Layer("linear", node, data, node.outputs[0], {"weight": weight_of(graph, matrix, np.transpose)})
    return _with_bias(graph, layer)


def _with_bias(graph: Graph, layer: Layer) -> Layer:
    """Takes the vector that is added to all rows as the bias, if nothing else sees the product."""
    users = graph.users.get(layer.output, [])
    if len(users) == 1 and users[0].operator == "Add" and layer.output not in graph.outputs:
        for name in users[0].inputs:
            if name in graph.constants and graph.constants[name].value.size == layer.shape[0]:
                layer.weights["bias"] = weight_of(graph, name, np.ravel)
                layer.output = users[0].outputs[0]
    return layer


def _gemm(graph: Graph, node: Node) -> Layer | None:
    data, matrix, *bias = node.inputs
    if matrix not in graph.constants:
        return None
    options = node.attributes
    if options.get("transA"):
        raise UnclearGraph(f"{node} transposes its data, which no linear layer does")
    alpha, beta, transposed = options.get("alpha", 1.0), options.get("beta", 1.0), options.get("transB", 0)
    weights = {"weight": weight_of(graph, matrix, lambda value: alpha * (value if transposed else value.T))}
    if bias and bias[0] in graph.constants:
        weights["bias"] = weight_of(graph, bias[0], lambda value: beta * np.ravel(value))
    return Layer("linear", node, data, node.outputs[0], weights)


def _conv(graph: Graph, node: Node) -> Layer:
    data, kernel, *bias = node.inputs
    if kernel not in graph.constants or node.attributes.get("group", 1) != 1:
        raise UnclearGraph(f"{node} has groups or a kernel that is computed")
    weights = {"weight": weight_of(graph, kernel)}
    if bias and bias[0]:
        weights["bias"] = weight_of(graph, bias[0])
    layer = Layer("conv", node, data, node.outputs[0], weights)
    users = graph.users.get(layer.output, [])
    if len(users) == 1 and users[0].operator == "BatchNormalization":
        norm = users[0]
        names = ("weight", "bias", "running_mean", "running_var")
        values = {part: weight_of(graph, name) for part, name in zip(names, norm.inputs[1:], strict=True)}
        eps = norm.attributes.get("epsilon", 1e-5)
        layer.norm = Layer("norm", norm, layer.output, norm.outputs[0], values, eps)
        layer.output = norm.outputs[0]
    return layer


def _layer_norm(graph: Graph, node: Node) -> Layer:
    if node.attributes.get("axis", -1) != -1 or len(node.inputs) != 3:
        raise UnclearGraph(f"{node} is no norm over the last axis with scale and shift")
    weights = {part: weight_of(graph, name) for part, name in zip(("weight", "bias"), node.inputs[1:])}
    return Layer("norm", node, node.inputs[0], node.outputs[0], weights, node.attributes.get("epsilon", 1e-5))


def _written_out_norm(graph: Graph, node: Node) -> Layer | None:
    """scale * (x - mean) / sqrt(variance + eps) + shift, from older exporters and for norms over the channels of a map."""
    varying, fixed = graph.split(node)
    if len(varying) != 1 or len(fixed) != 1:
        return None
    ratio = graph.makers.get(varying[0])
    if ratio is None or ratio.operator not in ("Div", "Mul"):
        return None
    roots = [graph.makers[name] for name in graph.back(ratio.inputs[1], ("Reciprocal",)) if name in graph.makers]
    centred = graph.makers.get(ratio.inputs[0])
    users = graph.users.get(node.outputs[0], [])
    if centred is None or centred.operator != "Sub" or len(users) != 1 or users[0].operator != "Add":
        return None
    shift = [name for name in users[0].inputs if name in graph.constants]
    sums = [
        graph.makers[root.inputs[0]] for root in roots if root.operator == "Sqrt" and root.inputs[0] in graph.makers
    ]
    eps = [constant for total in sums if total.operator == "Add" for constant in graph.split(total)[1]]
    if len(eps) != 1 or not shift:
        return None
    scale = next(name for name in node.inputs if name in graph.constants)
    weights = {"weight": weight_of(graph, scale, np.ravel), "bias": weight_of(graph, shift[0], np.ravel)}
    return Layer("norm", node, centred.inputs[0], users[0].outputs[0], weights, float(eps[0].value.item()))


__all__ = ["Layer", "Layers", "UnclearGraph", "Weight", "find_layers", "weight_of"]
