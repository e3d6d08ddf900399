# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""CLIP embeddings of masks: the crop, the masked attention of the last layer, and what is left out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from hf_segcap.data.mask_crops import MaskCropEmbedder, crop_window, encode_crops
from hf_segcap.data.synthetic import SyntheticRegions
from hf_segcap.masks import decode_rle

SIDE, PATCH, GRID = 24, 6, 4


def make_clip(attention="sdpa"):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=20,
        image_size=SIDE,
        patch_size=PATCH,
        attn_implementation=attention,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    for parameter in model.parameters():  # nothing may be zero or one by initialisation
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def random_crops(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return pixels, torch.rand(count, GRID**2, generator=generator) < 0.4


def slow_embeddings(clip, pixels, inside):
    """The last layer computed by hand, one crop and one head at a time, for the class token only."""
    states = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]  # what the last layer is given
    layer = clip.vision_model.encoder.layers[-1]
    attention, width = layer.self_attn, layer.self_attn.head_dim
    rows = []
    for state, chosen in zip(states, inside):
        tokens = [0] + [1 + i for i, flag in enumerate(chosen.tolist()) if flag or not chosen.any()]
        normed = layer.layer_norm1(state)
        query, keys, values = attention.q_proj(normed[0]), attention.k_proj(normed), attention.v_proj(normed)
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            weights = torch.stack([query[part] @ keys[t, part] for t in tokens]).div(width**0.5).exp()
            heads.append(sum(w * values[t, part] for w, t in zip(weights / weights.sum(), tokens)))
        token = state[0] + attention.out_proj(torch.cat(heads))
        token = token + layer.mlp(layer.layer_norm2(token))
        row = clip.visual_projection(clip.vision_model.post_layernorm(token))
        rows.append(row / row.pow(2).sum().sqrt())
    return torch.stack(rows)


class TestMaskedAttention:
    @torch.no_grad()
    @pytest.mark.parametrize("flags", [torch.ones, torch.zeros])
    def test_all_or_no_patch_inside_is_plain_clip(self, clip, flags):
        pixels, _ = random_crops(3)
        found = encode_crops(clip, pixels, flags(3, GRID**2, dtype=torch.bool))
        torch.testing.assert_close(found, F.normalize(clip(pixel_values=pixels).image_embeds, dim=-1))

    @torch.no_grad()
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_only_the_last_layer_is_masked(self, attention):
        clip = make_clip(attention)
        pixels, inside = random_crops(5)
        inside[3] = False  # no patch: no masking
        found = encode_crops(clip, pixels, inside)
        torch.testing.assert_close(found, slow_embeddings(clip, pixels, inside), atol=1e-5, rtol=1e-4)
        plain = F.normalize(clip(pixel_values=pixels).image_embeds, dim=-1)
        changed = (found - plain).abs().amax(dim=1) > 1e-3
        assert changed.tolist() == [True, True, True, False, True]

    def test_patches_outside_are_ignored_by_the_last_layer(self, clip):
        pixels, inside = random_crops(4)
        noise = torch.randn(4, GRID**2, 32)

        def disturb(chosen):
            """Replaces what the last layer is given for the chosen patches."""

            def hook(module, args):
                states = args[0].clone()
                states[:, 1:][chosen] += noise[chosen]
                return (states, *args[1:])

            handle = clip.vision_model.encoder.layers[-1].register_forward_pre_hook(hook)
            with torch.no_grad():
                found = encode_crops(clip, pixels, inside)
            handle.remove()
            return found

        with torch.no_grad():
            plain = encode_crops(clip, pixels, inside)
        torch.testing.assert_close(disturb(~inside), plain)
        assert ((disturb(inside) - plain).abs().amax(dim=1) > 1e-3).all()

    def test_gradients_reach_the_model(self, clip):
        pixels, inside = random_crops(2)
        (gradient,) = torch.autograd.grad(
            encode_crops(clip, pixels, inside)[:, 0].sum(), clip.vision_model.embeddings.patch_embedding.weight
        )
        assert gradient.isfinite().all() and gradient.abs().max() > 0


def slow_crop(image, mask, margin, zeroed):
    """Window and patch flags, pixel by pixel."""
    ys, xs = np.nonzero(mask)
    width, height = xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()
    side = int(np.floor(max(width, height) * margin + 0.5))
    left = int(np.floor((xs.min() + xs.max() + 1) / 2 - side / 2 + 0.5))
    top = int(np.floor((ys.min() + ys.max() + 1) / 2 - side / 2 + 0.5))
    window = np.zeros((side, side, 3), dtype=np.uint8)
    inside = np.zeros((GRID, GRID), dtype=bool)
    for row in range(side):
        for column in range(side):
            y, x = top + row, left + column
            if not (0 <= y < image.shape[0] and 0 <= x < image.shape[1]):
                continue
            if mask[y, x] or not zeroed:
                window[row, column] = image[y, x]
            for i in range(GRID):
                for j in range(GRID):
                    overlap_y = min(row + 1, (i + 1) * side / GRID) - max(row, i * side / GRID)
                    overlap_x = min(column + 1, (j + 1) * side / GRID) - max(column, j * side / GRID)
                    inside[i, j] |= bool(mask[y, x]) and overlap_y > 1e-9 and overlap_x > 1e-9
    return window, inside.ravel()


