# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""`convert_zim` on exports of a tiny model: exporters and options, names that are left, lost or wrong, and other networks."""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_segcap import ZimForMatting, ZimProcessor
from hf_segcap.onnx_export.zim import ZimImageGraph, ZimPromptGraph, example_inputs

from ..tiny import tiny_zim

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install hf_segcap[onnx]")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install hf_segcap[onnx]")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install hf_segcap[onnx]")

from hf_segcap.conversion import common  # noqa: E402
from hf_segcap.conversion import convert_zim as script  # noqa: E402
from hf_segcap.conversion.convert_zim import convert_zim  # noqa: E402
from hf_segcap.conversion.onnx_graph import load_graph  # noqa: E402
from hf_segcap.conversion.onnx_layers import find_layers  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "fixtures" / "zim" / "onnx"


def legacy_export(model: ZimForMatting, folder: Path, folding: bool = True, dynamic: bool = True) -> Path:
    """The pair as PyTorch's older exporter writes it, which the official files most likely come from."""
    inputs = example_inputs(model)
    details = [name for name in inputs["decoder"] if name.startswith("feat_")]
    prompts = {"attn_mask": {0: "p"}, "point_coords": {0: "p", 1: "n"}, "point_labels": {0: "p", 1: "n"}}
    parts = {
        "encoder": (ZimImageGraph(model), ["image_embeddings", *details], {}),
        "decoder": (ZimPromptGraph(model), ["masks", "iou_predictions"], prompts if dynamic else {}),
    }
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (module, outputs, axes) in parts.items():
            torch.onnx.export(
                module,
                tuple(inputs[name].values()),
                str(folder / f"{name}.onnx"),
                input_names=list(inputs[name]),
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=17,
                do_constant_folding=folding,
                dynamo=False,
            )
    return folder


