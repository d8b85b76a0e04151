"""A teacher that looks at whole images: what a crop reads of them is what a look at the crop would see."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from u2pl_fast.data.views import ViewOptions, Views
from u2pl_fast.inference import predict
from u2pl_fast.training import whole_images
from u2pl_fast.training.whole_images import WholeImagePredictions


class Colors(torch.nn.Module):
    """Logits that are the mean colors of 4×4 pixels, so that every view of an image has logits of its own."""

    pad_multiple, align_corners, in_channels = 32, False, 3

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=F.avg_pool2d(images.float(), 4) / 40)


def smooth_image(height: int = 150, width: int = 213) -> torch.Tensor:
    torch.manual_seed(0)
    return F.interpolate(255 * torch.rand(1, 3, 6, 8), (height, width), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_a_crop_of_the_whole_is_a_look_at_the_crop(seed):
    image = smooth_image()
    whole = WholeImagePredictions()
    whole.predict(Colors(), [(3, image), (5, image.flip(-1))])
    views = Views(ViewOptions((96, 128), 32, scale_range=(0.5, 1.25)), 255)
    weak, _, valid = views.unlabeled(image, seed, seed)
    window = torch.tensor([[3, *views.window(image, seed)]])
    got = whole.crop(window, weak.shape[-2:], (24, 32)).softmax(1)[0]
    seen = Colors()(weak[None]).logits.softmax(1)[0]
    inside = F.avg_pool2d(valid[None].float(), 4)[0] == 1
    errors = (got - seen).abs().amax(0)[inside]
    mirrored = (got.flip(-1) - seen).abs().amax(0)[inside]
    assert errors.mean() < 0.02 < 0.1 < mirrored.mean()


def test_the_mean_over_scales_and_mirror_images_is_stored():
    image = smooth_image(64, 96)
    whole = WholeImagePredictions(scales=(1.0, 0.5))
    whole.predict(Colors(), [(0, image)])
    assert whole.maps[0].shape == (3, 16, 24) and whole.maps[0].dtype == torch.float16
    full = Colors()(image[None]).logits.softmax(1)
    half = F.interpolate(Colors()(F.avg_pool2d(image[None].float(), 2)).logits, (16, 24), mode="bilinear").softmax(1)
    assert (whole.maps[0].float().exp() - (full + half)[0] / 2).abs().mean() < 0.005


@pytest.mark.parametrize("align_corners", [False, True])
def test_aligned_corners_are_met(align_corners):
    """Logits that are pixel coordinates stay those through cells and crop, however the network's grid lies."""

    class Coordinates(torch.nn.Module):
        pad_multiple, in_channels = 1, 3

        def __init__(self):
            super().__init__()
            self.align_corners = align_corners

        def forward(self, images):
            height, width = images.shape[-2:]
            rows, columns = (
                (torch.arange(n) * (side - 1) / (n - 1) if align_corners else (torch.arange(n) + 0.5) * side / n - 0.5)
                for n, side in ((height // 4, height), (width // 4, width))
            )
            return SimpleNamespace(logits=torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])

    image = torch.zeros(1, 3, 61, 81, dtype=torch.uint8)
    cells = predict.predict_cells(Coordinates(), image, (16, 21))
    torch.testing.assert_close(cells[0, 0, 1:-1, 0], ((torch.arange(16) + 0.5) * 61 / 16 - 0.5)[1:-1])
    torch.testing.assert_close(cells[0, 1, 0, 1:-1], ((torch.arange(21) + 0.5) * 81 / 21 - 0.5)[1:-1])
    whole = WholeImagePredictions()
    whole.maps[0] = cells[0]
    window = torch.tensor([[0, 10, 20, 40, 40, 20, 20, 0, 61, 81]])  # at half scale, from (10, 20) on
    got = whole.crop(window, (20, 20), (5, 5), align_corners)[0, 0, :, 2]
    inside = torch.arange(5) * 19 / 4 + 0.5 if align_corners else (torch.arange(5) + 0.5) * 4
    torch.testing.assert_close(got, 10 + 2 * inside - 0.5)


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(whole_images, "MOST_BYTES", 10_000)
    image = smooth_image(64, 96)
    with pytest.raises(ValueError, match="teacher_input: predictions of 5 whole images .* use crop"):
        WholeImagePredictions().predict(Colors(), ((index, image) for index in range(9)))
