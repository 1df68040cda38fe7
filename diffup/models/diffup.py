"""DiffUp: BAFT → UAPF → UQDD, from features and cues to a mask with its confidence; checkpoints.

Letters: B batch · K cues · S stages · P prior maps · h w feature grid · R side of the decoder grid.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from diffup.config import CUES, ModelConfig, SampleConfig, map_indices
from diffup.errors import UserError
from diffup.evaluation.encode import Features
from diffup.files import write_in_full
from diffup.models.baft import chosen_maps, prior_mean, prototype_contrast, settle_boxes, text_priors, visual_priors
from diffup.models.card import model_card
from diffup.models.schedule import Schedule
from diffup.models.uapf import UAPF
from diffup.models.uqdd import UQDD, query_infos

CHECKPOINT_FORMAT = 2
VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes, all with the same K visual cues and with or without text.

    Attributes:
        query, supports: features of B queries and of B lists of K supports.
        weights_BK2hw: foreground and background weight of each support position (`diffup.episodes.cues`); K may be 0.
        kinds: the K cue kinds of each episode.
        names: text embeddings [N, D] of the class names the user gave, or None without a text cue.
        targets: index of each episode's class in `names`.
        device: where priors are computed; they come back to the CPU.
    """

    query: list[Features]
    supports: list[list[Features]]
    weights_BK2hw: Tensor
    kinds: list[tuple[str, ...]]
    names: Tensor | None = None
    targets: Tensor | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Segmentation:
    """What the model says of a batch, on its decoder grid.

    Attributes:
        logits: of the mask, [B, R, R].
        mean, variance: UAPF's maps, [B, R, R].
        predicted_iou: DQM's estimate for the mask at 0.5, [B] in [0, 1].
    """

    logits: Tensor
    mean: Tensor
    variance: Tensor
    predicted_iou: Tensor


def _stages(episodes: Episodes) -> tuple[list[Tensor], list[Tensor]]:
    """Stage features in float32: S queries [B, C, h, w] and S supports [B, K, C, h, w] (none at K = 0)."""
    device = episodes.device
    query = [torch.stack(stage).to(device).float() for stage in zip(*(f.stages for f in episodes.query), strict=True)]
    if not episodes.weights_BK2hw.shape[1]:
        return query, []
    per_episode = [list(zip(*(f.stages for f in supports), strict=True)) for supports in episodes.supports]
    stacked = [torch.stack([torch.stack(stages[s]) for stages in per_episode]) for s in range(len(query))]
    return query, [stage.to(device).float() for stage in stacked]


