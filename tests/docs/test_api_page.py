"""docs/api.md names every public object, at the place where it is."""

import importlib
import re

import pytest

import u2pl_fast
from tests.docs.doc_pages import ROOT
from u2pl_fast import ops

ENTRY = re.compile(r"^::: (\S+)\n    options:\n      heading: (.+)$", re.MULTILINE)
ENTRIES = ENTRY.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))


def test_every_public_object_is_on_the_page():
    shown = {heading for _, heading in ENTRIES}
    public = {f"u2pl_fast.{name}" for name in u2pl_fast.__all__ if name != "ops"}
    public |= {f"ops.{name}" for name in ops.__all__ if name != "NEGATIVES"}
    assert public == {heading for heading in shown if "," not in heading}


@pytest.mark.parametrize(("path", "heading"), ENTRIES, ids=[heading for _, heading in ENTRIES])
def test_an_entry_is_the_object_that_it_names(path: str, heading: str):
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if "," in heading:  # a group of settings
        assert issubclass(u2pl_fast.TrainConfig, found)
        return
    root, _, public = heading.rpartition(".")
    used = getattr(ops if root == "ops" else u2pl_fast, public)
    assert found is used or public in ("train", "evaluate")  # modules that can be called
