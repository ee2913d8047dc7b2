"""Any text at all is a schedule, or the ``ValueError`` that ``schedules.parse`` documents."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purestep.laws import schedules as drawn
from purestep.schedules import Schedule, parse
from purestep.schedules._schedule import CONSTRUCTORS

# Without the one that imports the module that a text names.
NAMES = sorted(set(CONSTRUCTORS) - {"function"})
NUMBERS = ["0", "1", "-1", "0.1", "1e-300", "1e400", "nan", "2**20", "2**63", "9**99", "10**400", "1_000", "0x10", "1j"]
WORDS = ["True", "None", "'cosine'", "'a:b'", "b'x'", "f'{1}'", "...", "lambda: 0", "print", "__import__", "torch", "x"]
MARKS = [
    "+",
    "-",
    "*",
    "/",
    "**",
    "//",
    "%",
    "@",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "=",
    ":=",
    ".",
    ":",
    "#",
    "\\",
    "\n",
    "\0",
]
METHODS = [".then(", ".shift(", ".clamp(", ".repeat(", ".__class__", "._values", "torch.tensor(", "torch.load("]
KEYWORDS = ["peak=", "total_steps=", "warmup_steps=", "at=", "every=", "by=", "floor=", "dtype=", "min=", "*", "**"]


def is_read_or_refused(text):
    try:
        value = parse(text)
    except ValueError:
        return
    assert isinstance(value, Schedule)
    assert parse(repr(value)) == value


@st.composite
def changed(draw):
    """The text of a schedule, a piece of which is gone, doubled, or something else."""
    text = repr(draw(drawn(max_leaves=3)))
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 8)))
    put = draw(st.sampled_from(["", text[start:end] * 2, *NUMBERS, *WORDS, *MARKS]) | st.text(max_size=3))
    return text[:start] + put + text[end:]


PIECES = st.sampled_from([*NAMES, *[f"{name}(" for name in NAMES], *NUMBERS, *WORDS, *MARKS, *METHODS, *KEYWORDS])
TEXTS = st.text(max_size=30) | st.lists(PIECES, max_size=12).map("".join) | changed()


@given(text=TEXTS)
@settings(max_examples=150)
def test_any_text_is_read_or_refused(text):
    is_read_or_refused(text)


@pytest.mark.faults
@given(text=TEXTS)
@settings(max_examples=3_000)
def test_any_text_at_length(text):
    is_read_or_refused(text)
