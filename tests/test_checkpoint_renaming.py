"""Names on their way in: whole ones and prefixes, of which the one that reaches furthest counts."""

from __future__ import annotations

import pytest
import torch

from purestep.checkpoint._renaming import Form, form, renamed, take

NAMES = ["fc1.weight", "fc1.bias", "fc10.weight", "body.fc1.weight", "head"]
PATHS = ["params/fc1.weight", "opt_state/exp_avg/fc1.weight", "opt_state/count", "step"]


@pytest.mark.parametrize(
    ("rename", "changed"),
    [
        (None, {}),
        ({}, {}),
        ({"fc1": "first"}, {"fc1.weight": "first.weight", "fc1.bias": "first.bias"}),
        ({"fc1.": "first."}, {"fc1.weight": "first.weight", "fc1.bias": "first.bias"}),
        ({"fc1.weight": "w"}, {"fc1.weight": "w"}),
        ({"fc1": "a", "fc1.weight": "b"}, {"fc1.weight": "b", "fc1.bias": "a.bias"}),
        ({"fc1.weight": "b", "fc1": "a"}, {"fc1.weight": "b", "fc1.bias": "a.bias"}),
        ({"body": ""}, "apart"),
        ({"body": "", "fc1": "x"}, {"body.fc1.weight": "fc1.weight", "fc1.weight": "x.weight", "fc1.bias": "x.bias"}),
        ({"body.": "", "fc1": "x"}, {"body.fc1.weight": "fc1.weight", "fc1.weight": "x.weight", "fc1.bias": "x.bias"}),
        ({"": "m"}, {name: f"m.{name}" for name in NAMES}),
        ({"": "m."}, {name: f"m.{name}" for name in NAMES}),
        ({"": "m", "head": "head"}, {name: f"m.{name}" for name in NAMES[:-1]}),
        ({"head": "fc1.weight", "fc1.weight": "head"}, {"head": "fc1.weight", "fc1.weight": "head"}),
        ({"fc": "x"}, "fits none"),
        ({"fc1.weight.": "x"}, "fits none"),
    ],
)
def test_names(rename, changed):
    check(NAMES, rename, changed, paths=False)


@pytest.mark.parametrize(
    ("rename", "changed"),
    [
        ({"fc1": "a"}, {path: path.replace("fc1", "a") for path in PATHS[:2]}),
        ({"params/fc1": "params/a"}, {"params/fc1.weight": "params/a.weight"}),
        ({"params/": "aux/"}, {"params/fc1.weight": "aux/fc1.weight"}),
        ({"params": "aux"}, "fits none"),  # a name, and no parameter has it
        ({"params/fc1": "params/a", "fc1": "b"}, {PATHS[0]: "params/a.weight", PATHS[1]: PATHS[1].replace("fc1", "b")}),
        ({"params/fc1": "params/a", "fc1.weight": "b"}, {PATHS[0]: "params/b", PATHS[1]: "opt_state/exp_avg/b"}),
        ({"opt_state": "x"}, "fits none"),
        ({"opt_state/exp_avg": "opt_state/m"}, {PATHS[1]: "opt_state/m/fc1.weight"}),
        ({"step": "steps"}, {"step": "steps"}),
    ],
)
def test_paths(rename, changed):
    check(PATHS, rename, changed, paths=True)


def check(names, rename, changed, *, paths):
    if isinstance(changed, str):
        with pytest.raises(ValueError, match=changed):
            renamed(names, rename, paths=paths, source="the file")
    else:
        found = renamed(names, rename, paths=paths, source="the file")
        assert found == {changed.get(name, name): name for name in names}


def test_what_is_taken():
    one, two = form(torch.ones(2)), Form((2,), "float64")
    words = {"opening": "x must fit", "here": "x", "source": "the file"}
    assert take({"a": one}, {"b": one}, rename={"b": "a"}, **words) == {"a": "b"}
    with pytest.raises(ValueError, match=r"^x must fit: the file lacks 'c'; 'a' is \(2,\) float64 in the file and"):
        take({"a": one, "c": one}, {"a": two}, **words)
    with pytest.warns(UserWarning, match="the file has 'c', which x has not") as caught:
        assert take({"a": one, "b": one}, {"a": two, "b": one, "c": one}, strict=False, **words) == {"b": "b"}
    assert len(caught) == 1
    with pytest.raises(ValueError, match="x must fit: the file lacks 'a'; the file has 'b'"):
        take({"a": one}, {"b": one}, strict=False, **words)  # nothing fits, which nobody can want
