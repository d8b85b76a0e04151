"""Store a teacher's predictions for whole images, and crop pseudo-labels from them.

With few unlabeled images, each is used many times. A network labels a whole image and its mirror image better than a
crop, and labeling all images every few passes costs less than labeling each crop.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.views import Window, resize_image
from ..inference import evaluating, predict_cells

STRIDE = 4  # image pixels per stored prediction
MOST_BYTES = 4 * 2**30


class WholeImagePredictions:
    """Hold log-probabilities (C, ⌈h/4⌉, ⌈w/4⌉) of whole images in half precision, and return crops of them.

    Args:
        scales: image scales; probabilities are averaged over all scales and their mirror images.
    """

    def __init__(self, scales: Sequence[float] = (1.0,)) -> None:
        self.scales = scales
        self.maps: dict[int, Tensor] = {}

    @torch.no_grad()
    def predict(
        self,
        network: nn.Module,
        images: Iterable[tuple[int, Tensor]],
        device: torch.device | str = "cpu",
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """Store the predictions of ``network`` for each (index, image uint8 (N, h, w)).

        Raises:
            ValueError: the predictions take more than 4 GiB.
        """
        self.maps, size = {}, 0
        with evaluating(network):  # also uncompiled, since whole images differ in size
            for index, image in images:
                mean = self._mean_probabilities(network, image.to(device), amp_dtype)
                self.maps[index] = mean.clamp(min=1e-7).log().half()
                size += self.maps[index].nbytes
                if size > MOST_BYTES:
                    raise ValueError(
                        f"teacher_input: predictions of {len(self.maps)} whole images take more than "
                        f"{MOST_BYTES >> 30} GiB; use crop, or a smaller --resize"
                    )

    def _mean_probabilities(self, network: nn.Module, image: Tensor, amp_dtype: torch.dtype | None) -> Tensor:
        cells = [-(-side // STRIDE) for side in image.shape[-2:]]
        views = []
        for scale in self.scales:
            scaled = resize_image(image, [max(1, round(scale * side)) for side in image.shape[-2:]])[None]
            views.append(predict_cells(network, scaled, cells, amp_dtype=amp_dtype).softmax(1))
            views.append(predict_cells(network, scaled.flip(-1), cells, amp_dtype=amp_dtype).softmax(1).flip(-1))
        return torch.cat(views).mean(0)

    def crop(self, windows: Tensor, size: Sequence[int], grid: Sequence[int], align_corners: bool = False) -> Tensor:
        """Return log-probabilities (B, C, *grid) of training crops, each padded to ``size``.

        Interpolation is bilinear; outside the image its border is repeated.

        Args:
            windows: int64 (B, 10) on the CPU; a row holds an index and its :class:`~u2pl_fast.data.views.Window`.
            size: height and width of the padded crops.
            grid: height and width of the result.
            align_corners: how the grid lies in ``size``.
        """
        described = ((index, Window(*rest)) for index, *rest in windows.tolist())
        return torch.cat([_crop(self.maps[index], window, size, grid, align_corners) for index, window in described])


def _crop(stored: Tensor, window: Window, size: Sequence[int], grid: Sequence[int], align_corners: bool) -> Tensor:
    sides = (
        (size[0], grid[0], window.top, window.height, window.out_height, window.image_height, False),
        (size[1], grid[1], window.left, window.width, window.out_width, window.image_width, bool(window.flip)),
    )
    axes = []
    for padded, cells, start, length, out, whole, flip in sides:
        place = torch.arange(cells, device=stored.device)
        if align_corners:  # in pixels from the crop's edge
            place = place * ((padded - 1) / max(1, cells - 1)) + 0.5
        else:
            place = (place + 0.5) * (padded / cells)
        place = out - place if flip else place
        axes.append((start + place * (length / out)) / whole * 2 - 1)  # grid_sample's edges are at −1 and 1
    points = torch.stack(torch.broadcast_tensors(axes[1][None, :], axes[0][:, None]), -1)
    return F.grid_sample(stored.float()[None], points[None], padding_mode="border", align_corners=False)
