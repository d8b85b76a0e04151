"""Build HTML pages that refer to no other file."""

import base64
import html
from collections.abc import Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
figcaption { font-size: .85rem; color: #555 } code { background: #f4f4f4 }
"""


def document(title: str, body: str, style: str = "") -> str:
    """Return a page with ``title`` above ``body`` (HTML); ``style`` adds to the common rules and overrides them."""
    name = html.escape(title)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}{style}</style>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body><h1>{name}</h1>{body}</body></html>\n"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values, both plain text."""
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def figure(data: bytes, kind: str, caption: str) -> str:
    """Return an embedded image (``kind``: png, jpeg) with a caption in plain text."""
    text, encoded = html.escape(caption), base64.b64encode(data).decode()
    image = f'<img src="data:image/{kind};base64,{encoded}" alt="{text}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
