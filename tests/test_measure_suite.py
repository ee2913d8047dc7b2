"""Benchmarks by name: those that come with purestep, a user's own, and ``purestep bench``."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from purestep import cli, measure
from purestep.measure import suite, works

OWN = """
from beside import scale
from purestep import measure

@measure.benchmark("signs", title="Two ways to change a sign")
def signs(device):
    import torch
    x = torch.ones(4, device=device)
    return {"neg": lambda: torch.neg(x), "mul": lambda: scale * x}
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(suite, "_KNOWN", dict(suite.benchmarks()))


@pytest.fixture
def own(tmp_path):
    (tmp_path / "beside.py").write_text("scale = -1\n")
    (tmp_path / "my_benchmarks.py").write_text(OWN)
    return tmp_path / "my_benchmarks.py"


def test_the_suite_runs_benchmarks_by_name(tmp_path):
    x = torch.ones(4)

    @measure.benchmark("signs", title="Two ways to change a sign")
    def signs(device):
        return {"neg": lambda: torch.neg(x), "mul": lambda: -1 * x}

    assert suite.benchmarks()["signs"] is signs
    said = []
    results = suite.run(
        ["signs"],
        max_time=0.05,
        threads=1,
        json_path=tmp_path / "new" / "signs.json",
        png_path=tmp_path / "signs.png",
        say=said.append,
    )
    assert said[0].startswith("Two ways to change a sign\n")
    assert json.loads((tmp_path / "new" / "signs.json").read_text())["signs"]["baseline"] == "neg"
    assert results["signs"].baseline == "neg"
    assert (tmp_path / "signs.png").read_bytes().startswith(b"\x89PNG")


def test_several_benchmarks_have_a_picture_each(tmp_path):
    for name in ("one", "two"):
        measure.benchmark(name, title=name)(lambda device: {"a": noop, "b": noop})
    suite.run(["two", "one", "two"], max_time=0.01, png_path=tmp_path / "x.png", say=lambda text: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-one.png", "x-two.png"]


def noop():
    return None


@pytest.mark.parametrize("name", ["step", "accumulate", "update", "schedule", "shuffle", "kernel"])
def test_what_the_suite_compares_runs(name, monkeypatch):
    monkeypatch.setattr(works, "compiler_missing", lambda: "not now: it takes seconds")
    before = torch.get_rng_state()
    functions = suite.benchmarks()[name].functions(torch.device("cpu"))
    assert len(functions) >= 2
    for fn in functions.values():
        fn()
    assert torch.equal(before, torch.get_rng_state())


def test_the_schedules_compared_are_one():
    by_hand, pure = works._schedule.functions(torch.device("cpu")).values()
    torch.testing.assert_close(pure(), by_hand(), rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_lists_what_there_is(capsys):
    assert cli.main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(suite.benchmarks())
    assert {"step", "accumulate", "update", "schedule", "shuffle", "kernel"} <= set(suite.benchmarks())
    assert cli.main(["bench", "--list", "shuffle"]) == 0
    assert capsys.readouterr().out == "shuffle  The first 4,096 indices of a shuffled epoch of 10 million\n"


def test_the_command_finds_a_users_benchmarks(own, tmp_path, capsys):
    assert cli.main(["bench", "--from", str(own), "--list"]) == 0
    assert capsys.readouterr().out == "signs  Two ways to change a sign\n"


def test_the_command_runs_a_users_benchmarks_and_no_other(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite, "run", functools.partial(suite.run, max_time=0.05))
    assert cli.main(["bench", "--from", str(own), "--threads", "1", "--json", str(tmp_path / "out.json")]) == 0
    assert "Two ways to change a sign\n" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "out.json").read_text())) == {"signs"}


BEGINNING = "from purestep import measure\nbenchmark = measure.benchmark\n"

