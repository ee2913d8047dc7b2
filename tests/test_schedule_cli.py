"""Schedules read from text and shown: ``schedules.parse``, ``purestep schedule`` and ``Schedule.plot``."""

from __future__ import annotations

import builtins
import csv
import io
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings

from purestep import _schedule_cli, cli
from purestep.laws import schedules
from purestep.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    multi_step,
    parse,
    schedule,
    warmup_cosine,
    wsd,
)

RATE = "warmup_cosine(peak=3e-4, warmup_steps=2000, total_steps=100_000)"


# --- read from text ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(schedules())
def test_every_repr_parses_back(schedule):
    assert parse(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (RATE, warmup_cosine(peak=3e-4, warmup_steps=2000, total_steps=100_000)),
        ("  cosine(0.1, 10) \n", cosine(0.1, 10)),
        ("cosine(\n    0.1,  # the peak\r\n    10,\n)", cosine(0.1, 10)),
        ("cosine(0.1, 2**10 * 3)", cosine(0.1, 3072)),
        ("cosine(1 / 4, 10 - 2, floor=+0.125)", cosine(0.25, 8, floor=0.125)),
        ("-cosine(0.1, 10)", -cosine(0.1, 10)),
        ("constant(-(1e-3))", constant(-1e-3)),
        ("2 * constant(1) + 3 - constant(2) / 4", 2 * constant(1) + 3 - constant(2) / 4),
        ("2 * (constant(1) + 3)", 2 * (constant(1) + 3)),
        ("linear(0, 1, 5).then(cosine(1, 9), at=5)", linear(0, 1, 5).then(cosine(1, 9), at=5)),
        (
            "cosine(1, 9).shift(2).clamp(min=0.1, max=None).repeat(every=4)",
            cosine(1, 9).shift(2).clamp(min=0.1).repeat(every=4),
        ),
        ("constant(torch.tensor(0.5, dtype=torch.float64))", constant(torch.tensor(0.5, dtype=torch.float64))),
        ("constant(torch.tensor(-2, device='cpu'))", constant(torch.tensor(-2))),
        ("multi_step(0.1, boundaries=[5, 9])", multi_step(0.1, (5, 9))),
        ("wsd(0.1, 1, 2, 3, decay='cosine')", wsd(0.1, 1, 2, 3, decay="cosine")),
        ("exponential(0.9, 0.5, staircase=True)", exponential(0.9, 0.5, staircase=True)),
    ],
)
def test_what_a_text_says(text, right):
    assert parse(text) == right


def marked(message: str) -> str:
    """What the carets of a message stand under."""
    line, carets = message.splitlines()[-2:]
    start = len(carets) - len(carets.lstrip())
    assert set(carets.strip()) == {"^"}
    return line[start : len(carets)]


