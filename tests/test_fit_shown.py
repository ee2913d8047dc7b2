"""What the loop validates, hands to loggers, and shows."""

from __future__ import annotations

import re
from itertools import islice

import purestep as ps
from _fit import Recorder, batches
from purestep.fit import _progress, evaluate, fit


def test_validation_at_its_multiples_and_at_the_end(job):
    recorder, states = Recorder(), []
    evaluation, held_out = ps.eval_step(job.model, job.objective), [job.batch(6, seed=99), job.batch(3, seed=98)]

    def validate(state):
        states.append(int(state.step))
        return evaluate(evaluation, state, held_out)

    arguments = {"log_every": 2, "loggers": [recorder], "progress": False, "validate": validate}
    result = fit(job.step, job.state(), batches(job), steps=7, validate_every=3, **arguments)
    assert states == [3, 6, 7]
    assert [call[0] for call in recorder.calls] == [2, 3, 4, 6, 6, 7, 7]
    assert list(recorder.calls[1][1]) == ["val/loss", "val/accuracy"]
    assert result.validation[-1]["loss"] == float(evaluate(evaluation, result.state, held_out)["loss"])
    assert recorder.closed == 1
    states.clear()
    fit(job.step, job.state(), batches(job), steps=6, validate_every=3, **arguments)
    assert states == [3, 6]  # not twice at the end
    states.clear()
    fit(job.step, job.state(), batches(job), steps=6, **arguments)
    assert states == [6]


def test_loggers_get_the_history(job):
    one, seen = Recorder(), []
    result = fit(
        job.step,
        job.state(),
        batches(job),
        steps=5,
        log_every=2,
        progress=False,
        loggers=(one, lambda step, scalars: seen.append((step, scalars.pop("loss")))),
    )
    assert [{"step": step, **scalars} for step, scalars in one.calls] == result.history
    assert seen == [(entry["step"], entry["loss"]) for entry in result.history]


def test_lines_where_there_is_no_terminal(job, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a CI job that asks for colours has no terminal for a bar
    fit(job.step, job.state(), batches(job), steps=5, log_every=2, validate=lambda state: {"accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    number = r"[-+.e\d]+"
    for line, step in zip(lines[:3], (2, 4, 5), strict=True):
        pattern = rf"step {step}/5  loss {number}  accuracy {number}  grad_norm {number}  learning_rate {number}"
        assert re.fullmatch(rf"{pattern}  {number} steps/s", line), line
    assert lines[3:] == ["step 5/5  validation  accuracy 0.5"]


def test_silence(job, capsys):
    fit(job.step, job.state(), batches(job), steps=5, log_every=2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(job, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fit(job.step, job.state(), islice(batches(job), 5), steps=9, log_every=2, validate=lambda state: {"[odd]": 0.5})
    output = capsys.readouterr().out
    assert "5/9" in output
    assert "loss" in output
    assert "steps/s" in output
    assert "step 5/9  validation  [odd] 0.5" in output
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(_progress.display(shown=True, first=0, last=1), _progress.Lines)
