"""The Python API: load a checkpoint, encode images once, segment as often as you like, swap the backbone.

    from diffup import DiffUp, Support, Text

    model = DiffUp.load("results/quickstart/0123456789ab")     # a folder, or a Hugging Face hub id
    query, shot = model.encode(["query.jpg", "support.jpg"])    # heavy: keep what it returns
    result = model.segment(query, [Support(shot, mask, "mask"), Text("wren", others=("robin", "owl"))])
    result.mask, result.probability, result.variance, result.predicted_iou
    better = model.swap_backbone("vit_small_patch14_dinov2.lvd142m")    # no re-training; encode again
    better = better.calibrate(photographs)                      # a few dozen of the kind that queries are, no labels

Letters: B batch · K cues · H W an image's own size · R side of the decoder grid.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from torch import Tensor, nn

from diffup.backbones.load import Backbone, load_backbone, usable_device
from diffup.config import BankConfig, EncoderConfig, SampleConfig
from diffup.episodes.cues import cue_weights
from diffup.errors import UserError
from diffup.evaluation.bank import BankImages
from diffup.evaluation.encode import Encoder
from diffup.evaluation.evaluate import episode_noise
from diffup.evaluation.scoring import upsample
from diffup.files import as_path, write_in_full
from diffup.fit import trained
from diffup.models.batch import Episodes, Features
from diffup.models.checkpoint import BANK, CONFIG, find_checkpoint, load_checkpoint, save_checkpoint, trained_with
from diffup.models.diffup import DiffUpNet, priors
from diffup.models.evidence import Bank
from diffup.result import THRESHOLD, Result
from diffup.support import AnyImage, Cue, Support, Text, check_list, check_names, labelled, to_rgb, whole

BANK_POSITIONS = BankConfig().bank_positions


class DiffUp:
    """A frozen backbone and the trained part, ready to segment.

    Attributes:
        encoder: backbone, text model and input configuration.
        net: UAPF and UQDD; they run on the CPU, wherever the backbone runs.
        facts: what the checkpoint says of its training.
        bank: images that stand for whatever else there is (`calibrate`), or None.
    """

    def __init__(
        self, encoder: Encoder, net: DiffUpNet, facts: Mapping[str, Any] | None = None, bank: BankImages | None = None
    ) -> None:
        for part, kind in ((encoder, Encoder), (net, DiffUpNet)):
            if not isinstance(part, kind):
                raise UserError(f"DiffUp() takes a {kind.__name__}, not {type(part).__name__}; DiffUp.load() makes it")
        self.encoder, self.net, self.bank = encoder, net.eval(), bank
        self._bank: Bank | None = None
        backbone, config = encoder.backbone, dataclasses.asdict(encoder.config)
        here = {"backbone": backbone.name, "weights": backbone.weights, "input": config}
        self.facts: dict[str, Any] = dict(facts) if facts is not None else {"cell": here}

    def __repr__(self) -> str:
        return f"DiffUp({self.encoder.identity})"

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        backbone: str | nn.Module | None = None,
        *,
        weights_dir: str | Path | None = None,
        device: str = "cpu",
        companion: str | None = None,
    ) -> DiffUp:
        """Load a checkpoint and a backbone.

        Args:
            path_or_hub_id: checkpoint folder, a training cell's folder in a result store, or a Hugging Face hub id
                ``owner/name``, which is downloaded (and found again offline).
            backbone: any timm, ``open_clip:…`` or embedded name, or a module (`diffup.backbones.own`); None for the one
                of the training, with its weights.
            weights_dir: folder of backbone weights (``<name>.safetensors``); otherwise they are downloaded by name.
            device: where the backbone runs.
            companion: open_clip model that reads text where the backbone can't; None for the one of the training, if
                it had one; ``""`` to read no text at all.

        Raises:
            UserError: no such checkpoint, a damaged one, or a backbone or device that is not available.
        """
        folder = find_checkpoint(path_or_hub_id)
        directory = None if weights_dir is None else as_path(weights_dir, "weights_dir")
        device = usable_device(device)
        check_names(backbone=backbone, companion=companion)
        net = load_checkpoint(folder)
        facts = json.loads((folder / CONFIG).read_text()).get("facts")
        trained_on, trained_weights, config = trained_with(facts, folder)
        try:
            weights = trained_weights if backbone is None else "auto"
            name = trained_on if backbone is None else backbone
            visual = load_backbone(name, weights, weights_dir=directory, device=device)
        except UserError as error:
            if backbone is not None:
                raise
            raise UserError(
                f"{error}. The checkpoint was trained on this backbone; backbone={trained_on!r} takes whatever weights "
                f"of it are available, and any other backbone works too"
            ) from error
        text_model: Backbone | None = None
        if companion or (companion is None and config.companion and not visual.has_text):
            weights = "auto" if companion else config.companion_weights
            try:
                text_model = load_backbone(companion or config.companion, weights, weights_dir=directory, device=device)
            except UserError as error:
                if companion:
                    raise
                raise UserError(f"{error}. Without text cues, pass companion=''") from error
        elif companion is None and visual.has_text:
            text_model = visual
        return cls(_encoder(visual, config, text_model, device), net, facts, _bank_in(folder))

    train = classmethod(trained)

    def swap_backbone(
        self,
        name: str | nn.Module,
        *,
        weights_dir: str | Path | None = None,
        companion: str | None = None,
        bank: Sequence[AnyImage] | None = None,
    ) -> DiffUp:
        """The same trained part on another backbone, without re-training; features must be encoded again.

        A bank's images stay, and are encoded with the new backbone when they are first needed.

        Args:
            name: any timm, ``open_clip:…`` or embedded name, or a module (`diffup.backbones.own`).
            weights_dir: as in `load`.
            companion: model that reads text; None for `name` itself if it can, else the present one; ``""`` for none.
            bank: images to `calibrate` it with; None for those there are.

        Raises:
            UserError: a backbone that is not available, or see `calibrate`.
        """
        directory = None if weights_dir is None else as_path(weights_dir, "weights_dir")
        check_names(companion=companion)
        device = self.encoder.device
        visual = load_backbone(name, weights_dir=directory, device=device)
        text_model = visual if visual.has_text else self.encoder.text_model
        if companion is not None:
            text_model = load_backbone(companion, weights_dir=directory, device=device) if companion else None
        swapped = DiffUp(_encoder(visual, self.encoder.config, text_model, device), self.net, self.facts, self.bank)
        return swapped if bank is None else swapped.calibrate(bank)

    def calibrate(
        self, images: Sequence[AnyImage], masks: Sequence[ArrayLike | str | Path | None] | None = None
    ) -> DiffUp:
        """The same with a bank of other images: what they show counts as background, unless the support shows it too.

        It tells how much of a query looks like the object at all, which one support alone can't. Take 15 to 60 ordinary
        pictures of the kind that queries are; best they don't show the class that is looked for. Nothing is trained. A
        checkpoint whose ``ModelConfig.base`` is ``"prior"`` reads no bank, and gives the same masks with any.

        Args:
            images: as `encode` takes them.
            masks: where each shows objects, whatever they are, as `Support` takes masks, or None for an image without
                labels: they tell objects from surroundings in general.

        Raises:
            UserError: fewer than two images, something that is no image, or masks that do not fit.
        """
        check_list(images, "calibrate() takes a list of images")
        if masks is not None and len(masks) != len(images):
            raise UserError(f"calibrate() got {len(images)} images and {len(masks)} masks; None stands for no mask")
        pairs = labelled(images, masks or [None] * len(images))
        return DiffUp(self.encoder, self.net, self.facts, BankImages.of(pairs, self.encoder.config))

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder: weights, configuration, the bank's images and a model card, no backbone.

        ``huggingface_hub.upload_folder(repo_id="owner/name", folder_path=folder)`` publishes it.

        Raises:
            UserError: the folder can't be written.
        """
        path = as_path(folder, "folder")
        try:
            if self.bank is None:
                (path / BANK).unlink(missing_ok=True)
            else:
                write_in_full(path / BANK, self.bank.dumped())
            save_checkpoint(self.net, path, self.facts)
        except OSError as error:
            raise UserError(f"{path} can't be written ({error}); choose another folder or make room") from error

    def encode(self, images: Sequence[AnyImage], *, batch_size: int = 8) -> list[Features]:
        """Encode images with the frozen backbone: the heavy half, whose results can be kept and used again.

        Args:
            images: PIL images, uint8 arrays [H, W, 3] (RGB) or paths, of any sizes.
            batch_size: how many at a time.

        Raises:
            UserError: something that is no such image; its place in the list is named.
        """
        check_list(images, "encode() takes a list of images; put a single one in brackets")
        batch_size = whole(batch_size, "batch_size", 1)
        named = [(image, f"images[{i}]") for i, image in enumerate(images)]
        chunks = (named[start : start + batch_size] for start in range(0, len(named), batch_size))
        encoded = (self.encoder.encode([to_rgb(*each) for each in chunk]) for chunk in chunks)
        return [features.to("cpu") for made in encoded for features in made]

    def segment(
        self, query: AnyImage | Features, cues: Sequence[Cue], *, steps: int = 2, samples: int = 1, seed: int = 0
    ) -> Result:
        """Segment one query: the light half, if query and supports are features already.

        Args:
            query: image or its features.
            cues: any number and mix of `Support`, and at most one `Text`; at least one in all.
            steps: DDIM steps (1-8 are sensible).
            samples: number of noise samples.
            seed: of the noise; the same seed gives the same result.

        Raises:
            UserError: no cue, a cue that does not fit, or features of another backbone.
        """
        return self.segment_batch([query], cues, steps=steps, samples=samples, seed=seed)[0]

    def segment_batch(
        self,
        queries: Sequence[AnyImage | Features],
        cues: Sequence[Cue],
        *,
        steps: int = 2,
        samples: int = 1,
        seed: int = 0,
        batch_size: int = 8,
    ) -> list[Result]:
        """`segment` for many queries with the same cues, `batch_size` at a time; gives what `segment` gives each."""
        check_list(queries, "segment_batch() takes a list of queries; use segment() for a single one")
        steps, samples = whole(steps, "steps", 1), whole(samples, "samples", 1)
        batch_size, seed = whole(batch_size, "batch_size", 1), whole(seed, "seed", 0)
        supports, kinds, weights_K2hw, names = self._cues(cues)
        results: list[Result] = []
        for start in range(0, len(queries), batch_size):
            chunk = queries[start : start + batch_size]
            batch = len(chunk)
            episodes = Episodes(
                query=self._features(chunk, [f"queries[{start + i}]" for i in range(batch)]),
                supports=[supports] * batch,
                weights_BK2hw=weights_K2hw.expand(batch, *weights_K2hw.shape),
                kinds=[kinds] * batch,
                names=names,
                targets=torch.zeros(batch, dtype=torch.long),
                bank=self._encoded_bank(),
            )
            results += self._segment(episodes, steps, samples, seed)
        return results

    @torch.inference_mode()
    def _segment(self, episodes: Episodes, steps: int, samples: int, seed: int) -> list[Result]:
        batch = priors(episodes)
        made = []
        for sample in range(samples):
            noise = episode_noise(seed, 0, sample, self.net.config.decoder_grid).expand(len(episodes.query), -1, -1)
            made.append(self.net.segment_priors(batch, SampleConfig(steps=steps), noise))
        results = []
        for i, query in enumerate(episodes.query):
            drawn = torch.stack([torch.sigmoid(upsample(one.logits[i], query.size)) for one in made]).cpu()
            probability = drawn.mean(0).numpy()
            results.append(
                Result(
                    mask=probability > THRESHOLD,
                    probability=probability,
                    variance=upsample(made[0].variance[i], query.size).cpu().numpy(),
                    predicted_iou=float(torch.stack([one.predicted_iou[i] for one in made]).mean()),
                    spread=drawn.std(0, correction=0).numpy() if samples > 1 else None,
                )
            )
        return results

    def _encoded_bank(self) -> Bank | None:
        if self.net.config.base != "evidence" or self.bank is None:
            return None
        if self._bank is None:
            self._bank = self.bank.encoded(self.encoder, BANK_POSITIONS)
        return self._bank

    def _cues(self, cues: Sequence[Cue]) -> tuple[list[Features], tuple[str, ...], Tensor, Tensor | None]:
        """Features and kinds of the K supports, their weights [K, 2, h, w], and embedded names, the class first."""
        check_list(cues, "cues is a list; put a single cue in brackets")
        for i, cue in enumerate(cues):
            if not isinstance(cue, Support | Text):
                raise UserError(f"cues[{i}] is a {type(cue).__name__}; a cue is a Support or a Text")
        shown = [(i, cue) for i, cue in enumerate(cues) if isinstance(cue, Support)]
        texts = [cue for cue in cues if isinstance(cue, Text)]
        if not cues:
            raise UserError("segmentation needs a cue: a Support or a Text")
        if len(texts) > 1:
            raise UserError("one Text cue at most; put other names into its 'others'")
        names = None
        if texts:
            if self.encoder.text_model is None:
                raise UserError(
                    f"a Text cue needs a model that reads text, and backbone {self.encoder.backbone.name!r} has none "
                    f"beside it; name an open_clip model: load(…, companion='open_clip:ViT-B-16/openai')"
                )
            names = self.encoder.embed_names((texts[0].name, *texts[0].others))
        supports = self._features([cue.image for _, cue in shown], [f"cues[{i}]" for i, _ in shown])
        grid = self.encoder.config.feature_grid
        weights = torch.zeros(len(shown), 2, grid, grid)
        for k, (i, cue) in enumerate(shown):
            try:
                weights[k] = cue_weights(cue.drawn(supports[k].size), cue.kind, grid)
            except UserError as error:
                raise UserError(f"cues[{i}]: {error}") from error
        return supports, tuple(cue.kind for _, cue in shown), weights, names

    def _features(self, images: Sequence[AnyImage | Features], places: Sequence[str]) -> list[Features]:
        """Features as they are, and images encoded (all at once)."""
        for image, place in zip(images, places, strict=True):
            if isinstance(image, Features) and image.made_by != self.encoder.identity:
                raise UserError(
                    f"{place} was encoded by {image.made_by or 'something unknown'}, but this DiffUp has "
                    f"{self.encoder.identity}; encode the image again with this one"
                )
        pixels = [to_rgb(im, place) for im, place in zip(images, places, strict=True) if not isinstance(im, Features)]
        fresh = iter(self.encoder.encode(pixels))
        return [image if isinstance(image, Features) else next(fresh) for image in images]


def _bank_in(folder: Path) -> BankImages | None:
    """The bank in a checkpoint's folder, if there is one."""
    path = folder / BANK
    try:
        return BankImages.loaded(path.read_bytes()) if path.exists() else None
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}. Copy the checkpoint again, or remove this file") from error


def _encoder(visual: Backbone, config: EncoderConfig, text_model: Backbone | None, device: str) -> Encoder:
    beside = text_model if text_model is not None and text_model is not visual else None
    config = dataclasses.replace(
        config, companion=beside.name if beside else "", companion_weights=beside.weights if beside else ""
    )
    return Encoder(visual, config, text_model, device)
