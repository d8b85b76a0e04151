"""Train: the loop and its parts."""
