# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.sam.modeling_sam import SamVisionEncoder

from hf_segcap.models.sam import image_encoder, relative_attention
from hf_segcap.models.sam.configuration_sam import SamImageEncoderConfig
from hf_segcap.models.sam.image_encoder import SamDropPath, SamImageEncoder

GOLDEN = Path(__file__).parents[2] / "fixtures" / "sam" / "encoder.safetensors"
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def tiny_config(**overrides):
    """Blocks 1 and 3 are global; windows of 4 do not divide the 10 x 10 grid."""
    sizes = {
        "hidden_size": 24,
        "output_channels": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": 80,
        "patch_size": 8,
        "mlp_dim": 48,
        "window_size": 4,
        "global_attn_indexes": [1, 3],
        "attn_implementation": "sdpa",
    }
    return SamImageEncoderConfig(**{**sizes, **overrides})


def tiny_encoder(seed=0, **overrides):
    """Every parameter is random, so that position tables and biases count."""
    torch.manual_seed(seed)
    encoder = SamImageEncoder(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0.0, 0.3)
    return encoder


def reference_of(encoder):
    """transformers' encoder with eager attention and the same weights."""
    config = type(encoder.config).from_dict(encoder.config.to_dict())
    config._attn_implementation = "eager"
    reference = SamVisionEncoder(config).eval()
    reference.load_state_dict(encoder.state_dict())  # strict: the keys are the same
    return reference


