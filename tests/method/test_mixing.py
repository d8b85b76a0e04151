"""Test mixing against loops over pixels; draws depend only on (seed, step, global sample)."""

import pytest
import torch

from u2pl_fast import mixing
from u2pl_fast.utils.randomness import generator

HEIGHT, WIDTH, CLASSES = 24, 32, 9


def labels(batch: int, first: int = 0, dtype=torch.uint8) -> torch.Tensor:
    """Return label maps of blocks; map i depends only on first + i."""
    coarse = [torch.randint(CLASSES, (1, 1, 6, 8), generator=generator(7, first + i)).float() for i in range(batch)]
    return torch.nn.functional.interpolate(torch.cat(coarse), (HEIGHT, WIDTH))[:, 0].to(dtype)


def regions(kind, label, **options):
    options = {"seed": 3, "step": 5, "first_index": 0, "mix_prob": 1.0, "num_classes": CLASSES} | options
    return mixing.region_masks(kind, label, **options)


@pytest.mark.parametrize(
    ("first", "batch", "expected"),
    [(0, 4, [1, 0, 3, 2]), (4, 3, [1, 0, 2]), (3, 4, [0, 2, 1, 3]), (5, 1, [0]), (8, 2, [1, 0])],
)
def test_partners_are_samples_2k_and_2k_plus_1(first, batch, expected):
    partner = mixing.partner_index(first, batch)
    assert partner.tolist() == expected and partner.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int16, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [None, 3])
def test_mix_takes_the_partners_pixel_where_the_mask_is_set(dtype, channels):
    height, width = 6, 9
    shape = (4, height, width) if channels is None else (4, channels, height, width)
    x = torch.randint(0, 200, shape, generator=generator(0)).to(dtype)
    mask = torch.rand(4, height, width, generator=generator(1)) < 0.3
    partner = torch.tensor([1, 0, 3, 2])
    result = mixing.mix(x, partner, mask)
    expected = x.clone()
    for i in range(4):
        for row in range(height):
            for column in range(width):
                if mask[i, row, column]:
                    expected[i, ..., row, column] = x[partner[i], ..., row, column]
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_mask_of_another_size_raises():
    with pytest.raises(ValueError, match="mask"):
        mixing.mix(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), torch.zeros(2, 4, 4, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["cutmix", "cutout"])
def test_boxes_are_solid_and_cover_a_quarter_to_a_half(kind):
    shares = []
    for step in range(60):
        masks = regions(kind, torch.zeros(4, 96, 120, dtype=torch.uint8), step=step)
        assert masks.dtype == torch.bool
        for mask in masks:
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert box == mask.sum()
            shares.append(mask.float().mean().item())
    shares = torch.tensor(shares)
    assert shares.min() > 0.24 and shares.max() < 0.51  # sides are rounded to pixels
    assert shares.min() < 0.28 and shares.max() > 0.47
    assert abs(shares.mean() - 0.375) < 0.02


def test_classmix_takes_all_pixels_of_half_of_the_partners_classes():
    for step in range(10):
        label = labels(6, first=100 * step)
        label[3] = 2  # one class: half of one, rounded down, is zero
        label[2, :4] = 255  # ignored pixels have no class
        masks = regions("classmix", label, step=step)
        partner = mixing.partner_index(0, 6)
        for i in range(6):
            theirs = label[partner[i]]
            taken = set(theirs[masks[i]].tolist())
            left = set(theirs[~masks[i]].tolist()) - {255}
            assert not taken & left and 255 not in taken
            assert len(taken) == len(taken | left) // 2
    assert not masks[2].any()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_classmix_ignores_negative_labels_and_the_dtype(dtype):
    expected = regions("classmix", labels(4))
    assert torch.equal(regions("classmix", labels(4).to(dtype)), expected)
    label = labels(4).to(dtype)
    label[:, :3] = -1
    assert not regions("classmix", label)[:, :3].any()


def test_classmix_chooses_each_class_about_half_of_the_time():
    label = torch.arange(8, dtype=torch.uint8).repeat_interleave(4).expand(2, 4, 32).contiguous()
    chosen = torch.zeros(8)
    for step in range(300):
        chosen += regions("classmix", label, step=step, num_classes=8)[0, 0, ::4]
    assert chosen.sum() == 300 * 4
    assert (chosen / 300 - 0.5).abs().max() < 0.12  # four standard deviations


@pytest.mark.parametrize("kind", ["cutmix", "classmix", "cutout"])
def test_masks_depend_only_on_the_global_sample(kind):
    whole = regions(kind, labels(8), first_index=0)
    for share in (2, 4):
        parts = [regions(kind, labels(share, first), first_index=first) for first in range(0, 8, share)]
        assert torch.equal(torch.cat(parts), whole)
    assert whole.any()
    assert not torch.equal(regions(kind, labels(8), step=6), whole)
    assert not torch.equal(regions(kind, labels(8), seed=4), whole)


@pytest.mark.parametrize(("kind", "changes"), [("cutmix", False), ("classmix", False), ("cutout", True)])
def test_a_sample_left_without_a_partner_stays_unmixed(kind, changes):
    masks = regions(kind, labels(3), first_index=0)
    assert masks[0].any() and masks[1].any()
    assert masks[2].any() == changes


@pytest.mark.parametrize("kind", ["cutmix", "classmix", "cutout"])
def test_mix_prob_is_the_share_of_samples_that_change(kind):
    label = labels(4)
    changed = torch.cat([regions(kind, label, step=step, mix_prob=0.3).flatten(1).any(1) for step in range(200)])
    assert abs(changed.float().mean() - 0.3) < 0.07
    assert not regions(kind, label, mix_prob=0.0).any()


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for kind in ("cutmix", "classmix", "cutout"):
        regions(kind, labels(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_error_names_the_argument():
    with pytest.raises(ValueError, match="kind.*'mixup'"):
        regions("mixup", labels(2))
    with pytest.raises(ValueError, match="label"):
        regions("cutmix", labels(2)[0])
