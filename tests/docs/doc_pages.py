"""Check links, commands and flags of Markdown pages. Each check returns complaints."""

import contextlib
import functools
import io
import os
import re
import runpy
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^ *(```|~~~)(\w*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")  # of an image inside a link too
HTML_LINK = re.compile(r"(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<a (?:id|name)=\"([^\"]+)\"")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MODULE, SCRIPT = r"(?:u2pl_fast|benchmarks|tests)[\w.]*", r"(?:examples|benchmarks|tests)/[\w/]+\.py"
RUN = re.compile(rf"(?:-m +({MODULE})|python3? +({SCRIPT})|(?:^|[\s`/])u2pl +([a-z]\w*))(.*)")
KEPT = ("Nd", "Pc")  # digits and underscores stay in an anchor, superscripts do not
MAKE = re.compile(r"(?:^|[\s`])make ([a-z][\w-]*)")

# Flags of other people's programs, and those that a program reads before its parser does.
OTHER_TOOLS = {
    "--no-build-isolation", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts",
    "--nodes", "--ntasks-per-node", "--benchmark-autosave", "--benchmark-compare", "--strict", "--no-index",
}  # fmt: skip
READ_EARLY = {"u2pl_fast.train": {"--config"}}


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that a reader of the project is sent to."""
    top = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [page for page in [*top, *sorted((root / "docs").rglob("*.md"))] if page.exists()]


# --- Links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Fragments that a link to this page may have, as forges make them of its headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    found, seen = set(HTML_ANCHOR.findall(text)), Counter()
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = (x for x in plain if x in "- " or unicodedata.category(x)[0] in "LM" or unicodedata.category(x) in KEPT)
        slug = "".join(kept).strip().replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def broken_links(page: Path) -> list[str]:
    """Relative links of a page to a file or heading that is not there."""
    text = INLINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    complaints = []
    for link in [*LINK.findall(text), *HTML_LINK.findall(text)]:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            complaints.append(f"{page.name}: {link}: no such file")
        elif fragment and target.suffix == ".md" and fragment not in anchors(target):
            complaints.append(f"{page.name}: {link}: no such heading")
    return complaints


# --- Commands ---------------------------------------------------------------------------------------------------------


def code(text: str) -> Iterator[str]:
    """Lines of shell blocks, continued ones joined, and the inline code."""
    for match in FENCED.finditer(text):
        if match[2] not in ("python", "yaml", "toml"):
            yield from match[3].replace("\\\n", " ").splitlines()
    yield from INLINE.findall(FENCED.sub("", text))


@functools.cache
def flags_of(program: str) -> frozenset[str] | None:
    """Flags in the help of a module, or of a script of this repository; None where there is no such program."""
    is_file = program.endswith(".py")
    if is_file and not (ROOT / program).exists():
        return None
    said = io.StringIO()
    path = [str(ROOT), str((ROOT / program).parent), *sys.path]
    with (
        mock.patch.object(sys, "argv", [program, "--help"]),
        mock.patch.object(sys, "path", path),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # of runpy, about modules that are imported already
        try:
            if is_file:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        except SystemExit:
            pass
        except ImportError:
            return None
    return frozenset(FLAG.findall(said.getvalue())) | READ_EARLY.get(program, set())


def wrong_commands(page: Path) -> list[str]:
    """Commands of a page with a module, script, make target or flag that does not exist."""
    text = page.read_text(encoding="utf-8")
    complaints = []
    known = set(OTHER_TOOLS)
    alone: list[str] = []
    for line in code(text):
        run = RUN.search(line)
        if run is None:
            alone += [line] if FLAG.match(line) else []
        else:
            program = run[1] or run[2] or f"u2pl_fast.{run[3]}"
            rest = re.split(r"[|;>#]|&&", run[4])[0]
            flags = flags_of(program)
            if flags is None:
                complaints.append(f"{page.name}: {program}: no such program")
                continue
            known |= flags
            complaints += [f"{page.name}: {program} has no {flag}" for flag in FLAG.findall(rest) if flag not in flags]
        makefile = (ROOT / "Makefile").read_text()
        for target in MAKE.findall(line):
            if not re.search(rf"^{target}:", makefile, re.MULTILINE):
                complaints.append(f"{page.name}: make has no target {target}")
    # A flag that stands alone, as in a table of settings, is of a command of the page, or of those that all talk of.
    known = known.union(*(flags_of(f"u2pl_fast.{name}") for name in ("train", "evaluate", "predict")))
    unknown = (flag for line in alone for flag in FLAG.findall(line) if flag not in known)
    return complaints + [f"{page.name}: no command has {flag}" for flag in unknown]