FORMS = (
    "text must be made of schedules, numbers, strings, True, False, None, tuples, lists, + - * / **, and the methods"
)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("cosine(0.1, 10", "text must be a Python expression: '(' was never closed", "(0.1, 10"),
        ("cosine(0.1 10)", "text must be a Python expression: invalid syntax. Perhaps you forgot a comma?", "0.1 10"),
        ("rate = cosine(0.1, 10)", "text must be a Python expression: invalid syntax", "="),
        ("constant(1)\nconstant(2)", "line 2: text must be a Python expression: invalid syntax", "constant"),
        ("cosin(0.1, 10)", "no schedule is named 'cosin' (did you mean 'cosine' or", "cosin"),
        ("2 * zzzzz", "no schedule is named 'zzzzz'", "zzzzz"),
        ("cosine", "cosine must be called, as cosine(...)", "cosine"),
        ("1 + 1", "text must say a schedule, got 2 of type int", "1 + 1"),
        ("cosine(0.1, 10, flor=1)", "cosine has no hyperparameter 'flor' (did you mean 'floor'?)", "flor=1"),
        ("cosine(0.1, 10, floor=0.2)", "floor must be at most peak (0.1), got 0.2", "floor=0.2"),
        ("2 * cosine(0.1)", "cosine: missing a required argument: 'total_steps'", "cosine(0.1)"),
        (
            "cosine(0.1,\n  total_steps=2.5)",
            "line 2: total_steps must be an int, got 2.5 of type float",
            "total_steps=2.5",
        ),
        ("constant(value=1, value=2)", "value must be given once", "value=2"),
        ("constant('a')", "value must be a finite number or a 0-d tensor, got 'a' of type str", "constant('a')"),
        ("constant(1e999)", "value must be a finite number, got inf", "constant(1e999)"),
        ("constant(1j)", FORMS, "1j"),
        ("constant(1) if 1 else 2", FORMS, "constant(1) if 1 else 2"),
        ("constant([x for x in 'ab'])", FORMS, "[x for x in 'ab']"),
        ("constant(1) and constant(2)", FORMS, "constant(1) and constant(2)"),
        ("constant(1) @ constant(2)", FORMS, "constant(1) @ constant(2)"),
        ("constant(not 1)", FORMS, "not 1"),
        ("constant(*[1])", "each argument must be written by itself, not unpacked", "*[1]"),
        ("constant(**{'value': 1})", "each argument must be written by itself, not unpacked", "{'value': 1}"),
        ("constant(1).thn(constant(2), at=3)", "a schedule has no method 'thn' here (did you mean 'then'?)", "thn"),
        ("constant(1)._values", FORMS, "constant(1)._values"),
        ("constant(1).__class__()", "a schedule has no method '__class__' here: it has 'then', 'shift'", "__class__"),
        ("(1).shift(3)", "a schedule must stand before .shift, got 1", "1"),
        ("constant(1)(3)", "what is called must be the name of a schedule, or a method of one", "constant(1)"),
        ("__import__('os').remove('x')", "no schedule is named '__import__'", "__import__"),
        ("torch.load('x')", "no schedule is named 'torch'", "torch"),
        (
            "constant(torch.tensor(1, dtype=torch.load))",
            "dtype must be one that torch has, got torch.load",
            "dtype=torch.load",
        ),
        ("constant(torch.tensor(1, pin_memory=True))", "torch.tensor takes dtype=torch.float64 and", "pin_memory=True"),
        ("constant(torch.tensor(1, 2))", "torch.tensor must be given one number, got 2", "torch.tensor(1, 2)"),
        ("constant(torch.tensor([1]))", "an operand must be a schedule or a number, got (1,)", "[1]"),
        ("'ab' * 10**9", "an operand must be a schedule or a number, got 'ab'", "'ab'"),
        ("True * constant(1)", "an operand must be a schedule or a number, got True", "True"),
        ("constant(9**9**9)", "a power must be one of ints, of at most 64 bits, such as 2**20", "9**9**9"),
        ("constant(1)**2", "a power must be one of ints", "constant(1)**2"),
        ("constant(2**-1)", "a power must be one of ints", "2**-1"),
        ("1 / 0 * constant(1)", "division by zero", "1 / 0"),
        ("1 / constant(1)", "unsupported operand type(s) for /: 'int' and 'Schedule'", "1 / constant(1)"),
        ("constant(1) / 0", "right must be a number other than 0 to divide a schedule by, got 0", "constant(1) / 0"),
        ("constant('ü', vlue=1)", "constant has no hyperparameter 'vlue'", "vlue=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_malformed_text_is_an_error_with_its_place_marked(text, message, place):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
    assert marked(str(caught.value)) == place


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b"constant(1)", TypeError, "text must be a str that says a schedule, got b'constant(1)' of type bytes"),
        (constant(1), TypeError, "text must be a str that says a schedule, got constant(value=1) of type Schedule"),
        (" \n", ValueError, "text must say a schedule, such as 'cosine(peak=0.1, total_steps=1000)', got nothing"),
        ("constant(\ud800)", ValueError, "text must be Unicode, got 'constant(\\ud800)'"),
        ("constant(1)\0", ValueError, "text must be a Python expression: source code string cannot contain null bytes"),
        ("-" * 100_000 + "constant(1)", ValueError, "text must be"),
        ("(" * 300 + "constant(1)" + ")" * 300, ValueError, "text must be a Python expression: too many nested paren"),
        ("constant(1)" + " + 1" * 20_000, ValueError, "text must be an expression of less depth"),
    ],
    ids=["bytes", "schedule", "nothing", "surrogate", "null", "minus", "parentheses", "sum"],
)
def test_what_is_no_text(text, error, message):
    with pytest.raises(error) as caught:
        parse(text)
    assert str(caught.value).startswith(message)


def test_one_s_own_schedule_is_read_once_it_is_defined():
    with pytest.raises(ValueError, match="no schedule is named 'read_from_text'"):
        parse("read_from_text(1)")

    @schedule
    def read_from_text(step: torch.Tensor, peak: float) -> torch.Tensor:
        return peak / (1 + step)

    assert parse("2 * read_from_text(1)") == 2 * read_from_text(1)