def scene():
    rng = np.random.default_rng(3)
    image = rng.integers(1, 256, (40, 60, 3), dtype=np.uint8)
    masks = np.zeros((5, 40, 60), dtype=bool)
    masks[0, 10:21, 20:33] = rng.random((11, 13)) < 0.7
    masks[1, 0:9, 48:60] = True  # at a corner: the window leaves the image
    masks[2, 8:32, 20:44] = True  # as large as CLIP's side
    masks[3, 5:7, 5:7] = True  # below the area limit
    return image, masks  # mask 4 is empty


class TestCrop:
    @pytest.mark.parametrize("margin, zeroed", [(1.5, False), (1.0, True), (1.93, True)])
    def test_against_a_slow_reference(self, clip, monkeypatch, margin, zeroed):
        image, masks = scene()
        embedder = MaskCropEmbedder(clip, min_area=10)
        draws = SimpleNamespace(uniform=lambda a, b, n: np.full(n, margin), random=lambda n: np.full(n, 0.0))
        rng = draws if zeroed else None
        crops = embedder.crop(image, masks, rng)
        assert crops.kept.tolist() == [True, True, True, False, False]
        assert crops.pixel_values.shape == (5, 3, SIDE, SIDE) and crops.pixel_values.dtype == torch.float32
        for i in range(3):
            window, inside = slow_crop(image, masks[i], margin, zeroed)
            small = np.asarray(Image.fromarray(window).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            expected = (small / 255 - embedder.mean) / embedder.std
            np.testing.assert_allclose(crops.pixel_values[i].permute(1, 2, 0), expected, atol=1e-5)
            assert crops.inside[i].tolist() == inside.tolist()
        if margin == 1.0:  # no resampling at all, and everything is mask
            pixels = crops.pixel_values[2].permute(1, 2, 0).numpy() * embedder.std + embedder.mean
            np.testing.assert_allclose(pixels * 255, image[8:32, 20:44], atol=1e-3)
            assert crops.inside[2].all()

    def test_the_window_at_margin_one_is_the_box(self):
        mask = np.zeros((30, 30), dtype=bool)
        mask[4:11, 20:29] = True
        left, top, side = crop_window(mask, 1.0)
        assert (left, side) == (20, 9) and top in (3, 4)
        left, top, side = crop_window(mask, 2.0)
        assert side == 18 and abs(left + side / 2 - 24.5) <= 0.5 and abs(top + side / 2 - 7.5) <= 0.5

    def test_training_draws(self, clip):
        image, masks = scene()
        embedder = MaskCropEmbedder(clip, min_area=10)
        many = np.repeat(masks[1:2], 200, axis=0)  # fills its box: the mask's share of the crop tells the margin
        image[...] = 255
        crops = embedder.crop(image, many, np.random.default_rng(0))
        again = embedder.crop(image, many, np.random.default_rng(0))
        assert torch.equal(crops.pixel_values, again.pixel_values)
        white = (crops.pixel_values[:, 0] * float(embedder.std[0]) + float(embedder.mean[0]) > 0.5).float()
        shares = white.mean(dim=(1, 2))
        assert shares.min() < 0.25 and shares.max() > 0.7  # 9 x 12 of a 12 to 24 pixels wide square, and background
        off = MaskCropEmbedder(clip, min_area=10, zero_background=0).crop(image, many, np.random.default_rng(0))
        differing = (off.pixel_values != crops.pixel_values).flatten(1).any(dim=1).float().mean()
        assert 0.35 < differing < 0.65


class TestEmbedder:
    def test_embeddings(self, clip):
        image, masks = scene()
        found, kept = MaskCropEmbedder(clip, min_area=10, batch_size=2)(image, masks)
        assert found.shape == (5, 20) and found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found.norm(dim=1), kept.float())
        assert kept.tolist() == [True, True, True, False, False]
        one, _ = MaskCropEmbedder(clip, min_area=10)(image, masks[1:2])
        torch.testing.assert_close(one[0], found[1])

    def test_limits_of_area(self, clip):
        image, masks = scene()
        assert not MaskCropEmbedder(clip)(image, masks)[1].any()  # 100 x 100 pixels by default
        found, kept = MaskCropEmbedder(clip, min_area=0)(image, masks)
        assert kept.tolist() == [True, True, True, True, False] and found.isfinite().all()

    def test_no_mask_at_all(self, clip):
        found, kept = MaskCropEmbedder(clip)(np.zeros((8, 9, 3), dtype=np.uint8), np.zeros((0, 8, 9), dtype=bool))
        assert found.shape == (0, 20) and kept.shape == (0,)

    def test_several_images_share_batches(self, clip):
        image, masks = scene()
        embedder = MaskCropEmbedder(clip, min_area=10)
        pairs = list(embedder.embed_images([image, image[:30]], [masks, masks[:2, :30]], np.random.default_rng(1)))
        rng = np.random.default_rng(1)
        for (found, kept), expected in zip(
            pairs, [embedder(image, masks, rng), embedder(image[:30], masks[:2, :30], rng)]
        ):
            torch.testing.assert_close(found, expected[0])
            assert torch.equal(kept, expected[1])
        assert list(embedder.embed_images([], [])) == []

    def test_pixel_statistics_of_the_image_processor(self, clip):
        image, masks = scene()
        processor = SimpleNamespace(image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])
        plain = MaskCropEmbedder(clip, processor, min_area=10).crop(image, masks).pixel_values
        usual = MaskCropEmbedder(clip, min_area=10)
        torch.testing.assert_close(
            (plain[0] - torch.from_numpy(usual.mean)[:, None, None]) / torch.from_numpy(usual.std)[:, None, None],
            usual.crop(image, masks).pixel_values[0],
        )

    def test_bad_input_is_named(self, clip):
        image, masks = scene()
        embedder = MaskCropEmbedder(clip)
        with pytest.raises(ValueError, match=r"`masks` must be \(P, 40, 60\) like the image, got \(5, 60, 40\)"):
            embedder(image, masks.transpose(0, 2, 1))
        with pytest.raises(ValueError, match="uint8, got .* of float64"):
            embedder(image / 255, masks)
        with pytest.raises(ValueError, match="image 1: `masks`"):
            embedder.embed_images([image, image], [masks, masks[0]])
        with pytest.raises(ValueError, match="one stack of masks per image"):
            embedder.embed_images([image], [])
        with pytest.raises(ValueError, match="zero_background in"):
            MaskCropEmbedder(clip, zero_background=1.5)


