"""``python -m benchmarks.draw.tables``: write the generated tables of the documentation between their markers.

    <!-- table: pixel_stats cpu -->
    <!-- end of table -->

The first word is an op or a function in ``TABLES`` of a module in this folder. The second, if there is one, is a folder
of ``benchmarks/results``. So every number in a table is a number in a results file. ``--check`` fails if they differ.
A line below each table names the file or folder that it comes from.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...measure import results
from ...measure.machine import ROOT
from ...measure.ops import names
from . import accuracy, gpu, kernels, machines, networks, ops, steps

PAGES = (
    *("benchmarks.md", "benchmark-tables.md", "kernels.md", "kernel-tables.md", "accuracy.md"),
    *("training.md", "models.md", "pixel-ops.md", "contrastive-ops.md"),
)
DOCUMENTS = (
    *(ROOT / "docs" / page for page in PAGES),
    *(ROOT / "README.md", ROOT / "benchmarks" / "accuracy" / "LOG.md"),
)
MARKED = re.compile(r"(<!-- table: ([a-z_]+)(?: ([a-z0-9-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)

SOURCES: dict[Callable[[Path], str], str] = {
    table: source
    for module in (ops, steps, machines, kernels, networks, gpu, accuracy)
    for table, source in module.TABLES.items()
}
TABLES = {table.__name__: table for table in SOURCES}


def signed(table: str, source: str, device: str | None) -> str:
    """Add a line of small text below a table, so that a reader sees that it is generated, and from what."""
    if not table.startswith("|") and "\n|" not in table:
        return table
    source = source.format(device=device)
    return f"{table}\n<sub>Generated from `{source}` by `python -m benchmarks.draw.tables`.</sub>\n"


def rewritten(text: str, folder: Path, document: str) -> str:
    """Return ``text`` with every table written again from the results in ``folder``."""
    entries = names()

    def table(match: re.Match) -> str:
        begin, name, device, end = match.groups()
        if name in TABLES:
            table = TABLES[name]
            return begin + signed(table(folder / (device or "")), SOURCES[table], device) + end
        if name in entries and device:
            return begin + signed(ops.op_table(name, folder / device), ops.SOURCE, device) + end
        raise SystemExit(f"{document}: no table {name!r} {device or ''}; choose from {', '.join([*TABLES, *entries])}")

    return MARKED.sub(table, text)


def main(argv: Sequence[str] | None = None, documents: Sequence[Path] = DOCUMENTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where a table differs")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    stale = []
    for document in documents:
        if not document.exists():
            continue
        old = document.read_text()
        new = rewritten(old, args.results, document.name)
        if new == old:
            continue
        stale.append(document)
        if not args.check:
            document.write_text(new)
        print(
            f"{document.name}: "
            + ("differs from the results; run python -m benchmarks.draw.tables" if args.check else "written")
        )
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
