"""``diffup predict``: what it writes, that it goes on where it stopped, and that bad input costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffup import DiffUp, Support, Text, cli, files
from diffup.commands import predict_run
from diffup.commands.predict_inputs import numbers
from diffup.data.dataset import Dataset
from diffup.errors import UserError
from tests.helpers.trained import of_class

Predict = Callable[..., int]
SHOWN = ("--support", "s.jpg", "--mask", "s.png", "-o", "out")


@pytest.fixture
def folder(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: three queries in ``q`` (one a folder below), a support, its mask of 0 and 255."""
    monkeypatch.chdir(tmp_path)
    shot, *queries = of_class(data, 0)[:4]
    (tmp_path / "q" / "more").mkdir(parents=True)
    for image_id, name in zip(queries, ("a.jpg", "b.png", "more/c.jpg"), strict=True):
        Image.fromarray(data.image(image_id)).save(tmp_path / "q" / name)
    Image.fromarray(data.image(shot)).save("s.jpg")
    Image.fromarray(data.image(shot)[::-1]).save("t.jpg")
    Image.fromarray((data.mask(shot, 0) == 1) * np.uint8(255)).save("s.png")
    return tmp_path


@pytest.fixture
def predict(model: DiffUp, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """The command, on a model that is loaded already."""
    monkeypatch.setattr(predict_run, "load", lambda asked: model)
    return lambda *argv: cli.main(["predict", *argv])


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for every query that is segmented."""
    calls: list[str] = []
    real = DiffUp.segment

    def counted(self: DiffUp, query: Any, *args: Any, **options: Any) -> Any:
        calls.append("segmented")
        return real(self, query, *args, **options)

    monkeypatch.setattr(DiffUp, "segment", counted)
    return calls


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def mask(path: str) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def test_each_query_gets_a_mask_an_overlay_and_its_figures(
    predict: Predict, folder: Path, model: DiffUp, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("q", *SHOWN) == 0
    names = [f"{name}{end}" for name in ("a", "b", "more/c") for end in (".json", ".png", "_overlay.jpg")]
    assert written(folder / "out") == sorted([*names, "request.json"])
    support = Support("s.jpg", "s.png")
    for name, query in (("a", "q/a.jpg"), ("b", "q/b.png"), ("more/c", "q/more/c.jpg")):
        result = model.segment(query, [support])
        assert np.array_equal(mask(f"out/{name}.png"), result.mask * np.uint8(255))
        told = json.loads((folder / "out" / f"{name}.json").read_text())
        assert told["query"] == query and told["backbone"] == "tiny_resnet" and told["seconds"] > 0
        assert {key: told[key] for key in result.figures()} == pytest.approx(result.figures(), abs=1e-4)
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["out/a.png", "out/b.png", "out/more/c.png"]
    assert "3 segmented" in printed.err


def test_several_supports_each_with_its_own_annotation_and_text(predict: Predict, folder: Path, model: DiffUp) -> None:
    strokes = np.zeros(Image.open("q/b.png").size[::-1], np.uint8)
    strokes[60:70, 40:90] = 255
    Image.fromarray(strokes).save("p.png")
    argv = [
        "q/a.jpg", "--support", "s.jpg", "--box", "20,30,90,100;1,2,30,40", "--support=q/b.png", "--points=80,40;20,20",
        "--text", "striped red ring", "--support", "q/b.png", "--scribble", "p.png",
        "--support", "s.jpg", "--box=5,5,60,60",
    ]  # fmt: skip
    assert predict(*argv, "-o", "out") == 0
    cues: Any = [
        Support("s.jpg", [(20, 30, 90, 100), (1, 2, 30, 40)], "box"),
        Support("q/b.png", [(80, 40), (20, 20)], "points"),
        Support("q/b.png", strokes > 0, "scribble"),
        Support("s.jpg", (5, 5, 60, 60), "box"),
        Text("striped red ring"),
    ]
    assert np.array_equal(mask("out/a.png"), model.segment("q/a.jpg", cues).mask * np.uint8(255))


def test_options_reach_the_model(predict: Predict, folder: Path, model: DiffUp) -> None:
    assert predict("q/a.jpg", *SHOWN, "--steps", "5", "--snap") == 0
    result = model.segment("q/a.jpg", [Support("s.jpg", "s.png")], steps=5, snap=True)
    assert np.array_equal(mask("out/a.png"), result.mask * np.uint8(255))
    assert json.loads((folder / "out/a.json").read_text())["snap"] is True


def test_run_again_it_does_only_what_is_missing(predict: Predict, folder: Path, segmented: list[str]) -> None:
    predict("q", *SHOWN)
    before = {name: (folder / "out" / name).stat().st_mtime_ns for name in written(folder / "out")}
    assert predict("q", *SHOWN) == 0 and len(segmented) == 3
    after = {name: (folder / "out" / name).stat().st_mtime_ns for name in written(folder / "out")}
    assert {name for name in after if after[name] != before[name]} <= {"request.json"}
    (folder / "out/a_overlay.jpg").unlink()
    Image.open("q/b.png").rotate(90).save("q/b.png")
    assert predict("q", *SHOWN) == 0 and len(segmented) == 5, "one lost its overlay, one query is another picture"
    Image.open("q/a.jpg").save("q/d.png")
    assert predict("q", *SHOWN) == 0 and len(segmented) == 6, "a new query joins"


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (("--support", "s.jpg", "--box", "9,9,80,80"), r"\(supports \[mask\] → \[box\]\)"),
        (("--support", "t.jpg", "--mask", "s.png"), r"\(other supports\)"),
        (("--support", "s.jpg", "--mask", "s.png", "--steps", "3"), "steps 2 → 3"),
        (("--support", "s.jpg", "--mask", "s.png", "--snap"), "snap False → True"),
        (("--support", "s.jpg", "--mask", "s.png", "--text", "ring"), r"text \[\] → \[ring"),
    ],
)
def test_a_folder_holds_one_request(
    predict: Predict, folder: Path, segmented: list[str], other: tuple[str, ...], difference: str
) -> None:
    predict("q/a.jpg", *SHOWN)
    kept = {name: (folder / "out" / name).read_bytes() for name in written(folder / "out")}
    with pytest.raises(UserError, match=f"out holds results of another request .*{difference}.*--overwrite"):
        predict("q", *other, "-o", "out")
    assert {name: (folder / "out" / name).read_bytes() for name in written(folder / "out")} == kept
    assert predict("q", *other, "-o", "out", "--overwrite") == 0 and len(segmented) == 4
    assert predict("q", *other, "-o", "out") == 0 and len(segmented) == 4


def test_the_same_request_from_elsewhere_is_the_same(
    predict: Predict, folder: Path, segmented: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict("q", *SHOWN)
    monkeypatch.chdir(folder / "q")
    assert predict(".", "--support", "../s.jpg", "--mask", "../s.png", "-o", "../out") == 0
    assert len(segmented) == 3


def test_a_damaged_query_is_named_and_the_others_are_finished(
    predict: Predict, folder: Path, segmented: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sound = (folder / "q/a.jpg").read_bytes()
    (folder / "q/a.jpg").write_bytes(sound[: len(sound) // 2])
    assert predict("q", *SHOWN, "--json") == 1
    printed = capsys.readouterr()
    assert "error: query q/a.jpg" not in printed.err and "error: q/a.jpg: image can't be decoded" in printed.err
    told = json.loads(printed.out)
    assert [entry["query"] for entry in told["results"]] == ["q/b.png", "q/more/c.jpg"]
    assert [entry["query"] for entry in told["failed"]] == ["q/a.jpg"]
    assert "out/a.png" not in {f"out/{name}" for name in written(folder / "out")}
    (folder / "q/a.jpg").write_bytes(sound)
    assert predict("q", *SHOWN) == 0 and len(segmented) == 3


def test_interrupted_it_says_so_and_goes_on(
    predict: Predict, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = DiffUp.segment, iter([False, True, False, False, False])

    def interrupted(self: DiffUp, *args: Any, **options: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(DiffUp, "segment", interrupted)
    assert predict("q", *SHOWN) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert predict("q", *SHOWN) == 0
    assert "2 segmented, 1 finished before" in capsys.readouterr().err


def test_a_full_disk_loses_nothing_that_is_finished(
    predict: Predict, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_in_full

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("b"):
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr("diffup.result.write_in_full", full)
    with pytest.raises(UserError, match=r"out/b\.png can't be written .*No space left"):
        predict("q", *SHOWN)
    assert {"a.png", "a.json"} <= set(written(folder / "out")) and "b.png" not in written(folder / "out")


def test_pictures_of_one_name_keep_their_results_apart(predict: Predict, folder: Path, segmented: list[str]) -> None:
    for name in ("x/a.jpg", "y/A.png", "y/request.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open("q/more/c.jpg").save(folder / name)
    queries = ("q/a.jpg", "x/a.jpg", "y/A.png", "y/request.jpg")
    predict(*queries, *SHOWN)
    owners = json.loads((folder / "out/request.json").read_text())["outputs"]
    assert sorted(owners.values()) == sorted(f"../{query}" for query in queries)
    assert len({name.casefold() for name in owners}) == 4 and {"a"} == {name for name in owners if "-" not in name}
    assert {f"{name}.png" for name in owners} <= set(written(folder / "out"))
    predict(*reversed(queries), *SHOWN)
    assert json.loads((folder / "out/request.json").read_text())["outputs"] == owners and len(segmented) == 4
    predict("y/A.png", "y/A.png", "./y/A.png", *SHOWN)
    assert len(segmented) == 4, "named several times it is one"


def test_a_folder_that_was_moved_keeps_what_is_finished(
    predict: Predict, folder: Path, segmented: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict("q", *SHOWN)
    before = written(folder / "out")
    monkeypatch.chdir(folder.rename(folder.with_name("moved")))
    done = len(segmented)
    predict("q", *SHOWN)
    assert len(segmented) == done and written(folder.with_name("moved") / "out") == before


def test_whole_numbers_stay_whole() -> None:
    """So that 1,1 is a pixel and 1.0,1.0 the corner of a picture in fractions of it."""
    assert numbers("1,1; 0,2", 2).dtype.kind == "i" and numbers("1,1.0", 2).dtype.kind == "f"


def test_folders_are_searched_and_what_is_no_query_is_left_out(predict: Predict, folder: Path) -> None:
    for name in ("q/notes.txt", "q/a.txt", "q/more/d.json"):
        (folder / name).write_text("")
    (folder / "q/.hidden.jpg").write_bytes(b"")
    assert predict("q/a*", "q/more/*", *SHOWN) == 0
    assert {"a.png", "c.png"} == {name for name in written(folder / "out") if name.endswith(".png")}
    for out, queries in (("q/out", ("q",)), ("q/more", ("q/more",)), ("q/more", ("q/more/*",))):
        argv = (*queries, "--support", "s.jpg", "--mask", "s.png", "-o", out)
        assert predict(*argv) == 0
        made = written(folder / out)
        assert predict(*argv) == 0 and written(folder / out) == made, "results are no queries"


def test_what_others_made_and_what_is_read_is_never_replaced(predict: Predict, folder: Path) -> None:
    kept = (folder / "q/b.png").read_bytes()
    for more in ((), ("--overwrite",)):
        with pytest.raises(UserError, match=r"q/b\.png is one of the files that are read"):
            predict("q/*.png", "--support", "s.jpg", "--mask", "s.png", "-o", "q", *more)
    assert (folder / "q/b.png").read_bytes() == kept and not (folder / "q/request.json").exists()
    (folder / "out").mkdir()
    for name in ("a_overlay.jpg", "request.json"):
        (folder / "out" / name).write_text("mine")
        with pytest.raises(UserError, match=f"{name} was not made by diffup predict"):
            predict("q/a.jpg", *SHOWN)
        assert written(folder / "out") == [name]
        (folder / "out" / name).unlink()
    (folder / "out/a.png").write_text("mine")
    assert predict("q/a.jpg", *SHOWN, "--overwrite") == 0


BAD = [
    (["q"], r"--support S\.jpg with --mask M\.png"),
    (["--support", "s.jpg", "--mask", "s.png"], "name at least one picture"),
    (["gone.jpg", "--support", "s.jpg", "--mask", "s.png"], r"gone\.jpg does not exist"),
    (["gone/*.jpg", "--support", "s.jpg", "--mask", "s.png"], r"no picture matches gone/\*\.jpg"),
    (["empty", "--support", "s.jpg", "--mask", "s.png"], "empty holds no picture"),
    (["q", "--support", "s.jpg"], r"--support s\.jpg has no annotation"),
    (["q", "--support", "s.jpg", "--support", "s.jpg", "--mask", "s.png"], r"--support s\.jpg has no annotation"),
    (["q", "--mask", "s.png", "--support", "s.jpg"], r"--mask s\.png follows no --support"),
    (["q", "--support", "s.jpg", "--mask", "s.png", "--box", "1,2,3,4"], r"--box 1,2,3,4 follows no --support"),
    (["q", "--support", "gone.jpg", "--mask", "s.png"], r"--support, gone\.jpg: image is missing"),
    (["q", "--support", "s.jpg", "--mask", "gone.png"], r"--mask of s\.jpg: gone\.png: mask is missing"),
    (["q", "--support", "s.jpg", "--mask", "s.jpg"], "--mask of s.jpg: s.jpg: mask is refused: it is a JPEG file"),
    (["q", "--support", "s.png", "--mask", "s.jpg"], "are the two files swapped?"),
    (
        ["q", "--support", "s.jpg", "--mask", "small.png"],
        r"--mask of s\.jpg: the mask has shape \(8, 8\), but its image",
    ),
    (["q", "--support", "s.jpg", "--mask", "black.png"], "the mask of a support is empty"),
    (["q", "--support", "s.jpg", "--box", "1,2,3"], r"--box of s\.jpg: '1,2,3' is not X0,Y0,X1,Y1"),
    (["q", "--support", "s.jpg", "--box", "0.1,0.1,0.9,0.9"], "looks like fractions"),
    (["q", "--support", "s.jpg", "--points", "5;6"], "'5;6' is not X,Y"),
    (["q", "--support", "s.jpg", "--points", "500,6"], r"point \(500, 6\) is not in its image"),
    (["q", "--support", "s.jpg", "--points", "1" * 400 + ",6"], "too large for pixels"),
    (["q", "--support", "s.jpg", "--mask", "s.png", "--bank", "empty"], "empty holds no picture"),
    (["q", "--support", "s.jpg", "--mask", "s.png", "--bank", "one"], "a bank needs 2 images"),
    (["q", "--text", " "], "empty name"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv)[:60] for argv, _ in BAD])
def test_bad_input_is_named_before_anything_is_written(
    predict: Predict, folder: Path, argv: list[str], message: str
) -> None:
    for name in ("empty", "one"):
        (folder / name).mkdir()
    Image.open("s.jpg").save("one/s.jpg")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("small.png")
    Image.fromarray(np.zeros_like(mask("s.png"))).save("black.png")
    with pytest.raises(UserError, match=message) as raised:
        predict(*argv, "-o", "out")
    assert "\n" not in str(raised.value) and not (folder / "out").exists()


def test_a_bank_changes_the_request(predict: Predict, folder: Path) -> None:
    predict("q/a.jpg", *SHOWN)
    with pytest.raises(UserError, match=r"another request \(other bank\)"):
        predict("q/a.jpg", *SHOWN, "--bank", "q")


def test_quiet_prints_nothing_and_json_alone_is_on_stdout(
    predict: Predict, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("q", *SHOWN, "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert predict("q", *SHOWN, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["finished"] for entry in told["results"]] == [True] * 3 and told["failed"] == []
    assert Path(told["results"][0]["files"]["overlay"]).is_file()


def test_text_needs_something_that_reads_it(
    folder: Path, model: DiffUp, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffup.models.checkpoint import find_checkpoint
    from tests.helpers.trained import CELL

    checkpoint = str(find_checkpoint(results / CELL.key()))
    argv = ["predict", "q/a.jpg", "--checkpoint", checkpoint, "--text", "ring", "-o", "out"]
    assert cli.main([*argv, "-q"]) == 0, "the checkpoint's companion reads it"
    with pytest.raises(UserError, match=r"--text needs a model that reads text.*--companion"):
        cli.main([*argv, "--companion", "", "-o", "other"])


def test_where_a_backbone_can_not_be_had_it_says_what_to_do(folder: Path, results: Path) -> None:
    from tests.helpers.trained import CELL

    argv = ["predict", "q/a.jpg", *SHOWN, "--checkpoint", str(results / CELL.key())]
    with pytest.raises(
        UserError, match=r"could not be downloaded.*--weights-dir .*--backbone NAME chooses another backbone$"
    ):
        cli.main([*argv, "--backbone", "resnet18"])
    with pytest.raises(UserError, match="device 'gpu' can't be used"):
        cli.main([*argv, "--device", "gpu"])
    with pytest.raises(UserError, match="neither a folder nor a Hugging Face hub id"):
        cli.main(["predict", "q/a.jpg", *SHOWN, "--checkpoint", "nothing"])
    assert not (folder / "out").exists()