# --- the command ------------------------------------------------------------------------------------------------------


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["schedule", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_prints_the_schedule_its_values_and_a_plot(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = show(capsys, RATE, "--steps", "100000", "--at", "0,1,2000")
    assert lines[0] == "warmup_cosine(peak=0.0003, warmup_steps=2000, total_steps=100000)"
    rows = dict(line.split() for line in lines[1:8] if len(line.split()) == 2)
    assert rows == {"step": "value", "0": "0", "1": "1.5e-07", "2,000": "0.0003"}
    plot = [line for line in lines if "│" in line]
    assert all(len(line) <= 60 for line in lines[1:])
    assert plot[0].split("│")[0].strip() == "0.0003"
    assert plot[-1].split("│")[0].strip() == "0"
    assert lines[-1].split() == ["0", "50,000", "100,000"]


def test_values_stand_under_each_other(capsys):
    lines = show(capsys, "linear(0, 1, 4)", "--steps", "400", "--at", "1,400")
    rows = [line.rstrip() for line in lines[1:] if line.split() in (["step", "value"], ["1", "0.25"], ["400", "1"])]
    assert len(rows) == 3
    assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize(("steps", "right"), [("100", "0 25 50 75 100"), ("2", "0 1 2"), ("1", "0 1")])
def test_without_at_five_steps_are_printed(capsys, steps, right):
    lines = show(capsys, "constant(1)", "--steps", steps)
    assert [line.split()[0] for line in lines if line.split()[1:] == ["1"] and "│" not in line] == right.split()


def curve(lines: list[str]) -> list[tuple[int, int]]:
    """The lowest and highest row of each column of an ASCII plot, counted from below."""
    rows = [line.split("|", 1)[1] for line in lines if "|" in line]
    columns = ["".join(column)[::-1] for column in zip(*rows, strict=True)]
    return [(column.index("*"), column.rindex("*")) for column in columns]


def ascii_plot(one: Schedule, steps: int) -> list[str]:
    return list(_schedule_cli._plot(one, steps, width=53, ascii_only=True))


def test_the_plot_is_the_curve():
    rising = curve(ascii_plot(linear(0.0, 1.0, 100), 100))
    assert len(rising) == 40
    for column, (low, high) in enumerate(rising):
        assert low - 1 <= 12 * column / 39 <= high + 1
    assert curve(ascii_plot(constant(0.3), 10)) == [(6, 6)] * 40


def test_the_plot_misses_no_peak_and_has_no_gaps():
    spike = linear(0.0, 1.0, 1).then(constant(0.0), at=2)  # one step of 3,000
    (low, high) = curve(ascii_plot(spike.shift(1500), 3000))[20]
    assert (low, high) == (0, 12)
    drawn = curve(ascii_plot(constant(1.0).then(constant(0.0), at=50), 100))
    for (low, high), (next_low, next_high) in itertools.pairwise(drawn):
        assert next_high >= low - 1
        assert next_low <= high + 1


def test_braille_and_ascii_plots_agree():
    one = cosine(1.0, 30).repeat(every=40)
    fine = [line.split("│", 1)[1] for line in _schedule_cli._plot(one, 100, width=53, ascii_only=False) if "│" in line]
    coarse = [line.split("|", 1)[1] for line in ascii_plot(one, 100) if "|" in line]
    differing = sum(
        (dots != "\u2800") != (star == "*")
        for dot_row, star_row in zip(fine, coarse, strict=True)
        for dots, star in zip(dot_row, star_row, strict=True)
    )
    assert differing < 0.05 * 13 * 40


def test_files_hold_every_value_and_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "new" / "rate.csv", tmp_path / "rate.png"
    show(capsys, "cosine(0.1, 70_000)", "--steps", "70000", "--csv", str(table), "--png", str(picture))
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "value"]
    assert [int(step) for step, _ in rows] == list(range(70_001))
    values = torch.tensor([float(value) for _, value in rows], dtype=torch.float64)
    assert torch.equal(values, cosine(0.1, 70_000)(torch.arange(70_001)))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_stream_without_unicode_gets_ascii(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["schedule", "--steps", "10", "--", "-cosine(0.1, 10)"]) == 0
    stream.flush()
    printed = stream.buffer.getvalue().decode("ascii")
    assert printed.startswith("-1.0 * cosine(peak=0.1, total_steps=10)\n")
    assert "*" in printed.split("|", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cosin(0.1, 10)", "--steps", "9"],
            "argument EXPRESSION: no schedule is named 'cosin' (did you mean 'cosine'",
        ),
        (["cosine(0.1, 10", "--steps", "9"], "  cosine(0.1, 10\n        ^^^^^^^^"),
        (["constant(1)"], "the following arguments are required: --steps"),
        (["--steps", "9"], "the following arguments are required: EXPRESSION"),
        (["constant(1)", "--steps", "-9"], "argument --steps: must be an int of 1 to 4611686018427387904, got '-9'"),
        (["constant(1)", "--steps", "0"], "argument --steps: must be an int of 1 to"),
        (["constant(1)", "--steps", "1e5"], "argument --steps: must be an int of 1 to"),
        (["constant(1)", "--steps", str(2**63)], "argument --steps: must be an int of 1 to"),
        (["constant(1)", "--steps", "9", "--at", ""], "argument --at: must be ints from 0 to 2**62, separated by"),
        (["constant(1)", "--steps", "9", "--at", "1,,2"], "argument --at: must be ints from 0 to 2**62, separated by"),
        (["constant(1)", "--steps", "9", "--at", "1,-2"], "separated by commas, got '1,-2'"),
        (["constant(1)", "--steps", "9", "--at", "1;2"], "separated by commas, got '1;2'"),
        (["constant(1)", "--steps", "9", "--at", "0.5"], "separated by commas, got '0.5'"),
        (["constant(1)", "--steps", "9", "--at", str(2**63)], "separated by commas, got '9223372036854775808'"),
    ],
)
def test_bad_arguments_exit_with_2_and_a_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["schedule", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--png"])
@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_file_that_cannot_be_written_exits_with_1_and_names_it(option, place, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert cli.main(["schedule", "constant(1)", "--steps", "9", option, str(tmp_path / place)]) == 1
    printed = capsys.readouterr()
    assert f"{option} must be a file that can be written, got {str(tmp_path / place)!r}: " in printed.err
    assert not printed.out


def test_a_function_that_is_no_formula_exits_with_1_and_says_what_it_must_return(capsys):
    assert cli.main(["schedule", "function('builtins:repr')", "--steps", "8"]) == 1
    assert "purestep schedule: function must return a tensor like step: torch.float64" in capsys.readouterr().err


def test_values_that_are_not_finite_exit_with_1_and_name_the_step(capsys):
    assert cli.main(["schedule", "constant(1e200) * linear(0, 1e200, 8)", "--steps", "8"]) == 1
    assert "a schedule must have finite values, got inf at step 1" in capsys.readouterr().err
    beyond = "torch_powers(peak=0.1, rate=1.1)"
    assert cli.main(["schedule", beyond, "--steps", "8", "--at", "1,100000"]) == 1
    printed = capsys.readouterr()
    assert "a schedule must have finite values, got inf at step 100000" in printed.err
    assert not printed.out


# --- plot -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_draws_every_step_of_a_short_schedule(plt):
    axes = cosine(1.0, 10).plot(20, color="red", linestyle="--")
    (line,) = axes.lines
    steps, values = line.get_data()
    assert list(steps) == list(range(21))
    assert list(values) == cosine(1.0, 10)(torch.arange(21)).tolist()
    assert (line.get_color(), line.get_linestyle()) == ("red", "--")
    assert axes.get_title() == line.get_label() == repr(cosine(1.0, 10))
    assert axes.get_xlabel() == "step"
    assert axes.get_legend() is None


def test_plot_draws_several_on_one_axes_with_a_legend(plt):
    axes = cosine(1.0, 10).plot(20)
    assert linear(0.0, 1.0, 5).plot(10, ax=axes, label="rise") is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [repr(cosine(1.0, 10)), "rise"]
    assert axes.get_title() == "", "the first one's name would stand over both"
    axes.set_title("Rates")
    constant(1.0).plot(20, ax=axes)
    assert axes.get_title() == "Rates"
    assert len(axes.lines) == 3


@pytest.mark.parametrize("last", [5000, 5001, 123_457, 2**62])
@pytest.mark.parametrize("logx", [False, True])
def test_plot_spreads_its_steps_to_the_last(plt, last, logx):
    axes = linear(0.0, 1.0, last).plot(last, logx=logx, logy=True)
    steps = axes.lines[0].get_xdata()
    assert steps[0] == int(logx)
    assert steps[-1] == last
    assert len(steps) <= 5001
    assert all(left < right for left, right in itertools.pairwise(steps))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log" if logx else "linear", "log")


def test_plot_of_a_schedule_that_asks_for_gradients(plt):
    peak = torch.tensor(1.0, requires_grad=True)
    assert list(constant(peak).plot(2).lines[0].get_ydata()) == [1.0, 1.0, 1.0]


def test_without_matplotlib_plot_and_png_say_what_to_install(monkeypatch, capsys, tmp_path):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        cosine(0.1, 10).plot(20)
    assert cli.main(["schedule", "constant(1)", "--steps", "9", "--png", str(tmp_path / "rate.png")]) == 1
    assert "--png needs matplotlib: pip install matplotlib" in capsys.readouterr().err
