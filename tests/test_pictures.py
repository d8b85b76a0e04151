"""The pictures of the ops: drawn with the ops themselves, one for each that a page shows."""

import re
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib import pyplot

from benchmarks import pictures
from u2pl_fast import ops

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_every_picture_is_on_a_page_and_every_page_finds_its_pictures():
    linked = set()
    for page in ("pixel-ops.md", "contrastive-ops.md"):
        linked |= set(re.findall(r"\]\(plots/(op-[a-z-]+\.png)\)", (DOCS / page).read_text()))
    assert linked == {f"op-{name.replace('_', '-')}.png" for name in pictures.PICTURES}
    assert all((DOCS / "plots" / name).exists() for name in linked)


@pytest.mark.parametrize("name", ["contrast_masks", "ring_push"])
def test_a_picture_is_drawn_from_the_op(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, original = [], getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))
    monkeypatch.setattr(pictures, "PICTURES", {name: pictures.PICTURES[name]})
    pictures.main(["--out", str(tmp_path / "new")])
    image = matplotlib.image.imread(tmp_path / "new" / f"op-{name.replace('_', '-')}.png")
    assert calls and image.shape[1] > 500 and image.std() > 0.1
    assert not pyplot.get_fignums()
