"""The Python API: load a checkpoint, encode images once, segment as often as you like, swap the backbone.

    from diffup import DiffUp, Support, Text

    model = DiffUp.from_pretrained("base")                      # or a checkpoint folder, or a Hugging Face hub id
    query, shot = model.encode(["query.jpg", "support.jpg"])    # heavy: keep what it returns
    result = model.segment(query, [Support(shot, mask, "mask"), Text("wren", others=("robin", "owl"))])
    result.mask, result.probability, result.variance, result.predicted_iou
    better = model.swap_backbone("vit_small_patch14_dinov2.lvd142m")    # no re-training; encode again
    better = better.calibrate(photographs)                      # a few dozen of the kind that queries are, no labels

Letters: H W an image's own size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import ArrayLike
from torch import nn

from diffup.assemble import encoded_cues, features, pictures
from diffup.backbones.load import load_backbone
from diffup.config import BankConfig, SampleConfig
from diffup.errors import UserError
from diffup.evaluation.bank import DROP, BankImages
from diffup.evaluation.encode import Encoder
from diffup.evaluation.evaluate import episode_noise
from diffup.evaluation.scoring import upsample
from diffup.evaluation.superpixels import Labels, segmentations, snapped
from diffup.files import as_path
from diffup.fit import trained
from diffup.models.batch import Episodes, Features
from diffup.models.diffup import DiffUpNet, priors
from diffup.models.evidence import Bank
from diffup.pretrained import COMMIT, Parts, load_parts, push_parts, save_parts, with_reader
from diffup.result import THRESHOLD, Result
from diffup.support import AnyImage, Cue, check_list, check_names, labelled, to_rgb, whole

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
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        backbone: str | nn.Module | None = None,
        *,
        weights_dir: str | Path | None = None,
        device: str = "cpu",
        companion: str | None = None,
        **hub: Any,
    ) -> DiffUp:
        """Load a checkpoint and a backbone. `load` is the same function.

        Args:
            path_or_hub_id: ``"base"``, the checkpoint that comes with the package (a folder of that name is
                ``"./base"``); a checkpoint folder; a training cell's folder in a result store; or a Hugging Face hub id
                ``owner/name``, which is downloaded (and found again offline).
            backbone: any timm, ``open_clip:…`` or embedded name, or a module (`diffup.backbones.own`); None for the one
                of the training, with its weights (for ``"base"``: with other weights of it where its own are not in
                `weights_dir`).
            weights_dir: folder of backbone weights (``<name>.safetensors``); otherwise they are downloaded by name.
            device: where the backbone runs.
            companion: open_clip model that reads text where the backbone can't; None for the one of the training, if
                it had one; ``""`` to read no text at all.
            hub: ``revision``, ``token``, ``cache_dir``, ``force_download`` or ``local_files_only`` of a hub id, as
                `huggingface_hub.snapshot_download` takes them.

        A checkpoint from evidence without a bank of its own gets the photographs that come with scikit-image; those of
        `calibrate` are better.

        Raises:
            UserError: no such checkpoint, a damaged one, or a backbone or device that is not available.
        """
        parts = load_parts(path_or_hub_id, backbone, weights_dir, device, companion, hub)
        return cls(parts.encoder, parts.net, parts.facts, parts.bank)

    load = from_pretrained

    train: ClassVar[Callable[..., DiffUp]] = classmethod(trained)  # type: ignore[assignment]

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
        swapped = DiffUp(with_reader(visual, self.encoder.config, text_model, device), self.net, self.facts, self.bank)
        return swapped if bank is None else swapped.calibrate(bank)

    def calibrate(
        self,
        images: Sequence[AnyImage],
        masks: Sequence[ArrayLike | str | Path | None] | None = None,
        *,
        drop: float = DROP,
    ) -> DiffUp:
        """The same with a bank of other images: what they show counts as background, unless the support shows it too.

        It tells how much of a query looks like the object at all, which one support alone can't. Take 15 to 60 ordinary
        pictures of the kind that queries are that don't show the class that is looked for. Nothing is trained. A
        checkpoint whose ``ModelConfig.base`` is ``"prior"`` reads no bank, and gives the same masks with any.

        Args:
            images: as `encode` takes them.
            masks: where each shows objects, whatever they are, as `Support` takes masks, or None for an image without
                labels: they tell objects from surroundings in general.
            drop: share of the images that each cue leaves out, those that look most like its object; 0 costs nothing
                only where no image shows the class.

        Raises:
            UserError: fewer than two images, something that is no image, or masks or a share that do not fit.
        """
        check_list(images, "calibrate() takes a list of images")
        if masks is not None and len(masks) != len(images):
            raise UserError(f"calibrate() got {len(images)} images and {len(masks)} masks; None stands for no mask")
        pairs = labelled(images, masks or [None] * len(images))
        share = BankConfig(bank_drop=drop).bank_drop
        return DiffUp(self.encoder, self.net, self.facts, BankImages.of(pairs, self.encoder.config, share))

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **publishing: Any
    ) -> str | None:
        """Write a checkpoint folder: weights, configuration, the bank's images and a model card, no backbone.

        `save` is the same function.

        Args:
            folder: made where it is missing.
            push_to_hub: also publish it.
            repo_id: where to, by default under the folder's name.
            publishing: see `push_to_hub`.

        Returns:
            The address of the commit on the hub; None where it is not published.

        Raises:
            UserError: the folder can't be written, or see `push_to_hub`.
        """
        path = save_parts(self._parts(), folder)
        return self.push_to_hub(repo_id or path.absolute().name, **publishing) if push_to_hub else None

    save = save_pretrained

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = COMMIT,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Publish the checkpoint on the Hugging Face hub, with its model card; the pictures of its bank go along.

        Args:
            repo_id: ``owner/name``, which is created where it is missing.
            commit_message: of the one commit.
            private: whether a repository that is created is private; None: as the owner has set it.
            token: of the hub; None for the one that is logged in.
            branch, create_pr: see `huggingface_hub.HfApi.upload_folder`.

        Returns:
            The address of the commit.

        Raises:
            UserError: no such repository, no permission or no network.
        """
        return push_parts(
            self._parts(),
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
        )

    def _parts(self) -> Parts:
        return Parts(self.encoder, self.net, self.facts, self.bank)

    def encode(self, images: Sequence[AnyImage], *, batch_size: int = 8) -> list[Features]:
        """Encode images, the first time the bank's too: the heavy half, whose results can be kept and used again.

        Args:
            images: PIL images, uint8 arrays [H, W, 3] (RGB) or paths, of any sizes.
            batch_size: how many at a time.

        Raises:
            UserError: something that is no such image; its place in the list is named.
        """
        check_list(images, "encode() takes a list of images; put a single one in brackets")
        batch_size = whole(batch_size, "batch_size", 1)
        named = [(image, f"images[{i}]") for i, image in enumerate(images)]
        self._encoded_bank()
        chunks = (named[start : start + batch_size] for start in range(0, len(named), batch_size))
        encoded = (self.encoder.encode([to_rgb(*each) for each in chunk]) for chunk in chunks)
        return [features.to("cpu") for made in encoded for features in made]

    def segment(
        self,
        query: AnyImage | Features,
        cues: Sequence[Cue],
        *,
        steps: int = 2,
        samples: int = 1,
        seed: int = 0,
        snap: bool = False,
    ) -> Result:
        """Segment one query: the light half, if query and supports are features already.

        Args:
            query: image or its features.
            cues: any number and mix of `Support`, and at most one `Text`; at least one in all.
            steps: DDIM steps (1-8 are sensible).
            samples: number of noise samples.
            seed: of the noise; the same seed gives the same result.
            snap: average the mask's logits within superpixels of the query, so that its edges follow those of the image
                (`diffup.evaluation.superpixels`); the query must be an image. Variance and predicted IoU stay as they
                are without it.

        Raises:
            UserError: no cue, a cue that does not fit, or features of another backbone.
        """
        return self.segment_batch([query], cues, steps=steps, samples=samples, seed=seed, snap=snap)[0]

    def segment_batch(
        self,
        queries: Sequence[AnyImage | Features],
        cues: Sequence[Cue],
        *,
        steps: int = 2,
        samples: int = 1,
        seed: int = 0,
        snap: bool = False,
        batch_size: int = 8,
    ) -> list[Result]:
        """`segment` for many queries with the same cues, `batch_size` at a time; gives what `segment` gives each."""
        check_list(queries, "segment_batch() takes a list of queries; use segment() for a single one")
        steps, samples = whole(steps, "steps", 1), whole(samples, "samples", 1)
        batch_size, seed = whole(batch_size, "batch_size", 1), whole(seed, "seed", 0)
        encoded = encoded_cues(self.encoder, cues)
        results: list[Result] = []
        for start in range(0, len(queries), batch_size):
            chunk = queries[start : start + batch_size]
            places = [f"queries[{start + i}]" for i in range(len(chunk))]
            images = pictures(chunk, places)
            if snap and any(image is None for image in images):
                raise UserError(f"{places[images.index(None)]} are features; snap=True needs the image itself")
            episodes = Episodes(
                query=features(self.encoder, chunk, images, places),
                supports=[encoded.supports] * len(chunk),
                weights_BK2hw=encoded.weights_K2hw.expand(len(chunk), *encoded.weights_K2hw.shape),
                kinds=[encoded.kinds] * len(chunk),
                names=encoded.names,
                targets=torch.zeros(len(chunk), dtype=torch.long),
                bank=self._encoded_bank(),
                drop=0.0 if self.bank is None else self.bank.drop,
            )
            superpixels = [segmentations(image) if snap and image is not None else () for image in images]
            made = self._segment(episodes, steps, samples, seed, superpixels)
            results += [dataclasses.replace(result, image=image) for result, image in zip(made, images, strict=True)]
        return results

    @torch.inference_mode()
    def _segment(
        self, episodes: Episodes, steps: int, samples: int, seed: int, superpixels: Sequence[Labels]
    ) -> list[Result]:
        batch = priors(episodes)
        made = []
        for sample in range(samples):
            noise = episode_noise(seed, 0, sample, self.net.config.decoder_grid).expand(len(episodes.query), -1, -1)
            made.append(self.net.segment_priors(batch, SampleConfig(steps=steps), noise))
        results = []
        for i, query in enumerate(episodes.query):
            logits = [upsample(one.logits[i], query.size) for one in made]
            if superpixels[i]:
                logits = [snapped(logit, superpixels[i]) for logit in logits]
            drawn = torch.stack([torch.sigmoid(logit) for logit in logits]).cpu()
            probability = drawn.mean(0).numpy()
            results.append(
                Result(
                    mask=probability > THRESHOLD,
                    probability=probability,
                    variance=upsample(made[0].variance[i], query.size).cpu().numpy(),
                    predicted_iou=float(torch.stack([one.predicted_iou[i] for one in made]).mean()),
                    spread=drawn.std(0, correction=0).numpy() if samples > 1 else None,
                    prior=upsample(made[0].mean[i], query.size).cpu().numpy(),
                )
            )
        return results

    def _encoded_bank(self) -> Bank | None:
        if self.net.config.base == "evidence" and self.bank is not None and self._bank is None:
            self._bank = self.bank.encoded(self.encoder, BANK_POSITIONS)
        return self._bank
