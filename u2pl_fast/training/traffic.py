"""What one step sends between processes, counted from shapes."""

HISTOGRAMS = 3 * 2 * 2048 * 4  # bytes of the three rounds in which a quantile is narrowed down


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
    """Bytes that each of ``world`` processes receives in a step, by purpose.

    A sum over processes counts as a ring does it, 2 (W − 1)/W of its size; a gather brings W − 1 parts.

    Args:
        parameters, buffers: trained numbers, and floating-point buffers that follow the first process; fp32.
            ``accumulate``: steps that share one update.
        num_classes, dim: C and D; ``dim`` None leaves the contrastive loss out.
        shared_keys: keys a class and process that a bank in scope ``gather`` collects, of ``key_bytes`` a number.
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
