"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; at the end of the block that file takes the place of ``path``, in one rename.

    After an exception it is removed, and what was at ``path`` stays. A killed process leaves it; the next write of
    ``path`` overwrites it. One process writes one path at a time. What is no regular file, such as ``/dev/stdout``, is
    written to itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".tmp.{path.name}")  # in this order, since writers may go by the ending
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """``text`` at ``path`` in UTF-8, as :func:`replacing` has it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
