"""What a plan takes by the rates of a machine, against arithmetic by hand, and what it says of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster import cli, launch
from cluster.options import Cache
from cluster.planning.architectures import KNOWN, SIDE, architecture
from cluster.planning.counts import KEPT_BYTES, distinct, encoded
from cluster.planning.estimate import duration
from cluster.planning.forecast import PARTS, completed, forecast, in_words
from cluster.planning.rates import PACKAGED, Rates, read_rates
from cluster.storage.results import Store
from diffup.config import InputConfig, TrainConfig
from diffup.errors import UserError
from diffup.grid.axes import PRIOR_MEAN, Backbone, adapter, evaluation_cells, training_cell
from diffup.grid.cell import AnyCell, Cell
from diffup.training.recipes import Recipe
from experiments import full_grid
from tests.cluster.planning.test_plan import DATA, finish

ROOT = Path(__file__).resolve().parents[3]
INPUT = InputConfig(input_size=SIDE, feature_grid=20, pixel_dtype="uint8")
RESNET = Backbone(name="resnet50", weights="random:0")
CLIP = Backbone(name="open_clip:ViT-B-16/openai", weights="hub")
TRAIN = TrainConfig(steps=10, batch_size=4, max_shots=1)
TRAINED = training_cell(DATA, 0, RESNET, Recipe(input=INPUT, train=TRAIN))
TASKS = [(1, "mask"), (2, "mask"), (2, "box")]
EVALUATED = evaluation_cells(DATA, 0, [RESNET], TASKS, config=INPUT, episodes=100, trained=TRAINED)
GRID: list[AnyCell] = [TRAINED, *EVALUATED]
RATES = Rates(
    device="cpu", hardware="a slow one", decode=1.0, encoding={"resnet50": 1 / 16.68}, query=10.0, pair=1.0, triple=0.1,
    matched=3584 * 20**4, episode=2.0, cue=0.5, train=3.0,
)  # fmt: skip
# 100 queries, 200 pairs, 200 masks and 200 boxes; 100 episodes of 1, 2 and 2 cues.
MATCHING, DECODING = 100 * 10 + 200 * 1 + 400 * 0.1, 100 * (2.5 + 3 + 3)
STEPS, DRAWING = 10 * 4 * 3, 10 * 4 * (10 + 1 + 0.1)  # of one support each
IMAGES, DRAWN = 300, 10 * 4 * 2  # (1 + 2) × 100, and a query and a support an episode


def seconds(cache: Cache, cells: list[AnyCell] = GRID, **more: Any) -> tuple[float, float, float, float]:
    """Of photographs, the stage, training and evaluation."""
    made = forecast(cells, RATES, cache, **more)
    trained = made.cells.get(TRAINED.key(), 0.0)
    return made.photographs, made.stage, trained, sum(made.cells.values()) - trained


@pytest.mark.parametrize(
    ("cache", "photographs", "stage", "training", "evaluation"),
    [
        ("pixels", IMAGES, 0, STEPS + DRAWING + 2 * DRAWN, IMAGES + MATCHING + DECODING),
        ("none", 0, 0, STEPS + DRAWING + 2 * DRAWN, 2 * IMAGES + MATCHING + DECODING),
        ("features", 0, 2 * IMAGES + MATCHING, STEPS + DRAWING, DECODING),
    ],
)
def test_each_image_triple_episode_and_step_is_counted_as_often_as_it_is_computed(
    cache: Cache, photographs: float, stage: float, training: float, evaluation: float
) -> None:
    assert seconds(cache) == pytest.approx((photographs, stage, training, evaluation))
    made = forecast(GRID, RATES, cache)
    counts = dict(zip(PARTS, (0, 0, 440, 300, 10), strict=True)) | {
        PARTS[0]: 300 + DRAWN * (cache != "features"),
        PARTS[1]: 300 + DRAWN * (cache != "features"),
    }
    assert made.counts == counts and made.unknown == 0
    assert sum(made.parts.values()) == pytest.approx(photographs + stage + training + evaluation)


def test_cells_that_share_a_pass_share_its_seconds_and_wait_for_their_training() -> None:
    made = forecast(GRID, RATES, "pixels")
    shared = (IMAGES + MATCHING) / 3
    assert [made.cells[cell.key()] for cell in EVALUATED] == pytest.approx([shared + 250, shared + 300, shared + 300])
    training = STEPS + DRAWING + 2 * DRAWN
    one, three = made.wall(GRID, 1, 2), made.wall(GRID, 3, 2)
    assert one == pytest.approx(IMAGES / 2 + training + IMAGES + MATCHING + DECODING)
    assert three == pytest.approx(IMAGES / 2 + training + shared + 300)


def test_a_second_backbone_counts_again_and_a_second_seed_only_what_it_does_itself() -> None:
    other = Backbone(name="resnet101", weights="random:0")
    both = evaluation_cells(DATA, 0, [RESNET, other], TASKS, config=INPUT, episodes=100, trained=TRAINED)
    photographs, _, _, evaluation = seconds("pixels", [*both])
    assert photographs == IMAGES
    assert evaluation == pytest.approx(2 * (MATCHING + DECODING) + IMAGES * (1 + 31.83 / 16.68))  # by its operations
    more = [cell for s in (0, 1) for cell in evaluation_cells(
        DATA, 0, [RESNET], TASKS, config=INPUT, episodes=100, sample=PRIOR_MEAN, seed=s)]  # fmt: skip
    assert seconds("pixels", [*more])[3] == pytest.approx(IMAGES + MATCHING + 2 * DECODING)


def test_variants_of_a_training_share_what_is_drawn() -> None:
    variant = replace(TRAINED, variant="narrow", model=replace(TRAINED.model, width=16))
    assert forecast([TRAINED, variant], RATES, "none").cells[variant.key()] == pytest.approx(STEPS)
    other = replace(TRAINED, train_seed=1)
    assert forecast([TRAINED, other], RATES, "none").cells[other.key()] == pytest.approx(STEPS + DRAWING + 2 * DRAWN)


def test_few_images_are_drawn_again_and_encoded_again_only_if_memory_forgot_them() -> None:
    assert seconds("pixels", tested={"fake": 20}, images={"fake": 20})[0] == 20
    assert (distinct(300, 20), distinct(300, None), distinct(1, 10**9)) == (20, 300, 1)
    assert encoded(300, 20, 1000) == 20
    assert encoded(1000, 100, KEPT_BYTES // 50) == 100 + 450  # half of them are kept
    assert encoded(1000, None, KEPT_BYTES) == 1000 and encoded(0, 5, 1) == 0


def test_text_is_read_once_a_query_by_the_companion() -> None:
    cells = evaluation_cells(
        DATA, 0, [RESNET], [(0, "text")], config=INPUT, episodes=100, trained=TRAINED, companion=CLIP
    )
    expected = 100 * (1 + 68.59 / 16.68) + 100 * (10 + 0.1) + 100 * 2.5
    assert seconds("pixels", [*cells]) == pytest.approx((100, 0, 0, expected))
    both = evaluation_cells(
        DATA, 0, [RESNET], [*TASKS, (2, "mask+text")], config=INPUT, episodes=100, trained=TRAINED, companion=CLIP
    )
    images = {cache: forecast(both, RATES, cache).counts[PARTS[1]] for cache in get_args(Cache)[1:]}
    assert images == {"features": 300 + 100, "pixels": 300 + 100, "none": 300 + 100}
    assert forecast(both, RATES, "features").counts[PARTS[2]] == 400 + 100


def test_the_plan_says_that_rates_are_not_cells() -> None:
    said = in_words(forecast(GRID, RATES, "pixels"), GRID, RATES, workers=2, cores=2, gpu=False)
    wall = IMAGES / 2 + STEPS + DRAWING + 2 * DRAWN + 2 * (IMAGES + MATCHING) / 3 + 550  # three cells on two workers
    assert f"about {wall / 60:.0f} min on 2 workers, from rates measured on a slow one, not from cells" in said
    assert "(no cell like these has finished)" in said and "300 episodes decoded" in said and "GPU" not in said
    assert re.search(r"of one worker's work: \d+ min for 1 trainings, \d+ min for 3 evaluations", said), said
    colours = adapter("experiments.foreign_method:colour_histogram")
    foreign = evaluation_cells(DATA, 0, [RESNET], [(1, "mask")], config=INPUT, episodes=9, sample=colours)
    with_it = in_words(forecast([*GRID, *foreign], RATES, "pixels"), GRID, RATES, workers=2, cores=2, gpu=False)
    assert with_it.splitlines()[:-1] == said.splitlines() and "without 1 cells" in with_it
    alone = in_words(forecast([*foreign], RATES, "pixels"), [*foreign], RATES, workers=2, cores=2, gpu=False)
    assert alone.startswith("  no estimate of time")
    assert [duration(s) for s in (40, 1500, 11520, 111600)] == ["40 s", "25 min", "3.2 h", "31 h"]


def dry(tmp_path: Path, *more: str) -> int:
    select = ("--select", "dataset=pascal5i,backbone=resnet50")
    return cli.run(full_grid.STUDY, ["--dry-run", "--results", str(tmp_path / "results"), *select, *more])


def test_a_gpu_without_rates_is_named_with_the_command_that_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_gpus", lambda: 2)
    assert dry(tmp_path) == 0
    said = capsys.readouterr().out
    assert "no rates of a GPU are given" in said and "python -m benchmarks.accelerator --out FILE" in said
    assert "from rates measured on" in said and "cache: pixels" in said and "a GPU is taken to encode" in said
    document = json.loads(PACKAGED.read_bytes()) | {"device": "cuda", "hardware": "a card"}
    (tmp_path / "card.json").write_text(json.dumps(document))
    assert dry(tmp_path, "--rates", str(tmp_path / "card.json")) == 0
    said = capsys.readouterr().out
    assert "on 2 GPUs, from rates measured on a card" in said and "no rates of a GPU" not in said


def test_past_cells_are_preferred_to_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, _ = full_grid.build(full_grid.STUDY.parse([]))
    finish(Store(tmp_path / "results"), next(c for c in cells if c.dataset == "pascal5i" and c.backbone == "resnet50"))
    assert dry(tmp_path) == 0
    said = capsys.readouterr().out
    assert "from past cells" in said and "from rates" not in said


def test_a_training_is_not_guessed_from_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where cells of one kind alone have finished the rest is by rates, on the scale of those."""
    cells, _ = full_grid.build(full_grid.STUDY.parse([]))
    done = next(c for c in cells if c.dataset == "pascal5i" and c.backbone == "resnet50" and isinstance(c, Cell))
    finish(Store(tmp_path / "results"), done)
    assert dry(tmp_path) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"  about .+ on \d+ workers?, .+ of work, from past cells, 4 of them by rates of a machine\n", said
    )
    assert said.index("to do: ") < said.index("  about "), "what it takes is the last that one reads"
    made = forecast(GRID, RATES, "pixels")
    known = {cell.key(): 3 * made.cells[cell.key()] for cell in GRID if isinstance(cell, Cell)}
    assert completed(known, made)[TRAINED.key()] == pytest.approx(3 * made.cells[TRAINED.key()])
    assert completed(known, made).items() >= known.items()


