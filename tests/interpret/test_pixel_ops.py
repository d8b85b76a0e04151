"""Run the triton kernels of the per-pixel ops in triton's interpreter, with the tests of the other backends.

Triton reads the choice when it is imported, so this needs its own process: TRITON_INTERPRET=1 pytest tests/interpret.
"""

import pytest

from u2pl_fast.ops import _backend

if not _backend.interpreted():
    pytest.skip("run apart, as TRITON_INTERPRET=1 pytest tests/interpret", allow_module_level=True)

from tests.ops import test_masked_quantile as masked_quantile
from tests.ops import test_ohem_mask as ohem_mask
from tests.ops import test_pixel_stats as pixel_stats
from tests.ops import test_upsampled_cross_entropy as upsampled_cross_entropy

TESTS = {
    masked_quantile: ["equals_numpy", "dtypes", "shape_and_tensor_q", "nothing_selected", "nan", "over_two_processes"],
    ohem_mask: ["matches_reference", "dtypes_and_layouts", "min_kept", "nothing_labeled", "label_out_of_range"],
    pixel_stats: [
        "matches_reference",
        "dtypes_and_layouts",
        "strided_logits",
        "ties_go_to_the_lower_class",
        "extreme_logits",
        "between_confident_corners",
        "nan_stays_nan",
        "compiles_without_graph_breaks",
    ],
    upsampled_cross_entropy: [
        "matches_reference",
        "weights_and_smoothing",
        "between_confident_corners",
        "dtypes_and_layouts",
        "target_dtypes",
        "pixel_weight_as_a_mask",
        "parts",
        "nothing_kept",
        "logits_used_twice",
        "grad_scaler_in_half_precision",
        "no_gradient_without_requires_grad",
        "bits_repeat",
        "label_out_of_range",
    ],
}
for module, names in TESTS.items():
    for name in names:
        globals()[f"test_{module.__name__.rpartition('test_')[2]}_{name}"] = getattr(module, f"test_{name}")
