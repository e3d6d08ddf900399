# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Which weight of ZIM each constant of its two ONNX graphs is, read from where it stands in the flow of data.

Names play no part here: exporters fold, rename and share weights. `convert_zim` compares with them afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_segcap.conversion.onnx_graph import MOVES, Graph, Node
from hf_segcap.conversion.onnx_layers import Layer, Layers, UnclearGraph, Weight, find_layers, weight_of

# What stands between a product of queries and keys and the softmax, or between a projection and that product
_SCORES = ("Add", "Sub", "Mul", "Div", "Where", *MOVES)
_COMPARISONS = ("Equal", "Not", "And", "Or")
_MASK_INPUT, _COORDS, _LABELS, _EMBEDDINGS = "attn_mask", "point_coords", "point_labels", "image_embeddings"
_NOT_A_POINT = -1
_BLOCK = ("norm", "linear", "linear", "norm", "linear", "linear")
_BLOCK_NAMES = ("layer_norm1", "attn.qkv", "attn.proj", "layer_norm2", "mlp.lin1", "mlp.lin2")
_NECK = ("conv", "norm", "conv", "norm")
_NECK_NAMES = ("conv1", "layer_norm1", "conv2", "layer_norm2")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass
class Found:
    """What a graph tells: weights by their name in `ZimForMatting`, and facts for its configuration."""

    weights: dict[str, Weight] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, path: str, layer: Layer | None) -> None:
        for part, weight in (layer.weights if layer is not None else {}).items():
            self.weights[f"{path}.{part}"] = weight

    def say(self, name: str, values: Iterable[Any], what: str) -> None:
        """Keeps a fact that all places agree on."""
        different = list(dict.fromkeys(values))
        if len(different) != 1:
            raise UnclearGraph(f"{what} differ: {different}; ZimForMatting has one for all")
        self.facts[name] = different[0]


# --- encoder -----------------------------------------------------------------------------------------------------------


