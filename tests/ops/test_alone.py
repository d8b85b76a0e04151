"""Test that ``u2pl_fast.ops`` needs only torch: no other dependency, no triton, no compiled extension."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = """
import json, sys, warnings
import torch
before = set(sys.modules)
from u2pl_fast import ops
from u2pl_fast.ops import _backend
imported = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
absent = []
for name in ("timm", "segmentation_models_pytorch", "torchvision", "PIL", "yaml", "tyro", "matplotlib", "triton",
             "tensorboard", "safetensors", "rich", "transformers"):
    try:
        __import__(name)
    except ImportError:
        absent.append(name)
logits = torch.randn(2, 5, 8, 8, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss = ops.upsampled_cross_entropy(logits, torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8))
loss.backward()
label = ops.pixel_stats(logits, (32, 32)).label
bank, pushed = torch.zeros(4, 3), torch.zeros(1, dtype=torch.int64)
ops.ring_push(bank, torch.tensor([0, 4]), pushed, torch.randn(6, 3), torch.ones(6, 1, dtype=torch.int32))
print(json.dumps({
    "imported": sorted(imported), "absent": absent, "triton": _backend.has_triton(),
    "warnings": [str(w.message) for w in caught if "u2pl_fast" in str(w.message)],
    "loss": float(loss.detach()), "gradient": float(logits.grad.norm()),
    "label": str(label.dtype), "pushed": int(pushed), "norm": float(bank.norm(dim=1).mean()),
}))
"""


def requirements(name: str, found: set[str]) -> set[str]:
    """Return the requirements of distribution ``name``, without those of other platforms and without triton."""
    for line in importlib.metadata.requires(name) or ():
        needed = re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")
        if "extra ==" in line or needed in found or needed == "triton":
            continue
        try:
            importlib.metadata.distribution(needed)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(needed)
        requirements(needed, found)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with links to torch and its requirements, and the package without its extension."""
    folder = tmp_path_factory.mktemp("bare")
    site = Path(sysconfig.get_path("purelib"))
    allowed = requirements("torch", {"torch"})
    for module, distributions in importlib.metadata.packages_distributions().items():
        if {d.lower().replace("_", "-") for d in distributions} & allowed:
            for path in (site / module, site / f"{module}.py"):
                if path.exists() and not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())
    shutil.copytree(ROOT / "u2pl_fast", folder / "u2pl_fast", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return folder


@pytest.mark.slow
def test_ops_import_and_run_with_only_torch(bare: Path):
    code = f"import sys; sys.path.insert(0, {str(bare)!r})\n{USE}"
    # -I -S: no site-packages, no user folder, no environment variable
    command = [sys.executable, "-I", "-S", "-c", code]
    run = subprocess.run(command, cwd=bare, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    assert len(seen["absent"]) == 12 and not seen["triton"], "the environment is not bare"
    assert seen["imported"] == ["u2pl_fast"]
    assert len(seen["warnings"]) == 1 and "u2pl_fast._C cannot be loaded" in seen["warnings"][0]
    assert "build it with" in seen["warnings"][0]
    assert seen["loss"] > 0 and seen["gradient"] > 0 and seen["label"] == "torch.uint8"
    assert seen["pushed"] == 6 and seen["norm"] == pytest.approx(1)
