"""The diffusion schedule: continuous time t in [0, 1], cosine, with three ways to build x_t in training.

x_0 is the mask as ±b (b = bit scale), x_1 is (nearly) pure noise; ᾱ(t) = cos²(πt/2) clipped to [1e-4, 1 - 1e-4].

* ``plain``: x_t = √ᾱ x_0 + √(1-ᾱ) ε, x_0 the ground truth.
* ``self_aligned``: the same, but x_0 is the model's own earlier prediction, or x_t is pure noise (DDP, arXiv
  2303.17559). Measured on real photographs, ground truth shows through x_t and the plain form learns to read it.
* ``prior_centred``: x_t = √ᾱ x_0 + (1-√ᾱ) c + √(1-ᾱ) ε with c the prior mean as ±b (CARD, arXiv 2206.07275): the
  forward process ends at the prior, and so does sampling start there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA_RANGE = (1e-4, 1 - 1e-4)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Noise schedule and DDIM step (arXiv 2010.02502, η = 0) in x_0-prediction.

    Attributes:
        kind: ``plain``, ``self_aligned`` or ``prior_centred``.
        bit_scale: b; masks in [0, 1] are diffused as (2m - 1)·b.
    """

    kind: str = "self_aligned"
    bit_scale: float = 0.1

    def alpha_bar(self, t_B: Tensor) -> Tensor:
        """ᾱ(t), shape of `t_B`."""
        return torch.cos(t_B * (math.pi / 2)).square().clamp(*ALPHA_RANGE)

    def encode(self, mask: Tensor) -> Tensor:
        """Mask or probability in [0, 1] to ±b."""
        return (mask - 0.5) * (2 * self.bit_scale)

    def diffuse(self, mask_Bhw: Tensor, t_B: Tensor, noise_Bhw: Tensor, prior_Bhw: Tensor) -> Tensor:
        """x_t of a mask in [0, 1] at times `t_B`, [B, h, w]."""
        alpha = self.alpha_bar(t_B).view(-1, 1, 1)
        x = alpha.sqrt() * self.encode(mask_Bhw) + (1 - alpha).sqrt() * noise_Bhw
        return x + (1 - alpha.sqrt()) * self.encode(prior_Bhw) if self.kind == "prior_centred" else x

    def ddim_step(self, x_Bhw: Tensor, clean_Bhw: Tensor, t_B: Tensor, s_B: Tensor, prior_Bhw: Tensor) -> Tensor:
        """From x_t and the predicted mask (in [0, 1]) to x_s, s < t, without fresh noise."""
        now, after = (self.alpha_bar(time_B).view(-1, 1, 1) for time_B in (t_B, s_B))
        kept = ((1 - after) / (1 - now)).sqrt()  # of x_t, by its noise
        moved = after.sqrt() - kept * now.sqrt()
        x = kept * x_Bhw + moved * self.encode(clean_Bhw)
        return x + (1 - kept - moved) * self.encode(prior_Bhw) if self.kind == "prior_centred" else x
