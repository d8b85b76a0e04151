"""Run SegFormer's decoder (Xie et al. 2021, arXiv:2105.15203) in a faster order, with the same parameters."""

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder as LibraryDecoder
from torch import Tensor


class SegformerDecoder(LibraryDecoder):
    """Apply the 1×1 fusion before the upsampling, to 4 to 64 times fewer pixels.

    Σ W_i up(x_i) = Σ up(W_i x_i), because a 1×1 convolution and interpolation commute. Results agree up to rounding.
    """

    def forward(self, features: list[Tensor]) -> Tensor:
        size = [side // 4 for side in features[0].shape[-2:]]
        features = [x for x in features[1:] if x.shape[1]][::-1]  # some encoders have an empty map at stride 2
        convolution, norm, activation = self.fuse_stage
        weights = convolution.weight.chunk(len(self.mlp_stage), dim=1)
        fused = 0
        for x, mlp, weight in zip(features, self.mlp_stage, weights, strict=False):
            linear = mlp.linear
            x = F.conv2d(F.conv2d(x, linear.weight[:, :, None, None], linear.bias), weight)
            fused = fused + F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return activation(norm(fused))
