"""Test the choice of backend by device, ``ops.info``, and the warning of a fallback."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from u2pl_fast import ops
from u2pl_fast.ops import _backend

SOURCES = sorted(Path(ops.__file__).parent.glob("*.py"))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Replace the machine's triton and extension, as the test sets them."""
    has = {"triton": False}
    extension = SimpleNamespace()
    monkeypatch.setattr(_backend, "has_triton", lambda: has["triton"])
    monkeypatch.setattr(_backend, "_has_kernel", lambda op: has["triton"])
    monkeypatch.setattr(_backend, "extension", lambda: extension if has.get("extension", True) else None)
    has["functions"] = extension.__dict__
    _backend._warn_of_fallback.cache_clear()
    yield has
    _backend._warn_of_fallback.cache_clear()


def on(device: str, dtype: torch.dtype = torch.float32, elements: int = 1) -> SimpleNamespace:
    """Return an object with a tensor's attributes, since the device may be missing here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype, numel=lambda: elements)


def warned(op: str, tensor: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert _backend.resolve(op, tensor) == "reference"
    return [str(w.message) for w in caught]


def test_every_op_with_backends_is_listed() -> None:
    found = {op for file in SOURCES for op in re.findall(r"_backend\.resolve\(\"(\w+)\"", file.read_text())}
    assert found == set(_backend.names()) and "ring_push" in found


def test_info_of_the_cpu() -> None:
    expected = "reference" if _backend.extension() is None else "cpu"
    assert ops.info("cpu") == dict.fromkeys(_backend.names(), expected)
    with ops.use_backend("reference"):
        assert set(ops.info("cpu").values()) == {"reference"}


def test_info_of_the_default_device(monkeypatch: pytest.MonkeyPatch, installed: dict) -> None:
    installed["triton"] = True
    for present, expected in ((True, "triton"), (False, "reference")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert ops.info()["thin_mask"] == expected


def test_info_of_a_gpu(installed: dict) -> None:
    assert set(ops.info("cuda").values()) == {"reference"}
    installed["triton"] = True
    assert set(ops.info("cuda:1").values()) == {"triton"}
    installed["functions"]["ring_push_cuda"] = None
    assert {op for op, backend in ops.info("cuda").items() if backend == "cuda"} == {"ring_push"}


def test_info_raises_like_an_op(installed: dict) -> None:
    installed["functions"]["thin_mask"] = None
    with ops.use_backend("cpu"), pytest.raises(ValueError, match="backend 'cpu' takes CPU tensors"):
        ops.info("cuda")


@pytest.mark.parametrize(("device", "remedy"), [("cuda", "pip install triton"), ("cpu", _backend.BUILD_HINT)])
def test_a_fallback_warns_once_for_each_op(device: str, remedy: str, installed: dict) -> None:
    for op in ("ring_push", "thin_mask"):
        (message,) = warned(op, on(device))
        assert message.startswith(f"{op}: ") and remedy in message
        assert not warned(op, on(device))


@pytest.mark.parametrize(
    "tensor", [on("cuda", torch.float64), on("cuda", elements=0), on("mps")], ids=["float64", "empty", "mps"]
)
def test_no_warning_where_only_the_reference_exists(tensor: object, installed: dict) -> None:
    assert not warned("ring_push", tensor)


def test_no_warning_for_a_chosen_reference(installed: dict) -> None:
    with ops.use_backend("reference"):
        assert not warned("ring_push", on("cuda"))


def test_missing_extension_gives_one_warning(installed: dict) -> None:
    installed["extension"] = False
    assert not warned("ring_push", on("cpu"))
