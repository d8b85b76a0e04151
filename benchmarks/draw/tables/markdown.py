"""Tables as Markdown."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, keep_empty: bool = False) -> str:
    """A table; columns that are empty throughout are left out unless ``keep_empty``."""
    used = [i for i in range(len(header)) if keep_empty or any(row[i] not in ("", "—") for row in rows)]
    lines = [
        [header[i] for i in used],
        ["---" if i == 0 else "--:" for i in used],
        *([r[i] for i in used] for r in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
