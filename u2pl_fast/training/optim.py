"""Build the optimizer, set the learning rate, and skip updates by a flag on the device."""

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..ops import _backend
from ..ops._packing import Packing, by_dtype


def build_optimizer(student: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build SGD or AdamW in torch's fused form, with separate learning rates for the encoder and the rest.

    Biases and normalization parameters have no weight decay.
    """
    heads = {id(p) for p in student.head_parameters}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in student.parameters():
        rate = config.lr if id(parameter) in heads else config.encoder_lr
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": members, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(settings, lr=config.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, power: float) -> float:
    """Set the poly schedule lr = base · (1 − step/steps)^power, and return the factor.

    It depends on the step number alone, so skipped updates count.
    """
    factor = (1 - step / steps) ** power
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm over all gradients, on the device; it is not finite if any element is not."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def gated_step(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Update if ``ok`` (0-d bool on the device) is true, without a host synchronization.

    Fused optimizers skip a step where ``found_inf`` is 1, the flag of gradient scaling. SGD's first step would leave
    its uninitialized momentum in place if it were skipped, so the momentum is set to zero first.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
    optimizer.grad_scale = None
    optimizer.found_inf = (~ok).float()
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


class BufferGuard:
    """Save a module's buffers, and restore them if a flag on the device says so.

    On a GPU this takes a few launches for any number of buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = list(module.buffers())
        self._packing = Packing(self._live)
        self._saved: Tensor | None = None

    @torch.no_grad()
    def save(self) -> None:
        if self._live:
            self._saved = self._packing.pack(self._live)

    @torch.no_grad()
    def restore_unless(self, ok: Tensor) -> None:
        if not self._live or (_backend.readable(ok) and ok):
            return
        chosen = torch.where(ok, self._packing.pack(self._live), self._saved)
        for live, kept in by_dtype(self._live, self._packing.unpack(chosen)):
            torch._foreach_copy_(live, kept)
