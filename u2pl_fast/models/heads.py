"""Build the heads beside the classifier: the representation head and the auxiliary classifier."""

from torch import nn

PROJECTIONS = ("pointwise", "conv")


def projection(kind: str | None, width: int, hidden: int, dim: int) -> nn.Module | None:
    """Return the representation head: a pointwise one takes rows of ``width`` features, a convolutional one maps."""
    if kind is None:
        return None
    if kind == "pointwise":
        return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, dim))
    if kind == "conv":
        blocks = (_conv_block(width, hidden), _conv_block(hidden, hidden))
        return nn.Sequential(*blocks, nn.Conv2d(hidden, dim, 1))
    raise ValueError(f"projection: expected one of {', '.join(PROJECTIONS)} or None, got {kind!r}")


def auxiliary(width: int, num_classes: int) -> nn.Sequential:
    """Return a small classifier on maps of ``width`` channels."""
    return nn.Sequential(_conv_block(width, max(width // 4, 16)), nn.Conv2d(max(width // 4, 16), num_classes, 1))


def _conv_block(width: int, hidden: int) -> nn.Sequential:
    conv = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Dropout2d(0.1))
