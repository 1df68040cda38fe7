"""Configurations of encoder, cues, model, training and sampling as frozen dataclasses. No torch here.

Everything in this file is *identity*: it enters a cell's key. Batch size at evaluation, device, workers and paths are
runtime options and never appear here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from diffup.errors import UserError
from diffup.fields import added_later, one_of, positive

VISUAL_CUES = ("mask", "box", "scribble")
CUES = (*VISUAL_CUES, "text")
FEATURE_DTYPES = ("float16", "float32")
PIXEL_DTYPES = ("float32", "uint8")
BASES = ("prior", "evidence")
OBJECTNESS = 0.2  # share of a bank's objectness in a logit, with one support
STARTS = ("noise", "prior")
SCHEDULES = ("self_aligned", "plain", "prior_centred")
METHODS = ("diffup", "evidence", "prior_mean", "prototype", "insid3", "adapter")
FEATURE_METHODS = ("prototype", "insid3")  # of METHODS those that read features and cues, but no prior maps
PRECISIONS = ("float32", "bfloat16")
MAP_NAMES = ("max_cosine", "prototype_contrast", "assembled_sharp", "assembled_soft")
# BAFT's prior maps in their order: each as it is, then each propagated by the query's self-affinity.
PRIOR_MAPS = (*MAP_NAMES, *(f"propagated_{name}" for name in MAP_NAMES))
# Beside them log-odds, which are not stretched (`diffup.models.evidence`); the last is the same at each stage.
EVIDENCE_MAPS = (
    "odds_sharp", "odds_soft", "propagated_odds", "odds_in_support", "bank_over_background", "objectness", "refined",
)  # fmt: skip


def parse_annotation(annotation: str) -> tuple[str, ...]:
    """Split an annotation such as ``"mask+text"`` into its cue kinds.

    The supports take the visual kinds in turn (support k has kind k mod n); ``text`` adds one text cue.

    Raises:
        UserError: an unknown or repeated kind.
    """
    kinds = tuple(annotation.split("+"))
    unknown = [kind for kind in kinds if kind not in CUES]
    if unknown:
        raise UserError(f"annotation {annotation!r}: unknown cue {unknown[0]!r}; cues are {', '.join(CUES)}")
    if len(set(kinds)) != len(kinds):
        raise UserError(f"annotation {annotation!r} names a cue twice")
    return kinds


def support_kinds(annotation: str, shots: int) -> tuple[str, ...]:
    """The kind of each of the K supports' cues: visual kinds in turn; empty without one."""
    visual = [kind for kind in parse_annotation(annotation) if kind != "text"]
    return tuple(visual[k % len(visual)] for k in range(shots)) if visual else ()


def check_annotation(annotation: str, shots: int) -> None:
    """Raise UserError unless `shots` and `annotation` fit: 0 shots with ``text`` alone, others with a visual cue."""
    kinds = parse_annotation(annotation)
    if shots < 0:
        raise UserError(f"shots must be 0 or more, not {shots}")
    if shots == 0 and kinds != ("text",):
        raise UserError(f"0 shots go with annotation 'text' alone, not {annotation!r}")
    if shots > 0 and not set(kinds) & set(VISUAL_CUES):
        raise UserError(f"{shots} shots need a visual cue (mask, box, scribble); annotation is {annotation!r}")