# Each row: the file (None: there is none), and what is said about it.
FILES = {
    "absent": (None, ("--from must be a file of benchmarks", "own.py', which is not there")),
    "no benchmark": (
        BEGINNING,
        ("must be a file that defines a benchmark", "@purestep.measure.benchmark(name, title="),
    ),
    "raises": ("x = 1\n{}['a']\n", ("must be a file that can be imported", "raises at line 2: KeyError: 'a'")),
    "no Python": ("x = 1\ny = =\n", ("which raises: SyntaxError: invalid syntax (own.py, line 2)",)),
    "a name that is taken": (
        BEGINNING + "@benchmark('step', title='')\ndef step(device): ...\n",
        ("raises at line 3: ValueError: name must be free, got 'step', which is the benchmark 'One step of",),
    ),
    "a name twice": (
        BEGINNING + "for i in 1, 2: benchmark('a', title='A')(lambda device: {})\n",
        ("ValueError: name must be free, got 'a', which is the benchmark 'A'",),
    ),
    "no device": (
        BEGINNING + "@benchmark('a', title='')\ndef a(): ...\n",
        ("TypeError: the benchmark 'a' must be a function of the device", "got a: too many positional arguments"),
    ),
    "no functions": (
        BEGINNING + "@benchmark('a', title='')\ndef a(device): return [print]\n",
        ("the benchmark 'a' must return functions by name, as in {'a': f, 'b': g}, got [<built-in",),
    ),
    "no function among them": (
        BEGINNING + "@benchmark('a', title='')\ndef a(device): return {'f': print, 'g': 3}\n",
        ("the benchmark 'a' must return functions by name", "'g': 3}"),
    ),
    "one function": (
        BEGINNING + "@benchmark('a', title='')\ndef a(device): return {'f': print}\n",
        ("ways must hold at least two functions to compare, got 1", "raised by the benchmark 'a'"),
    ),
    "a function that raises": (
        BEGINNING + "@benchmark('a', title='')\ndef a(device): return {'f': lambda: int('x'), 'g': print}\n",
        ("invalid literal for int()", "(raised by f while it was measured) (raised by the benchmark 'a' while"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_what_the_command_says_about_a_file(name, tmp_path, capsys):
    text, fragments = FILES[name]
    if text is not None:
        (tmp_path / "own.py").write_text(text)
    assert cli.main(["bench", "--from", str(tmp_path / "own.py")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("purestep bench: ")
    assert [fragment for fragment in fragments if fragment not in said] == [], said


def test_a_file_that_raises_leaves_no_benchmark_behind(tmp_path):
    (tmp_path / "own.py").write_text(BEGINNING + "benchmark('a', title='')(lambda device: {})\n1 / 0\n")
    with pytest.raises(ValueError, match="at line 4: ZeroDivisionError"):
        suite.load(tmp_path / "own.py")
    assert "a" not in suite.benchmarks()


@pytest.mark.parametrize(
    ("call", "error", "fragments"),
    [
        (lambda: suite.run(["stepp"]), ValueError, ("NAME must be one of", "got 'stepp' (did you mean 'step'")),
        (lambda: suite.load(__file__ + "c"), ValueError, ("--from must be a file of benchmarks",)),
        (lambda: suite.load("/"), ValueError, ("got '/', which is not there",)),
        (lambda: measure.benchmark("two words", title=""), ValueError, ("name must be a word", "'two words'")),
        (lambda: measure.benchmark("--list", title=""), ValueError, ("name must be a word", "'--list'")),
        (lambda: measure.benchmark("a", title=None), TypeError, ("title must be a line of text, got None",)),
        (lambda: measure.benchmark("a", title="")(3), TypeError, ("the benchmark 'a' must be a function", "got 3")),
    ],
)
def test_the_message(call, error, fragments):
    with pytest.raises(error) as caught:
        call()
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_absent(capsys):
    assert cli.main(["bench", "shuffle", "--device", "cuda"]) == 1
    assert "device must be a device that is here, got 'cuda'" in capsys.readouterr().err
