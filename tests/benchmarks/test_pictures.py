"""The pictures of the ops and of the method: drawn with the ops themselves, one for each that a page shows."""

import re
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib import pyplot
from PIL import Image

from benchmarks.draw import headline, method_pictures, op_pictures
from tests.training.runs import run as train
from tests.training.runs import tiny
from u2pl_fast import ops

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_picture_is_on_a_page_and_every_page_finds_its_pictures():
    linked = set()
    for page in ("pixel-ops.md", "contrastive-ops.md"):
        linked |= set(re.findall(r"\]\(plots/(op-[a-z-]+\.png)\)", (DOCS / page).read_text()))
    assert linked == {f"op-{name.replace('_', '-')}.png" for name in op_pictures.PICTURES}
    assert all((DOCS / "plots" / name).exists() for name in linked)


def test_the_picture_of_the_readme_shows_the_results(tmp_path: Path):
    """Held equal to the results as the tables are: `python -m benchmarks.draw.headline` draws it again."""
    assert "](docs/plots/headline.png)" in (DOCS.parent / "README.md").read_text()
    headline.main(["--out", str(tmp_path)])
    new, committed = (Image.open(folder / "headline.png").text["Comment"] for folder in (tmp_path, DOCS / "plots"))
    assert new == committed and new.count("faster") == new.count("less") == len(headline.ROWS)


@pytest.mark.parametrize("name", ["contrast_masks", "ring_push"])
def test_a_picture_is_drawn_from_the_op(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls, original = [], getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))
    monkeypatch.setattr(op_pictures, "PICTURES", {name: op_pictures.PICTURES[name]})
    op_pictures.main(["--out", str(tmp_path / "new")])
    image = matplotlib.image.imread(tmp_path / "new" / f"op-{name.replace('_', '-')}.png")
    assert calls and image.shape[1] > 500 and image.std() > 0.1
    assert not pyplot.get_fignums()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(tiny(out, steps=8, positive_threshold=0.0))  # every labeled pixel is an anchor, however little was learned
    return out / "last.pt"


def test_the_method_page_shows_every_picture_of_the_method():
    linked = re.findall(r"\]\(plots/method-([a-z]+)\.png\)", (DOCS / "method.md").read_text())
    assert sorted(linked) == sorted(method_pictures.PICTURES)
    assert all((DOCS / "plots" / f"method-{name}.png").stat().st_size < 200_000 for name in linked)


def test_the_method_is_drawn_from_a_checkpoint(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    method_pictures.main(["--checkpoint", str(trained), "--out", str(tmp_path), "--shown", "background"])
    for name in method_pictures.PICTURES:
        image = matplotlib.image.imread(tmp_path / f"method-{name}.png")
        assert image.shape[1] > 900 and image.std() > 0.1
    shares = re.findall(r"true class first (.*)%, among the first 3 (.*)%", capsys.readouterr().out)
    assert len(shares) == 2 and all(float(first) <= float(three) for first, three in shares)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shown", "cat"], "shown: no class 'cat'"),
        (["--image", "100000"], "image: expected 0"),
        (["--checkpoint", "none.pt"], "none.pt"),
    ],
)
def test_pictures_refuse_by_name(flags: list[str], message: str, trained: Path):
    with pytest.raises(SystemExit, match=message):
        method_pictures.main(["--checkpoint", str(trained), "--shown", "background", *flags])


def test_pictures_need_a_run_with_a_bank(tmp_path: Path):
    train(tiny(tmp_path, steps=4, method="mean-teacher"))
    with pytest.raises(SystemExit, match="trained with --method mean-teacher"):
        method_pictures.main(["--checkpoint", str(tmp_path / "last.pt"), "--shown", "background"])
