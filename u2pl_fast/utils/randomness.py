"""Every random number is a function of (seed, what it is for): no state to save, nothing depends on worker counts."""

import hashlib

import torch


def stream(seed: int, *key: int | str) -> int:
    """A stable 63-bit number for ``(seed, *key)``, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with ``stream(seed, *key)``. Seeding a CUDA generator does not wait for the device."""
    return torch.Generator(device=device).manual_seed(stream(seed, *key))
