"""Name the checkpoints in a run's folder."""

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
