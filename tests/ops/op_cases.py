"""Make inputs, and define tolerances and comparisons, for the tests of the per-pixel ops."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Largest ‖actual − expected‖ / ‖expected‖. Every backend converts its input to fp32 exactly, so the error of a value
# does not depend on the input's dtype. A gradient is rounded to that dtype once.
TOLERANCE = {
    "value": 1e-5,
    "gradient": {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
}
TIE = 1e-5  # logits or probabilities closer than this may be in either order


@dataclass(frozen=True)
class Case:
    """Describe logits (batch, classes, *grid) upsampled to ``size``."""

    classes: int
    grid: tuple[int, int]
    size: tuple[int, int]
    align_corners: bool
    batch: int = 2

    def __str__(self) -> str:
        corners = "aligned" if self.align_corners else "half"
        shape = "-".join(f"{a}x{b}" for a, b in (self.grid, self.size))
        return f"b{self.batch}c{self.classes}-{shape}-{corners}"


BASE = Case(3, (5, 7), (17, 25), True)
HALF = Case(5, (5, 7), (20, 28), False)
CASES = [
    BASE,
    HALF,
    Case(1, (3, 4), (12, 16), False),
    Case(2, (3, 4), (9, 13), True),
    Case(21, (5, 3), (19, 10), False),
    Case(150, (2, 3), (8, 12), False, batch=1),
    Case(300, (2, 3), (5, 9), True, batch=1),
    Case(3, (1, 1), (9, 5), False),
    Case(3, (1, 1), (9, 5), True),
    Case(3, (5, 3), (1, 1), False),
    Case(3, (5, 3), (1, 1), True),
    Case(4, (9, 8), (4, 5), False),
    Case(4, (9, 8), (4, 5), True),
    Case(4, (6, 5), (6, 5), False),
    Case(4, (6, 5), (6, 5), True),
    Case(2, (3, 2), (23, 17), False),
    Case(2, (3, 2), (23, 17), True),
    Case(2, (9, 19), (34, 73), True, batch=3),
]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
HALVES = [torch.bfloat16, torch.float16]


def between_sure_corners(height: float, device: torch.device) -> Tensor:
    """Return logits whose neighbors are sure of different classes, so that all classes are very low midway."""
    logits = make_logits(BASE, device)
    rows, columns = (torch.arange(n, device=device) for n in BASE.grid)
    sure = (rows[:, None] + columns) % BASE.classes
    classes = torch.arange(BASE.classes, device=device)[:, None, None]
    return logits + torch.where(classes == sure, height, -height)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_logits(
    case: Case, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, layout: str = "nchw"
) -> Tensor:
    logits = 3 * torch.randn(case.batch, case.classes, *case.grid, generator=generator())
    return logits.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])


def make_target(case: Case, device: torch.device | str = "cpu", ignored: float = 0.2) -> Tensor:
    g = generator(1)
    target = torch.randint(case.classes, (case.batch, *case.size), generator=g)
    ignore = torch.rand(target.shape, generator=g) < ignored
    return torch.where(ignore, ignore_index(case), target).to(device)


def ignore_index(case: Case) -> int:
    return 255 if case.classes <= 255 else -1


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "value") -> None:
    """Check the relative error of the norm; on failure print the elements that differ most."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = (actual - expected).abs()
    relative = error.norm() / expected.norm().clamp(min=1e-6)
    if not relative <= tolerance:
        worst = error.flatten().nan_to_num(torch.inf).topk(min(5, error.numel())).indices.tolist()
        lines = [
            f"  {tuple(int(j) for j in torch.unravel_index(torch.tensor(i), error.shape))}: "
            f"{actual.flatten()[i]:.9g}, expected {expected.flatten()[i]:.9g}"
            for i in worst
        ]
        raise AssertionError("\n".join([f"{what}: relative error {relative:.3g} > {tolerance:g}; the worst:", *lines]))