def read_encoder(graph: Graph) -> Found:
    """Image encoder and detail encoder.

    Raises:
        UnclearGraph: the graph has another structure.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) < 1:
        raise UnclearGraph(f"{graph.file} has the inputs {list(graph.inputs)}: expected the image alone")
    layers, found = find_layers(graph), Found()
    details = _read_details(layers, found)
    rest = [layer for layer in layers.found if layer not in details]
    image = next(iter(graph.inputs))
    if not rest or rest[0].kind != "conv" or rest[0].input != image or graph.inputs[image][-1] is None:
        raise UnclearGraph(f"{graph.file}: expected a convolution of an image of fixed size, the patch embedding")
    patch, *rest = rest
    width, patch_size = patch.shape[0], patch.shape[-1]
    side = graph.inputs[image][-1] or 0
    found.add("vision_encoder.patch_embed.projection", patch)
    found.facts |= {"image_size": side, "patch_size": patch_size, "hidden_size": width, "num_channels": patch.shape[1]}
    _read_positions(graph, patch, side // patch_size, found)
    depth = (len(rest) - len(_NECK)) // len(_BLOCK)
    kinds = tuple(layer.kind for layer in rest)
    if depth < 1 or kinds != _BLOCK * depth + _NECK:
        at = next((i for i, (a, b) in enumerate(zip(kinds, _BLOCK * max(depth, 1) + _NECK)) if a != b), len(kinds) - 1)
        raise UnclearGraph(
            f"{graph.file}: {len(rest)} layers follow the patch embedding, expected {len(_BLOCK)} per block (norm, qkv, "
            f"projection, norm, two of the MLP) and {len(_NECK)} of the neck; the first that does not fit is {rest[at]}"
        )
    for index in range(depth):
        block = rest[index * len(_BLOCK) : (index + 1) * len(_BLOCK)]
        for name, layer in zip(_BLOCK_NAMES, block, strict=True):
            found.add(f"vision_encoder.layers.{index}.{name}", layer)
        _read_tables(layers, f"vision_encoder.layers.{index}.attn", block[1], block[2], found)
    for name, layer in zip(_NECK_NAMES, rest[-len(_NECK) :], strict=True):
        found.add(f"vision_encoder.neck.{name}", layer)
    blocks = [layer for layer in rest[: -len(_NECK)] if layer.kind == "norm"]
    found.say("layer_norm_eps", (_rounded(layer.eps) for layer in blocks), "epsilons of the image encoder's norms")
    found.say("mlp_dim", (layer.shape[0] for layer in rest[4 : -len(_NECK) : 6]), "widths of the image encoder's MLPs")
    found.facts |= {"num_hidden_layers": depth, "output_channels": rest[-1].shape[0]}
    found.facts["qkv_bias"] = "bias" in rest[1].weights
    return found


def _read_details(layers: Layers, found: Found) -> list[Layer]:
    details: list[Layer] = []
    norms = []
    for level, name in enumerate(layers.graph.outputs[1:]):
        stage = layers.conv_behind(name)
        if stage is None or stage[0].node.attributes.get("strides") != [2, 2]:
            raise UnclearGraph(f"{layers.graph.file}: output {name!r} is not made by a convolution of stride 2")
        norms.append(_add_conv(found, f"detail_encoder.convs.{level}", *stage))
        details += [layer for layer in stage if layer is not None and layer in layers.found]
    found.facts["detail_norm"] = norms
    found.facts["detail_hidden_sizes"] = [layer.shape[0] for layer in details if layer.kind == "conv"]
    return details


def _add_conv(found: Found, path: str, conv: Layer, norm: Layer | None) -> str:
    """Adds a convolution and its norm; returns the kind of the norm."""
    found.add(f"{path}.conv", conv)
    kind = "none" if norm is None else "batch" if "running_mean" in norm.weights else "layer"
    if norm is not None:
        found.add(f"{path}.{kind}_norm", norm)
    elif "bias" not in conv.weights:
        found.weights[f"{path}.conv.bias"] = Weight(np.zeros(conv.shape[0], np.float32), ())
    return kind


def _read_positions(graph: Graph, patch: Layer, grid: int, found: Found) -> None:
    """The table that is added right after the patch embedding."""
    sums = [node for node in graph.forward(patch.output, MOVES) if node.operator == "Add" and graph.split(node)[1]]
    found.facts["use_abs_pos"] = bool(sums)
    if not sums:
        return
    width = patch.shape[0]
    (name,) = (name for name in sums[0].inputs if name in graph.constants)
    value = graph.constants[name].value
    if value.size != grid * grid * width:
        raise UnclearGraph(f"{sums[0]} adds a constant {value.shape} to patches of {grid} x {grid} x {width}")
    first = patch.output in sums[0].inputs  # channels come first as long as nothing moved them
    found.weights["vision_encoder.pos_embed"] = weight_of(
        graph,
        name,
        lambda v: v.reshape(width, grid, grid).transpose(1, 2, 0)[None] if first else v.reshape(1, grid, grid, width),
    )


def _read_tables(layers: Layers, path: str, qkv: Layer, proj: Layer, found: Found) -> None:
    """The relative positions of one block, from the two constants (k, k, d) that its queries are multiplied with."""
    nodes = layers.graph.nodes
    between = nodes[nodes.index(qkv.node) : nodes.index(proj.node)]
    tables: dict[str, Weight] = {}
    for node in between:
        for name in node.inputs:
            constant = layers.graph.constants.get(name)
            if node.operator not in ("Einsum", "MatMul") or constant is None or constant.value.ndim not in (3, 4, 5):
                continue
            axis = _table_axis(layers.graph, node)
            if axis in tables:
                raise UnclearGraph(f"{node}: a second table of relative positions of the same axis, {axis}")
            tables[axis] = weight_of(layers.graph, name, lambda v, node=node: _table(v, node))
    if set(tables) != {"rel_pos_h", "rel_pos_w"}:
        raise UnclearGraph(
            f"{path}: expected two tables of relative positions between {qkv} and {proj}, got {len(tables)}"
        )
    found.weights |= {f"{path}.{axis}": table for axis, table in tables.items()}
    lengths = {axis: len(table.value) for axis, table in tables.items()}
    if len(set(lengths.values())) != 1:
        raise UnclearGraph(f"{path}: the windows are no squares, the tables have the lengths {lengths}")
    found.facts.setdefault("table_lengths", []).append(lengths["rel_pos_h"])
    found.facts["num_attention_heads"] = qkv.shape[1] // tables["rel_pos_h"].value.shape[1]


def _table_axis(graph: Graph, node: Node) -> str:
    """By the equation (bhwc,hkc->bhwk: rows), or by the axis along which the result is repeated: the last for rows."""
    if node.operator == "Einsum":
        query, table = node.attributes["equation"].decode().replace(" ", "").partition("->")[0].split(",")
        place = query.find(table[0])
        if len(query) == 4 and place in (1, 2):
            return ("rel_pos_h", "rel_pos_w")[place - 1]
    for user in graph.forward(node.outputs[0], ("Transpose", "Reshape")):
        if user.operator == "Unsqueeze":
            axes = np.ravel(
                graph.split(user)[1][0].value if graph.split(user)[1] else user.attributes["axes"]
            ).tolist()
            if axes in ([4], [-1]):
                return "rel_pos_h"
            if axes in ([3], [-2]):
                return "rel_pos_w"
    raise UnclearGraph(f"{node}: rows or columns? Its product with relative positions has no known form")


def _table(value: Any, node: Node) -> np.ndarray:
    """R (k, k, d) with R[q, p] = table[q - p + k - 1] -> table (2k - 1, d)."""
    value = value.reshape(value.shape[-3:])
    count = value.shape[0]
    if node.operator == "MatMul":  # written as batches (k, d, k)
        value = value.transpose(0, 2, 1)
    table = np.concatenate([value[0, ::-1], value[1:, 0]]) if value.shape[1] == count else value[0]
    offsets = np.arange(count)[:, None] - np.arange(count)[None] + count - 1
    if value.shape[1] != count or not np.array_equal(table[offsets], value):
        raise UnclearGraph(f"{node}: the constant {value.shape} is no table of relative positions")
    return table


# --- decoder -----------------------------------------------------------------------------------------------------------


@dataclass
class _Attention:
    parts: list[Layer]  # q, k, v, out
    heads: float
    masked: bool
    fills: list[float]


def read_decoder(graph: Graph) -> Found:
    """Prompt encoder, mixer, pixel decoder and heads.

    Raises:
        UnclearGraph: the graph has another structure.
    """
    layers, found = find_layers(graph), Found()
    attentions = [_read_attention(layers, node) for node in graph.nodes if node.operator == "Softmax"]
    blocks, odd = divmod(len(attentions) - 1, 3)
    if blocks < 1 or odd:
        raise UnclearGraph(f"{graph.file} has {len(attentions)} attentions, expected three per block and a last one")
    _read_mixer(layers, attentions, blocks, found)
    fusion = _read_heads(layers, found)
    _read_fusion(layers, fusion, found)
    width = attentions[0].parts[0].shape[1]
    _read_prompts(layers, width, found)
    mlps = [layer for layer in layers.of_kind("linear") if layer.shape[1] > 2 and not _placed(found, layer)]
    if len(mlps) != 2 * blocks:
        raise UnclearGraph(f"{graph.file}: {len(mlps)} linear layers are left for the {blocks} MLPs of the blocks")
    for index, layer in enumerate(mlps):
        found.add(f"mask_decoder.transformer.layers.{index // 2}.mlp.lin{index % 2 + 1}", layer)
    found.say("mlp_dim", (layer.shape[0] for layer in mlps[::2]), "widths of the mixer's MLPs")
    norms = [layer for layer in layers.of_kind("norm") if not _placed(found, layer)]
    if len(norms) != 4 * blocks + 1:
        raise UnclearGraph(f"{graph.file}: {len(norms)} norms are left for {blocks} blocks, expected {4 * blocks + 1}")
    for index, layer in enumerate(norms[:-1]):
        found.add(f"mask_decoder.transformer.layers.{index // 4}.layer_norm{index % 4 + 1}", layer)
    found.add("mask_decoder.transformer.layer_norm_final_attn", norms[-1])
    found.facts["layer_norm_eps"] = [_rounded(layer.eps) for layer in norms]
    found.facts |= {"hidden_size": width, "num_hidden_layers": blocks}
    return found


def _placed(found: Found, layer: Layer) -> bool:
    return any(weight is layer.weights["weight"] for weight in found.weights.values())


def _read_attention(layers: Layers, softmax: Node) -> _Attention:
    graph = layers.graph
    behind = list(graph.back(softmax.inputs[0], _SCORES))
    products = [
        graph.makers[name] for name in behind if name in graph.makers and graph.makers[name].operator == "MatMul"
    ]
    products = [node for node in dict.fromkeys(products) if len(graph.split(node)[0]) == 2]
    values = [
        node
        for node in graph.forward(softmax.outputs[0], MOVES)
        if node.operator == "MatMul" and len(graph.split(node)[0]) == 2
    ]
    values = list(dict.fromkeys(values))
    if len(products) != 1 or len(values) != 1:
        raise UnclearGraph(f"{softmax}: expected one product of queries and keys before it and one with values behind")
    sides = [*products[0].inputs, values[0].inputs[1]]
    parts = [layers.behind(side, "linear", (*MOVES, "Mul", "Div")) for side in sides]
    users = (layers.of_node.get(node) for node in graph.forward(values[0].outputs[0], MOVES))
    parts.append(next((layer for layer in users if layer is not None and layer.kind == "linear"), None))
    if any(part is None for part in parts):
        missing = _PROJECTIONS[parts.index(None)]
        raise UnclearGraph(f"{softmax}: no linear layer is its {missing}")
    names = dict.fromkeys([*behind, *(n for side in sides[:2] for n in graph.back(side, (*MOVES, "Mul", "Div")))])
    masked = any(
        _MASK_INPUT in graph.back(name, (*_SCORES, *_COMPARISONS)) for name in names if name != products[0].outputs[0]
    )
    makers = dict.fromkeys(graph.makers[name] for name in names if name in graph.makers)
    factor, fills = 1.0, []
    for node in makers:
        for constant in graph.split(node)[1]:
            if constant.value.size == 1 and node.operator in ("Mul", "Div"):
                factor *= constant.value.item() ** (1 if node.operator == "Mul" else -1)
            if constant.value.size == 1 and node.operator == "Where" and constant.value.item() < 0:
                fills.append(constant.value.item())
    inner = parts[0].shape[0]
    return _Attention([part for part in parts if part is not None], inner * factor**2, masked, fills)


def _read_mixer(layers: Layers, attentions: list[_Attention], blocks: int, found: Found) -> None:
    kinds = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    for index, attention in enumerate(attentions):
        path = "mask_decoder.transformer." + (
            f"layers.{index // 3}.{kinds[index % 3]}" if index < 3 * blocks else "final_attn_token_to_image"
        )
        for name, layer in zip(_PROJECTIONS, attention.parts, strict=True):
            found.add(f"{path}.{name}", layer)
    heads = {round(attention.heads) for attention in attentions}
    if len(heads) != 1 or any(abs(attention.heads - min(heads)) > 1e-3 for attention in attentions):
        raise UnclearGraph(f"the scales of the attentions mean {[round(a.heads, 2) for a in attentions]} heads")
    found.facts["num_attention_heads"] = heads.pop()
    rates = (a.parts[0].shape[1] / a.parts[0].shape[0] for i, a in enumerate(attentions) if i % 3 or i == 3 * blocks)
    found.say("attention_downsample_rate", rates, "widths of the cross attentions")
    masked = []
    for place, name in ((1, "token_to_image"), (2, "image_to_token")):
        found.say(name, (a.masked for a in attentions[place : 3 * blocks : 3]), f"masks of the {name} attentions")
        masked += [name] if found.facts.pop(name) else []
    if any(attention.masked for attention in attentions[: 3 * blocks : 3]):
        raise UnclearGraph("the attention map changes the self attention of the tokens, which ZimForMatting cannot")
    found.facts |= {"masked_attention": masked, "mask_final_attention": attentions[-1].masked}
    fills = [fill for attention in attentions for fill in attention.fills]
    if fills:
        found.say("attention_map_fill", fills, "scores of positions outside the map")


def _read_heads(layers: Layers, found: Found) -> str:
    """The networks behind both outputs; returns the name of the upscaled image that the mask tokens are compared with."""
    graph = layers.graph
    scores = layers.chain_behind(graph.outputs[1])
    if len(scores) < 2:
        raise UnclearGraph(f"{graph.file}: output {graph.outputs[1]!r} is not made by linear layers with ReLU alone")
    _add_network(found, "mask_decoder.iou_prediction_head", scores)
    found.facts |= {"iou_head_depth": len(scores), "iou_head_hidden_dim": scores[0].shape[0]}
    products = [graph.makers[name] for name in graph.back(graph.outputs[0], MOVES) if name in graph.makers]
    products = [node for node in products if node.operator == "MatMul" and len(graph.split(node)[0]) == 2]
    if len(products) != 1:
        raise UnclearGraph(f"{graph.file}: output {graph.outputs[0]!r} is no product of mask tokens and an image")
    tokens, image = products[0].inputs
    joined = [graph.makers[name] for name in graph.back(tokens, MOVES) if name in graph.makers]
    joined = [node for node in joined if node.operator == "Concat"]
    if len(joined) != 1:
        raise UnclearGraph(f"{products[0]}: expected the joined outputs of one network per mask token")
    for index, name in enumerate(joined[0].inputs):
        chain = layers.chain_behind(name)
        if len(chain) != 3:
            raise UnclearGraph(f"{joined[0]}: network {index} has {len(chain)} layers, expected 3")
        _add_network(found, f"mask_decoder.output_hypernetworks_mlps.{index}", chain)
    found.facts["num_masks"] = len(joined[0].inputs)
    return image


def _add_network(found: Found, path: str, chain: list[Layer]) -> None:
    names = ["proj_in", *(f"layers.{i}" for i in range(len(chain) - 2)), "proj_out"]
    for name, layer in zip(names, chain, strict=True):
        found.add(f"{path}.{name}", layer)


def _read_fusion(layers: Layers, image: str, found: Found) -> None:
    """The pixel decoder: from the finest convolution back to the coarsest."""
    graph = layers.graph
    stages: list[tuple[Layer, Layer | None, str, str]] = []  # with the feature and how it joins
    stage = layers.conv_behind(image)
    while stage is not None:
        conv, norm = stage
        join = graph.makers.get(conv.input)
        names = [] if join is None else list(join.inputs)
        features = [next((o for o in graph.back(n, MOVES) if o.startswith("feat_")), None) for n in names]
        if join is None or join.operator not in ("Concat", "Add") or len(names) != 2 or features.count(None) != 1:
            raise UnclearGraph(f"{conv}: expected a detail of the image and an upsampled map, joined")
        first = features[0] is not None
        feature, other = (features[0], names[1]) if first else (features[1], names[0])
        resize = next(
            (
                graph.makers[n]
                for n in graph.back(other, MOVES)
                if n in graph.makers and graph.makers[n].operator == "Resize"
            ),
            None,
        )
        if resize is None or resize.attributes.get("mode") != b"linear":
            raise UnclearGraph(f"{conv}: its map is not upsampled bilinearly")
        if resize.attributes.get("coordinate_transformation_mode", b"half_pixel") not in (
            b"half_pixel",
            b"pytorch_half_pixel",
        ):
            raise UnclearGraph(f"{resize} does not upsample as PyTorch does without align_corners")
        how = "add" if join.operator == "Add" else "detail first" if first else "detail last"
        stages.insert(0, (conv, norm, str(feature), how))
        stage = layers.conv_behind(resize.inputs[0])
    if not stages:
        raise UnclearGraph(f"{graph.file}: no convolution joins image details: this is not ZIM's pixel decoder")
    wanted = sorted((name for name in graph.inputs if name.startswith("feat_")), reverse=True)
    if [feature for _, _, feature, _ in stages] != wanted:
        raise UnclearGraph(f"details join in the order {[s[2] for s in stages]}, expected {wanted}")
    kinds = []
    for index, (conv, norm, feature, how) in enumerate(stages):
        kinds.append(_add_conv(found, f"mask_decoder.fusion_blocks.{index}", conv, norm))
        if how == "detail last":
            channels = graph.inputs[feature][1] or 0
            weight = conv.weights["weight"]
            weight.value = np.concatenate([weight.value[:, -channels:], weight.value[:, :-channels]], axis=1)
    found.facts["detail_norm"] = kinds
    modes = ("add" if how == "add" else "concat" for *_, how in stages)
    found.say("fusion_mode", modes, "ways in which details join")
    found.facts["fusion_hidden_sizes"] = [conv.shape[0] for conv, *_ in stages]


def _read_prompts(layers: Layers, width: int, found: Found) -> None:
    graph = layers.graph
    fourier = [layer for layer in layers.of_kind("linear") if layer.shape[1] == 2]
    if len(fourier) != 1:
        raise UnclearGraph(f"{graph.file}: {len(fourier)} matrices are multiplied with coordinates, expected one")
    weight = fourier[0].weights["weight"]
    weight.value = np.ascontiguousarray(weight.value.T)
    found.weights["shared_image_embedding.positional_embedding"] = weight
    found.facts["num_pos_feats"] = weight.value.shape[1]

    dense = [node for node in graph.forward(_EMBEDDINGS, MOVES) if node.operator == "Add" and graph.split(node)[1]]
    constants = [name for node in dense for name in node.inputs if name in graph.constants]
    rows = [(name, _row(graph.constants[name].value, width)) for name in constants]
    if len(rows) != 1 or rows[0][1] is None:
        raise UnclearGraph(
            f"{graph.file}: expected one vector of {width} to be added to {_EMBEDDINGS}, the no-mask embedding"
        )
    found.weights["prompt_encoder.no_mask_embed.weight"] = Weight(rows[0][1][None], weight_of(graph, rows[0][0]).names)

    for node in graph.nodes:
        if node.operator != "Equal" or _LABELS not in {n for v in graph.split(node)[0] for n in graph.back(v, MOVES)}:
            continue
        label = float(graph.split(node)[1][0].value.flat[0]) if graph.split(node)[1] else math.nan
        for user in graph.forward(node.outputs[0], MOVES):
            _read_label(graph, user, node, label, width, found)
    points = sorted(name for name in found.weights if name.startswith("prompt_encoder.point_embed."))
    found.facts["num_point_embeddings"] = len(points)

    joins = [
        (name, graph.constants[name].value)
        for node in graph.nodes
        if node.operator == "Concat"
        for name in node.inputs
        if name in graph.constants and graph.constants[name].value.shape[-1:] == (width,)
    ]
    count = 1 + found.facts["num_masks"]
    if len(joins) != 1 or joins[0][1].ndim < 2 or joins[0][1].shape[-2] != count:
        shapes = [value.shape for _, value in joins]
        raise UnclearGraph(
            f"{graph.file}: expected {count} tokens of {width} to be joined with those of prompts, got {shapes}"
        )
    name, value = joins[0]
    tokens, names = value.reshape(-1, count, width)[0], weight_of(graph, name).names
    found.weights["mask_decoder.iou_token.weight"] = Weight(tokens[:1], names)
    found.weights["mask_decoder.mask_tokens.weight"] = Weight(tokens[1:], names)


def _read_label(graph: Graph, user: Node, equal: Node, label: float, width: int, found: Found) -> None:
    """The vector that tokens with this label get: chosen, or added where the label fits."""
    candidates = list(user.inputs) if user.operator == "Mul" else list(user.inputs[1:2])
    if user.operator not in ("Mul", "Where"):
        return
    maker = graph.makers.get(candidates[0]) if user.operator == "Where" else None
    if maker is not None and maker.operator == "Add":
        candidates = list(maker.inputs)
    for name in candidates:
        row = _row(graph.constants[name].value, width) if name in graph.constants else None
        if row is None or not row.any():  # official code also sets tokens to zero before it adds to them
            continue
        path = "not_a_point_embed" if label == _NOT_A_POINT else f"point_embed.{label:g}"
        key = f"prompt_encoder.{path}.weight"
        if key in found.weights and not np.array_equal(found.weights[key].value[0], row):
            raise UnclearGraph(f"{equal}: label {label:g} stands for two different vectors")
        found.weights[key] = Weight(row[None], weight_of(graph, name).names)


def _row(value: np.ndarray, width: int) -> np.ndarray | None:
    """The vector (width,) of which a constant is made by repeating, or None."""
    if value.ndim == 4 and value.shape[1] == width and value.shape[-1] != width:
        value = np.moveaxis(value, 1, -1)
    if value.size % width or value.shape[-1:] != (width,):
        return None
    rows = value.reshape(-1, width)
    return rows[0].copy() if (rows == rows[0]).all() else None


def _rounded(eps: float) -> float:
    """float32 1e-6 is stored as 9.99999997e-07."""
    return float(f"{eps:.5g}")


__all__ = ["Found", "read_decoder", "read_encoder"]
