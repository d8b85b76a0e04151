"""Wrap the collectives that the method needs; without a process group each one is the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

Group = dist.ProcessGroup | None


def world_size(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def rank(group: Group) -> int:
    return 0 if group is None else dist.get_rank(group)


def all_sum(x: Tensor, group: Group) -> Tensor:
    """Return the sum over processes as a new tensor without a gradient."""
    if group is None:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def all_true(x: Tensor, group: Group) -> Tensor:
    """Return whether a 0-d bool is true in every process."""
    if group is None:
        return x
    flag = x.to(torch.int32)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
    return flag.bool()


def all_stack(x: Tensor, group: Group) -> Tensor:
    """Return the tensors of all processes, (world, *x.shape), in rank order; shapes must be equal."""
    if group is None:
        return x[None]
    parts = x.new_empty(world_size(group), *x.shape)
    dist.all_gather_into_tensor(parts.view(-1), x.contiguous().view(-1), group=group)
    return parts


@torch.no_grad()
def broadcast_buffers(module: nn.Module, group: Group) -> None:
    """Copy the first process's floating-point buffers to all others, in one message per dtype."""
    if group is None:
        return
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        buffers = [buffer for buffer in module.buffers() if buffer.dtype == dtype]
        if not buffers:
            continue
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, src=0, group=group)
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device with a name; ``auto`` is a GPU if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is not a torch device; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: torch finds no GPU for {device}; use cpu or auto")
    return chosen


@contextmanager
def session(device: str) -> Iterator[tuple[torch.device, Group]]:
    """Yield (device, group) of this process; the group is None unless torchrun started the process.

    With several processes, ``auto`` and ``cuda`` mean the GPU of the local rank.
    """
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield chosen, None
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen, dist.group.WORLD
    finally:
        dist.destroy_process_group()