def test_a_dry_run_of_the_papers_grid_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster import cli; from experiments import full_grid\n"
        f"assert cli.run(full_grid.STUDY, ['--dry-run', '--results', {str(tmp_path / 'results')!r}]) == 0\n"
        "assert not {'torch', 'timm', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"about [\d,]+ h on \d+ workers?, from rates measured on .+, not from cells", done.stdout)
    assert "1,232,000 episodes decoded" in done.stdout and "cache: pixels, about" in done.stdout


GOOD = json.loads(PACKAGED.read_bytes())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "holds no rates"),
        ("[1]", "does not name the format"),
        (json.dumps({"seconds": 3}), "does not name the format"),
        (json.dumps({**GOOD, "device": "tpu"}), "device is 'tpu'"),
        (json.dumps({**GOOD, "encode": []}), "no backbone was measured"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "priors"}), "lacks 'priors'"),
        (json.dumps({**GOOD, "decode": {"one": -1}}), "-1 is no positive number"),
        (json.dumps({**GOOD, "decode": {"one": float("nan")}}), "nan is no positive number"),
        (json.dumps({**GOOD, "encode": [7]}), "holds no rates"),
        ("\xff\x00", "holds no rates"),
    ],
)
def test_a_damaged_or_foreign_file_of_rates_is_a_users_mistake_in_one_line(
    content: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rates.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        read_rates(path)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert dry(tmp_path, "--rates", str(path)) == 2
    assert capsys.readouterr().err.startswith(f"error: --rates {path}")


def test_a_file_of_rates_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_rates(tmp_path / "none.json")


def test_rates_follow_from_what_was_measured(tmp_path: Path) -> None:
    document = {
        **GOOD,
        "input": {"size": 320, "grid": 10},
        "decode": {"one": 50},
        "encode": [
            {"backbone": "resnet50", "precision": "float32", "images_per_s": 4, "gflops": 10},
            {"backbone": "resnet50", "precision": "bfloat16", "images_per_s": 400, "gflops": 10},
            {"backbone": "vit", "precision": "float32", "images_per_s": 1, "gflops": 10},
        ],
        # A query takes 0.9 s, a pair 0.05 and an annotation 0.02: alone, 10 supports, 10 supports × 3 annotations.
        "priors": {"channels": 7, "float32": {"distinct": 1 / 0.97, "shared": 1 / 0.16, "annotated": 3 / 0.2}},
        "episodes": {"float32": [{"shots": 1, "decoding": 10}, {"shots": 5, "decoding": 2}]},
        "training": {"episodes_per_s": 8},
        "disk": {"bytes_per_s": 2e9},
    }
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(document))
    rates = read_rates(path)
    assert (rates.decode, rates.train, rates.disk) == (0.02, 0.125, 2e9)
    assert (rates.query, rates.pair, rates.triple) == pytest.approx((0.9, 0.05, 0.02))
    assert (rates.decode_episode(1), rates.decode_episode(5)) == pytest.approx((0.1, 0.5))
    assert rates.encode("resnet50", 20) == pytest.approx(0.5)
    assert rates.encode("other", 10) == pytest.approx((0.025 + 0.1) / 2 * 10)
    assert rates.match(7, 20, 1, 1, 1) == pytest.approx(16 * 0.97)
    assert rates.match(14, 10, 1, 0, 0) == pytest.approx(1.8)


@pytest.mark.slow
def test_known_architectures_are_what_is_built() -> None:
    from diffup.backbones.shapes import channels
    from diffup.models.flops import backbone_cost

    for name, known in KNOWN.items():
        assert known.channels == sum(channels(name)[0]), name
        assert known.gflops == pytest.approx(backbone_cost(name, SIDE)["encode_gflops"], abs=0.006), name
    assert architecture("open_clip:ViT-B-16/openai") is KNOWN["open_clip:ViT-B-16"]
    assert architecture("resnet50.a1_in1k") is KNOWN["resnet50"]
    assert architecture("resnet18").channels == 896
