"""Count the bytes that processes exchange in one step, from shapes."""

HISTOGRAMS = 3 * 2 * 2048 * 4  # bytes of the three rounds of a quantile search


def step_traffic(
    world: int,
    *,
    parameters: int,
    buffers: int,
    num_classes: int,
    dim: int | None,
    shared_keys: int = 0,
    key_bytes: int = 4,
    accumulate: int = 1,
) -> dict[str, float]:
    """Return the bytes that each of ``world`` processes receives in a step, by purpose.

    A sum over processes counts as a ring all-reduce, 2 (W − 1)/W of its size; a gather brings W − 1 parts.

    Args:
        world: W, number of processes.
        parameters: trained numbers, float32.
        buffers: numbers in floating-point buffers, which the first process broadcasts, float32.
        num_classes: C.
        dim: D; None = no contrastive loss.
        shared_keys: keys per class and process that a bank of scope ``gather`` collects.
        key_bytes: bytes per number of a key.
        accumulate: steps per update.
    """
    ring = 2 * (world - 1) / world
    parts = {
        "gradients": ring * 4 * parameters / accumulate,
        "batch norm statistics": (world > 1) * 4 * buffers / accumulate,
        "entropy histograms": ring * HISTOGRAMS,
    }
    if dim is not None:
        parts["class centers"] = ring * num_classes * (4 * dim + 8)
    if shared_keys:
        parts["shared bank"] = (world - 1) * num_classes * (shared_keys * dim * key_bytes + 8)
    return parts
