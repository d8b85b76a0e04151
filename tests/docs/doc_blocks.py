"""Code blocks of pages, and a program that runs those of one page as they are printed.

Python blocks (```` ```python ````) and shell blocks (```` ```sh ````) of a page run in order, in one namespace and one
empty folder. An HTML comment right before a block, invisible on the rendered page, changes that:

    <!-- not run: needs a data set -->      the block is left out; the reason is shown by the tests
    <!-- setup: logits = torch.zeros(1) --> runs before the block, in its language; may have several lines

``python -m tests.docs.doc_blocks`` lists the blocks that are left out; with a page, it runs that page in the current
folder.
"""

import argparse
import os
import re
import stat
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON, SHELL = ("python",), ("sh", "bash")
OTHERS = ("", "text", "yaml", "json", "toml")  # output, files, formulas
FENCE = re.compile(r"^( *)```([\w+-]*)[^\n]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- (not run|setup):\s(.*?)\s*-->", re.DOTALL)
# Written in the folder of a page, so that its commands find this project and this Python.
COMMANDS = {"python": "", "python3": "", "u2pl": "-m u2pl_fast"}
# Commands that change the machine: a block that has one must be marked, and fails if it is not.
REFUSED = ("apt", "apt-get", "conda", "curl", "git", "make", "mamba", "pip", "pip3", "pipx", "sudo", "uv", "wget")
REFUSE = 'echo "error: $0 may not run here; mark the block with <!-- not run: reason -->" >&2; exit 1'


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its text, why it is not run, and what runs before it."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None = None
    setup: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages whose blocks run."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def blocks(page: Path, root: Path = ROOT) -> list[Block]:
    """Return the Python and shell blocks of a page.

    Raises:
        ValueError: a marker stands alone, or a block has an unknown language; the message names the line.
    """
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(root).as_posix()
    fences = list(FENCE.finditer(text))
    markers = [m for m in MARKER.finditer(text) if not any(f.start() < m.start() < f.end() for f in fences)]
    found = []
    for fence in fences:
        line = text.count("\n", 0, fence.start()) + 1
        language = fence[2]
        if language not in (*PYTHON, *SHELL, *OTHERS):
            raise ValueError(f"{name}:{line}: unknown language {language!r}; choose from {[*PYTHON, *SHELL, *OTHERS]}")
        above = (m for m in markers if m.end() <= fence.start() and not text[m.end() : fence.start()].strip())
        marker = next(above, None)
        if language in OTHERS:
            continue
        if marker is not None:
            markers.remove(marker)
        kind, content = marker.groups() if marker else ("", "")
        reason, setup = (content, "") if kind == "not run" else (None, content)
        found.append(Block(name, line, language, textwrap.dedent(fence[3]), reason, textwrap.dedent(setup)))
    for marker in markers:
        line = text.count("\n", 0, marker.start()) + 1
        raise ValueError(f"{name}:{line}: a marker must stand right before a Python or shell block")
    return found


def run(page: Path, root: Path = ROOT) -> None:
    """Run the blocks of a page in the current folder, and raise what the first wrong one raises."""
    environment = _environment(root)
    namespace: dict = {"__name__": "__main__"}
    for block in blocks(page, root):
        if block.reason is not None:
            continue
        print(f"--- {block.place}", flush=True)
        for code, line in ((block.setup, 0), (block.code, block.line)):
            if block.language in PYTHON:
                # As many empty lines as stand above the block: a traceback then has the lines of the page.
                exec(compile("\n" * line + code, str(page), "exec"), namespace)
            elif code:
                command = ["bash", "-euo", "pipefail", "-c", code]
                status = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode
                if status:
                    raise SystemExit(f"{block.place}: exit status {status}")


def _environment(root: Path) -> dict[str, str]:
    """Return an environment in which ``python`` and ``u2pl`` are of this project; link what its commands read."""
    folder = Path.cwd() / ".commands"
    folder.mkdir(exist_ok=True)
    scripts = {name: f'exec "{sys.executable}" {module} "$@"' for name, module in COMMANDS.items()}
    for name in ("python", "python3"):
        installs = '[ "$1" = -m ] && case "$2" in pip|venv|ensurepip)'
        scripts[name] = f"{installs} {REFUSE};; esac\n{scripts[name]}"
    for name, script in (scripts | dict.fromkeys(REFUSED, REFUSE)).items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    if not Path("examples").exists():
        Path("examples").symlink_to(root / "examples")
    # No index: a pip that is called in another way finds nothing to install.
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root), "PIP_NO_INDEX": "1", "PIP_REQUIRE_VIRTUALENV": "1"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.docs.doc_blocks", description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, help="run this page in the current folder; none = list blocks")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="folder that page names begin at")
    args = parser.parse_args(argv)
    if args.page is not None:
        run(args.page.resolve(), args.root.resolve())
        return
    for block in (block for page in pages() for block in blocks(page)):
        if block.reason is not None:
            print(f"{block.place}: {block.reason}")


if __name__ == "__main__":
    main()
