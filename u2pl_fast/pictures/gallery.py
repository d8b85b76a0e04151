"""``gallery.html``: predictions side by side on one page that needs no network and no other files.

The page holds downscaled copies of at most ``limit`` images, spread evenly, and ends at ``MAX_BYTES``. It states how
many images it shows; its summary covers all of them.
"""

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.splits import evenly
from ..utils.atomic import write_text
from . import html_page
from .palette import heat, palette
from .prediction import RELIABILITY_COLORS, RELIABLE, UNRELIABLE, Maps

SIDE = 360  # longest side of a picture, in pixels
PANELS = ("overlay", "entropy", "reliability")
MAX_BYTES = 64 * 2**20
_QUALITY = 80
_SHARES_NAMED = 6

_STYLE = """
body { max-width: none; margin: 1rem auto; padding: 0 1.5rem }
.legend { position: sticky; top: 0; background: #fffe; padding: .4rem 0; border-bottom: 1px solid #ddd;
          font-size: .85rem; max-height: 30vh; overflow: auto }
.legend div { margin: .2rem 0 } .chip { display: inline-block; margin-right: .9rem; white-space: nowrap }
.chip i, .scale { display: inline-block; height: .8rem; border: 1px solid #0004; vertical-align: -.1rem }
.chip i { width: .8rem; margin-right: .3rem } .scale { width: 10rem; margin: 0 .4rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem;
         margin: 1rem 0 }
article { border: 1px solid #ddd; border-radius: 6px; padding: .7rem; min-width: 0; break-inside: avoid }
article h2 { font-size: .95rem; margin: 0 0 .4rem; border: 0; overflow-wrap: anywhere }
.panels { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
figure { margin: 0 } figure img { width: 100%; display: block; background: #eee }
.bar { display: flex; height: .8rem; border: 1px solid #0004; margin: .5rem 0 .3rem } .shares { font-size: .85rem }
.order { font-size: .85rem }
"""
_SCRIPT = """
document.querySelector('select').onchange = event => {
  const key = event.target.value, cards = document.querySelector('.cards');
  const order = (a, b) => key === 'index' ? a.dataset.index - b.dataset.index : b.dataset[key] - a.dataset[key];
  cards.append(...[...cards.children].sort(order));
};
"""


class Gallery:
    """Collect predictions and write the page.

    Args:
        class_names: names of the C classes.
        total: number of images that will be predicted.
        limit: largest number of images shown.
        alpha, gamma: settings of the maps, for the legend.
        about: rows of the summary, as plain text.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        total: int,
        limit: int,
        alpha: float,
        gamma: float | None,
        about: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.names = list(class_names)
        self.colors = ["#" + bytes(color.tolist()).hex() for color in palette(len(self.names))]
        self.total, self.alpha, self.gamma, self.about = total, alpha, gamma, list(about)
        self.chosen = set(evenly(range(total), limit))
        self.done = 0
        self.areas = np.zeros(len(self.names), np.int64)
        self.cards: list[str] = []
        self.bytes = 0

    def add(self, index: int, name: str, pixels: np.ndarray, maps: Maps, pictures: dict[str, Image.Image]) -> None:
        """Count image ``index`` of ``total``, and show it if it is selected and the page has room.

        Args:
            name: what the card is called.
            pixels: the image, uint8 (H, W, 3).
            pictures: among others, those of ``PANELS``.
        """
        self.done += 1
        self.areas += maps.areas
        if index not in self.chosen or self.bytes >= MAX_BYTES:
            return
        panels = {"photo": Image.fromarray(pixels)} | {kind: pictures[kind] for kind in PANELS}
        figures = "".join(html_page.figure(_jpeg(picture), "jpeg", caption) for caption, picture in panels.items())
        uncertainty = float(maps.uncertainty.mean())
        facts = f"mean entropy {uncertainty:.3f} · γ {maps.gamma:.3f} nats · unreliable {maps.unreliable_share:.1%}"
        card = (
            f'<article data-index="{index}" data-entropy="{uncertainty:.6f}" '
            f'data-unreliable="{maps.unreliable_share:.6f}"><h2>{html.escape(name)}</h2>'
            f'<div class="panels">{figures}</div>{self._shares(maps.areas)}<div class="shares">{facts}</div></article>'
        )
        self.cards.append(card)
        self.bytes += len(card)

    def page(self) -> str:
        """Return the whole page."""
        rows = [("images", self._images()), *self.about]
        shares = self._shares(self.areas, len(self.names))
        body = (
            f"{html_page.table(rows)}<h2>Shares of the classes, all images</h2>{shares}{self._legend()}"
            f'<p class="order"><label>Order <select><option value="index">as given</option>'
            '<option value="entropy">most uncertain first</option>'
            '<option value="unreliable">most unreliable pixels first</option></select></label></p>'
            f'<div class="cards">{"".join(self.cards)}</div><script>{_SCRIPT}</script>'
        )
        return html_page.document("Predictions", body, _STYLE)

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        write_text(path, self.page())

    def _images(self) -> str:
        shown, text = len(self.cards), f"{self.done:,}"
        if self.done < self.total:
            text += f" of {self.total:,}; the others could not be read, or the command was stopped"
        if shown < self.done:
            reason = f"the page reached {MAX_BYTES >> 20} MiB" if self.bytes >= MAX_BYTES else "spread evenly over all"
            text += f"; {shown:,} are shown ({reason}); the results of all are in the folder of this page"
        return text

    def _legend(self) -> str:
        present = [index for index in np.argsort(-self.areas, kind="stable") if self.areas[index]]
        classes = "".join(_chip(self.colors[index], self.names[index]) for index in present)
        stops = ", ".join("#" + bytes(color.tolist()).hex() for color in heat(np.linspace(0, 1, 12)))
        scale = f'<span class="scale" style="background: linear-gradient(to right, {stops})"></span>'
        if self.gamma is None:
            meaning = f"the {self.alpha:.0%} of each image's pixels with the highest entropy"
        else:
            meaning = f"entropy above γ = {self.gamma:g} nats"
        colors = ["#" + bytes(color.tolist()).hex() for color in RELIABILITY_COLORS]
        return (
            f'<div class="legend"><div>{classes}</div><div>entropy ÷ log C: 0 {scale} 1 &emsp; '
            f"{_chip(colors[RELIABLE], 'reliable')}{_chip(colors[UNRELIABLE], f'unreliable: {meaning}')}</div></div>"
        )

    def _shares(self, areas: np.ndarray, named: int = _SHARES_NAMED) -> str:
        """Return a bar of the shares of the classes, largest first, and the names of the first ``named``."""
        total = max(1, int(areas.sum()))
        present = [(index, areas[index] / total) for index in np.argsort(-areas, kind="stable") if areas[index]]
        bar = "".join(
            f'<span style="width:{share:.2%};background:{self.colors[index]}" '
            f'title="{html.escape(self.names[index])} {share:.1%}"></span>'
            for index, share in present
        )
        text = ", ".join(f"{html.escape(self.names[index])} {share:.1%}" for index, share in present[:named])
        more = f", {len(present) - named} more" if len(present) > named else ""
        return f'<div class="bar">{bar}</div><div class="shares">{text}{more}</div>'


def _chip(color: str, text: str) -> str:
    return f'<span class="chip"><i style="background:{color}"></i>{html.escape(text)}</span>'


def _jpeg(picture: Image.Image) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "jpeg", quality=_QUALITY)
    return data.getvalue()
