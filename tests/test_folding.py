"""A backbone in fewer and larger steps says what it said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from moleflow.compiling import exported
from moleflow.features.extractor import Extractor
from moleflow.features.folding import SamePadded, folded, halved
from moleflow.features.runtime import exported_backbone, probe
from moleflow.runtime.engines import Running


def _copy(module: nn.Module, x: torch.Tensor) -> np.ndarray:
    data = exported(module, (x,), inputs=["x"], outputs=["y"], axes={})
    return Running("onnxruntime", data, 1)({"x": x.numpy()})[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (2, 3), ((3, 5), (2, 1))])
@pytest.mark.parametrize("size", [(16, 16), (15, 18)])
def test_a_border_inside_the_convolution_is_the_border_around_it(kernel, stride, size, bias):
    torch.manual_seed(0)
    same = Conv2dSame(4, 8, kernel, stride, groups=2, bias=bias).requires_grad_(False)
    network = nn.Sequential(same)
    x = torch.randn(2, 4, *size)
    expected = network(x)

    folded(network)

    assert isinstance(network[0], SamePadded)
    assert not any(isinstance(module, Conv2dSame) for module in network.modules())
    assert torch.equal(network(x), expected)
    np.testing.assert_allclose(_copy(network, x), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 7)])
def test_half_the_size_is_the_mean_of_four(size):
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return halved(x)

    x = torch.randn(2, 3, *size)

    assert torch.equal(halved(x), F.avg_pool2d(x, 2, ceil_mode=True))
    np.testing.assert_allclose(_copy(Half(), x), halved(x).numpy(), atol=1e-6)


def test_no_layer_of_a_copy_is_written_again_for_its_border():
    module = Extractor(image_size=64).module
    graph = onnx.load_from_string(exported_backbone(module, probe((64, 64), 2))).graph
    kinds = [node.op_type for node in graph.node]
    assert "Conv" in kinds
    assert "Pad" not in kinds
