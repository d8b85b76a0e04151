"""Compute the method of U2PL (CVPR 2022) with loops over pixels, classes and keys, in plain Python and NumPy float64.

This code is independent of ``u2pl_fast.reference``. It uses no tensor operation in place of a sum, so that a mistake of
broadcasting, ordering or masking cannot occur in both. It is slow: use tens of pixels, not thousands. Arguments and
results are arrays, with the shapes of the functions that it checks.
"""

import math
from collections import deque

import numpy as np

EPSILON = 1e-12  # lower bound of the norm in a division


def relative_error(actual: object, expected: object) -> float:
    """Return the norm of the difference over that of the expected values, or over 1 if those are all zero."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return float(np.linalg.norm(actual - expected) / (np.linalg.norm(expected) or 1.0))


# --- bilinear resampling -------------------------------------------------------------------------------------------


def source_taps(out: int, size: int, align_corners: bool) -> list[tuple[int, int, float]]:
    """Return, for each of ``out`` outputs, the two of ``size`` inputs to blend and the weight of the second."""
    taps = []
    for i in range(out):
        if align_corners:
            position = i * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            position = max(0.0, (i + 0.5) * size / out - 0.5)
        low = min(int(math.floor(position)), size - 1)
        taps.append((low, min(low + 1, size - 1), position - low))
    return taps


def upsample(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    batch, channels, h, w = x.shape
    out = np.zeros((batch, channels, *size))
    rows, columns = source_taps(size[0], h, align_corners), source_taps(size[1], w, align_corners)
    for b in range(batch):
        for c in range(channels):
            for i, (top, bottom, dy) in enumerate(rows):
                for j, (left, right, dx) in enumerate(columns):
                    upper = (1 - dx) * float(x[b, c, top, left]) + dx * float(x[b, c, top, right])
                    lower = (1 - dx) * float(x[b, c, bottom, left]) + dx * float(x[b, c, bottom, right])
                    out[b, c, i, j] = (1 - dy) * upper + dy * lower
    return out


def upsample_adjoint(grad: np.ndarray, grid: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Apply the transpose of ``upsample``: map a gradient at full size back to the grid."""
    batch, channels, height, width = grad.shape
    out = np.zeros((batch, channels, *grid))
    rows, columns = source_taps(height, grid[0], align_corners), source_taps(width, grid[1], align_corners)
    for b in range(batch):
        for c in range(channels):
            for i, (top, bottom, dy) in enumerate(rows):
                for j, (left, right, dx) in enumerate(columns):
                    g = grad[b, c, i, j]
                    out[b, c, top, left] += (1 - dy) * (1 - dx) * g
                    out[b, c, top, right] += (1 - dy) * dx * g
                    out[b, c, bottom, left] += dy * (1 - dx) * g
                    out[b, c, bottom, right] += dy * dx * g
    return out


# --- one pixel -----------------------------------------------------------------------------------------------------


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    terms = [math.exp(value - top) for value in logits]
    return [term / math.fsum(terms) for term in terms]


def negative_log_probability(logits: list[float]) -> list[float]:
    top = max(logits)
    log_sum = top + math.log(math.fsum(math.exp(value - top) for value in logits))
    return [log_sum - value for value in logits]


def entropy(logits: list[float]) -> float:
    """Return -sum p log p in nats, with 0 log 0 = 0."""
    return math.fsum(-p * math.log(p) for p in softmax(logits) if p > 0)


def first_argmax(logits: list[float]) -> int:
    best = 0
    for c, value in enumerate(logits):
        if value > logits[best]:
            best = c
    return best


def ranks(logits: list[float]) -> list[int]:
    """Return the number of classes before each class: those with a larger logit, and equal ones of a lower number."""
    return [
        sum(1 for j, other in enumerate(logits) if other > value or (other == value and j < c))
        for c, value in enumerate(logits)
    ]


def class_rank(logits: np.ndarray) -> np.ndarray:
    out = np.zeros(logits.shape, dtype=np.int64)
    for b, i, j in np.ndindex(logits.shape[0], *logits.shape[2:]):
        out[b, :, i, j] = ranks(logits[b, :, i, j].tolist())
    return out


