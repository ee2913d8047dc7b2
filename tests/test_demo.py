"""The main job, and the command line that runs it."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import pytest
import torch

import purestep as ps
from purestep import cli, demo

pytest.importorskip("sklearn")
pytest.importorskip("pandas")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of our own, so that the tests see the first call; the speeds are those of few rounds."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_speeds", functools.partial(demo._speeds, rounds=1))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("MPLBACKEND", "Agg")
        yield folder


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """A whole run of the demo, eager, with what it said."""
    said: list[str] = []
    settings = demo.Settings(compiled=False, ablate=True, out=tmp_path_factory.mktemp("out"))
    return settings, demo.run(settings, said.append), "\n".join(said)


def test_both_inputs_reach_97_percent_and_each_alone_less(trained):
    _, figures, _ = trained
    assert figures["accuracy"] >= 0.97
    assert max(figures["accuracy_image"], figures["accuracy_tabular"]) < figures["accuracy"]
    assert min(figures["accuracy_image"], figures["accuracy_tabular"]) > 0.8


def test_it_says_what_it_found_and_where_the_files_lie(trained):
    settings, figures, said = trained
    for line in ("test accuracy, both inputs", "image alone", "table alone", "eager pure step", "torch.optim loop"):
        assert line in said
    assert "compiled" not in said
    assert str(settings.out / "checkpoint" / f"step-{settings.steps:09d}") in said
    assert str(settings.out / "schedule.png") in said
    assert figures["schedule"].read_bytes().startswith(b"\x89PNG")


def test_its_checkpoint_is_the_model_that_was_tested(trained):
    settings, figures, _ = trained
    model = demo.DigitNet()
    optimizer = ps.chain(ps.clip_by_global_norm(demo.MAX_NORM), ps.adamw(demo.PEAK_RATE))
    state = ps.checkpoint.load(figures["checkpoint"], like=ps.init_state(model, optimizer, seed=0))
    assert int(state.step) == settings.steps
    _, test = demo.sources(demo.digits_folder())
    batches = ps.data.pipeline(test, ps.data.sequential(len(test)), batch_size=100, epochs=1)
    metrics = ps.evaluate(ps.eval_step(model, demo.objective), state, batches)
    assert float(metrics["accuracy"]) == pytest.approx(figures["accuracy"], abs=1e-6)


def test_the_data_is_written_once_and_whole(cache, monkeypatch):
    folder = demo.digits_folder()
    assert len(list((folder / "images").glob("*.png"))) == 1797
    written = (folder / "train.csv").stat().st_mtime_ns
    monkeypatch.setattr(demo, "_write_digits", lambda folder: pytest.fail("it is there already"))
    assert demo.digits_folder() == folder
    assert (folder / "train.csv").stat().st_mtime_ns == written


def test_an_interrupted_first_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder):
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "_write_digits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.digits_folder()
    assert not list((tmp_path / "purestep").iterdir())


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cache, tmp_path):
    def final(seed, name):
        settings = demo.Settings(steps=12, compiled=False, seed=seed, out=tmp_path / name)
        path = demo.run(settings, lambda line: None)["checkpoint"]
        return ps.checkpoint.read_manifest(path).files  # named by their content

    first = final(3, "a")
    torch.rand(3)  # what is drawn elsewhere does not count
    assert final(3, "b") == first
    assert final(4, "c") != first


def test_without_a_compiler_it_runs_eagerly_and_says_so(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(ps, "compiler_missing", lambda: "no compiler here")
    said: list[str] = []
    figures = demo.run(dataclasses.replace(demo.Settings(), steps=3, out=tmp_path), said.append)
    assert any("running eagerly, no compiler here" in line for line in said)
    assert "steps_per_second_compiled" not in figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--steps", "0"], "argument --steps: must be an int of at least 1, got '0'"),
        (["demo", "--steps", "many"], "argument --steps: must be an int of at least 1, got 'many'"),
        (["demo", "--seed", "-1"], "argument --seed: must be an int of at least 0, got '-1'"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_bad_arguments_exit_with_2_and_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_refuses_a_name_it_does_not_know(capsys):
    assert cli.main(["bench", "stap"]) == 1
    assert "NAME must be one of" in capsys.readouterr().err


def test_bench_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main(["bench", "schedule", "--threads", "1", "--json", str(path)]) == 0
    assert "torch, by hand" in capsys.readouterr().out
    assert '"schedule"' in path.read_text()


def test_a_device_that_is_not_there_exits_with_1_and_names_it(capsys):
    assert cli.main(["demo", "--device", "warp"]) == 1
    assert "--device must be a device that torch has here, got 'warp'" in capsys.readouterr().err


def test_the_command_runs_as_a_program(cache, tmp_path):
    command = [sys.executable, "-m", "purestep.cli", "demo", "--steps", "4", "--no-compile", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "test accuracy, both inputs" in done.stdout
    assert (tmp_path / "checkpoint" / "step-000000004" / "manifest.json").exists()
