"""Code blocks of the pages run as they are printed; those that do not are marked, with the reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import doc_blocks
from tests.docs.doc_blocks import ROOT, Block, blocks, pages

PAGES = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages()]


def run(page: Path, folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a page in a folder, in a process of its own: blocks may change what modules hold."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "tests.docs.doc_blocks", str(page), "--root", str(root)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=540)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path):
    marked = [f"{block.place}: {block.reason}" for block in blocks(page) if block.reason is not None]
    print("not run:", *marked, sep="\n")
    if len(marked) == len(blocks(page)):
        pytest.skip(f"no block to run; {len(marked)} are marked")
    done = run(page, tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_not(page: Path):
    """Counted without the parser of the blocks, so that none is missed."""
    fences = re.findall(r"^ *```(\w+) *$", page.read_text(encoding="utf-8"), re.MULTILINE)
    found = blocks(page)
    assert [language for language in fences if language not in doc_blocks.OTHERS] == [b.language for b in found]
    assert all(len(block.reason.split()) >= 2 for block in found if block.reason is not None)


def test_blocks_are_read_with_their_markers(written, tmp_path: Path):
    page = written(
        "<!-- not run: takes hours -->\n\n```sh\nu2pl train\n```\n"
        "<!-- setup:\nx = 1\ny = 2\n-->\n```python\nprint(x)\n```\n"
        "- item\n  ```python\n  z = 3\n  ```\n```text\nout\n```\n"
    )
    assert blocks(page, tmp_path) == [
        Block("page.md", 3, "sh", "u2pl train\n", reason="takes hours"),
        Block("page.md", 10, "python", "print(x)\n", setup="x = 1\ny = 2"),
        Block("page.md", 14, "python", "z = 3\n"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- not run: no time -->\nwords\n```sh\nls\n```\n", "page.md:1: a marker must stand right before"),
        ("<!-- setup: x = 1 -->\n```text\nls\n```\n", "page.md:1: a marker must stand right before"),
        ("words\n```pyton\nx = 1\n```\n", "page.md:2: unknown language 'pyton'"),
    ],
)
def test_a_wrong_marker_is_refused(text: str, message: str, written, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        blocks(written(text), tmp_path)


@pytest.mark.slow
def test_blocks_share_a_namespace_and_a_folder(written, tmp_path: Path):
    page = written(
        "```python\nx = 1\n```\n```sh\necho 5 > file\nu2pl --version\n```\n"
        "<!-- not run: it fails -->\n```sh\nfalse\n```\n"
        "<!-- setup: y = 2 -->\n```python\nassert (x, y) == (1, 2) and open('file').read() == '5\\n'\n```\n"
    )
    (tmp_path / "here").mkdir()
    done = run(page, tmp_path / "here", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "u2pl_fast" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n```python\nx = 1\nassert x == 2\n```\n", 'page.md", line 4'),
        ("one\n```sh\nfalse | true\n```\n", "page.md:2: exit status 1"),
        ("```sh\npip install nothing-at-all\n```\n", "pip may not run here; mark the block"),
        ("```sh\npython3 -m venv here\n```\n", "python3 may not run here; mark the block"),
    ],
)
def test_a_block_that_fails_is_named(text: str, message: str, written, tmp_path: Path):
    done = run(written(text), tmp_path, tmp_path)
    assert done.returncode != 0 and message in done.stderr