def pixel_stats(
    logits: np.ndarray, size: tuple[int, int], align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    full = upsample(logits, size, align_corners)
    shape = (full.shape[0], *size)
    label, confidence, nats = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    for b, i, j in np.ndindex(*shape):
        pixel = full[b, :, i, j].tolist()
        label[b, i, j] = first_argmax(pixel)
        confidence[b, i, j] = max(softmax(pixel))
        nats[b, i, j] = entropy(pixel)
    return label, confidence, nats


# --- cross-entropy -------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: np.ndarray,
    target: np.ndarray,
    align_corners: bool,
    weight: np.ndarray | None = None,
    pixel_weight: np.ndarray | None = None,
    ignore_index: int = 255,
    smoothing: float = 0.0,
) -> tuple[float, float, np.ndarray]:
    """Return (numerator, denominator, gradient of the numerator with respect to the low-resolution logits)."""
    full = upsample(logits, target.shape[1:], align_corners)
    classes = full.shape[1]
    grad = np.zeros(full.shape)
    numerator, denominator = [], []
    for b, i, j in np.ndindex(*target.shape):
        y = int(target[b, i, j])
        if y == ignore_index:
            continue
        w = [1.0] * classes if weight is None else [float(value) for value in weight]
        pw = 1.0 if pixel_weight is None else float(pixel_weight[b, i, j])
        pixel = full[b, :, i, j].tolist()
        losses, probabilities = negative_log_probability(pixel), softmax(pixel)
        # Share of each class in the target, times the weight of that class (torch's definition of label smoothing).
        wanted = [w[c] * (smoothing / classes + (1.0 - smoothing if c == y else 0.0)) for c in range(classes)]
        numerator.append(pw * math.fsum(t * loss for t, loss in zip(wanted, losses, strict=True)))
        denominator.append(pw * w[y])
        for c in range(classes):
            grad[b, c, i, j] = pw * (math.fsum(wanted) * probabilities[c] - wanted[c])
    return (
        math.fsum(numerator),
        math.fsum(denominator),
        upsample_adjoint(grad, logits.shape[2:], align_corners),
    )


