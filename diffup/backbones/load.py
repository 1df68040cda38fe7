"""`load_backbone(name, weights)`: any backbone as a frozen `Backbone` with one interface.

Images are RGB in [0, 1]; resizing to a size that the architecture takes and normalisation happen inside.

Letters: B batch · C channels · H W image · h w grid of a stage · N texts · D image-text space.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from diffup.backbones import embedded
from diffup.backbones.hub import offline, unreachable, weights_cached
from diffup.backbones.own import MODULE, ModuleFeatures, build_own
from diffup.backbones.registry import check_backbone, check_tag, has_text_encoder
from diffup.backbones.timm import TimmFeatures, build_timm
from diffup.backbones.weights import (
    file_identity,
    file_stems,
    find_weights,
    fit_state_dict,
    load_state_dict,
    normalisation_beside,
    random_seed,
    state_hash,
    weights_file,
    weights_identity,
)
from diffup.errors import UserError, extra

HUB_TIMEOUT = 10.0  # seconds
RANGE_SLACK = 1e-3  # of images in [0, 1]: what resizing may add


class Backbone:
    """A frozen backbone: three feature stages of an image and, with a text encoder, a dense text map.

    Every method runs in inference mode, so its outputs can't take part in training.

    Attributes:
        name: backbone name.
        weights: identity of the weights that were asked for.
        has_text: whether `dense_text` and `embed_text` work.
        source: the file that the weights came from, or their identity again.
        loaded_hash: first 12 hex digits of the sha256 over the weights that were really loaded.
        mean, std: the normalisation applied inside.
    """

    def __init__(
        self, name: str, weights: str, features: Any, mean: tuple[float, ...], std: tuple[float, ...], source: str = ""
    ) -> None:
        """Freeze a `TimmFeatures`, `ClipFeatures` or `ModuleFeatures`; use `load_backbone` instead of calling this."""
        self.name, self.weights, self.mean, self.std = name, weights, mean, std
        self.source = source or weights
        self._features = features.eval().requires_grad_(False)
        self.loaded_hash = state_hash(features.model, features.heads)
        self.device = next(features.parameters()).device
        self._no_text = getattr(features, "no_dense_text", "it has no text encoder")
        self.has_text = not self._no_text

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size (H, W) that an image of (height, width) is resized to inside."""
        return self._features.input_size(height, width)

    def _prepare(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3 or not images_BCHW.is_floating_point():
            raise UserError(
                f"backbone {self.name!r} takes float images [B, 3, H, W] in [0, 1], not {images_BCHW.dtype} "
                f"{tuple(images_BCHW.shape)}; divide uint8 images by 255 and put channels first"
            )
        images = images_BCHW.to(self.device, torch.float32)
        low, high = (float(edge) for edge in images.aminmax())
        if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # true for NaN as well
            raise UserError(
                f"backbone {self.name!r} takes images in [0, 1], not from {low:g} to {high:g}; divide values of 0-255 "
                f"by 255, and don't subtract a mean: that is done inside"
            )
        size = self.input_size(*images.shape[-2:])
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    @torch.inference_mode()
    def stages(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three feature maps [B, C_s, h_s, w_s], shallow to deep, each on its stage's own grid.

        Args:
            images_BCHW: float images in [0, 1], any H and W.

        Raises:
            UserError: not a batch of float RGB images in [0, 1].
        """
        return self._features.stages(self._prepare(images_BCHW))

    def _check_text(self) -> None:
        if not self.has_text:
            raise UserError(
                f"backbone {self.name!r} can't read text ({self._no_text}); name an open_clip model such as "
                f"'open_clip:ViT-B-16/openai' as companion for the text cue"
            )

    @torch.inference_mode()
    def dense_text(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Image-text embeddings [B, D, h, w] of every position, L2-normalised over D.

        Args:
            images_BCHW: as for `stages`.

        Raises:
            UserError: no text encoder, or a head without a value path.
        """
        self._check_text()
        return F.normalize(self._features.dense_text(self._prepare(images_BCHW)), dim=1)

    @torch.inference_mode()
    def embed_text(self, texts: list[str], prompts: tuple[str, ...] = ("{}",)) -> torch.Tensor:
        """Embeddings [N, D] of texts, L2-normalised.

        Args:
            texts: class names or sentences.
            prompts: templates, each with one ``{}`` for the text; their normalised embeddings are averaged.

        Raises:
            UserError: no text encoder, or its tokenizer is not available.
        """
        self._check_text()
        if not texts:
            raise UserError(f"backbone {self.name!r}: no texts to embed; give at least one class name")
        sentences = [prompt.replace("{}", text) for text in texts for prompt in prompts]
        try:
            embedded_texts = self._features.embed_text(sentences)
        except (OSError, ImportError) as error:
            raise UserError(
                f"the tokenizer of backbone {self.name!r} is not available ({error}): it belongs to the transformers "
                f"library; install that and go online once, or choose a model with open_clip's own tokenizer, such as "
                f"'open_clip:ViT-B-16/openai'"
            ) from error
        return F.normalize(embedded_texts.view(len(texts), len(prompts), -1).mean(dim=1), dim=1)


def usable_device(device: str | torch.device) -> str:
    """The name of a device on which torch can compute here.

    Raises:
        UserError: no device's name, or one that this machine or this build of torch does not have.
    """
    try:
        torch.zeros(1, device=device).item()
        return str(torch.device(device))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        gist = (str(error).strip() or type(error).__name__).splitlines()[0]
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        gpus = f"there are CUDA GPUs 0-{there - 1}" if there else "no CUDA GPU is available"
        raise UserError(f"device {device!r} can't be used ({gist:.200}); {gpus}; device='cpu' always works") from error


def load_backbone(
    name: str | nn.Module, weights: str = "auto", *, weights_dir: Path | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """Build a backbone, load its weights and freeze it.

    Args:
        name: timm, ``open_clip:…`` or embedded name, ``"package.module:build"``, an entry point, or a module
            (`diffup.backbones.own`), which is frozen and moved to the device as it is.
        weights: an identity (``"sha256:…"``, ``"hub"``, ``"random:SEED"``) or ``"auto"``, ``"random"``.
        weights_dir: directory with weights files, see `diffup.backbones.weights.find_weights`.
        device: where the model and its outputs live.

    Raises:
        UserError: unknown name or device, no such file, a file whose hash is another than `weights` or that doesn't
            fit, or a download that failed.
    """
    if isinstance(name, nn.Module):
        return _given(name, usable_device(device))
    parsed, device = check_backbone(name), usable_device(device)
    identity = weights_identity(name, weights_dir=weights_dir, weights=weights)
    normalisation, source = None, ""
    if parsed.kind == "own":
        features, source = build(name), parsed.model
    elif identity.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed(identity))
            features = build(name)
    elif identity == "hub":
        features = _from_hub(name, weights_dir)
    else:
        path = _checked_file(name, identity, weights_dir)
        features = build(name)
        fit_state_dict(features.model, load_state_dict(path), path, features.heads)
        normalisation, source = normalisation_beside(name, path), str(path)
        if normalisation is None:
            _check_normalisation(name, path, features.mean, features.std)
    mean, std = normalisation or (features.mean, features.std)
    if torch.device(device).type == "cuda":  # whose tensor cores want it; on a CPU it would change the last bits
        features = features.to(memory_format=torch.channels_last)
    return Backbone(name, identity, features.to(device), mean, std, source)


def _given(module: nn.Module, device: str) -> Backbone:
    """A module of the caller's own as a backbone, known by its class and its weights."""
    kind = type(module)
    features = ModuleFeatures(module, kind.__name__)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return Backbone(name, f"{MODULE}{state_hash(module)}", features.to(device), features.mean, features.std, name)


def build(name: str) -> Any:
    """The architecture of a backbone as a `TimmFeatures`, `ClipFeatures` or `ModuleFeatures`, with the weights that its
    constructor draws, or, of one's own, loads.

    Raises:
        UserError: unknown name, or one that could not be built.
    """
    try:
        return _build(name)
    except (OSError, ImportError, RuntimeError) as error:
        raise UserError(f"backbone {name!r} could not be built: {error}") from error


def _build(name: str, pretrained: bool = False) -> Any:
    parsed = check_backbone(name)
    if parsed.kind == "own":
        return build_own(name, parsed.model)
    if parsed.kind == "timm":
        return build_timm(parsed.timm_name, pretrained=pretrained)
    if not has_text_encoder(name):
        return TimmFeatures(embedded.build(name))
    with extra("clip"):
        from diffup.backbones.open_clip import ClipFeatures, build_clip

    if parsed.kind == "open_clip":
        return build_clip(parsed.model, parsed.tag, pretrained=pretrained)
    return ClipFeatures(embedded.build(name), embedded.tokenizer, mean=embedded.MEAN, std=embedded.STD)


def _from_hub(name: str, weights_dir: Path | None) -> Any:
    try:
        if weights_cached(name) is False and not offline() and (reason := unreachable(HUB_TIMEOUT)):
            raise ConnectionError(f"the hub does not answer: {reason}")  # at once, not after a minute of its retries
        return _build(name, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub clients raise a dozen unrelated types when a download fails
        local, file = find_weights(name, weights_dir), f"{file_stems(check_backbone(name))[0]}.safetensors"
        have = f"{local} is there but weights 'hub' were asked for" if local else file
        remedy = f"Offline, pass --weights-dir with a directory that holds the weights ({have})"
        if weights_dir and not local:
            remedy = f"{weights_dir} has no {file} either: put it there, or pass --weights-dir with its directory"
        raise UserError(
            f"the pretrained weights of backbone {name!r} could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). {remedy}"
        ) from error


def _checked_file(name: str, identity: str, weights_dir: Path | None) -> Path:
    path = weights_file(name, weights_dir)
    if path is None:
        where = f"{weights_dir} has no" if weights_dir else "no weights directory was given to look for a"
        raise UserError(
            f"backbone {name!r} was asked for with weights {identity}, but {where} file "
            f"{file_stems(check_backbone(name))[0]}.safetensors (or .pth); put it there and pass --weights-dir"
        )
    check_tag(name, path)
    found = file_identity(path, normalisation_beside(name, path))
    if found != identity:
        raise UserError(
            f"weights file {path} is {found}, but backbone {name!r} was asked for with weights {identity}: the file or "
            f"the .json beside it changed; put the old one back, or run again, so that the results get their own key"
        )
    return path


def _check_normalisation(name: str, path: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Warn where neither name nor file says how images are normalised and timm knows several ways."""
    parsed = check_backbone(name)
    if parsed.kind != "timm" or parsed.tag:
        return
    configs = [timm.get_pretrained_cfg(known) for known in timm.list_pretrained(f"{name}.*")]
    if len({(tuple(config.mean), tuple(config.std)) for config in configs if config is not None}) > 1:
        warnings.warn(
            f"weights file {path}: images are normalised with mean {mean} and std {std}, but some weights of {name} "
            f"want others. Name the tag ({name}.TAG), or put {name}.json beside the file with "
            '{"mean": [r, g, b], "std": [r, g, b]}',
            stacklevel=3,
        )
