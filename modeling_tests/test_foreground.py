# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Foreground colours on composites whose foreground is known."""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segcap import foreground
from hf_segcap.foreground import cut_out, estimate_foreground

SIZE = (90, 120)


@cache
def composite() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A reddish blob with soft edge and hairs over blue: image uint8, alpha uint8, true foreground float."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    zero = np.zeros(SIZE)
    true = np.stack([200 + 40 * np.sin(x / 12), 60 + 30 * np.cos(y / 10), 40 + zero], axis=-1)
    back = np.stack([20 + 10 * np.sin(y / 15), 200 + 20 * np.cos(x / 8), 230 + zero], axis=-1)
    angle = np.arctan2(y - 45, x - 60)
    alpha = np.clip((34 - np.hypot(x - 60, y - 45) + 4 * np.sin(9 * angle)) / 8, 0, 1)
    for turn in np.arange(8) * np.pi / 4:
        across = np.abs((x - 60) * np.sin(turn) - (y - 45) * np.cos(turn))
        along = (x - 60) * np.cos(turn) + (y - 45) * np.sin(turn)
        alpha = np.maximum(alpha, np.where((along > 0) & (along < 43), 0.8 * np.clip(1.2 - across, 0, 1), 0))
    image = alpha[..., None] * true + (1 - alpha[..., None]) * back
    return np.rint(image).astype(np.uint8), np.rint(alpha * 255).astype(np.uint8), true


def test_no_halo_of_the_background_stays():
    image, alpha, true = composite()
    soft = (alpha > 0) & (alpha < 255)
    weight = alpha[soft, None] / 255
    estimated = estimate_foreground(image, alpha)
    before = np.abs(image[soft] - true[soft]) * weight
    after = np.abs(estimated[soft] - true[soft]) * weight
    assert before.mean() > 20 and after.mean() < 1.5 and after.max() < 25
    # laid over black, the cut-out shows none of the blue that shines through in the image
    assert (image[soft, 2] * weight[:, 0]).max() > 65
    assert (estimated[soft, 2] * weight[:, 0]).max() < 45


def test_what_is_opaque_stays_as_it_is():
    image, alpha, _ = composite()
    estimated = estimate_foreground(image, alpha)
    assert np.array_equal(estimated[alpha == 255], image[alpha == 255])
    assert np.array_equal(estimate_foreground(image, np.full(SIZE, 255, np.uint8)), image)


@pytest.mark.parametrize("tile_side", [7, 16, 64])
def test_tiles_change_no_colour_that_is_seen(tile_side: int):
    image, alpha, _ = composite()
    whole, tiled = estimate_foreground(image, alpha), estimate_foreground(image, alpha, tile_side=tile_side)
    seen = alpha > 0
    assert np.abs(whole[seen].astype(int) - tiled[seen]).max() <= 1


def test_forms_of_alpha_agree():
    image, alpha, _ = composite()
    expected = estimate_foreground(image, alpha).astype(int)
    for other in (alpha.astype(np.uint16) * 257, alpha / 255, (alpha / 255).astype(np.float32)):
        assert np.abs(estimate_foreground(image, other) - expected).max() <= 1


def test_an_update_minimises_the_cost_of_each_pixel():
    """The closed form against the gradient of the paper's cost, neighbours held fixed."""
    generator = torch.Generator().manual_seed(0)
    image, alpha = (0.3 + 0.4 * torch.rand(*shape, generator=generator) for shape in ((3, 5, 6), (5, 6)))
    before = 0.3 + 0.4 * torch.rand(6, 5, 6, generator=generator)
    after = foreground._update(image, alpha, before, 1)
    y, x = 2, 3
    own = after[:, y, x].double().requires_grad_()
    cost = (image[:, y, x] - alpha[y, x] * own[:3] - (1 - alpha[y, x]) * own[3:]).square().sum()
    for v, u in ((1, 3), (3, 3), (2, 2), (2, 4)):
        weight = foreground.REGULARIZATION + (alpha[y, x] - alpha[v, u]).abs()
        cost = cost + weight * (own - before[:, v, u]).square().sum()
    (gradient,) = torch.autograd.grad(cost, own)
    assert gradient.abs().max() < 1e-5


def test_cut_outs_are_made_around_the_matte():
    image, alpha = (np.pad(part, [(20, 20), (20, 20), (0, 0)][: part.ndim]) for part in composite()[:2])
    picture = cut_out(Image.fromarray(image), Image.fromarray(alpha))
    assert picture.mode == "RGBA" and np.array_equal(np.asarray(picture)[..., 3], alpha)
    assert (np.asarray(picture)[:1] == 0).all()  # far from the object
    rows = np.flatnonzero(alpha.any(1))
    assert np.asarray(picture)[rows[0] - 1, :, :3].any()  # near it there are colours, for viewers that blur
    empty = cut_out(image, np.zeros_like(alpha))
    assert not np.asarray(empty).any() and empty.size == alpha.shape[::-1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 2)])
def test_small_images(size: tuple[int, int]):
    image = np.full((*size, 3), 90, np.uint8)
    assert (estimate_foreground(image, np.full(size, 100, np.uint8)) == 90).all()
    assert (estimate_foreground(image, np.zeros(size, np.uint8)) == 90).all()


def test_bad_arrays():
    image, alpha, _ = composite()
    with pytest.raises(ValueError, match="uint8"):
        estimate_foreground(image / 255, alpha)
    with pytest.raises(ValueError, match="height, width"):
        estimate_foreground(image, alpha[1:])
    with pytest.raises(ValueError, match="the image"):
        cut_out(image, alpha[1:])
