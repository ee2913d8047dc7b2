"""Every Python block of the README and of each page of docs/, run as one program in an empty folder."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# A block that opens with ```{.python .no-run} is shown only (it compiles, or needs what a test machine lacks).
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    program = "".join(
        "\n" * (text.count("\n") - program_lines) + block for text, block, program_lines in _positions(page.read_text())
    )
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a dataclass looks its module up
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what a page asserts must not depend on which test ran before
        exec(compile(program, str(page), "exec"), module.__dict__)


def _positions(text):
    """Yield (text before the block, the block, lines of program so far), so that line numbers are the page's."""
    lines = 0
    for match in BLOCK.finditer(text):
        before = text[: match.start(1)]
        yield before, match.group(1), lines
        lines = before.count("\n") + match.group(1).count("\n")


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation, f"{page.name} is not in mkdocs.yml"
