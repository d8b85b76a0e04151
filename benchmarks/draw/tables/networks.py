"""Write the table of architectures and encoders."""

import json
from pathlib import Path

from .markdown import markdown
from .records import number


def networks(folder: Path) -> str:
    """Return architectures by encoders: strides and sizes of each pair, or that it cannot be built."""
    path = folder / "networks.json"
    if not path.exists():
        return "Not measured yet: `python -m benchmarks.measure.networks`\n"
    rows = json.loads(path.read_text())
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    table = []
    for arch in dict.fromkeys(row["arch"] for row in rows):
        own = {row["encoder"]: row for row in rows if row["arch"] == arch}
        built = [row for row in own.values() if "error" not in row]
        cells = [f"`{arch}`", *("—" if "error" in own[encoder] else "✓" for encoder in encoders)]
        for name in ("logits_stride", "features_stride", "multiple"):
            cells.append(" / ".join(dict.fromkeys(f"{row[name]:g}" for row in built)))
        millions = [row["decoder_parameters"] / 1e6 for row in built]
        cells.append(f"{number(min(millions))} – {number(max(millions))}")
        table.append(cells)
    header = ["`--arch`", *(f"`{encoder}`" for encoder in encoders)]
    return markdown([*header, "stride of logits", "of features", "sizes: multiples of", "decoder, M parameters"], table)


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    networks: "benchmarks/results/networks.json",
}
