# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""An ONNX graph as layers with weights: constants with their origin, and who makes and uses what.

Exporters fold, transpose, rename and share weights in ways that depend on their version and options. Here everything that does
not depend on the values of the inputs is one constant, computed by onnxruntime, and what hides data flow is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_segcap.optional import import_optional

# Depends on sizes alone
_SIZES = ("Shape", "Size")
# What passes its first input on, for all that matters here
_TRANSPARENT = ("Identity", "Cast", "Dropout")
# What only moves numbers
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Flatten", "Slice", "Split", "Gather", "Tile")

KNOWN_OPERATORS = frozenset(
    [
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Concat",
        "Conv",
        "Cos",
        "Div",
        "Dropout",
        "Einsum",
        "Equal",
        "Erf",
        "Gelu",
        "Gemm",
        "Identity",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "Reciprocal",
        "ReduceMean",
        "Relu",
        "Resize",
        "Sin",
        "Softmax",
        "Sqrt",
        "Sub",
        "Where",
    ]
) | set(MOVES)


@dataclass(frozen=True)
class Constant:
    """A tensor that no input changes.

    Attributes:
        value: float32 where it was float16.
        sources: the stored tensors (initializers and constants) of numbers that it was made from.
    """

    value: np.ndarray
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """An operation on what depends on the inputs; `inputs` and `outputs` are names, "" for an input that is left out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} {self.name!r}"


@dataclass
class Graph:
    """The operations of an ONNX file that depend on its inputs, in their order.

    Attributes:
        file: its name.
        inputs: {name: shape}, None for axes that vary.
        outputs: names, in their order.
        stored: {name: value} of all stored tensors of numbers with more than one element.
        needed: names of the stored tensors that some operation uses.
        settings: names of the stored tensors that only say how an operation works, such as the scales of a resize.
    """

    file: str
    inputs: dict[str, tuple[int | None, ...]]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, Constant]
    stored: dict[str, np.ndarray]
    needed: set[str] = field(default_factory=set)
    settings: set[str] = field(default_factory=set)
    makers: dict[str, Node] = field(init=False)
    users: dict[str, list[Node]] = field(init=False)

    def __post_init__(self) -> None:
        self.makers = {name: node for node in self.nodes for name in node.outputs}
        self.users = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.users.setdefault(name, []).append(node)

    def split(self, node: Node) -> tuple[list[str], list[Constant]]:
        """The inputs of a node that vary, and those that do not."""
        varying = [name for name in node.inputs if name and name not in self.constants]
        return varying, [self.constants[name] for name in node.inputs if name in self.constants]

    def back(self, name: str, through: tuple[str, ...]) -> Iterator[str]:
        """`name` and what it is made from by the operations `through`, nearest first."""
        seen, queue = {name}, [name]
        while queue:
            current = queue.pop(0)
            yield current
            maker = self.makers.get(current)
            if maker is None or maker.operator not in through:
                continue
            # an index or a shape says nothing about the data
            varying = self.split(maker)[0][:1] if maker.operator in MOVES else self.split(maker)[0]
            for origin in varying:
                if origin not in seen:
                    seen.add(origin)
                    queue.append(origin)

    def forward(self, name: str, through: tuple[str, ...]) -> Iterator[Node]:
        """Users of `name`, and of what the operations `through` make of it, nearest first."""
        seen, queue = {name}, [name]
        while queue:
            for node in self.users.get(queue.pop(0), ()):
                yield node
                if node.operator in through:
                    new = [output for output in node.outputs if output not in seen]
                    seen.update(new)
                    queue += new


def load_graph(path: Path, sizes: dict[str, int] | None = None) -> Graph:
    """Reads an ONNX file.

    Args:
        path: its weights may lie in a second file.
        sizes: of axes that vary, by name, to run it once; others become 2.

    Raises:
        ImportError: onnx or onnxruntime is missing.
        ValueError: it is no ONNX file.
    """
    onnx = import_optional("onnx", "onnx", "converting ONNX files")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's and onnx's own
        raise ValueError(f"{path} is no complete ONNX file: {' '.join(str(error).split())[:200]}") from error
    stored = _stored(onnx, model)
    sources = {name: ((name,) if _is_weight(value) else ()) for name, value in stored.items()}
    settings: set[str] = set()
    varying, computed = [], []
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type == "Resize":
            settings.update(origin for name in node.input[1:] for origin in (name, *sources.get(name, ())))
        if node.op_type in _SIZES or all(name in sources for name in node.input if name):
            computed += node.output
            data = () if node.op_type in _SIZES else node.input[:1] if node.op_type == "Resize" else node.input
            origins = dict.fromkeys(origin for name in data if name for origin in sources[name])
            sources |= dict.fromkeys(node.output, tuple(origins))
        else:
            varying.append(node)
    used = {name for node in varying for name in node.input}
    values = stored | _run(onnx, model, [name for name in computed if name in used], sizes or {})
    alias: dict[str, str] = {}
    nodes = []
    for node in varying:
        inputs = tuple(alias.get(name, name) for name in node.input)
        if node.op_type in _TRANSPARENT:
            alias[node.output[0]] = inputs[0]
        else:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            nodes.append(Node(node.op_type, node.name, inputs, tuple(node.output), attributes))
    return Graph(
        file=path.name,
        inputs={item.name: _shape(item) for item in model.graph.input if item.name not in stored},
        outputs=[alias.get(item.name, item.name) for item in model.graph.output],
        nodes=nodes,
        constants={name: Constant(_single(values[name]), sources[name]) for name in used if name in values},
        stored={name: _single(value) for name, value in stored.items() if _is_weight(value) and value.size > 1},
        needed={name for node in model.graph.node for name in node.input},
        settings=settings,
    )


def check_operators(graph: Graph) -> None:
    """
    Raises:
        ValueError: the graph uses an operator that ZIM, as it is published, has no use for.
    """
    unknown = [str(node) for node in graph.nodes if node.operator not in KNOWN_OPERATORS]
    if unknown:
        raise ValueError(
            f"{graph.file} has operators that are no part of ZIM as it is published: {', '.join(unknown[:3])}"
        )


def _stored(onnx: Any, model: Any) -> dict[str, np.ndarray]:
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            stored[node.output[0]] = (
                onnx.numpy_helper.to_array(value) if node.attribute[0].name == "value" else np.asarray(value)
            )
    return stored


def _is_weight(value: np.ndarray) -> bool:
    return value.dtype.kind == "f"


def _single(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _shape(item: Any) -> tuple[int | None, ...]:
    return tuple(dim.dim_value or None for dim in item.type.tensor_type.shape.dim)


def _run(onnx: Any, model: Any, names: list[str], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """The values of intermediate results, of one run with arbitrary inputs."""
    if not names:
        return {}
    runtime = import_optional("onnxruntime", "onnx", "converting ONNX files")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    feeds = {
        item.name: np.zeros([d if isinstance(d, int) else sizes.get(d, 2) for d in item.shape], types[item.type])
        for item in session.get_inputs()
    }
    return dict(zip(names, session.run(names, feeds), strict=True))


__all__ = ["KNOWN_OPERATORS", "MOVES", "Constant", "Graph", "Node", "check_operators", "load_graph"]
