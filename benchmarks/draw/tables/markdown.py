"""Format tables as Markdown."""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"[-+−~*]*\d")  # how a cell with a number begins


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, keep_empty: bool = False) -> str:
    """Return a table; columns that are empty throughout are left out unless ``keep_empty``."""
    used = [i for i in range(len(header)) if keep_empty or any(row[i] not in ("", "—") for row in rows)]
    lines = [
        [header[i] for i in used],
        ["--:" if i and _numeric([row[i] for row in rows]) else "---" for i in used],
        *([r[i] for i in used] for r in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _numeric(cells: Sequence[str]) -> bool:
    """Return whether a column holds only numbers, which are aligned to the right; words are aligned to the left."""
    return all(cell in ("", "—", "not measured") or NUMBER.match(cell) for cell in cells)