def test_centred_embeddings_spread_around_zero(clip):
    rows = SyntheticRegions(8, seed=3)
    embedder = MaskCropEmbedder(clip, min_area=40)
    masks = [np.stack([decode_rle(region["mask"]) for region in rows[i]["regions"]]) for i in range(8)]
    images = [np.asarray(rows[i]["image"]) for i in range(8)]
    before = torch.cat([embeds for embeds, _ in embedder.embed_images(images, masks)])
    embedder.measure_centre(rows, count=10_000)
    after = torch.cat([embeds for embeds, _ in embedder.embed_images(images, masks)])
    assert before.mean(0).norm() > after.mean(0).norm() + 0.1
    assert torch.allclose(after.norm(dim=-1), torch.ones(len(after)), atol=1e-5)
    assert torch.allclose(after, F.normalize(before - embedder.centre, dim=-1), atol=1e-5)
    with pytest.raises(ValueError, match="min_area"):
        MaskCropEmbedder(clip, min_area=10**6).measure_centre(rows)


def test_noise_has_its_length_and_is_for_training_only(clip):
    image, masks = scene()
    plain, noisy = MaskCropEmbedder(clip, min_area=10), MaskCropEmbedder(clip, min_area=10, noise=0.5)
    torch.testing.assert_close(noisy(image, masks)[0], plain(image, masks)[0])
    many = np.repeat(masks[:1], 400, axis=0)
    noisy.zero_background = plain.zero_background = 0.0
    noisy.crop = plain.crop = lambda image, masks, rng: MaskCropEmbedder.crop(plain, image, masks)  # the same margins
    found, kept = noisy(image, many, np.random.default_rng(0))
    clean = plain(image, many, np.random.default_rng(0))[0]
    assert torch.allclose(found[kept].norm(dim=-1), torch.ones(int(kept.sum())), atol=1e-5)
    # a random direction of length 1/2, nearly at right angles: cos = 1 / sqrt(1 + 1/4)
    assert (found * clean).sum(-1).mean().item() == pytest.approx(0.894, abs=0.02)
    with pytest.raises(ValueError, match="noise >= 0"):
        MaskCropEmbedder(clip, noise=-1.0)


def test_memory_gives_what_clip_would_say(clip):
    image, masks = scene()
    embedder = MaskCropEmbedder(clip, min_area=10)
    texts = F.normalize(torch.randn(7, 20, generator=torch.Generator().manual_seed(0)), dim=-1)
    plain, kept = embedder(image, masks, np.random.default_rng(0))
    embedder.memory, embedder.memory_scale = texts, 5.0
    found, _ = embedder(image, masks, np.random.default_rng(0))
    for own, mean in zip(plain[kept], found[kept]):
        weights = torch.tensor([torch.exp(5 * (own @ text)) for text in texts])
        expected = sum(weight * text for weight, text in zip(weights, texts))
        torch.testing.assert_close(mean, expected / expected.norm())
    assert not found[~kept].any() and not kept.all()
    torch.testing.assert_close(embedder(image, masks)[0], MaskCropEmbedder(clip, min_area=10)(image, masks)[0])
    embedder.memory_scale = 1e6  # the nearest text alone
    nearest = texts[(plain[kept] @ texts.T).argmax(1)]
    torch.testing.assert_close(embedder(image, masks, np.random.default_rng(0))[0][kept], nearest)
