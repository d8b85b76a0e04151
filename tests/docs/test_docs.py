"""The pages: every link leads somewhere, and every command names a program and flags that exist."""

from pathlib import Path

import pytest

from tests.docs import doc_pages

PAGES = [pytest.param(page, id=page.relative_to(doc_pages.ROOT).as_posix()) for page in doc_pages.pages()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path):
    assert doc_pages.broken_links(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: Path):
    assert doc_pages.wrong_commands(page) == []


def test_the_map_names_every_page():
    folder = doc_pages.ROOT / "docs"
    text = (folder / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in folder.glob("*.md") if f"]({page.name})" not in text and page.name != "README.md"]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](other.md)", "other.md: no such file"),
        ("![a](plots/none.png)", "plots/none.png: no such file"),
        ("[![a](none.png)](page.md)", "none.png: no such file"),
        ('<img src="none.png">', "none.png: no such file"),
        ("# One\n[a](#two)", "#two: no such heading"),
        ("# One\n[a](page.md#two)", "page.md#two: no such heading"),
    ],
)
def test_a_broken_link_is_found(text: str, complaint: str, written):
    assert doc_pages.broken_links(written(text)) == [f"page.md: {complaint}"]


def test_links_that_lead_somewhere_pass(written):
    text = (
        "# C = 2, `--amp`: yes\n## Two\n## Two\n[a](#c--2---amp-yes) [b](#two-1) [c](https://x.org/no.md) `[d](no.md)`"
    )
    assert doc_pages.broken_links(written(text)) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("`python -m u2pl_fast.trane --amp`", "u2pl_fast.trane: no such program"),
        ("`python -m u2pl_fast.train --ampp`", "u2pl_fast.train has no --ampp"),
        ("`u2pl train --ampp`", "u2pl_fast.train has no --ampp"),
        ("```sh\nu2pl trane --amp\n```", "u2pl_fast.trane: no such program"),
        (
            "```sh\ntorchrun --nproc-per-node=2 -m u2pl_fast.train \\\n  --ampp | tee x\n```",
            "u2pl_fast.train has no --ampp",
        ),
        ("`python examples/none.py`", "examples/none.py: no such program"),
        ("`python -m benchmarks --oops voc`", "benchmarks has no --oops"),
        ("`make tea`", "make has no target tea"),
        ("| `--bank-size` | a setting |", "no command has --bank-size"),
    ],
)
def test_a_wrong_command_is_found(text: str, complaint: str, written):
    assert doc_pages.wrong_commands(written(text)) == [f"page.md: {complaint}"]