def map_indices(names: str) -> tuple[int, ...]:
    """Places in `PRIOR_MAPS` of a prior set such as ``"max_cosine+propagated_max_cosine"``; ``""`` means all.

    Raises:
        UserError: an unknown or repeated map, or maps in another order than that of `PRIOR_MAPS`.
    """
    if not names:
        return tuple(range(len(PRIOR_MAPS)))
    parts = names.split("+")
    unknown = [part for part in parts if part not in PRIOR_MAPS]
    if unknown:
        raise UserError(f"prior maps {names!r}: unknown map {unknown[0]!r}; there are {', '.join(PRIOR_MAPS)}")
    found = tuple(PRIOR_MAPS.index(part) for part in parts)
    ordered = "+".join(PRIOR_MAPS[i] for i in sorted(set(found)))
    if ordered != names or len(found) == len(PRIOR_MAPS):  # one set, one name: else one model would have two keys
        raise UserError(f"prior maps {names!r}: write {ordered if len(found) < len(PRIOR_MAPS) else ''!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How images and class names become features: all that a feature cache depends on beside the weights.

    Attributes:
        input_size: side in pixels of the square the image is resized to before the backbone.
        feature_grid: side of the square grid that all stages are resampled to; priors live on it.
        feature_dtype: features are rounded to this dtype before anything reads them.
        prompts: text templates, each with one ``{}`` for the class name; their embeddings are averaged.
        companion: backbone name of the open_clip model that reads text where the backbone has no text encoder.
        companion_weights: that model's weights identity.
        pixel_dtype: the resized square's; rounded to ``"uint8"`` it can be kept on disk for all backbones.
        precision: ``"float32"``, or ``"bfloat16"``: the backbone runs under autocast, which tensor cores make several
            times faster. All that follows is in float32.
    """

    input_size: int = 320
    feature_grid: int = 20
    feature_dtype: str = "float16"
    prompts: tuple[str, ...] = ("a photo of a {}.", "{}")
    companion: str = ""
    companion_weights: str = ""
    pixel_dtype: str = added_later("float32")
    precision: str = added_later("float32")

    def __post_init__(self) -> None:
        positive(self, "input_size", "feature_grid")
        one_of(self, "feature_dtype", FEATURE_DTYPES)
        one_of(self, "pixel_dtype", PIXEL_DTYPES)
        one_of(self, "precision", PRECISIONS)
        bad = [prompt for prompt in self.prompts if prompt.count("{}") != 1]
        if bad or not self.prompts:
            raise UserError(f"{type(self).__name__}.prompts: each template needs exactly one {{}}; got {bad or 'none'}")


@dataclass(frozen=True, kw_only=True)
class CueConfig:
    """How cues are made from masks and class names; no feature depends on it.

    Attributes:
        class_names: ``"given"``, or ``"deranged"``: each class is prompted by another class of its fold (a control).
        boxes: ``"component"`` (one tight box per connected component) or ``"whole"`` (one for the class).
        scribble_width: stroke width as a fraction of the square root of the object's area.
    """

    class_names: str = "given"
    boxes: str = "component"
    scribble_width: float = 0.08

    def __post_init__(self) -> None:
        positive(self, "scribble_width")
        one_of(self, "class_names", ("given", "deranged"))
        one_of(self, "boxes", ("component", "whole"))


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """Images from outside the episode that stand for whatever else there is (`diffup.models.evidence`).

    Attributes:
        bank: number of images, of the fold's training images (`diffup.evaluation.bank`); 0: none.
        bank_positions: positions of each on the feature grid.
        bank_drop: share of them that each cue leaves out, those that answer its foreground best: for a bank that may
            show the class.
    """

    bank: int = added_later(0)
    bank_positions: int = added_later(20)
    bank_drop: float = added_later(0.0)

    def __post_init__(self) -> None:
        positive(self, "bank_positions")
        if self.bank < 0 or self.bank == 1:
            raise UserError(f"{type(self).__name__}.bank must be 0, or 2 or more images, not {self.bank}")
        if not 0 <= self.bank_drop < 1:
            raise UserError(f"{type(self).__name__}.bank_drop must be in [0, 1), not {self.bank_drop}")


@dataclass(frozen=True, kw_only=True)
class InputConfig(BankConfig, CueConfig, EncoderConfig):
    """All, as a cell holds them: what a model's input is made of. It serves wherever one of them is asked for."""

    def __post_init__(self) -> None:
        EncoderConfig.__post_init__(self)
        CueConfig.__post_init__(self)
        BankConfig.__post_init__(self)

    @property
    def encoder(self) -> EncoderConfig:
        """The part that features depend on."""
        return EncoderConfig(**{item.name: getattr(self, item.name) for item in fields(EncoderConfig)})

    @property
    def cues(self) -> CueConfig:
        """The part that cues depend on."""
        return CueConfig(**{item.name: getattr(self, item.name) for item in fields(CueConfig)})

    @property
    def negatives(self) -> BankConfig:
        """The part that the bank depends on; the default without one."""
        return BankConfig(**{item.name: getattr(self, item.name) for item in fields(BankConfig) if self.bank})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The trained part: UAPF and UQDD.

    Attributes:
        decoder_grid: side of the grid that the mask is generated on.
        width: channels of the U-Net's first block.
        schedule: how training builds x_t; see `diffup.models.schedule`.
        bit_scale: masks are diffused as ±bit_scale.
        residual: predict a correction to UAPF's mean rather than the mask itself.
        uapf: learned fusion; off = plain mean of the priors with the spread of the cues as variance.
        scm, dqm_error, dqm_iou, self_conditioning, query_infos: parts of the decoder, each removable.
        one_step: the same U-Net as a discriminative decoder (no noise, one step).
        bound: the largest correction of the mean's logit, with `residual`; 0: no bound. For data of few base classes,
            whose corrections hold for others only in part.
        base: what UAPF starts from: ``"prior"``, the mean of stretched maps, or ``"evidence"``, log-odds that keep how
            much of the image looks like the object (`diffup.models.evidence`); the decoder then reads both kinds.
        prior_maps: the maps that are read of each cue and stage, names of `PRIOR_MAPS` in their order joined by ``+``;
            ``""``: all. All are made and kept whatever is read. For text cues: the text maps at the same places.
    """

    decoder_grid: int = 40
    width: int = 32
    schedule: str = "self_aligned"
    bit_scale: float = 0.1
    residual: bool = True
    uapf: bool = True
    scm: bool = True
    dqm_error: bool = True
    dqm_iou: bool = True
    self_conditioning: bool = True
    query_infos: bool = True
    one_step: bool = False
    bound: float = added_later(0.0)
    base: str = added_later("prior")
    prior_maps: str = added_later("")

    def __post_init__(self) -> None:
        positive(self, "decoder_grid", "width", "bit_scale")
        map_indices(self.prior_maps)
        if self.bound < 0:
            raise UserError(f"ModelConfig.bound must be 0 or more, not {self.bound}")
        one_of(self, "schedule", SCHEDULES)
        one_of(self, "base", BASES)
        if self.decoder_grid % 4:
            raise UserError(f"ModelConfig.decoder_grid must be a multiple of 4, not {self.decoder_grid}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How it is trained: on base classes, with random cue kinds and random K.

    Attributes:
        steps: optimizer steps.
        batch_size: episodes a step (part of identity: it changes the result).
        learning_rate, weight_decay: AdamW, cosine decay after a short warm-up.
        ema: decay of the averaged weights that are saved.
        max_shots: K is drawn from 1 … max_shots.
        cue_weights: relative frequency of mask, box and scribble among visual cues; and of text, which a step has with
            twice the share of its weight, 0.2 by default (text needs a text encoder; `training.sampler.step_cues`).
        virtual_backbones: distort priors in training so that the decoder does not learn one backbone's looks.
        flip: mirror episodes at random.
        precision: ``"float32"``, or ``"bfloat16"``: the network under autocast; weights, priors and loss stay float32.
        accumulate: micro-batches of `batch_size` whose gradients are averaged; a step has batch_size × accumulate
            episodes, and is the same as one of that batch size but for rounding. Divides the memory a step takes.
        draws: number of different steps that are drawn, then distorted again, every second time mirrored; 0: every step
            draws its own. Prior maps are most of a step's cost: 800 steps of 400 draws cost little more than 400.
        balance_sizes: draw small and large objects equally often, not as they come: base classes and others differ in
            the share of an image that they take, and a decoder learns that of its training.
        parts: share of the episodes whose class is the upper or lower part of its objects (`diffup.episodes.parts`).
        hold_out: number of base classes that are left out of training, to choose between variants without looking at
            novel classes; which ones: `diffup.episodes.sampling.held_out_classes`.
    """

    steps: int = 500
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema: float = 0.99
    max_shots: int = 5
    cue_weights: tuple[float, float, float, float] = (0.5, 0.2, 0.2, 0.1)
    virtual_backbones: bool = True
    flip: bool = True
    precision: str = added_later("float32")
    accumulate: int = added_later(1)
    hold_out: int = added_later(0)
    draws: int = added_later(0)
    balance_sizes: bool = added_later(False)
    parts: float = added_later(0.0)

    @property
    def episodes(self) -> int:
        """Episodes a step."""
        return self.batch_size * self.accumulate

    def __post_init__(self) -> None:
        positive(self, "steps", "batch_size", "learning_rate", "max_shots", "accumulate")
        one_of(self, "precision", PRECISIONS)
        for name in ("hold_out", "draws"):
            if getattr(self, name) < 0:
                raise UserError(f"TrainConfig.{name} must be 0 or more, not {getattr(self, name)}")
        if len(self.cue_weights) != len(CUES) or min(self.cue_weights) < 0 or sum(self.cue_weights[:3]) <= 0:
            raise UserError(f"TrainConfig.cue_weights: {len(CUES)} weights ≥ 0, some visual; got {self.cue_weights}")
        if not 0 <= self.ema < 1:
            raise UserError(f"TrainConfig.ema must be in [0, 1), not {self.ema}")
        if not 0 <= self.parts <= 1:
            raise UserError(f"TrainConfig.parts must be in [0, 1], not {self.parts}")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How a mask is made at test.

    Attributes:
        method: ``"diffup"``, a training-free baseline (``"evidence"``, ``"prior_mean"``, ``"prototype"``,
            ``"insid3"``), or ``"adapter"``: a foreign method (`diffup.evaluation.adapter`).
        steps: DDIM steps (1-8 are sensible).
        strength: factor of the decoder's correction of the prior. Half of what training asked for was measured to cost
            nothing on held-out classes with the training backbone, and to gain on others (docs/method.md).
        start: ``"noise"``, or ``"prior"``: the noised prior, at a time set by UAPF's variance.
        threshold: probability above which a pixel is foreground.
        function: the foreign method, ``"package.module:name"``.
        function_version: ``"sha256:…"`` of its source file, or a version that its author declares.
        objectness: of method ``"evidence"``: share of the bank's objectness in the logit.
        regions: of method ``"evidence"``: half of the logit is averaged within regions of the query's own features
            (`diffup.models.regions`).
        snap: average the logit within superpixels of the query's image (`diffup.evaluation.superpixels`). Not with an
            adapter.
    """

    method: str = "diffup"
    steps: int = 2
    strength: float = 0.5
    start: str = "noise"
    threshold: float = 0.5
    function: str = added_later("")
    function_version: str = added_later("")
    objectness: float = added_later(0.0)
    regions: bool = added_later(False)
    snap: bool = added_later(False)

    def __post_init__(self) -> None:
        positive(self, "steps", "strength")
        one_of(self, "method", METHODS)
        one_of(self, "start", STARTS)
        if not 0 < self.threshold < 1:
            raise UserError(f"SampleConfig.threshold must be in (0, 1), not {self.threshold}")
        for name in ("objectness", "regions"):
            if getattr(self, name) and self.method != "evidence":
                raise UserError(f"SampleConfig.{name} goes with method 'evidence', not {self.method!r}")
        adapted = self.method == "adapter"
        if self.snap and adapted:
            raise UserError("SampleConfig.snap: a foreign method gives its own masks; it has no logit to be averaged")
        if (bool(self.function), bool(self.function_version)) != (adapted, adapted):
            raise UserError(
                f"SampleConfig.function and function_version go with method 'adapter', both or neither; method is "
                f"{self.method!r}, function {self.function!r}, function_version {self.function_version!r}"
            )
