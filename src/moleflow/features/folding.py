"""A network in fewer and larger steps, for eager torch and for the copies that engines run of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> None:
    """Merges what can be merged in a network that lists its layers in the order of use, in place.

    As timm's EfficientNet and ResNet do.
    """
    _fold_batch_norms(network)
    _pad_inside(network)


def halved(images: Tensor) -> Tensor:
    """Pictures (B, C, h, w) at half the size, each value the mean of four; at an odd border of fewer."""
    even = images.shape[-2] % 2 == 0 and images.shape[-1] % 2 == 0
    if torch.onnx.is_in_onnx_export() and even:
        # The same numbers, in a third of the time: ONNX Runtime averages windows one value after the other.
        return F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
    return F.avg_pool2d(images, 2, ceil_mode=True)


class SamePadded(nn.Module):
    """A convolution whose border of zeros leaves ceil(n / stride) places of n, as TensorFlow pads.

    In a copy the border, more of it behind than before, is part of the convolution. Otherwise an engine
    writes the whole layer once more with zeros around it, and in another order of its numbers.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride))."""
        own = self.convolution
        above, below = self._border(x, 0)
        left, right = self._border(x, 1)
        if torch.onnx.is_in_onnx_export():
            settings = _Settings(own.stride, own.dilation, own.groups, (above, left, below, right))
            return _Padded.apply(x, own.weight, own.bias, settings)
        return own(F.pad(x, (left, right, above, below)))

    def _border(self, x: Tensor, axis: int) -> tuple[int, int]:
        own = self.convolution
        length, stride = int(x.shape[axis - 2]), own.stride[axis]
        reach = own.dilation[axis] * (own.kernel_size[axis] - 1) + 1
        missing = max((-(-length // stride) - 1) * stride + reach - length, 0)
        return missing // 2, missing - missing // 2


class _Settings(NamedTuple):
    """Of a convolution; the border is above, left, below, right."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    border: tuple[int, int, int, int]


class _Padded(torch.autograd.Function):
    """The same for the tracing exporter: torch has no convolution with different borders, ONNX has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
        """Computes it."""
        stride, dilation, groups, (above, left, below, right) = settings
        padded = F.pad(x, (left, right, above, below))
        return F.conv2d(padded, weight, bias, stride, 0, dilation, groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, settings: _Settings) -> Any:
        """Names it."""
        stride, dilation, groups, border = settings
        kernel = weight.type().sizes()[2:]
        given = (x, weight) if bias is None or bias.node().mustBeNone() else (x, weight, bias)
        return g.op(
            "Conv",
            *given,
            dilations_i=dilation,
            group_i=groups,
            kernel_shape_i=kernel,
            pads_i=border,
            strides_i=stride,
        )


def _fold_batch_norms(module: nn.Module) -> None:
    """Every batch normalisation into the convolution before it; an activation in it stays."""
    convolution: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and convolution is not None:
            setattr(module, convolution[0], fuse_conv_bn_eval(convolution[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        _fold_batch_norms(child)
        convolution = (name, child) if isinstance(child, nn.Conv2d) else None


def _pad_inside(module: nn.Module) -> None:
    from timm.layers import Conv2dSame

    for name, child in list(module.named_children()):
        if isinstance(child, Conv2dSame):
            plain = nn.Conv2d.__new__(nn.Conv2d)
            plain.__dict__ = child.__dict__  # weights and settings, without its own padding
            setattr(module, name, SamePadded(plain))
        else:
            _pad_inside(child)