def _sides(episodes: Episodes, supports: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Foreground and background weights of the supports, [B, K, h, w] each; boxes settled by `settle_boxes`."""
    foreground, background = episodes.weights_BK2hw.to(episodes.device).unbind(2)
    boxed = torch.tensor([[kind == "box" for kind in row] for row in episodes.kinds], device=foreground.device)
    return settle_boxes(supports, foreground, background, boxed)


def priors(episodes: Episodes) -> tuple[Tensor, Tensor]:
    """BAFT for a batch: prior_BKSPhw in [0, 1] and the kind of each cue, kind_BK (text, if any, is the last cue).

    Raises:
        UserError: no cue, or a text cue without targets or text features.
    """
    query, supports = _stages(episodes)
    parts, kinds = [], []
    if supports:
        parts.append(visual_priors(query, supports, *_sides(episodes, supports)).cpu())
        kinds.append(torch.tensor([[CUES.index(kind) for kind in row] for row in episodes.kinds]))
    if episodes.names is not None:
        if episodes.targets is None or any(f.text is None for f in episodes.query):
            raise ValueError("a text cue needs the episodes' targets and queries encoded with a text model")
        dense = torch.stack([f.text for f in episodes.query if f.text is not None]).to(episodes.device).float()
        similarity = torch.einsum("bdhw,nd->bnhw", dense, episodes.names.to(dense))
        parts.append(text_priors(query, similarity, episodes.targets.to(episodes.device)).cpu())
        kinds.append(torch.full((len(query[0]), 1), CUES.index("text")))
    if not parts:
        raise ValueError("an episode needs at least one cue")
    return torch.cat(parts, dim=1), torch.cat(kinds, dim=1)


@torch.inference_mode()
def training_free(method: str, episodes: Episodes) -> Tensor:
    """Foreground probability of the training-free baselines, [B, h, w] in [0, 1].

    ``prior_mean``: min-max of the mean of all prior maps. ``prototype``: `prototype_contrast` on the middle stage;
    visual cues only.

    Raises:
        UserError: an unknown method, or ``prototype`` without a visual cue.
    """
    if method == "prior_mean":
        return prior_mean(priors(episodes)[0])
    if method != "prototype":
        raise ValueError(f"unknown training-free method {method!r}")
    query, supports = _stages(episodes)
    if not supports:
        raise ValueError("the prototype baseline needs a visual cue; it has no text form")
    foreground, background = _sides(episodes, supports)
    middle = len(query) // 2
    return prototype_contrast(query[middle], supports[middle], foreground, background).cpu()


class DiffUpNet(nn.Module):
    """The trained part, and the whole way from priors to a mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = Schedule(kind=config.schedule, bit_scale=config.bit_scale)
        self.uapf = UAPF(learned=config.uapf, maps=len(map_indices(config.prior_maps)))
        self.uqdd = UQDD(config)

    def fuse(self, prior_BKSPhw: Tensor, kind_BK: Tensor) -> tuple[Tensor, Tensor]:
        """UAPF's mean and variance on the decoder grid, [B, R, R] each, from the maps of ``config.prior_maps``."""
        mean, variance = self.uapf(prior_BKSPhw, kind_BK)
        size = (self.config.decoder_grid, self.config.decoder_grid)
        both = F.interpolate(torch.stack([mean, variance], dim=1), size=size, mode="bilinear", align_corners=False)
        return both[:, 0].clamp(0, 1), both[:, 1].clamp_min(VARIANCE_FLOOR)

    def infos(self, rgb_B3HW: Tensor) -> Tensor:
        """Query infos on the decoder grid, [B, 4, R, R], from the queries' low-resolution RGB."""
        return query_infos(F.adaptive_avg_pool2d(rgb_B3HW, self.config.decoder_grid))

    def sample(
        self, mean_BRR: Tensor, variance_BRR: Tensor, infos_BXRR: Tensor, noise_BRR: Tensor, sample: SampleConfig
    ) -> Segmentation:
        """DDIM to a mask, as `sample` says (the one-step variant ignores noise and steps).

        From the prior: sampling starts at t = 2·√variance (its mean over the map, at most 1), from the noised mean.
        """
        batch = mean_BRR.shape[0]
        begin_B = torch.ones(batch, device=mean_BRR.device)
        if sample.start == "prior":
            begin_B = (2 * variance_BRR.sqrt().mean((1, 2))).clamp(0.05, 1)
        x = self.schedule.diffuse(mean_BRR, begin_B, noise_BRR, mean_BRR)
        steps = sample.steps
        if self.config.one_step:
            x, begin_B, steps = torch.zeros_like(x), torch.ones_like(begin_B), 1
        estimate = mean_BRR
        for now, after in pairwise(torch.linspace(1, 0, steps + 1, device=mean_BRR.device)):
            t_B, s_B = now * begin_B, after * begin_B
            logits, _, _ = self.uqdd(x, t_B, estimate, mean_BRR, variance_BRR, infos_BXRR, sample.strength)
            estimate = torch.sigmoid(logits)
            x = self.schedule.ddim_step(x, estimate, t_B, s_B, mean_BRR)
        _, iou = self.uqdd.quality(self.schedule.encode(estimate), estimate, mean_BRR, variance_BRR)
        return Segmentation(logits, mean_BRR, variance_BRR, torch.sigmoid(iou))

    @torch.inference_mode()
    def segment_priors(
        self, prior_BKSPhw: Tensor, kind_BK: Tensor, infos_BXRR: Tensor, sample: SampleConfig, noise_BRR: Tensor
    ) -> Segmentation:
        """Segment a batch from its prior maps; results come back to the CPU.

        Args:
            prior_BKSPhw, kind_BK: from `priors`: all maps; those of ``config.prior_maps`` are read.
            infos_BXRR: from `infos`.
            sample: DDIM steps, strength and start.
            noise_BRR: standard Gaussian noise, one map an episode, from the episode's own seed.
        """
        self.eval()
        device = next(self.parameters()).device
        read = chosen_maps(prior_BKSPhw, self.config.prior_maps)
        mean, variance = self.fuse(read.to(device), kind_BK.to(device))
        made = self.sample(mean, variance, infos_BXRR.to(device), noise_BRR.to(device), sample)
        return Segmentation(made.logits.cpu(), made.mean.cpu(), made.variance.cpu(), made.predicted_iou.cpu())


def save_checkpoint(model: DiffUpNet, folder: Path, facts: dict[str, object]) -> None:
    """Write ``model.safetensors``, a model card and, last, ``config.json`` (model configuration and `facts`).

    Each is there in full or not at all; the same model and facts give the same bytes.

    Raises:
        OSError: one can't be written.
    """
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    write_in_full(folder / "model.safetensors", content)
    document = {"format": CHECKPOINT_FORMAT, "model": dataclasses.asdict(model.config), "facts": facts}
    write_in_full(folder / "README.md", model_card(model.config, facts).encode())
    write_in_full(folder / "config.json", json.dumps(document, indent=1, sort_keys=True).encode())


def load_checkpoint(folder: Path) -> DiffUpNet:
    """Read a checkpoint folder into an eval-mode model.

    Raises:
        UserError: a file is missing, damaged, or of another format.
    """
    try:
        document = json.loads((folder / "config.json").read_text())
        if document["format"] != CHECKPOINT_FORMAT:
            raise UserError(f"format {document['format']}, this version reads {CHECKPOINT_FORMAT}")
        model = DiffUpNet(ModelConfig(**document["model"]))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be read: {error}. Train it again (--force)") from error
    return model.eval()
