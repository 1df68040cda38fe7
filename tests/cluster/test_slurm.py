"""Batch scripts for Slurm: what is asked for is in them once, and bash runs the study with its arguments."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from cluster import __main__ as cluster_main
from cluster.slurm import CHECKOUT, STUDIES, TEMPLATE, asked_for, script
from diffup.errors import UserError


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_each_directive_is_there_once_and_the_rest_is_the_templates() -> None:
    asked = {"nodes": "2", "partition": "gpu", "time": "1-12:00:00", "gpus-per-node": "a100:4"}
    made = directives(script(["experiments/full_grid.py"], asked))
    for name, value in asked.items():
        assert [line for line in made if line.startswith(f"#SBATCH --{name}=")] == [f"#SBATCH --{name}={value}"]
    kept = [line for line in directives(TEMPLATE.read_text()) if line.split("=")[0][10:] not in asked]
    assert [line for line in made if line in kept] == kept


def test_bash_gets_the_arguments_as_they_were_given() -> None:
    command = ["experiments/full_grid.py", "--results", "/shared/my results", "--select", "fold=0|1,$HOME"]
    line = next(line for line in script(command, {}).splitlines() if line.startswith("set -- "))
    shown = subprocess.run(["bash", "-c", f'{line}; printf "%s\\n" "$@"'], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == command
    assert subprocess.run(["bash", "-n"], input=script(command, {}), text=True).returncode == 0


@pytest.mark.parametrize("value", ["gpu; rm -rf x", "a b", "$(id)", "", "gpu\n#SBATCH --qos=high"])
def test_a_value_that_is_no_value_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="--partition"):
        script(["experiments/full_grid.py"], {"partition": value})


def test_the_command_writes_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "full grid.sh"
    arguments = ["slurm", "--partition", "gpu", "--out", str(out), "experiments/full_grid.py", "--episodes", "50"]
    assert cluster_main.main(arguments) == 0
    told = capsys.readouterr().out
    assert f"3 × 4 GPUs for 24:00:00, 288 GPU-hours at most; run: sbatch {shlex.quote(str(out))}" in told
    assert "diffup run full_grid --episodes 50 --dry-run" in told
    text = out.read_text()
    assert "#SBATCH --partition=gpu" in text and f"set -- {STUDIES / 'full_grid.py'} --episodes 50" in text
    assert "SLURM_SUBMIT_DIR" not in text and f"source {CHECKOUT}/cluster/deploy/common.sh" in text
    by_name = tmp_path / "by_name.sh"
    assert cluster_main.main([*arguments[:3], "--out", str(by_name), "full_grid", "--episodes", "50"]) == 0
    assert by_name.read_text() == text
    assert cluster_main.main(arguments) == 2 and "exists" in capsys.readouterr().err
    assert out.read_text() == text


def test_a_study_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_main.main(["slurm", "--account", "lab", "experiments/no_such.py"]) == 2
    assert "no study and no file 'experiments/no_such.py'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time", "soon"),
        ("time", "1:2:3:4"),
        ("gpus-per-node", "four"),
        ("nodes", "0"),
        ("mem", "128GB"),
        ("nodes", "2.5"),
    ],
)
def test_a_value_that_slurm_would_refuse_is_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name} '{value}': Slurm takes"):
        script(["experiments/full_grid.py"], {name: value})


@pytest.mark.parametrize(
    ("time", "hours"), [("90", 1.5), ("30:00", 0.5), ("12:30:00", 12.5), ("2-12", 60), ("1-00:30:00", 24.5)]
)
def test_the_time_is_read_as_slurm_reads_it(time: str, hours: float) -> None:
    text = script(["experiments/full_grid.py"], {"time": time, "nodes": "2", "gpus-per-node": "a100:10"})
    assert f"2 × 10 GPUs for {time}, {20 * hours:,.0f} GPU-hours" in asked_for(text)


def test_a_studys_options_are_read_before_it_waits_in_a_queue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster_main.main(["slurm", "--out", str(tmp_path / "a.sh"), "mini_grid", "--datset", "birds"]) == 2
    assert "error: mini_grid: " in capsys.readouterr().err and not (tmp_path / "a.sh").exists()


def test_a_script_of_a_studys_name_elsewhere_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mini_grid.py").write_text("print('mine')\n")
    assert cluster_main.main(["slurm", "--out", "a.sh", "mini_grid.py", "--mine"]) == 0
    assert "set -- mini_grid.py --mine" in Path("a.sh").read_text()
