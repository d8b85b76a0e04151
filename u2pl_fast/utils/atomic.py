"""Write files atomically: whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end of the block, rename that file to ``path``.

    After an exception the temporary file is removed, and ``path`` is unchanged. A killed process leaves the temporary
    file; the next write of ``path`` overwrites it. Only one process may write a path at a time. If ``path`` is not a
    regular file, such as ``/dev/stdout``, it is yielded itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".tmp.{path.name}")  # keeps the suffix, which may select a format
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
