"""Scalars arrive in TensorBoard's event files, at their steps."""

from __future__ import annotations

import sys

import pytest

from purestep.fit import fit
from purestep.integrations.tensorboard import TensorBoardLogger

pytest.importorskip("tensorboard")


def read_back(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_run_is_read_back(job, tmp_path):
    result = fit(
        job.step,
        job.state(),
        [job.batch(seed=seed) for seed in range(6)],
        steps=6,
        log_every=2,
        progress=False,
        validate=lambda state: {"accuracy": 0.5},
        loggers=[TensorBoardLogger(tmp_path / "runs" / "1")],
    )
    written = read_back(tmp_path / "runs" / "1")
    assert set(written) == {"loss", "accuracy", "grad_norm", "learning_rate", "val/accuracy"}
    assert written["val/accuracy"] == [(6, 0.5)]
    for name in ("loss", "accuracy", "grad_norm", "learning_rate"):
        for (step, value), entry in zip(written[name], result.history, strict=True):
            assert step == entry["step"]
            assert value == pytest.approx(entry[name], rel=1e-6)  # event files hold float32


def test_it_is_a_context_manager_and_can_be_closed_twice(tmp_path):
    with TensorBoardLogger(tmp_path) as log:
        log(10, {"loss": 0.25})
    log.close()
    assert read_back(tmp_path) == {"loss": [(10, 0.25)]}


def test_a_closed_logger_goes_on_in_a_new_file(tmp_path):
    log = TensorBoardLogger(tmp_path)
    for step in (1, 2):
        log(step, {"loss": step / 2})
        log.close()
    assert read_back(tmp_path) == {"loss": [(1, 0.5), (2, 1.0)]}


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'purestep\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_the_folder_is_checked():
    with pytest.raises(TypeError, match="log_dir must be the name of a folder, got 3 of type int"):
        TensorBoardLogger(3)
