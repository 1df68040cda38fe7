"""Training recipes: configurations for each data set, with what a training costs.

*Measured* are CPU seconds of one thread on a 2-core machine with other work on it (torch 2.14.1): mask, box and
scribble cues, random features of the recipe's shapes in memory. Encoding comes on top, once per image. FLOPs are
`torch.utils.flop_counter`'s. **No recipe has been timed on a GPU**: GPU hours are steps × (FLOPs / 5e12 + bytes of
features / 5e9), two assumed rates per second: of small float32 kernels, and from the host's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffup.config import InputConfig, ModelConfig, SampleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is trained, and how masks are then sampled."""

    input: InputConfig = field(default_factory=InputConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def changed(self, **parts: Mapping[str, Any]) -> Recipe:
        """The recipe with other values of fields, by configuration, e.g. ``changed(train={"steps": 100})``."""
        return replace(self, **{part: replace(getattr(self, part), **values) for part, values in parts.items()})


def shapes4i() -> Recipe:
    """The embedded data with an embedded backbone: 300 steps of 8 episodes.

    Measured over 30 steps: 0.38 CPU s a step (0.14 prior maps, 0.24 network; 20 GFLOP), so 2 minutes of one core.
    """
    # 224 px: the scale that the embedded backbones were trained at.
    return Recipe(input=InputConfig(input_size=224), train=TrainConfig(steps=300))


def msrc15() -> Recipe:
    """A few hundred photographs from stretched maps, ResNet-50: 800 steps of 8 episodes out of 400 draws, a U-Net of
    half the usual width.

    A correction moves the logit by 1.5 at most: with so few base classes, more was worth nothing on held-out ones.
    Measured over 30 steps: 0.58 CPU s a draw (prior maps) and 0.13 s a step (network; 30 GFLOP with its draw), so 6
    minutes of one core; a variant that finds its prior maps in the result store takes a third of that.
    """
    return Recipe(
        input=InputConfig(input_size=320),
        model=ModelConfig(width=16, bound=1.5),
        train=TrainConfig(steps=800, draws=400),
    )


def photographs() -> Recipe:
    """Some hundred to two thousand photographs: `from_evidence` of `msrc15`."""
    return from_evidence(msrc15())


def from_evidence(recipe: Recipe) -> Recipe:
    """The recipe from absolute evidence, with a bank of 60 training images.

    Objects of all sizes are drawn equally often, and corrections have no bound (docs/results/evidence.md says why).
    SCM does not read the previous estimate, which gained nothing (docs/results/unseen.md).
    """
    model = {"base": "evidence", "bound": 0.0, "self_conditioning": False}
    return recipe.changed(input={"bank": 60}, model=model, train={"balance_sizes": True})


def pascal5i() -> Recipe:
    """Pascal-5i, ResNet-50, `from_evidence`: 5000 steps of 16 episodes with up to 10 shots.

    Measured from stretched maps over 6 steps of mean K 1.7: 5.8 CPU s a step (5.4 prior maps, 0.4 network; 310 GFLOP).
    At the mean K of a training, 3.4, that is some 520 GFLOP and 10 s, or 14 hours of one core. A step reads 450 MB of
    features. That makes 0.3 GPU-hours per fold, unverified; encoding 6 000 images comes on top.
    """
    return from_evidence(
        Recipe(
            input=InputConfig(input_size=400, feature_grid=30, pixel_dtype="uint8"),
            train=TrainConfig(steps=5000, batch_size=16, max_shots=10),
        )
    )


def coco20i() -> Recipe:
    """COCO-20i, ResNet-50: 5000 steps of 16 episodes with up to 10 shots, as `pascal5i`.

    By the same arithmetic 0.3 GPU-hours per fold, unverified. But a step draws about 70 of 82 000 images, so most are
    encoded anew: their features (6.5 MB an image) don't fit into `FeatureCache`'s memory. Encoding, some 350 000
    images, will take most of the time.
    """
    return pascal5i()


BENCHMARKS = {"pascal5i": pascal5i(), "coco20i": coco20i()}
