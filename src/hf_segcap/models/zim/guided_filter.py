# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""Mattes upscaled along the edges of their image: the fast guided filter (He and Sun, "Fast Guided Filter", 2015).

In each window of the small image, the matte is taken for a linear function a I + b of the colour I (He et al., "Guided Image
Filtering", 2013, section 3.5); a and b change slowly, so that they can be upscaled, and applied to the colours of the large
image. Where the colours are nearly constant, that would blur the matte: what the function misses there is added again.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

RADIUS = 4
EPSILON = 1e-4
FLAT_VARIANCE = 1e-3  # of the three colours together: half of what is missed is added


class GuidedUpscaler:
    """Upscales mattes of one image or crop. What depends on the image alone is computed once for all of them.

    Args:
        picture: RGB picture, or its colours (3, height, width) in [0, 1].
        radius: of the windows, in pixels of the mattes.
        epsilon: regularises the slopes, in variances of colour.
    """

    def __init__(self, picture: Image.Image | Tensor, radius: int = RADIUS, epsilon: float = EPSILON):
        self._picture = picture
        size = picture.size[::-1] if isinstance(picture, Image.Image) else picture.shape[1:]
        self.height, self.width = int(size[0]), int(size[1])
        self.radius, self.epsilon = radius, epsilon
        self._of_size: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _colours(self, device: torch.device) -> Tensor:
        """(3, height, width) in [0, 1], made when they are needed first."""
        if isinstance(self._picture, Image.Image):
            self._picture = torch.from_numpy(np.array(self._picture)).permute(2, 0, 1).float() / 255
        self._picture = self._picture.to(device)
        return self._picture

    def __call__(self, mattes: Tensor) -> Tensor:
        """Mattes (N, h, w) in [0, 1] of the whole image, not larger than it -> float32 (N, height, width) in [0, 1]."""
        image, size = self._colours(mattes.device), (self.height, self.width)
        small_size = (mattes.shape[1], mattes.shape[2])
        if small_size not in self._of_size:
            self._of_size = {small_size: self._statistics(image, small_size)}
        small, mean, covariance, flatness = self._of_size[small_size]
        result = torch.empty(len(mattes), *size, device=image.device)
        for i, matte in enumerate(mattes.float()):
            matte_mean = _box_mean(matte[None], self.radius)  # (1, h, w)
            cross = _box_mean(small * matte, self.radius) - mean * matte_mean  # (3, h, w)
            slope = torch.linalg.solve(covariance, cross.permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
            offset = matte_mean - (slope * mean).sum(0, keepdim=True)
            model = _box_mean(torch.cat([slope, offset]), self.radius)
            model[3] += flatness * (matte - (model[:3] * small).sum(0) - model[3])
            slope, offset = F.interpolate(model[None], size, mode="bilinear", align_corners=False)[0].split((3, 1))
            result[i] = ((slope * image).sum(0) + offset[0]).clamp_(0, 1)
        return result

    def _statistics(self, image: Tensor, small_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Colours of the small image and their means (3, h, w), regularised covariance (h, w, 3, 3), flatness (h, w)."""
        small = F.interpolate(image[None], small_size, mode="bilinear", antialias=True, align_corners=False)[0]
        mean = _box_mean(small, self.radius)
        products = torch.stack([small[i] * small[j] for i in range(3) for j in range(3)])
        covariance = _box_mean(products, self.radius).unflatten(0, (3, 3)) - mean[:, None] * mean[None]
        flatness = FLAT_VARIANCE / (FLAT_VARIANCE + covariance.diagonal(dim1=0, dim2=1).sum(-1).clamp(min=0))
        covariance = covariance.permute(2, 3, 0, 1) + self.epsilon * torch.eye(3, device=image.device)
        return small, mean, covariance, flatness


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^2 windows, of what of them lies on the image; (N, h, w) -> the same."""
    side = 2 * radius + 1
    return F.avg_pool2d(values[None], side, stride=1, padding=radius, count_include_pad=False)[0]


__all__ = ["EPSILON", "FLAT_VARIANCE", "RADIUS", "GuidedUpscaler"]