def ohem_mask(
    logits: np.ndarray, target: np.ndarray, threshold: float, min_kept: int, ignore_index: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (keep, probability of the target (nan if ignored), cut): at least ``min_kept`` hard pixels."""
    full = upsample(logits, target.shape[1:], align_corners)
    probability = np.full(target.shape, np.nan)
    for b, i, j in np.ndindex(*target.shape):
        if target[b, i, j] != ignore_index:
            probability[b, i, j] = softmax(full[b, :, i, j].tolist())[int(target[b, i, j])]
    kept = sorted(float(p) for p in probability.ravel() if not math.isnan(p))
    cut = threshold
    if kept and min_kept > 0:
        cut = max(cut, kept[min(min_kept, len(kept)) - 1])
    keep = np.zeros(target.shape, dtype=bool)
    for position in np.ndindex(*target.shape):
        keep[position] = not math.isnan(probability[position]) and probability[position] <= cut
    return keep, probability, cut


# --- partition -----------------------------------------------------------------------------------------------------


def masked_quantile(x: np.ndarray, mask: np.ndarray, q: float) -> float:
    chosen = [float(value) for value, taken in zip(x.ravel(), mask.ravel(), strict=True) if taken]
    return float(np.quantile(np.array(chosen, dtype=np.float64), q, method="linear")) if chosen else math.nan


def unreliable_share(alpha_0: float, epoch: float, epochs: float) -> float:
    return alpha_0 * (1.0 - epoch / epochs)


def partition(entropies: np.ndarray, valid: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    reliable, unreliable = np.zeros(valid.shape, dtype=bool), np.zeros(valid.shape, dtype=bool)
    for position in np.ndindex(*valid.shape):
        if valid[position] and float(entropies[position]) < gamma:
            reliable[position] = True
        elif valid[position] and float(entropies[position]) > gamma:
            unreliable[position] = True
    return reliable, unreliable


def unsupervised_weight(eta: float, num_valid: int, num_reliable: int, cap: float | None = None) -> float:
    if num_reliable == 0:
        return 0.0
    value = eta * num_valid / num_reliable
    return value if cap is None else min(value, cap)


# --- the grid ------------------------------------------------------------------------------------------------------


def grid_row(i: int, out: int, size: int, align_corners: bool) -> int:
    """Return the full row, of ``size``, that grid row ``i`` of ``out`` reads, in exact integers."""
    if align_corners:
        return 0 if out == 1 else (2 * i * (size - 1) + out - 1) // (2 * (out - 1))
    return min(size - 1, ((2 * i + 1) * size) // (2 * out))


def sample_to_grid(x: np.ndarray, grid: tuple[int, int], align_corners: bool) -> np.ndarray:
    out = np.zeros((x.shape[0], *grid), dtype=x.dtype)
    for b, i, j in np.ndindex(*out.shape):
        row = grid_row(i, grid[0], x.shape[1], align_corners)
        out[b, i, j] = x[b, row, grid_row(j, grid[1], x.shape[2], align_corners)]
    return out


# --- anchors and negatives -----------------------------------------------------------------------------------------


def contrast_sets(
    logits: np.ndarray,
    label: np.ndarray,
    reliable: np.ndarray,
    unreliable: np.ndarray,
    num_labeled: int,
    low_rank: int,
    high_rank: int,
    positive_threshold: float,
    ignore_index: int = 255,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return (negatives, anchors): the pixels of each class in bank order, as positions b*h*w + i*w + j."""
    batch, classes, h, w = logits.shape
    negatives: list[list[int]] = [[] for _ in range(classes)]
    anchors: list[list[int]] = [[] for _ in range(classes)]
    position = 0
    for b in range(batch):
        for i in range(h):
            for j in range(w):
                pixel = logits[b, :, i, j].tolist()
                order, probability, y = ranks(pixel), softmax(pixel), int(label[b, i, j])
                for c in range(classes):
                    if b < num_labeled:
                        anchor = y == c
                        negative = y != ignore_index and y != c and order[c] < low_rank
                    else:
                        anchor = y == c and bool(reliable[b, i, j])
                        negative = bool(unreliable[b, i, j]) and low_rank <= order[c] < high_rank
                    if anchor and probability[c] > positive_threshold:
                        anchors[c].append(position)
                    if negative:
                        negatives[c].append(position)
                position += 1
    return negatives, anchors


def words(sets: list[list[int]], pixels: int) -> np.ndarray:
    """Pack sets of pixels into bits: class c is bit c % 32 of word c // 32, a signed 32-bit number."""
    unsigned = [[0] * ((len(sets) + 31) // 32) for _ in range(pixels)]
    for c, members in enumerate(sets):
        for pixel in members:
            unsigned[pixel][c // 32] += 1 << (c % 32)
    signed = [[word - (1 << 32) if word >= 1 << 31 else word for word in row] for row in unsigned]
    return np.array(signed, dtype=np.int32).reshape(pixels, (len(sets) + 31) // 32)


def sets_of_words(mask: np.ndarray, classes: int) -> list[list[int]]:
    """Invert ``words``."""
    out: list[list[int]] = [[] for _ in range(classes)]
    for pixel in range(mask.shape[0]):
        for c in range(classes):
            if (int(mask[pixel, c // 32]) % (1 << 32)) >> (c % 32) & 1:
                out[c].append(pixel)
    return out


def anchor_map(anchors: list[list[int]], pixels: int) -> np.ndarray:
    out = [-1] * pixels
    for c, members in enumerate(anchors):
        for pixel in members:
            assert out[pixel] == -1, "a pixel is an anchor of one class at most"
            out[pixel] = c
    return np.array(out, dtype=np.int64)


def thin(members: list[int], max_keys: int, draw: int) -> list[int]:
    """Thin evenly: return min(max_keys, n) of n members in order, from a random offset."""
    n = len(members)
    k = n if max_keys == 0 else min(max_keys, n)
    offset = (draw * n) >> 32
    return [member for r, member in enumerate(members) if ((r + 1) * k + offset) // n > (r * k + offset) // n]


def class_sample(anchor_label: np.ndarray, classes: int, draws: np.ndarray) -> np.ndarray:
    out = np.full(draws.shape, -1, dtype=np.int64)
    for c in range(classes):
        members = [pixel for pixel, y in enumerate(anchor_label.tolist()) if y == c]
        for m in range(draws.shape[1]):
            if members:
                out[c, m] = members[(int(draws[c, m]) * len(members)) >> 32]
    return out


# --- representations -----------------------------------------------------------------------------------------------


def pixel_vectors(features: np.ndarray) -> list[np.ndarray]:
    """Return every pixel's vector in bank order, from rows (R, D) or maps (B, D, h, w)."""
    if features.ndim == 2:
        return [features[r].astype(np.float64) for r in range(features.shape[0])]
    return [features[b, :, i, j].astype(np.float64) for b, i, j in np.ndindex(features.shape[0], *features.shape[2:])]


def class_sum(features: np.ndarray, anchor_label: np.ndarray, classes: int) -> np.ndarray:
    vectors = pixel_vectors(features)
    out = np.zeros((classes, features.shape[1]))
    for vector, y in zip(vectors, anchor_label.tolist(), strict=True):
        if y >= 0:
            out[y] += vector
    return out


def gather_pixels(features: np.ndarray, index: np.ndarray) -> np.ndarray:
    vectors = pixel_vectors(features)
    out = np.zeros((*index.shape, features.shape[1]))
    for position in np.ndindex(*index.shape):
        if index[position] >= 0:
            out[position] = vectors[int(index[position])]
    return out


def normalize(vector: np.ndarray) -> np.ndarray:
    vector = vector.astype(np.float64)
    return vector / max(math.sqrt(math.fsum(float(x) ** 2 for x in vector)), EPSILON)


class Rings:
    """Keep one queue per class: its keys (a deque, oldest first) and the position of each key (a table)."""

    def __init__(self, capacities: list[int]):
        self.capacities = list(capacities)
        self.queues = [deque(maxlen=k) for k in capacities]
        self.pushed = [0] * len(capacities)
        self.slots: list[dict[int, np.ndarray]] = [{} for _ in capacities]

    def push(self, features: np.ndarray, sets: list[list[int]]) -> None:
        vectors = pixel_vectors(features)
        for c, members in enumerate(sets):
            for pixel in members:
                key = normalize(vectors[pixel])
                self.queues[c].append(key)
                self.slots[c][self.pushed[c] % self.capacities[c]] = key
                self.pushed[c] += 1

    def fill(self, c: int) -> int:
        return len(self.queues[c])

    def table(self, dim: int, empty: float = 0.0) -> np.ndarray:
        """Return the rings one after another, with unwritten slots filled with ``empty``."""
        rows = [
            self.slots[c].get(slot, np.full(dim, empty))
            for c, capacity in enumerate(self.capacities)
            for slot in range(capacity)
        ]
        return np.stack(rows)


# --- loss ----------------------------------------------------------------------------------------------------------


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(normalize(a), normalize(b), strict=True))


def info_nce(
    anchors: np.ndarray,
    weight: np.ndarray,
    positives: np.ndarray,
    bank: np.ndarray,
    offsets: np.ndarray,
    pushed: np.ndarray,
    indices: np.ndarray | None,
    negatives: str,
    temperature: float,
) -> float:
    """Return the sum over classes of weight_c times the mean of -log softmax of the positive (U2PL, Eq. 4)."""
    total = 0.0
    for c in range(anchors.shape[0]):
        if weight[c] == 0:
            continue
        capacity = int(offsets[c + 1] - offsets[c])
        losses = []
        for m in range(anchors.shape[1]):
            if negatives == "full":
                slots = range(min(int(pushed[c]), capacity))
            elif negatives == "shared":
                slots = indices[c].tolist()
            else:
                slots = indices[c, m].tolist()
            positive = cosine(anchors[c, m], positives[c]) / temperature
            scores = [positive] + [cosine(anchors[c, m], bank[offsets[c] + s]) / temperature for s in slots]
            losses.append(negative_log_probability(scores)[0])
        total += float(weight[c]) * math.fsum(losses) / len(losses)
    return total


# --- teacher -------------------------------------------------------------------------------------------------------


def ema_momentum(updates: int, momentum: float) -> float:
    return min(1.0 - 1.0 / (updates + 1), momentum)


def ema(teacher: np.ndarray, student: np.ndarray, momentum: float) -> np.ndarray:
    out = np.array(teacher, dtype=np.float64)
    for position in np.ndindex(*out.shape):
        out[position] = momentum * float(teacher[position]) + (1.0 - momentum) * float(student[position])
    return out


# --- validation ----------------------------------------------------------------------------------------------------


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ignore_index: int) -> float:
    """Sum intersections and unions over all images, then return the mean over the classes that occur."""
    scores = []
    for c in range(classes):
        both = either = 0
        for prediction, label in pairs:
            for p, y in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
                if y != ignore_index:
                    both += p == c and y == c
                    either += p == c or y == c
        if either:
            scores.append(both / either)
    return math.fsum(scores) / len(scores) if scores else math.nan
