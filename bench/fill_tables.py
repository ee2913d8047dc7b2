"""Put the figures of bench/results into docs/performance.md and README.md.

    python bench/fill_tables.py [--check]

A table stands between two comments, and a figure in a sentence between two as well:

    <!-- bench: step_gpt.json -->                                                       <!-- /bench -->
    <!-- bench: step_gpt.json | purestep, compiled, donated | ratio | .2f -->0.89<!-- /bench -->

What is between them is written by this script: the whole table, or ``result[way][field]`` in that format. The field
``faster`` is one over the ratio, and ``to WAY`` the ratio to another way than the baseline. A table whose JSON is
not there says so; a figure's must be. ``tests/test_bench.py`` holds that nothing between the comments was changed by
hand, and that README has no figure of speed outside of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from purestep.measure import _format

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")

MARKED = re.compile(r"<!-- bench: (?P<what>[^>]*?) -->(?P<between>.*?)<!-- /bench -->", re.DOTALL)
# A number with a unit of time or speed, or a comparison: what a reader takes for a claim about performance.
CLAIM = re.compile(
    r"\d[\d,.]*\s*(?:[µu]s|ns|ms|s|sec|seconds|minutes)\b"
    r"|\d[\d,.]*\s*(?:[×x]|times|%|percent)\s*(?:\w+\s+)?(?:as\s+)?(?:fast|slow|speed|long|overhead)"
    r"|\d[\d,.]*\s*[×x](?!\s*\d)\B"
    r"|\d[\d,.]*\s*(?:steps|examples|tokens|[GT]FLOP|[MG]i?B)\w*\s*(?:/|a|per)\s*s",
)


def fill(page: str, results: Path = RESULTS) -> str:
    """Return the page with all that stands between its comments written anew.

    Raises:
        ValueError: a comment that cannot be followed; it is quoted.
    """

    def written(match: re.Match[str]) -> str:
        what = match["what"]
        name, *rest = (part.strip() for part in what.split(" | "))
        if not re.fullmatch(r"[\w.-]+\.json", name) or len(rest) not in (0, 3):
            raise ValueError(f"must be `FILE.json` or `FILE.json | WAY | FIELD | FORMAT`, got {what!r}")
        text = figure(what, results / name, *rest) if rest else f"\n\n{table(results / name)}\n\n"
        return f"<!-- bench: {what} -->{text}<!-- /bench -->"

    if page.count("<!-- bench:") != len(MARKED.findall(page)):
        raise ValueError("a comment `<!-- bench: ... -->` has no `<!-- /bench -->` after it")
    return MARKED.sub(written, page)


def figure(what: str, path: Path, way: str, field: str, form: str) -> str:
    """Return one value of one way."""
    if not path.exists():
        raise ValueError(f"{path.name} is not in {path.parent.name}, which {what!r} needs")
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    other = field.removeprefix("to ") if field.startswith("to ") else way
    for name in (way, other):
        if name not in rows:
            raise ValueError(f"{path.name} has no way {name!r}, which {what!r} needs; it has {'; '.join(rows)}")
    if other != way:
        value = rows[way]["ratio"] / rows[other]["ratio"]
    else:
        value = 1 / rows[way]["ratio"] if field == "faster" else rows[way].get(field)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{path.name} has no number {field!r} of {way!r}, which {what!r} needs")
    return format(value, form)


def table(path: Path) -> str:
    """Return the table of one JSON as markdown, with what it was measured on under it."""
    if not path.exists():
        return f"Not measured yet: there is no `bench/results/{path.name}`."
    result = json.loads(path.read_text(encoding="utf-8"))
    confidence = next(row["ratio_interval"][2] for name, row in result["results"].items() if name != result["baseline"])
    lines = [
        f"| {result['title']} | median | IQR | ratio | {100 * confidence:.1f} % interval | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in result["results"].items():
        low, high, _ = row["ratio_interval"]
        against = ("1", "", "baseline")
        if name != result["baseline"]:
            against = (_ratio(row["ratio"]), f"{_ratio(low)} to {_ratio(high)}", row["verdict"])
        times = (_format.seconds(row["median_seconds"]), _format.seconds(row["iqr_seconds"]))
        lines.append(f"| {' | '.join((name, *times, *against))} |")
    return "\n".join([*lines, "", _caption(result)])


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _caption(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    accelerator = f"{machine['accelerator']}, " if machine["accelerator"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "purestep")
    left_out = "".join(f" Left out: {name} ({why})." for name, why in result["left_out"].items())
    return (
        f"{accelerator}{machine['processor']}, {_format.count(machine['cores'], 'core')}; {result['device']}, "
        f"{_format.count(result['threads'], 'thread')}, {settings['precision']}; {settings['rounds']} rounds in turns, "
        f"{result['date']}; Python {machine['python']}, {versions}.{left_out}"
    )


def unmarked(page: str) -> list[str]:
    """Return the lines of a page that make a claim about speed outside the comments and outside code blocks."""
    prose = re.sub(r"^```.*?^```", "", MARKED.sub("", page), flags=re.DOTALL | re.MULTILINE)
    return [line for line in prose.splitlines() if CLAIM.search(line)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    options = parser.parse_args()
    changed = False
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        try:
            after = fill(before)
        except ValueError as error:
            sys.exit(f"{path.name}: {error}")
        if after != before:
            changed = True
            print(f"{path.relative_to(ROOT)}: {'stale' if options.check else 'written'}")
            if not options.check:
                path.write_text(after, encoding="utf-8")
    return int(options.check and changed)


if __name__ == "__main__":
    sys.exit(main())
