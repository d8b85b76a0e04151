"""Views: geometry shared by image and label, padding values, and strong views without geometry."""

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from u2pl_fast.data.views import MEAN_COLOR, RandomScaleCrop, ViewOptions, Views, padded_size, view_seed
from u2pl_fast.utils.randomness import generator

MEAN = torch.tensor(MEAN_COLOR, dtype=torch.uint8)
NO_COLOR = {"jitter_prob": 0.0, "grayscale_prob": 0.0, "blur_prob": 0.0}


def coded(height: int = 40, width: int = 56) -> tuple[Tensor, Tensor]:
    """An image whose pixels tell their position (row, column, 200), and a label that tells it too."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((row, column, torch.full_like(row, 200))).to(torch.uint8)
    return image, (row * 4 + column // 16).to(torch.uint8)


def noise(height: int = 40, width: int = 56) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator(0))


def test_sizes_are_padded_to_the_multiple():
    assert padded_size((513, 513), 16) == (528, 528)
    assert padded_size((256, 320), 32) == (256, 320)
    assert ViewOptions((33, 40), 8).size == (40, 40)


def test_flips_and_crops_agree_between_image_and_label():
    """At scale 1 every pixel keeps its code, so the label is a function of the image's pixel."""
    views = Views(ViewOptions((24, 32), scale_range=(1, 1)), 255)
    image, label = coded()
    origins, flips = set(), set()
    for seed in range(40):
        view, target = views.labeled(image, label, seed)
        assert view.shape == (3, 24, 32) and target.shape == (24, 32)
        row, column = view[0].long(), view[1].long()
        assert torch.equal(target, (row * 4 + column // 16).to(torch.uint8))
        flips.add(bool(column[0, 0] > column[0, 1]))
        origins.add((int(row.min()), int(column.min())))
    assert flips == {True, False}
    assert len(origins) > 20 and max(o[0] for o in origins) > 12 and max(o[1] for o in origins) > 16


@pytest.mark.parametrize("scale", [0.6, 1.7])
def test_scaled_labels_stay_on_the_image_pixels(scale):
    """After interpolation a pixel's code is its position up to a source pixel, and the label's is the nearest one."""
    views = Views(ViewOptions((24, 32), scale_range=(scale, scale), flip_prob=0.0), 255)
    image, _ = coded()
    rows = torch.arange(40, dtype=torch.uint8)[:, None].expand(40, 56).contiguous()
    for seed in range(10):
        view, target = views.labeled(image, rows, seed)
        error = view[0].float() - target.float()
        assert error.abs().max() <= 1
        assert error.mean().abs() < 0.25  # no systematic shift by half a pixel


def test_padding_is_mean_color_ignore_index_and_invalid():
    options = ViewOptions((64, 64), multiple=48, scale_range=(1, 1), **NO_COLOR)
    image, label = coded()
    view, target = Views(options, 255).labeled(image, label, seed=1)
    assert view.shape == (3, 96, 96) and target.shape == (96, 96)
    outside = torch.ones(96, 96, dtype=torch.bool)
    outside[:40, :56] = False
    assert torch.equal(view[:, outside], MEAN[:, None].expand(3, int(outside.sum())))
    assert (target[outside] == 255).all() and (target[~outside] != 255).all()
    weak, strong, valid = Views(options, 255).unlabeled(image, 1, 2)
    assert valid.dtype == torch.bool and torch.equal(valid, ~outside)
    assert torch.equal(weak[:, outside], view[:, outside]) and torch.equal(strong, weak)


def test_more_than_255_classes_pad_with_minus_one():
    _, label = coded()
    label = label.to(torch.int16) + 200
    view, target = Views(ViewOptions((64, 64), scale_range=(0.5, 0.5)), -1).labeled(coded()[0], label, seed=0)
    assert target.dtype == torch.int16
    assert torch.equal(target == -1, (view == MEAN[:, None, None]).all(0))
    assert target[:20, :28].min() >= 200


def test_the_crop_itself_is_never_larger_than_asked_where_it_is_padded_to_a_multiple():
    """A 33-pixel crop padded to 48 shows 33 pixels of the image, however large that is."""
    _, _, valid = Views(ViewOptions((33, 33), multiple=16), 255).unlabeled(noise(200, 200), 0, 0)
    assert valid.shape == (48, 48)
    assert valid[:33, :33].all() and valid.sum() == 33 * 33


def test_strong_views_are_the_weak_pixels_in_other_colors():
    views = Views(ViewOptions((32, 48), scale_range=(0.5, 1.5)), 255)
    without = Views(ViewOptions((32, 48), scale_range=(0.5, 1.5), **NO_COLOR), 255)
    changed = 0
    for seed in range(20):
        weak, strong, valid = views.unlabeled(noise(), seed, 100 + seed)
        same_weak, same_strong, same_valid = without.unlabeled(noise(), seed, 100 + seed)
        assert torch.equal(weak, same_weak) and torch.equal(valid, same_valid)
        assert torch.equal(same_strong, same_weak)
        assert (strong[:, ~valid] == MEAN[:, None]).all()
        changed += not torch.equal(strong, weak)
    assert changed > 12


def test_color_changes_do_not_move_edges():
    """A vertical edge stays at its column under jitter and grayscale; under blur its middle does."""
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[:, :, 16:] = torch.tensor([220, 180, 90], dtype=torch.uint8)[:, None, None]
    for options in ({"jitter_prob": 1.0}, {"grayscale_prob": 1.0}, {"blur_prob": 1.0}):
        views = Views(ViewOptions((32, 32), scale_range=(1, 1), flip_prob=0.0, **(NO_COLOR | options)), 255)
        for seed in range(5):
            _, strong, _ = views.unlabeled(image, 0, seed)
            profile = strong.float().sum(0)
            assert torch.equal(profile, profile[:1].expand_as(profile))
            assert (profile[0, 1:] - profile[0, :-1]).argmax() == 15


def test_each_seed_moves_its_own_view_alone():
    views = Views(ViewOptions((24, 32), blur_prob=1.0, jitter_prob=1.0), 255)
    weak, strong, _ = views.unlabeled(noise(), 1, 2)
    again_weak, again_strong, _ = views.unlabeled(noise(), 1, 2)
    assert torch.equal(weak, again_weak) and torch.equal(strong, again_strong)
    other_weak, other_strong, _ = views.unlabeled(noise(), 1, 3)
    assert torch.equal(weak, other_weak) and not torch.equal(strong, other_strong)
    assert not torch.equal(weak, views.unlabeled(noise(), 4, 2)[0])
    seeds = [view_seed(*key) for key in ((0, 1, 2, "weak"), (0, 1, 2, "strong"), (0, 2, 1, "weak"), (1, 1, 2, "weak"))]
    assert len(set(seeds)) == 4


def test_the_global_generator_is_left_as_it_was():
    image, label = coded()
    views = Views(ViewOptions((24, 32)), 255)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    expected = views.labeled(image, label, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert all(torch.equal(x, y) for x, y in zip(views.labeled(image, label, seed=9), expected, strict=True))


def test_results_are_plain_tensors():
    image, label = coded()
    views = Views(ViewOptions((24, 32)), 255)
    for x in (*views.labeled(image, label, 0), *views.unlabeled(image, 0, 0)):
        assert type(x) is Tensor


def test_resize_comes_first_and_scales_are_relative_to_it():
    views = Views(ViewOptions((20, 28), resize=(20, 28), scale_range=(1, 1), flip_prob=0.0), 255)
    image, label = coded()
    image, label = views.prepare(image), views.prepare_label(label)
    assert image.shape == (3, 20, 28) and label.shape == (20, 28)
    assert torch.equal(views.labeled(image, label, 0)[0], image)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (7, 3), (200, 11)])
def test_tiny_and_narrow_images(size):
    transform = RandomScaleCrop((16, 16), (0.5, 2.0))
    views = Views(ViewOptions((16, 16)), 255)
    for seed in range(8):
        weak, strong, valid = views.unlabeled(noise(*size), seed, seed)
        assert weak.shape == strong.shape == (3, 16, 16) and valid.any()
    out = transform(tv_tensors.Image(noise(*size)))
    assert out.shape[-2] <= 16 and out.shape[-1] <= 16


def test_options_are_checked():
    with pytest.raises(ValueError, match="scale_range"):
        ViewOptions((8, 8), scale_range=(2.0, 0.5))
    with pytest.raises(ValueError, match="crop_size"):
        ViewOptions((0, 8))


def test_recolored_labeled_views_keep_their_geometry():
    image, label = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8), torch.randint(0, 9, (50, 60))
    plain, recolored = (
        Views(ViewOptions((32, 32), jitter_prob=1, jitter_labeled=on), 255).labeled(image, label, 5)
        for on in (False, True)
    )
    assert torch.equal(plain[1], recolored[1]) and not torch.equal(plain[0], recolored[0])
    still = ViewOptions((32, 32), jitter_prob=0, grayscale_prob=0, blur_prob=0, jitter_labeled=True)
    assert torch.equal(Views(still, 255).labeled(image, label, 5)[0], plain[0])
    wide = ViewOptions((64, 64), scale_range=(1, 1), jitter_prob=1, jitter_labeled=True)
    padded = Views(wide, 255).labeled(image, label, 5)[0]
    assert padded[:, 50:].flatten(1).unique(dim=1).flatten().tolist() == list(MEAN_COLOR)


def test_intensity_changes_colors_and_moves_nothing():
    torch.manual_seed(0)
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = torch.tensor([200, 120, 40], dtype=torch.uint8)[:, None, None]
    views = Views(ViewOptions((40, 40), scale_range=(1, 1), flip_prob=0, strong_colors="intensity"), 255)
    strong = torch.stack([views.unlabeled(image, 1, seed)[1] for seed in range(40)])
    changed = [not torch.equal(view, image) for view in strong]
    assert 20 < sum(changed) and len({tuple(view[:, 5, 30].tolist()) for view in strong}) > 15
    away = strong.float().index_select(3, torch.tensor([*range(12), *range(28, 40)]))  # out of the reach of a blur
    assert (away[..., :12].std((2, 3)).max() == 0) and (away[..., 12:].std((2, 3)).max() == 0)
    with pytest.raises(ValueError, match="strong_colors: intensity needs RGB"):
        Views(ViewOptions((8, 8), color=(0,), strong_colors="intensity"), 255)
