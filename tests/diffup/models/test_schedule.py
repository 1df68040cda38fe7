"""The diffusion schedule; its plain case against the reference implementation in `diffusers`."""

import pytest
import torch

from diffup.config import SCHEDULES
from diffup.models.schedule import Schedule


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_plain_ddim_is_diffusers_ddim(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule(kind="plain", bit_scale=0.1)
    total = 40 * steps
    reference = diffusers.DDIMScheduler(
        num_train_timesteps=total, prediction_type="sample", clip_sample=False, set_alpha_to_one=False
    )
    times = torch.arange(total + 1, dtype=torch.float64) / total
    alphas = schedule.alpha_bar(times)
    reference.alphas_cumprod, reference.final_alpha_cumprod = alphas[1:], alphas[0]
    reference.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    ours, theirs = x.clone(), x.clone()
    prior = torch.rand(2, 6, 6, generator=generator, dtype=torch.float64)
    for step, timestep in enumerate(reversed(range(steps))):
        clean = torch.rand(2, 6, 6, generator=generator, dtype=torch.float64)
        at = 40 * (timestep + 1) - 1  # index of t = (timestep + 1) / steps
        theirs = reference.step(schedule.encode(clean), at, theirs, eta=0.0).prev_sample
        t = torch.full((2,), 1 - step / steps, dtype=torch.float64)
        ours = schedule.ddim_step(ours, clean, t, t - 1 / steps, prior)
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_true_mask_is_recovered_in_one_step_from_any_time(kind: str) -> None:
    schedule = Schedule(kind=kind)
    mask, prior, noise = torch.rand(3, 5, 5), torch.rand(3, 5, 5), torch.randn(3, 5, 5)
    t, zero = torch.tensor([0.3, 0.7, 1.0]), torch.zeros(3)
    x = schedule.diffuse(mask, t, noise, prior)
    back = schedule.ddim_step(x, mask, t, zero, prior)
    torch.testing.assert_close(back, schedule.diffuse(mask, zero, noise, prior), atol=1e-4, rtol=1e-3)


def test_prior_centred_process_ends_at_the_prior() -> None:
    schedule = Schedule(kind="prior_centred", bit_scale=1.0)
    prior = torch.rand(4, 8, 8)
    x = schedule.diffuse(torch.zeros(4, 8, 8), torch.ones(4), torch.zeros(4, 8, 8), prior)
    torch.testing.assert_close(x, schedule.encode(prior), atol=0.03, rtol=0)


def test_noise_grows_with_time() -> None:
    alphas = Schedule().alpha_bar(torch.linspace(0, 1, 20))
    assert (alphas.diff() < 0).all()