def pictures(batch=3, size=80, seed=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def gradients(encoder, images):
    weights = torch.randn(16, generator=torch.Generator().manual_seed(2))[:, None, None]
    encoder.zero_grad()
    (encoder(images).last_hidden_state * weights).square().sum().backward()
    return {name: parameter.grad for name, parameter in encoder.named_parameters()}


def assert_same_gradients(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = (ours[name] - expected).abs().max() / expected.abs().max()
        assert difference < tolerance, f"{name}: {difference}"


@pytest.fixture(params=["one block", "many blocks"])
def block_size(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(relative_attention, "BLOCK_ELEMENTS", 700)
        monkeypatch.setattr(image_encoder, "MLP_TOKENS", 33)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden(attention, block_size):
    golden = load_file(GOLDEN)
    config = tiny_config(
        hidden_size=32,
        output_channels=32,
        num_attention_heads=2,
        image_size=256,
        patch_size=16,
        mlp_dim=128,
        window_size=7,
        attn_implementation=attention,
    )
    encoder = SamImageEncoder(config).eval()
    encoder.load_state_dict({k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")})
    resized = (golden["preprocess/resized_uint8"] - MEAN) / STD
    pixel_values = torch.zeros(1, 3, 256, 256)
    pixel_values[0, :, : resized.shape[0], : resized.shape[1]] = resized.permute(2, 0, 1)
    seen = {}
    parts = {f"block_{i}": layer for i, layer in enumerate(encoder.layers)}
    parts |= {"patch_embed": encoder.patch_embed, "neck_0": encoder.neck.conv1, "neck_2": encoder.neck.conv2}
    for name, module in parts.items():
        module.register_forward_hook(lambda *args, name=name: seen.update({f"encoder/{name}": args[2]}))
    with torch.no_grad():
        seen["image_embedding"] = encoder(pixel_values).last_hidden_state
    for name, output in seen.items():
        expected = golden[name]
        # values before the last norm reach 460, where neighbouring float32 numbers are 3e-5 apart
        tolerance = max(1e-5, 1e-6 * expected.abs().max().item())
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"window_size": 5},
        {"window_size": 14, "num_attention_heads": 2},
        {"global_attn_indexes": [], "use_abs_pos": False},
        {"use_rel_pos": False},
        {"qkv_bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient", [False, True])
def test_equals_transformers_eager(overrides, gradient, block_size):
    encoder = tiny_encoder(**overrides)
    with torch.set_grad_enabled(gradient):
        ours, theirs = (model(pictures()).last_hidden_state for model in (encoder, reference_of(encoder)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overrides", [{}, {"use_rel_pos": False}], ids=str)
def test_gradients_equal_transformers_eager(overrides, block_size):
    encoder = tiny_encoder(**overrides)
    assert_same_gradients(gradients(encoder, pictures()), gradients(reference_of(encoder), pictures()))


def attention_inputs(dtype=torch.float32, groups=2, heads=3, grid=(3, 5), width=4):
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]
    shapes = [(width,), (width,), (width,), (grid[0],), (grid[1],)]
    return [torch.randn(groups, heads, tokens, *shape, generator=generator).to(dtype) for shape in shapes]


def plain_attention(query, key, value, rows, columns, scale):
    positions = (rows[..., :, None] + columns[..., None, :]).flatten(-2)
    return (query * scale @ key.transpose(-2, -1) + positions).softmax(-1) @ value


@pytest.mark.parametrize("block_elements", [2**18, 40, 13, 1])
def test_blocked_attention_has_the_right_derivatives(block_elements, monkeypatch):
    monkeypatch.setattr(relative_attention, "BLOCK_ELEMENTS", block_elements)
    inputs = [x.requires_grad_() for x in attention_inputs(torch.float64, groups=1, grid=(2, 3), width=2)]
    assert torch.autograd.gradcheck(lambda *x: relative_attention.blocked_attention(*x, 0.3), inputs)
    torch.testing.assert_close(relative_attention.blocked_attention(*inputs, 0.3), plain_attention(*inputs, 0.3))


@pytest.mark.parametrize("form", ["blocked", "folded", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_forms_agree(form, dtype):
    attend = getattr(relative_attention, f"{form}_attention")
    inputs = [x.requires_grad_() for x in attention_inputs(dtype, grid=(6, 7), width=8)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = attend(*inputs, 0.25), plain_attention(*exact, 0.25)
    assert out.dtype == dtype and out.shape == expected.shape
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    out.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=4 * tolerance, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "dtype, backend",
    [(torch.float32, SDPBackend.EFFICIENT_ATTENTION), (torch.bfloat16, SDPBackend.FLASH_ATTENTION)],
)
def test_fused_kernel_on_gpu(dtype, backend):
    encoder = tiny_encoder().to("cuda", dtype)
    expected = reference_of(tiny_encoder())(pictures()).last_hidden_state
    with sdpa_kernel([backend]):
        ours = encoder(pictures().to("cuda", dtype)).last_hidden_state
        ours.sum().backward()
    torch.testing.assert_close(ours.float().cpu(), expected, atol=0.1 if dtype == torch.bfloat16 else 1e-4, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest result of any operation."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # an expanded view has no memory of its own
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.size = max([self.size, *(x.untyped_storage().nbytes() // x.element_size() for x in tensors)])
        return result


def test_no_full_table_of_scores():
    """32 x 32 tokens and 4 heads: 4 M scores."""
    config = {"image_size": 128, "patch_size": 4, "num_attention_heads": 4, "window_size": 14}
    encoder = tiny_encoder(**config, num_hidden_layers=2)
    images = pictures(1, 128)
    full = 4 * 1024**2
    with LargestTensor() as largest, torch.no_grad():
        encoder(images)
    assert 0 < largest.size <= relative_attention.BLOCK_ELEMENTS
    with LargestTensor() as largest:
        encoder(images).last_hidden_state.sum().backward()
    assert 0 < largest.size <= relative_attention.BLOCK_ELEMENTS
    encoder.set_attn_implementation("eager")
    with LargestTensor() as largest, torch.no_grad():
        encoder(images)
    assert largest.size >= full


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    encoder = tiny_encoder()
    expected = reference_of(encoder)(pictures()).last_hidden_state
    with torch.no_grad():
        half = encoder.to(dtype)(pictures().to(dtype)).last_hidden_state
    assert half.dtype == dtype
    assert (half.float() - expected).square().mean().sqrt() < 0.03 * expected.std()


def spy(function, calls):
    def call(*args):
        calls.append(args)
        return function(*args)

    return call


@pytest.mark.parametrize("kept", [0, 2**27])
def test_autocast_trains_close_to_float32(kept, monkeypatch):
    """With scores in blocks, and kept whole in 16 bits where they are few."""
    monkeypatch.setattr(relative_attention, "KEPT_ELEMENTS", kept)
    calls = []
    monkeypatch.setattr(relative_attention, "kept_attention", spy(relative_attention.kept_attention, calls))
    encoder = tiny_encoder()
    exact = gradients(reference_of(encoder), pictures())
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(encoder, pictures())
    assert bool(calls) == bool(kept)
    for name in ("layers.0.attn.qkv.weight", "layers.1.attn.rel_pos_h", "layers.3.attn.rel_pos_w", "pos_embed"):
        assert torch.cosine_similarity(ours[name].flatten(), exact[name].flatten(), dim=0) > 0.98, name


def test_records_hidden_states_and_attentions():
    encoder = tiny_encoder()
    reference = reference_of(encoder)(pictures(2), output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        ours = encoder(pictures(2), output_hidden_states=True, output_attentions=True)
    assert len(ours.hidden_states) == 5 and not ours.attentions
    for hidden, expected in zip(ours.hidden_states, reference.hidden_states, strict=True):
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
    encoder.set_attn_implementation("eager")
    attentions = encoder(pictures(2), output_attentions=True).attentions
    assert [x.shape[0] for x in attentions] == [2 * 3 * 9, 2 * 3, 2 * 3 * 9, 2 * 3]
    for weights, expected in zip(attentions, reference.attentions, strict=True):
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=0)
    encoder.set_attn_implementation("sdpa")
    assert not encoder(pictures(2), output_attentions=True).attentions


def test_attention_dropout_acts_in_training_only():
    encoder = tiny_encoder(attention_dropout=0.5)
    with torch.no_grad():
        expected = reference_of(encoder)(pictures()).last_hidden_state
        torch.testing.assert_close(encoder(pictures()).last_hidden_state, expected, atol=1e-5, rtol=0)
        encoder.train()
        assert (encoder(pictures()).last_hidden_state - expected).abs().max() > 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    encoder = tiny_encoder().train()
    expected = gradients(encoder, pictures())
    encoder.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same_gradients(gradients(encoder, pictures()), expected)
    assert len(calls) == 2  # forward, and again in the backward pass


def test_lora_on_qkv():
    encoder = tiny_encoder()
    adapted = get_peft_model(encoder, LoraConfig(r=2, target_modules=r".*\.qkv", init_lora_weights=False)).eval()
    base = tiny_encoder()
    with torch.no_grad():
        ours = adapted(pictures()).last_hidden_state
        assert (ours - base(pictures()).last_hidden_state).abs().max() > 1e-2
    adapted(pictures()).last_hidden_state.square().sum().backward()
    trained = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 8 and all(grad.abs().max() > 0 for grad in trained)
    merged = reference_of(adapted.merge_and_unload())
    torch.testing.assert_close(ours, merged(pictures()).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", ["export", "trace", "compile"])
def test_traced_encoder_gives_the_same(how):
    encoder = tiny_encoder(num_hidden_layers=2).requires_grad_(False)
    images = pictures(1)
    with torch.no_grad():
        expected = encoder(images).last_hidden_state
        if how == "export":
            traced = torch.export.export(encoder, (images,)).module()(images)[0]
        elif how == "trace":
            traced = torch.jit.trace(lambda x: encoder(x).last_hidden_state, images, check_trace=False)(images)
        else:
            traced = torch.compile(encoder, backend="eager")(images).last_hidden_state
    torch.testing.assert_close(traced, expected, atol=1e-5, rtol=0)


def test_drop_path_grows_with_depth_and_rests_in_eval():
    encoder = tiny_encoder(drop_path_rate=0.6)
    assert [layer.drop_path.rate for layer in encoder.layers] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    with torch.no_grad():
        expected = reference_of(encoder)(pictures()).last_hidden_state
        torch.testing.assert_close(encoder(pictures()).last_hidden_state, expected, atol=1e-5, rtol=0)
        assert (encoder.train()(pictures()).last_hidden_state - expected).abs().max() > 1e-2


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    samples, rate = 4000, 0.4
    out = SamDropPath(rate).train()(torch.ones(samples, 2, 3))
    values = out.flatten(1)
    assert (values == values[:, :1]).all()
    assert values.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    deviation = math.sqrt(rate * (1 - rate) / samples)
    assert abs((values[:, 0] == 0).double().mean() - rate) < 4 * deviation
    assert torch.equal(SamDropPath(rate).eval()(values), values)


def test_a_dropped_branch_leaves_the_input():
    torch.manual_seed(0)
    layer = tiny_encoder(drop_path_rate=0.9).layers[3].train()
    inputs = torch.randn(64, 10, 10, 24)
    with torch.no_grad():
        unchanged = (layer(inputs) == inputs).flatten(1).all(1)
    assert 64 * 0.81 * 0.75 < unchanged.sum() < 64  # both branches: 0.9 * 0.9


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="drop_path_rate must be at least 0 and below 1"):
        SamImageEncoder(tiny_config(drop_path_rate=rate))


def test_save_and_load(tmp_path):
    encoder = tiny_encoder(drop_path_rate=0.3)
    encoder.save_pretrained(tmp_path)
    loaded = SamImageEncoder.from_pretrained(tmp_path).eval()
    assert loaded.config.drop_path_rate == 0.3
    with torch.no_grad():
        assert torch.equal(loaded(pictures())[0], encoder(pictures())[0])