@pytest.fixture(scope="module")
def model() -> ZimForMatting:
    """With norms that differ from each other: equal ones would be stored once."""
    model = tiny_zim(spread=0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def folded(model: ZimForMatting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return legacy_export(model, tmp_path_factory.mktemp("folded"))


@pytest.fixture(scope="module")
def unfolded(model: ZimForMatting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return legacy_export(model, tmp_path_factory.mktemp("unfolded"), folding=False)


def compare(written: Path, model: ZimForMatting) -> ZimForMatting:
    """Both compute the same; and every weight is the same, as far as no norm became part of a convolution."""
    reloaded = ZimForMatting.from_pretrained(written).eval()
    ours, theirs = reloaded.state_dict(), model.state_dict()
    folded = reloaded.config.detail_norm != model.config.detail_norm
    for name in theirs.keys() if not folded else ours.keys() & theirs.keys():
        if not (folded and ("convs." in name or "fusion_blocks." in name)) and "num_batches" not in name:
            torch.testing.assert_close(ours[name], theirs[name], atol=0, rtol=0, msg=name)
    side = model.config.vision_config.image_size
    given: dict[str, Any] = {
        "pixel_values": torch.randn(1, 3, side, side),
        "input_boxes": torch.tensor([[[3.0, 5, 30, 40], [10, 20, 60, 50]]]),
        "input_points": torch.tensor([[[[20.0, 30]], [[40, 50]]]]),
        "has_box": torch.tensor([[True, False]]),
    }
    reloaded.config.point_sigma = model.config.point_sigma  # maps are made outside the graphs
    with torch.no_grad():
        a, b = reloaded(**given), model(**given)
    torch.testing.assert_close(a.alphas, b.alphas, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.iou_scores, b.iou_scores, atol=1e-4, rtol=1e-4)
    return reloaded


def edited(source: Path, target: Path, edit: Callable[[Any], None], name: str = "decoder") -> Path:
    """A copy of a pair with one graph changed."""
    target.mkdir(exist_ok=True)
    for part in ("encoder", "decoder"):
        file = onnx.load(str(source / f"{part}.onnx"))
        if part == name:
            edit(file.graph)
        onnx.save(file, str(target / f"{part}.onnx"))
    return target


def renamed(graph: Any, new: Callable[[str], str], nodes: Callable[[str], str] = lambda name: name) -> None:
    """Renames stored tensors, and operations."""
    stored = {item.name for item in graph.initializer}
    aliases = {node.output[0] for node in graph.node if node.op_type == "Identity" and node.input[0] in stored}
    names = {name: new(name) for name in stored | aliases}
    for item in graph.initializer:
        item.name = names[item.name]
    for node in graph.node:
        node.name = nodes(node.name)
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


# --- exporters, options, names -----------------------------------------------------------------------------------------


def test_folded_export(model: ZimForMatting, folded: Path, tmp_path: Path) -> None:
    conversion = convert_zim(folded / "encoder.onnx", tmp_path / "out")
    reloaded = compare(tmp_path / "out", model)
    assert reloaded.config.detail_norm == "none"  # batch norms became part of the convolutions
    kinds = {
        kind: [key for key, value in conversion.evidence.items() if value == kind] for kind in ("neighbour", "place")
    }
    assert "vision_encoder.layers.0.attn.qkv.weight" in kinds["neighbour"]
    assert "mask_decoder.fusion_blocks.0.conv.weight" in kinds["place"]
    assert max(conversion.differences.values()) < 1e-4
    processor = ZimProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.size["longest_edge"] == 64


def test_export_without_folding(model: ZimForMatting, unfolded: Path, tmp_path: Path) -> None:
    conversion = convert_zim(unfolded / "encoder.onnx", tmp_path / "out", decoder=unfolded / "decoder.onnx")
    reloaded = compare(tmp_path / "out", model)
    assert reloaded.config.detail_norm == "batch" and set(conversion.evidence.values()) == {"name"}
    ours, theirs = reloaded.config.to_dict(), model.config.to_dict()
    for part in ("vision_config", "mask_decoder_config", "prompt_encoder_config"):
        inferred = {
            key: ours[part][key] for key in theirs[part] if key not in ("mlp_ratio", "mask_input_channels", "dtype")
        }
        assert inferred == {key: theirs[part][key] for key in inferred}
    for name in (
        "detail_hidden_sizes",
        "fusion_hidden_sizes",
        "fusion_mode",
        "masked_attention",
        "attention_map_fill",
    ):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("source", ["folded", "unfolded"])
def test_all_names_stripped(source: str, model: ZimForMatting, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder, count = request.getfixturevalue(source), iter(range(10**6))
    for part in ("encoder", "decoder"):
        folder = edited(
            folder, tmp_path / part, lambda g: renamed(g, lambda _: f"t{next(count)}", lambda _: ""), name=part
        )
    conversion = convert_zim(folder / "encoder.onnx", tmp_path / "out")
    compare(tmp_path / "out", model)
    assert set(conversion.evidence.values()) == {"place"}
    assert "by nothing else 1" in conversion.table()


OFFICIAL = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"(image_encoder)\.layers\.", r"\1.blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.neck\.conv1\.", ".neck.0."),
    (r"\.neck\.norm1\.", ".neck.1."),
    (r"\.neck\.conv2\.", ".neck.2."),
    (r"\.neck\.norm2\.", ".neck.3."),
    (r"\.point_embed\.", ".point_embeddings."),
    (r"(mlps\.\d|head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d|head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d|head)\.proj_out\.", r"\1.layers.2."),
    (
        r"^shared_image_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
)


@pytest.mark.parametrize("prefix", ["", "sam.module."])
def test_official_names(prefix: str, model: ZimForMatting, unfolded: Path, tmp_path: Path) -> None:
    def official(name: str) -> str:
        for pattern, replacement in OFFICIAL:
            name = re.sub(pattern, replacement, name)
        return prefix + name

    folder = unfolded
    for part in ("encoder", "decoder"):
        folder = edited(folder, tmp_path / part, lambda g: renamed(g, official), name=part)
    conversion = convert_zim(folder / "encoder.onnx", tmp_path / "out")
    compare(tmp_path / "out", model)
    assert set(conversion.evidence.values()) == {"name"}


def swapping(one: str, other: str) -> Callable[[Any], None]:
    return lambda graph: renamed(graph, lambda name: {one: other, other: one}.get(name, name))


def test_names_that_say_something_else_are_refused(folded: Path, tmp_path: Path) -> None:
    layer = "mask_decoder.transformer.layers.1.cross_attn_token_to_image"
    files = edited(folded, tmp_path / "files", swapping(f"{layer}.q_proj.bias", f"{layer}.k_proj.bias"))
    with pytest.raises(
        ValueError,
        match=r"by its place '.*k_proj.bias' is '.*q_proj.bias', by its name it is '.*k_proj.bias'; they are not",
    ):
        convert_zim(files / "encoder.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- other forms of the network ----------------------------------------------------------------------------------------


FORMS: dict[str, dict[str, Any]] = {
    "add": {"fusion_mode": "add", "detail_norm": "layer"},
    "maps": {"masked_attention": ["token_to_image", "image_to_token"], "mask_final_attention": True},
    "no maps": {"masked_attention": [], "detail_norm": "none"},
    "sizes": {
        "attention_map_fill": -5e3,
        "vision_config": {"qkv_bias": False, "global_attn_indexes": [0], "hidden_size": 16, "num_attention_heads": 2},
        "mask_decoder_config": {"num_hidden_layers": 1, "num_multimask_outputs": 2, "num_attention_heads": 2},
        "detail_hidden_sizes": [3, 5, 6],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_form_is_read_from_the_graphs(form: str, tmp_path: Path) -> None:
    model = tiny_zim(spread=0.2, **FORMS[form])
    folder = legacy_export(model, tmp_path / "files")
    convert_zim(folder / "encoder.onnx", tmp_path / "out")
    config = compare(tmp_path / "out", model).config
    for name in ("fusion_mode", "mask_final_attention", "attention_map_fill"):
        assert getattr(config, name) == getattr(model.config, name)
    assert list(config.masked_attention) == list(model.config.masked_attention)


def test_details_behind_the_upsampled_map(model: ZimForMatting, folded: Path, tmp_path: Path) -> None:
    def turn(graph: Any) -> None:
        made = {name: node for node in graph.node for name in node.output}
        kernels = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv" and made[node.input[0]].op_type == "Concat":
                join, kernel = made[node.input[0]], kernels[node.input[1]]
                join.input[:] = reversed(join.input)
                value = onnx.numpy_helper.to_array(kernel)
                details = value.shape[1] // 3  # of the default sizes
                value = np.concatenate([value[:, details:], value[:, :details]], axis=1)
                kernel.CopyFrom(onnx.numpy_helper.from_array(value, kernel.name))

    files = edited(folded, tmp_path / "files", turn)
    convert_zim(files / "encoder.onnx", tmp_path / "out")
    compare(tmp_path / "out", model)


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_another_network_is_refused_by_its_operators(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder.onnx has operators that are no part of ZIM .*: Tanh '/Tanh'"):
        convert_zim(GOLDEN / "encoder.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.golden
def test_layers_of_another_network_are_recovered() -> None:
    """The weights that the graphs of the golden data were made from."""
    truth = load_file(GOLDEN / "source_state.safetensors")
    for part, linears in (("encoder", 1), ("decoder", 5 + 5)):
        graph = load_graph(GOLDEN / f"{part}.onnx", {"N": 2})
        layers = find_layers(graph)
        assert len([layer for layer in layers.of_kind("linear") if "bias" in layer.weights]) == linears
        for layer in layers.found:
            if "bias" not in layer.weights:
                continue
            path = layer.weights["bias"].names[-1].removesuffix(".bias")
            for kind, weight in layer.weights.items():
                assert np.array_equal(weight.value, truth[f"{part}.{path}.{kind}"].numpy()), (path, kind)


def _constant(graph: Any, value: float) -> Any:
    """The stored number of this value that is added to the coordinates."""
    made = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    (node,) = (node for node in graph.node if "point_coords" in node.input and node.op_type == "Add")
    (name,) = (name for name in node.input if name in made)
    assert onnx.numpy_helper.to_array(made[name].attribute[0].t) == np.float32(value)
    return made[name].attribute[0].t


def _shift_coordinates(graph: Any) -> None:
    tensor = _constant(graph, 0.5)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(4.0)))


def _add_to_scores(graph: Any) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "temperature"))
    (node,) = (node for node in graph.node if "iou_predictions" in node.output)
    node.output[0] = "before"
    graph.node.append(onnx.helper.make_node("Mul", ["before", "temperature"], ["iou_predictions"]))


def _unused_product(graph: Any) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "extra"))
    graph.node.append(onnx.helper.make_node("Mul", ["extra", "extra"], ["nothing"]))


def _drop_attention(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Softmax")
    node.op_type = "Relu"
    del node.attribute[:]


def _sigmoid(graph: Any) -> None:
    node = next(node for node in graph.node if node.op_type == "Relu")
    node.op_type = "Sigmoid"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_shift_coordinates, "the model differs from onnxruntime by .* of the largest number in '(decoder|whole)"),
        (_add_to_scores, "output 'iou_predictions' is not made by linear layers with ReLU alone"),
        (_unused_product, r"1 stored tensors are no weights of ZimForMatting: extra \(3,\)"),
        (_drop_attention, "has 6 attentions, expected three per block and a last one"),
        (_sigmoid, "operators that are no part of ZIM as it is published: Sigmoid"),
    ],
)
def test_other_graphs_are_refused(edit: Callable[[Any], None], message: str, folded: Path, tmp_path: Path) -> None:
    files = edited(folded, tmp_path / "files", edit)
    with pytest.raises(ValueError, match=message):
        convert_zim(files / "encoder.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stored_tensor_that_nothing_uses_is_listed(folded: Path, tmp_path: Path) -> None:
    extra = onnx.numpy_helper.from_array(np.ones(3, np.float32), "extra")
    files = edited(folded, tmp_path / "files", lambda graph: graph.initializer.append(extra))
    assert convert_zim(files / "encoder.onnx", tmp_path / "out").ignored == ["extra (3,)"]


def test_decoder_of_another_model_is_refused(folded: Path, tmp_path: Path) -> None:
    other = legacy_export(tiny_zim(seed=1, spread=0.2, **FORMS["sizes"]), tmp_path / "other")
    with pytest.raises(ValueError, match="cannot be converted"):
        convert_zim(folded / "encoder.onnx", tmp_path / "out", decoder=other / "decoder.onnx")


def test_graph_for_a_fixed_number_of_prompts_is_refused(model: ZimForMatting, tmp_path: Path) -> None:
    folder = legacy_export(model, tmp_path / "files", dynamic=False)
    with pytest.raises(ValueError, match="decoder.onnx cannot be converted"):
        convert_zim(folder / "encoder.onnx", tmp_path / "out")


def test_files_and_places_that_will_not_do(folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nowhere.onnx is no file"):
        convert_zim(tmp_path / "nowhere.onnx", tmp_path / "out")
    (tmp_path / "encoder.onnx").write_bytes((folded / "encoder.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match="encoder.onnx is no complete ONNX file"):
        convert_zim(tmp_path / "encoder.onnx", tmp_path / "out", decoder=folded / "decoder.onnx")
    with pytest.raises(ValueError, match="is not empty"):
        convert_zim(folded / "encoder.onnx", folded)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"converting ONNX files needs onnx: pip install hf_segcap\[onnx\]"):
        convert_zim(folded / "encoder.onnx", tmp_path / "out")


def test_a_change_after_writing_is_noticed(folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = ZimForMatting.save_pretrained

    def save_something_else(model: ZimForMatting, *args: object, **kwargs: object) -> None:
        state = model.state_dict()
        changed = dict(state, **{"mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"] + 1e-3})
        save(model, *args, state_dict=changed, **kwargs)

    monkeypatch.setattr(ZimForMatting, "save_pretrained", save_something_else)
    with pytest.raises(ValueError, match="'mask_decoder.iou_token.weight' differs from the official one"):
        convert_zim(folded / "encoder.onnx", tmp_path / "out")


# --- command line ------------------------------------------------------------------------------------------------------


def test_script_prints_what_it_did(folded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--{part}={folded / part}.onnx" for part in ("encoder", "decoder")]
    arguments = [*files, "--output", str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert script.main([*arguments, "--verify"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  ") for line in printed) == 14  # comparisons
    lines = {line[:14].strip(): line[15:] for line in printed}
    assert lines["weights"] == "170 tensors, float32, in encoder.onnx, decoder.onnx"
    assert lines["pixel decoder"].startswith("details [4, 8, 16], fusion [16, 8, 4] (concat)")
    assert lines["attention map"] == "in token_to_image, -10000 outside"
    assert "largest rounding" in lines["written"]
    assert script.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: the output folder")
    assert ZimForMatting.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    (card,) = (tmp_path / "out").glob("README.md")
    assert "license: cc-by-nc-4.0" in card.read_text()


def test_verification_is_listed(folded: Path, tmp_path: Path) -> None:
    shown = convert_zim(folded / "encoder.onnx", tmp_path / "a", verify=True).table()
    hidden = convert_zim(folded / "encoder.onnx", tmp_path / "b").table()
    encoder = ("encoder output 3", "decoder, boxes, output 0", "decoder, no place, output 1")
    for name in (*encoder, "whole, output 0", "photograph, output 0"):
        assert name in shown and name not in hidden


def test_written_folder_is_pushed(folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(common, "upload", lambda conversion, name: pushed.append((conversion.output, name)))
    arguments = [f"--encoder={folded / 'encoder.onnx'}", f"--output={tmp_path / 'out'}", "--push-to-hub=me/zim"]
    assert script.main(arguments) == 0 and pushed == [(tmp_path / "out", "me/zim")]
