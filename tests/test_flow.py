"""Properties of every invertible map and of the whole density, against autograd and brute force."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import moleflow.flow
from moleflow.config import Cells, Context, Dia, FlowConfig, Lora, Mixer, Whitening
from moleflow.errors import ConfigError
from moleflow.flow.bijections import Affine, Bijection, Place, halves, interleave, joined, soft_clamp
from moleflow.flow.cells import CellGaussians
from moleflow.flow.coordinates import sphere_chart, sphere_log_det
from moleflow.flow.coupling import AffineCoupling, CouplingAdapter, MoleCoupling
from moleflow.flow.depthwise import depthwise
from moleflow.flow.expert import Base, Expert
from moleflow.flow.lora import LowRank, SharedLinear
from moleflow.flow.mixer import ContextMixer, FullMixer, cosine_eigenvalues
from moleflow.flow.start import CellWhitening
from moleflow.flow.stencil import stencil_log_det, stencil_solve
from moleflow.flow.whitening import BoundedAffine, layer_norm, sinusoidal_position

GRID = (3, 4)
LORA = Lora(rank=3, alpha=2.0)
SMALL = FlowConfig(
    cells=None,
    normalisation="layer",
    statistics=True,
    hidden=7,
    couplings=3,
    context=Context(kernel=3, gate=0.5),
    lora=LORA,
    dia=Dia(blocks=3, hidden=6),
)
BEGUN = replace(
    SMALL, cells=Cells(side=2, rank=3, mean_side=3), normalisation="none", statistics=False
)  # the same behind cells


def randomised(module: nn.Module, seed: int = 0, spread: float = 0.5) -> nn.Module:
    """The module in float64 with every weight random, fixed statistics included."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    fixed = [b for name, b in module.named_buffers() if name != "position"]
    for tensor in (*module.parameters(), *fixed):
        tensor.data.copy_(spread * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return module


def grids(batch: int, channels: int, seed: int = 1, grid: tuple[int, int] = GRID) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *grid, channels, generator=generator, dtype=torch.float64)


def image_jacobian(function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """The square Jacobian (hwD, hwD) of a map of one image (h, w, D)."""
    size = image.numel()
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None])[0], image, vectorize=True)
    return jacobian.reshape(size, size)


# -- every Bijection ---------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of the table: a class, and how to build it, with what a product passes in, from D."""

    kind: type[Bijection]
    build: Callable[[int], tuple[Bijection, nn.Module | None]]
    local: bool = True  # a patch's own log-determinant is that of its own block of the Jacobian


def mole(parity: int, *, context: Context | None, adapted: bool = True) -> Row:
    def build(channels: int) -> tuple[Bijection, nn.Module | None]:
        coupling = MoleCoupling(channels, parity, hidden=7, clamp=1.9, context=context)
        return coupling, CouplingAdapter(coupling, LORA) if adapted else None

    return Row(MoleCoupling, build)


TABLE = {
    "affine": Row(Affine, lambda d: (Affine(d), None)),
    "whitening": Row(BoundedAffine, lambda d: (BoundedAffine(d, Whitening()), None)),
    "mixer": Row(ContextMixer, lambda d: (ContextMixer(d, Mixer()), None), local=False),
    "mixer-full": Row(FullMixer, lambda d: (FullMixer(d, Mixer(kernel="full")), None), local=False),
    "mole-0": mole(0, context=Context(kernel=3, gate=0.5)),
    "mole-1": mole(1, context=Context(kernel=5, gate=0.5)),
    "mole-bare-0": mole(0, context=Context(kernel=3, gate=0.5), adapted=False),
    "mole-bare-1": mole(1, context=Context(kernel=3, gate=0.5), adapted=False),
    "mole-alone-0": mole(0, context=None),
    "mole-alone-1": mole(1, context=None),
    "dia-0": Row(AffineCoupling, lambda d: (AffineCoupling(d, 0, hidden=7, clamp=1.9), None)),
    "dia-1": Row(AffineCoupling, lambda d: (AffineCoupling(d, 1, hidden=7, clamp=1.9), None)),
}
every_bijection = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
odd_and_even = pytest.mark.parametrize("channels", [5, 6])


def built(row: Row, channels: int) -> tuple[Bijection, nn.Module | None]:
    bijection, adapter = row.build(channels)
    return randomised(bijection, 2), randomised(adapter, 3) if adapter is not None else None


APART = {CellWhitening}  # neither as constructed nor in its order of channels the identity: below


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_table_holds_every_bijection():
    for module in pkgutil.iter_modules(moleflow.flow.__path__):
        importlib.import_module(f"moleflow.flow.{module.name}")
    concrete = {kind for kind in subclasses(Bijection) if not inspect.isabstract(kind)}
    missing = concrete - {row.kind for row in TABLE.values()} - APART
    assert concrete > APART
    assert not missing, f"no row for {missing}"


@every_bijection
@odd_and_even
def test_no_row_is_trivially_the_identity(row, channels):
    bijection, adapter = built(row, channels)
    x = grids(2, channels)
    y, log_det = bijection(x, adapter)
    changed = (y != x).double().mean()
    assert changed >= (channels // 2) / channels
    assert (log_det.abs() > 1e-3).all()


@every_bijection
@odd_and_even
def test_value_and_log_det_have_their_shapes(row, channels):
    bijection, adapter = built(row, channels)
    x = grids(3, channels)
    for direction in (bijection, bijection.inverse):
        y, log_det = direction(x, adapter)
        assert y.shape == x.shape
        assert log_det.shape == x.shape[:-1]
        assert y.dtype == log_det.dtype == torch.float64


@every_bijection
@odd_and_even
def test_inverse_undoes_forward_and_negates_its_log_det(row, channels):
    bijection, adapter = built(row, channels)
    x = grids(3, channels)
    y, log_det = bijection(x, adapter)
    back, inverse_log_det = bijection.inverse(y, adapter)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-10, atol=1e-10)


@every_bijection
@odd_and_even
def test_forward_undoes_inverse(row, channels):
    bijection, adapter = built(row, channels)
    y = grids(3, channels)
    torch.testing.assert_close(bijection(bijection.inverse(y, adapter)[0], adapter)[0], y)


@every_bijection
@odd_and_even
def test_log_det_of_an_image_is_that_of_its_jacobian(row, channels):
    bijection, adapter = built(row, channels)
    x = grids(2, channels)
    _, log_det = bijection(x, adapter)
    for image, total in zip(x, log_det.sum((1, 2)), strict=True):
        expected = torch.linalg.slogdet(image_jacobian(lambda v: bijection(v, adapter)[0], image))
        assert expected.sign == 1
        torch.testing.assert_close(total, expected.logabsdet, rtol=1e-9, atol=1e-9)


@every_bijection
def test_log_det_of_the_inverse_is_that_of_its_jacobian(row):
    bijection, adapter = built(row, 5)
    y = grids(1, 5)
    _, log_det = bijection.inverse(y, adapter)
    expected = torch.linalg.slogdet(image_jacobian(lambda v: bijection.inverse(v, adapter)[0], y[0]))
    torch.testing.assert_close(log_det.sum(), expected.logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "row", [r for r in TABLE.values() if r.local], ids=[n for n, r in TABLE.items() if r.local]
)
def test_log_det_of_a_patch_is_that_of_its_own_block(row):
    bijection, adapter = built(row, 5)
    x = grids(1, 5)
    _, log_det = bijection(x, adapter)
    jacobian = image_jacobian(lambda v: bijection(v, adapter)[0], x[0])
    for patch, own in enumerate(log_det.flatten()):
        block = jacobian[5 * patch : 5 * patch + 5, 5 * patch : 5 * patch + 5]
        torch.testing.assert_close(torch.linalg.slogdet(block).logabsdet, own)


@every_bijection
def test_an_image_does_not_depend_on_the_others_in_the_batch(row):
    bijection, adapter = built(row, 6)
    x = grids(3, 6)
    for direction in (bijection, bijection.inverse):
        together = direction(x, adapter)
        others = direction(torch.cat([x[:1], 10 * grids(4, 6, seed=9)]), adapter)
        alone = direction(x[:1], adapter)
        for whole, beside, single in zip(together, others, alone, strict=True):
            torch.testing.assert_close(whole[:1], single, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(beside[:1], single, rtol=1e-12, atol=1e-12)


@every_bijection
def test_maps_leave_their_input_alone(row):
    bijection, adapter = built(row, 6)
    x = grids(2, 6)
    before = x.clone()
    bijection(x, adapter)
    bijection.inverse(x, adapter)
    assert torch.equal(x, before)


@every_bijection
@odd_and_even
def test_as_constructed_every_map_is_exactly_the_identity(row, channels):
    bijection, adapter = row.build(channels)
    x = grids(2, channels).float()
    for direction in (bijection, bijection.inverse):
        y, log_det = direction(x, adapter)
        assert torch.equal(log_det, torch.zeros(x.shape[:-1]))
        if isinstance(bijection, ContextMixer) and direction == bijection.inverse:
            torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)  # there and back through the cosines
        else:
            assert torch.equal(y, x)


# -- couplings and LoRA ------------------------------------------------------------------------------


def off_diagonal(jacobian: Tensor, channels: int) -> Tensor:
    """The blocks (patch of y, patch of x) of two different patches, flattened."""
    patches = len(jacobian) // channels
    blocks = jacobian.reshape(patches, channels, patches, channels).permute(0, 2, 1, 3)
    return blocks[~torch.eye(patches, dtype=torch.bool)]


@pytest.mark.parametrize("parity", [0, 1])
def test_translation_sees_the_patch_alone_and_scale_its_neighbours(parity):
    bijection, adapter = built(mole(parity, context=Context(kernel=3, gate=0.5)), 6)
    x = grids(1, 6)[0]
    only_translation, both = x.clone(), x.clone()
    passive, active = halves(torch.arange(6), parity)
    only_translation[..., active] = 0  # active half zero: y2 is t and nothing else
    both[..., active] = 1
    jacobians = [image_jacobian(lambda v: bijection(v, adapter)[0], v) for v in (only_translation, both)]
    assert torch.equal(off_diagonal(jacobians[0], 6), torch.zeros_like(off_diagonal(jacobians[0], 6)))
    assert off_diagonal(jacobians[1], 6).abs().max() > 1e-2
    within = torch.stack([jacobians[0][6 * p : 6 * p + 6, 6 * p : 6 * p + 6] for p in range(12)])
    assert within[:, active][:, :, passive].abs().max() > 1e-2  # and t does see its own patch


@pytest.mark.parametrize("grid", [(4, 4), (1, 3), (2, 8), (3, 4), (5, 5)])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_window_that_is_learned_from_is_convolved_as_any_other_grid(grid, side):
    x, kernel = grids(3, 6, grid=grid), torch.randn(6, 1, side, side, dtype=torch.float64)
    weight = grids(3, 6, seed=2, grid=grid)

    def plainly(x: Tensor, kernel: Tensor) -> Tensor:
        convolved = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=side // 2, groups=6)
        return convolved.permute(0, 2, 3, 1)

    found = [torch.autograd.functional.vjp(f, (x, kernel), weight) for f in (depthwise, plainly)]
    for ours, theirs in zip(*([value, *slopes] for value, slopes in found), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(depthwise(x, kernel), plainly(x, kernel))  # nothing is learned here


def test_context_reaches_as_far_as_its_kernel():
    bijection, adapter = built(mole(0, context=Context(kernel=5, gate=0.5)), 4)
    x = grids(1, 4, grid=(1, 8))
    moved = x.clone()
    moved[0, 0, 2, :2] += 1.0  # passive channels
    changed = (bijection(x, adapter)[1] != bijection(moved, adapter)[1])[0, 0]
    assert changed.tolist() == [True] * 5 + [False] * 3


def test_coupling_leaves_the_passive_half_and_bounds_the_scale():
    bijection, adapter = built(mole(1, context=Context(kernel=3)), 5)
    x = 1000 * grids(2, 5)
    y, log_det = bijection(x, adapter)
    assert torch.equal(y[..., 3:], x[..., 3:])
    assert log_det.abs().max() <= 3 * 1.9
    assert log_det.abs().max() > 1.9


SEEING = {name: row for name, row in TABLE.items() if row.kind in (MoleCoupling, AffineCoupling)}
seeing = pytest.mark.parametrize("row", SEEING.values(), ids=SEEING.keys())


def somewhere(channels: int) -> Place:
    return Place(grids(1, channels, seed=8)[0])


@seeing
@odd_and_even
def test_a_coupling_told_the_place_is_still_undone_and_has_the_log_det_of_its_jacobian(row, channels):
    bijection, adapter = built(row, channels)
    place, x = somewhere(channels), grids(1, channels)
    y, log_det = bijection(x, adapter, place)
    back, inverse_log_det = bijection.inverse(y, adapter, place)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-10, atol=1e-10)
    expected = torch.linalg.slogdet(image_jacobian(lambda v: bijection(v, adapter, place)[0], x[0]))
    torch.testing.assert_close(log_det.sum(), expected.logabsdet, rtol=1e-9, atol=1e-9)
    assert (log_det - bijection(x, adapter)[1]).abs().max() > 0.1  # and the place matters


@seeing
def test_a_coupling_looks_at_passive_channels_with_the_encoding_and_lets_them_through_without(row):
    bijection, adapter = built(row, 6)
    place, x = somewhere(6), grids(2, 6)
    if isinstance(bijection, MoleCoupling) and bijection.context is not None:
        bijection.context.gate.data.zero_()  # the surroundings are looked at without their encoding
    (passive, active), (shown, _) = halves(x, bijection.parity), halves(place.encoding, bijection.parity)
    y, log_det = bijection(x, adapter, place)
    told, told_log_det = bijection(joined(passive + shown, active, bijection.parity), adapter)
    assert torch.equal(halves(y, bijection.parity)[0], passive)
    torch.testing.assert_close(halves(y, bijection.parity)[1], halves(told, bijection.parity)[1])
    torch.testing.assert_close(log_det, told_log_det)


def test_the_context_of_a_coupling_is_of_what_is_there_and_not_of_where_it_lies():
    bijection, adapter = built(mole(0, context=Context(kernel=3, gate=0.5)), 6)
    with torch.no_grad():
        bijection.scale.first.weight[:, :3] = 0  # the patch itself, and its place
        adapter.scale.first.A[:, :3] = 0
    x = grids(2, 6)
    plain = bijection(x, adapter)[1]
    assert torch.equal(bijection(x, adapter, somewhere(6))[1], plain)
    assert plain.std() > 1e-3


@pytest.mark.parametrize(
    "row",
    [row for name, row in TABLE.items() if name not in SEEING],
    ids=[name for name in TABLE if name not in SEEING],
)
def test_other_maps_do_not_look_at_the_place(row):
    bijection, adapter = built(row, 6)
    x = grids(2, 6)
    for direction in (bijection, bijection.inverse):
        for told, plain in zip(direction(x, adapter, somewhere(6)), direction(x, adapter), strict=True):
            assert torch.equal(told, plain)


def test_coupling_refuses_what_is_not_its_adapter():
    coupling = MoleCoupling(6, 0, hidden=4, clamp=1.9, context=None)
    with pytest.raises(TypeError, match="expected a CouplingAdapter, got Linear"):
        coupling(grids(1, 6).float(), nn.Linear(2, 2))


def test_soft_clamp_is_the_identity_near_zero_and_never_beyond_its_limit():
    s = torch.linspace(-1e-4, 1e-4, 9, dtype=torch.float64)
    torch.testing.assert_close(soft_clamp(s, 1.9), s, rtol=1e-8, atol=0)
    far = torch.tensor([-1e9, -5.0, 5.0, 1e9], dtype=torch.float64)
    assert soft_clamp(far, 1.9).abs().max() <= 1.9
    assert (soft_clamp(far, 1.9).sign() == far.sign()).all()


def test_lora_is_the_explicit_low_rank_change():
    linear, adapter = randomised(SharedLinear(5, 4), 1), randomised(LowRank(5, 4, LORA), 2)
    x = grids(2, 5)
    scale = LORA.alpha / LORA.rank
    for row, got in zip(x.reshape(-1, 5), linear(x, adapter).reshape(-1, 4), strict=True):
        low_rank = scale * (adapter.B @ (adapter.A @ row))
        expected = linear.weight @ row + linear.bias + low_rank + adapter.bias
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


def test_lora_as_constructed_changes_nothing_although_A_is_random():
    linear, adapter = SharedLinear(5, 4), LowRank(5, 4, LORA)
    x = grids(2, 5).float()
    assert adapter.A.abs().min() > 0
    assert torch.equal(linear(x, adapter), linear(x))


def test_default_lora_has_scale_one_so_a_change_of_B_arrives_whole():
    linear, adapter = SharedLinear(32, 4), LowRank(32, 4, Lora())
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    before = linear(x, adapter)
    adapter.B.data += 0.5
    arrived = linear(x, adapter) - before
    torch.testing.assert_close(arrived, x @ adapter.A.T @ adapter.B.T, rtol=1e-4, atol=1e-5)
    assert arrived.abs().mean() > 0.5


def test_a_frozen_base_gets_no_gradient_and_every_lora_weight_does():
    coupling, adapter = built(mole(0, context=Context(kernel=3, gate=0.5)), 6)
    coupling.requires_grad_(False)
    y, log_det = coupling(grids(2, 6), adapter)
    (y.square().sum() + log_det.sum()).backward()
    assert all(p.grad is None for p in coupling.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


# -- the mixer ---------------------------------------------------------------------------------------

MIXER_GRIDS = [(1, 1), (1, 5), (4, 1), (2, 2), (3, 4)]


def dense_mixer(mixer: ContextMixer, grid: tuple[int, int], channel: int) -> Tensor:
    """(hw, hw) matrix of one channel, written out neighbour by neighbour; the border repeats itself."""
    height, width = grid
    gate = mixer.limit / (1 + math.exp(-mixer.gate.item()))
    across, down, diagonal = (gate * math.tanh(s) / 12 for s in mixer.sides[:, channel].tolist())
    weights = {(0, 0): 1 - 2 * across - 2 * down - 4 * diagonal}
    weights |= {(0, -1): across, (0, 1): across, (-1, 0): down, (1, 0): down}
    weights |= dict.fromkeys(itertools.product((-1, 1), (-1, 1)), diagonal)
    matrix = torch.zeros(height * width, height * width, dtype=torch.float64)
    for (row, column), ((d_row, d_column), weight) in itertools.product(
        itertools.product(range(height), range(width)), weights.items()
    ):
        from_row = min(max(row + d_row, 0), height - 1)
        from_column = min(max(column + d_column, 0), width - 1)
        matrix[row * width + column, from_row * width + from_column] += weight
    return matrix


@pytest.mark.parametrize("grid", MIXER_GRIDS)
def test_mixer_is_its_dense_matrix_in_value_log_det_and_inverse(grid):
    mixer = randomised(ContextMixer(3, Mixer()), spread=2.0)
    x = grids(2, 3, grid=grid)
    y, log_det = mixer(x)
    back, _ = mixer.inverse(x)
    total = 0.0
    for channel in range(3):
        matrix = dense_mixer(mixer, grid, channel)
        flat = x[..., channel].flatten(1).T
        torch.testing.assert_close(y[..., channel].flatten(1).T, matrix @ flat)
        torch.testing.assert_close(back[..., channel].flatten(1).T, torch.linalg.solve(matrix, flat))
        total += torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(log_det.sum((1, 2)), total.expand(2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [0.5, 1.0])
@pytest.mark.parametrize("signs", list(itertools.product((-50.0, 50.0), repeat=3)), ids=str)
def test_mixer_eigenvalues_stay_positive_at_the_extremes(limit, signs):
    mixer = ContextMixer(2, Mixer(gate_limit=limit)).double()
    mixer.gate.data.fill_(50.0)
    mixer.sides.data.copy_(torch.tensor(signs)[:, None].expand(3, 2))
    dense = torch.linalg.eigvalsh(dense_mixer(mixer, (4, 5), 0))
    assert dense.min() > 0
    claimed = cosine_eigenvalues(mixer._weights(), 4, 5)[..., 0].flatten().sort().values
    torch.testing.assert_close(claimed, dense)
    x = grids(1, 2, grid=(4, 5))
    torch.testing.assert_close(mixer.inverse(mixer(x)[0])[0], x)


def test_mixer_with_its_gate_shut_is_the_identity_whatever_the_kernel():
    mixer = randomised(ContextMixer(3, Mixer()), spread=2.0)
    mixer.gate.data.fill_(-800.0)
    x = grids(2, 3)
    y, log_det = mixer(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2, *GRID, dtype=torch.float64))


def test_mixer_keeps_a_constant_image():
    mixer = randomised(ContextMixer(3, Mixer()), spread=2.0)
    x = grids(1, 3)[:, :1, :1].expand(1, *GRID, 3)
    torch.testing.assert_close(mixer(x)[0], x)


# -- the full mixer ----------------------------------------------------------------------------------


def dense_stencil(taps: list[list[float]], grid: tuple[int, int]) -> Tensor:
    """(hw, hw) matrix of one channel's 3x3 kernel, neighbour by neighbour; the border repeats itself."""
    height, width = grid
    matrix = torch.zeros(height * width, height * width, dtype=torch.float64)
    for row, column, i, j in itertools.product(range(height), range(width), range(3), range(3)):
        from_row, from_column = min(max(row + i - 1, 0), height - 1), min(max(column + j - 1, 0), width - 1)
        matrix[row * width + column, from_row * width + from_column] += taps[i][j]
    return matrix


@pytest.mark.parametrize("grid", [*MIXER_GRIDS, (6, 3)])
def test_full_mixer_is_its_dense_matrix_in_value_log_det_and_inverse(grid):
    mixer = randomised(FullMixer(3, Mixer(kernel="full")), spread=2.0)
    x = grids(2, 3, grid=grid)
    y, log_det = mixer(x)
    back, _ = mixer.inverse(x)
    total = 0.0
    for channel in range(3):
        gate = 0.5 / (1 + math.exp(-mixer.gate.item()))
        change = mixer.change.detach()[:, :, channel]
        taps = gate * change * min(1, 1.9 / float(change.abs().sum()))
        taps[1, 1] += 1
        matrix = dense_stencil(taps.tolist(), grid)
        flat = x[..., channel].flatten(1).T
        torch.testing.assert_close(y[..., channel].flatten(1).T, matrix @ flat)
        torch.testing.assert_close(back[..., channel].flatten(1).T, torch.linalg.solve(matrix, flat))
        sign, own = torch.linalg.slogdet(matrix)
        assert sign == 1
        total += own
    torch.testing.assert_close(log_det.sum((1, 2)), total.expand(2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("signs", list(itertools.product((-1.0, 1.0), repeat=3)), ids=str)
def test_full_mixer_is_invertible_at_its_bound(signs):
    """Gate open, every kernel as far from the identity as it may be: the bound says 1/20 is left."""
    mixer = FullMixer(3, Mixer(kernel="full")).double()
    mixer.gate.data.fill_(800.0)
    with torch.no_grad():
        mixer.change[..., 0].fill_(signs[0])
        mixer.change[1, 1] = -100.0  # the centre taken away, or all of it
        mixer.change[0, :, 1], mixer.change[2, 2, 2] = 50 * signs[1], 100 * signs[2]
    matrices = [dense_stencil(kernel.tolist(), (5, 4)) for kernel in mixer._kernel().permute(2, 0, 1)]
    for matrix in matrices:
        diagonal = matrix.diagonal()
        rest = matrix.abs().sum(1) - diagonal.abs()
        assert (diagonal - rest).min() >= 0.05 - 1e-12
    x = grids(1, 3, grid=(5, 4))
    torch.testing.assert_close(mixer.inverse(mixer(x)[0])[0], x)


def test_full_mixer_reaches_a_mean_and_a_shift_which_the_symmetric_one_does_not():
    mixer = FullMixer(2, Mixer(kernel="full")).double()
    mixer.gate.data.fill_(800.0)
    with torch.no_grad():
        mixer.change[..., 0] = 1 / 9
        mixer.change[1, 0, 1] = 0.95
        mixer.change[1, 1] -= torch.tensor([1.0, 0.95])
    x = grids(1, 2, grid=(5, 6))
    y = mixer(x)[0]
    mean = F.avg_pool2d(x[..., 0], 3, stride=1)
    torch.testing.assert_close(y[:, 1:-1, 1:-1, 0], (x[:, 1:-1, 1:-1, 0] + mean) / 2)
    torch.testing.assert_close(y[:, :, 1:, 1], 0.525 * x[:, :, 1:, 1] + 0.475 * x[:, :, :-1, 1])


@pytest.mark.parametrize(
    ("make", "weights"), [(ContextMixer, "sides"), (FullMixer, "change")], ids=["mirrored", "full"]
)
def test_a_frozen_mixer_says_what_it_says_while_it_learns(make, weights):
    kernel = "full" if make is FullMixer else Mixer().kernel
    mixer, x = randomised(make(3, Mixer(kernel=kernel)), spread=2.0), grids(2, 3)
    learning = mixer(x)[1]
    assert learning.requires_grad
    frozen = mixer.requires_grad_(False)
    torch.testing.assert_close(frozen(x)[1], learning.detach(), rtol=1e-12, atol=1e-12)
    before = frozen(x)[1]
    getattr(frozen, weights).data.neg_()  # and what it said before is not remembered of other weights
    assert (frozen(x)[1] - before).abs().min() > 1e-3
    other = grids(2, 3, grid=(GRID[0] + 1, GRID[1]))  # nor of other grids
    again = make(3, Mixer(kernel=kernel)).to(x.dtype)
    again.load_state_dict(frozen.state_dict())
    torch.testing.assert_close(frozen(other)[1], again(other)[1].detach(), rtol=1e-12, atol=1e-12)


def test_log_det_of_the_full_mixer_teaches_every_weight_as_the_dense_determinant_does():
    kernel = (0.1 * grids(1, 2, grid=(3, 3)))[0]
    kernel[1, 1] += 1
    kernel.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: stencil_log_det(k, 4, 3), kernel)
    y = grids(2, 2, grid=(4, 3)).requires_grad_(True)
    assert torch.autograd.gradcheck(stencil_solve, (kernel, y))


# -- the start: cells --------------------------------------------------------------------------------

EVEN = (4, 4)  # cells of one size; those of GRID are not


def placed(images: int, channels: int, grid: tuple[int, int], seed: int = 1) -> Tensor:
    """Raw features in 32 bits whose mean and covariance differ from place to place."""
    character = torch.Generator().manual_seed(42)
    mixing = torch.randn(*grid, channels, channels, generator=character)
    mean = 3 * torch.randn(*grid, channels, generator=character)
    return torch.einsum("nhwc,hwcd->nhwd", grids(images, channels, seed, grid).float(), mixing) + mean


def gaussians_of(channels: int, grid: tuple[int, int], config: Cells, seed: int = 30) -> CellGaussians:
    cells = CellGaussians(grid, channels, config)
    cells.fit(placed(25, channels, grid, seed))
    return cells.double()


def numbers_of(grid: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.arange(grid[0] * grid[1]).reshape(1, *grid).expand(batch, *grid)


CELLS = {
    f"{'full' if rank > 5 else 'low'}-rank-{bits}-bits": Cells(side=2, rank=rank, mean_side=3, bits=bits)
    for rank in (2, 50)
    for bits in (8, 16)
}
every_cells = pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS.keys())


@every_cells
@odd_and_even
@pytest.mark.parametrize(("grid", "numbered"), [(EVEN, False), (EVEN, True), (GRID, True)])
def test_log_det_of_cell_whitening_is_that_of_its_jacobian(cells, channels, grid, numbered):
    start = CellWhitening(gaussians_of(channels, grid, cells))
    place = Place(torch.zeros(*grid, channels), numbers_of(grid) if numbered else None)
    x = placed(1, channels, grid).double()
    _, log_det = start(x, None, place)
    assert log_det.shape == (1, *grid)
    jacobian = image_jacobian(lambda v: start(v, None, place)[0], x[0])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det.sum().double(), expected, rtol=1e-6, atol=1e-5)
    for patch, own in enumerate(log_det.flatten().double()):
        block = jacobian[channels * patch :, channels * patch :][:channels, :channels]
        torch.testing.assert_close(own, torch.linalg.slogdet(block).logabsdet, rtol=1e-6, atol=1e-6)
    assert len(log_det.unique()) == 4  # one of each cell
    assert torch.equal(off_diagonal(jacobian, channels), torch.zeros_like(off_diagonal(jacobian, channels)))


@every_cells
@pytest.mark.parametrize("grid", [EVEN, GRID, (1, 1), (5, 3)])
def test_cell_whitening_is_undone_by_its_inverse(cells, grid):
    start = CellWhitening(gaussians_of(5, grid, cells))
    x = placed(3, 5, grid).double()
    y, log_det = start(x)
    back, inverse_log_det = start.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert (y - interleave(x)).abs().mean() > 0.5
    white = grids(2, 5, seed=6, grid=grid)
    torch.testing.assert_close(start(start.inverse(white)[0])[0], white, rtol=1e-5, atol=1e-5)


@every_cells
@pytest.mark.parametrize("grid", [EVEN, GRID])
def test_windows_are_whitened_as_the_whole_grid_is_wherever_they_lie(cells, grid):
    gaussians = gaussians_of(5, grid, cells)
    x = placed(2, 5, grid).double()
    whole, log_det = gaussians.whiten(x)
    rows, columns = torch.tensor([[2, 1], [0, 1]]), torch.tensor([[1, 2], [2, 3]])
    patches = numbers_of(grid)[0][rows[:, :, None], columns[:, None, :]]
    image = torch.tensor([1, 0])[:, None, None]
    own, own_log_det = gaussians.whiten(x[image, rows[:, :, None], columns[:, None, :]], patches)
    torch.testing.assert_close(own, whole.flatten(1, 2)[image, patches], rtol=1e-6, atol=1e-6)
    assert torch.equal(own_log_det, log_det.flatten(1)[image, patches])
    elsewhere, _ = gaussians.whiten(x[image, rows[:, :, None], columns[:, None, :]], patches.flip(1))
    assert (elsewhere - own).abs().max() > 0.1


# -- whitening, statistics, position -----------------------------------------------------------------


def test_whitening_is_bounded_however_large_its_weights():
    whitening = BoundedAffine(4, Whitening(scale_limit=2.0, shift_limit=3.0)).double()
    whitening.a.data = torch.tensor([-1e6, 1e6, -1e6, 1e6], dtype=torch.float64)
    whitening.b.data = torch.tensor([-1e6, -1e6, 1e6, 1e6], dtype=torch.float64)
    zero, one = torch.zeros(1, 1, 1, 4).double(), torch.ones(1, 1, 1, 4).double()
    shift = whitening(zero)[0]
    torch.testing.assert_close(shift.flatten(), torch.tensor([-3.0, -3.0, 3.0, 3.0]).double())
    torch.testing.assert_close(
        (whitening(one)[0] - shift).flatten(), torch.tensor([0.5, 2.0, 0.5, 2.0]).double()
    )


def test_statistics_give_mean_zero_and_spread_one():
    x = 3 + grids(20, 5) * torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    affine = Affine(5).double()
    affine.fit(x)
    y = affine(x)[0].reshape(-1, 5)
    torch.testing.assert_close(y.mean(0), torch.zeros(5).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.std(0, unbiased=False), torch.ones(5).double())


def test_statistics_do_not_blow_up_a_channel_that_never_moves():
    x = grids(20, 5)
    x[..., 2] = 7.0
    affine = Affine(5).double()
    affine.fit(x)
    gain = affine.log_scale.exp()
    assert gain[2] <= 10.5 * gain.median()
    torch.testing.assert_close(affine(x)[0][..., 2], torch.zeros(20, *GRID).double())


def test_statistics_of_constant_features_are_finite():
    affine = Affine(5)
    affine.fit(torch.full((3, *GRID, 5), 2.0))
    y, log_det = affine(torch.full((3, *GRID, 5), 2.0))
    assert torch.isfinite(y).all()
    assert torch.isfinite(log_det).all()


@odd_and_even
def test_position_tells_column_in_one_half_and_row_in_the_other(channels):
    position = sinusoidal_position(3, 4, channels)
    half = channels // 2
    assert position.shape == (3, 4, channels)
    assert torch.equal(position[..., :half], position[:1, :, :half].expand(3, 4, half))
    assert torch.equal(position[..., half:], position[:, :1, half:].expand(3, 4, channels - half))
    assert len(position.reshape(12, channels).unique(dim=0)) == 12
    torch.testing.assert_close(position[0, :, 0], torch.arange(4.0).sin())


def test_layer_norm_removes_gain_and_offset_of_a_patch():
    x = grids(2, 6)
    y = layer_norm(x)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, *GRID).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer_norm(50 * x + 3), layer_norm(100 * x), rtol=1e-4, atol=1e-4)


# -- coordinates of the sphere -----------------------------------------------------------------------


def sphere(count: int, channels: int) -> Tensor:
    """Points of the sphere that layer normalisation takes patches to."""
    return layer_norm_exactly(grids(count, channels, grid=(1, 1))[:, 0, 0])


def layer_norm_exactly(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return math.sqrt(x.shape[-1]) * centred / centred.norm(dim=-1, keepdim=True)


def test_layer_normalised_patches_fill_two_directions_less_than_there_are_channels():
    """Why a density over all channels is degenerate: it may be as high as it likes on the sphere."""
    x = layer_norm(grids(500, 6, grid=(1, 1)))[:, 0, 0]
    assert torch.linalg.eigvalsh(x.T.cov())[0].abs() < 1e-12  # the sum is nought: a plane
    torch.testing.assert_close(x.square().sum(-1), torch.full((500,), 6.0).double(), rtol=1e-3, atol=0)
    y = sphere_chart(x)
    assert y.shape == (500, 4)
    spectrum = torch.linalg.eigvalsh(y.T.cov())
    assert spectrum[0] > 0.1 * spectrum[-1]


def sphere_points(y: Tensor) -> Tensor:
    """The inverse of `sphere_chart`: points (…, D) of the sphere for coordinates y (…, D - 2)."""
    channels = y.shape[-1] + 2
    radius = math.sqrt(channels)
    square = y.square().sum(-1, keepdim=True) / channels
    turned = torch.cat([2 * y, radius * (1 - square)], dim=-1) / (1 + square)
    total = turned.sum(-1, keepdim=True)
    return torch.cat([turned - total / (channels - radius), total / radius], dim=-1)


@odd_and_even
def test_sphere_chart_and_points_undo_each_other(channels):
    x = sphere(50, channels)
    torch.testing.assert_close(sphere_points(sphere_chart(x)), x)
    y = 3 * grids(50, channels - 2, grid=(1, 1))
    torch.testing.assert_close(sphere_chart(sphere_points(y)), y)
    points = sphere_points(y)
    torch.testing.assert_close(layer_norm_exactly(points), points)


def test_sphere_chart_does_not_see_gain_and_offset():
    x = grids(2, 6)
    torch.testing.assert_close(sphere_chart(50 * x + 3), sphere_chart(x))


@odd_and_even
def test_sphere_log_det_is_that_of_the_chart_along_the_surface(channels):
    for x in sphere(8, channels):
        normals = torch.stack([torch.ones_like(x), x])
        tangent = torch.linalg.svd(normals)[2][2:]  # what is at right angles to both
        jacobian = torch.autograd.functional.jacobian(sphere_chart, x) @ tangent.T
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(sphere_log_det(sphere_chart(x)), expected, rtol=1e-9, atol=1e-9)


def test_density_on_the_sphere_integrates_to_one_over_its_surface():
    config = replace(SMALL, normalisation="sphere", position=0.0, dia=Dia(blocks=2, hidden=4))
    base, expert = random_flow(config, 4, grid=(1, 1))
    polar = (torch.arange(400, dtype=torch.float64) + 0.5) * math.pi / 400
    round_it = (torch.arange(200, dtype=torch.float64) + 0.5) * 2 * math.pi / 200
    theta, phi = torch.meshgrid(polar, round_it, indexing="ij")
    ball = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=-1)
    plane = torch.linalg.svd(torch.ones(1, 4, dtype=torch.float64))[2][1:]  # of sum zero
    points = (2 * ball @ plane).reshape(-1, 1, 1, 4)
    with torch.no_grad():
        # `prepare` computes in 32 bits and reorders the channels, which the surface does not feel
        density = base.log_prob(expert, base.prepare(points).double()).exp().reshape(theta.shape)
    mass = (density * theta.sin()).sum() * 4 * (math.pi / 400) * (2 * math.pi / 200)
    assert abs(float(mass) - 1) < 1e-3


def test_on_the_sphere_the_flow_has_two_coordinates_less_and_its_chain_the_log_det_of_its_jacobian():
    base, expert = random_flow(replace(SMALL, normalisation="sphere"), 7)
    assert (base.channels, base.dim, base.position.shape) == (7, 5, (*GRID, 5))
    x = base.prepare(grids(1, 7)).double()
    passage = base.passage(expert, x)
    expected = torch.linalg.slogdet(image_jacobian(lambda v: base.latent(expert, v)[0], x[0]))
    torch.testing.assert_close(passage.log_det.sum(), expected.logabsdet, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        base.log_prob(expert, x), passage.log_prob - 0.5 * 5 * math.log(2 * math.pi), rtol=1e-9, atol=1e-9
    )


def test_a_sphere_of_too_few_coordinates_is_an_error():
    with pytest.raises(ConfigError, match="at least two coordinates for the flow, got 1"):
        Base(GRID, 3, FlowConfig(cells=None, normalisation="sphere"))


def test_a_patch_without_contrast_has_finite_coordinates():
    y = sphere_chart(torch.full((1, 1, 6), 3.0))
    assert torch.isfinite(y).all()
    rounding = 3.0 + 1e-7 * grids(1, 6)  # which is not blown up to a pattern
    assert sphere_chart(rounding).abs().max() < 1e-3
    spike = torch.zeros(1, 6)
    spike[0, 4] = -1.0  # the one direction that the chart cannot reach
    assert torch.isfinite(sphere_chart(spike)).all()


# -- base and expert: the whole chain ----------------------------------------------------------------


def random_flow(config: FlowConfig, channels: int, grid: tuple[int, int] = GRID) -> tuple[Base, Expert]:
    """Every weight random; behind cells of a product's own where the flow begins with them."""
    base = Base(grid, channels, config)
    expert = randomised(Expert(base), 5, 0.4)
    if config.cells is not None:
        expert = expert.beginning_with(gaussians_of(channels, grid, config.cells))
    return randomised(base, 4, 0.4), expert


def features_for(base: Base, images: int, seed: int = 1) -> Tensor:
    """What `prepare` could have returned, in 64 bits."""
    grid = tuple(base.position.shape[:2])
    if base.config.cells is not None:
        return placed(images, base.channels, grid, seed).double()
    return grids(images, base.channels, seed, grid)


def place_of(base: Base, patches: Tensor) -> Place:
    """Of patches (B, h, w) by their numbers on the grid, row by row."""
    return Place(base.position.flatten(0, 1)[patches], patches)


every_start = pytest.mark.parametrize("config", [SMALL, BEGUN], ids=["layer", "cells"])


@every_start
@odd_and_even
def test_the_whole_chain_has_the_log_det_of_its_jacobian(config, channels):
    base, expert = random_flow(config, channels)
    assert len(list(base.chain(expert))) == 2 + 1 + 3 + 3
    x = features_for(base, 2)
    _, log_det = base.latent(expert, x)
    assert log_det.shape == (2, *GRID)
    place = place_of(base, numbers_of(GRID))
    # Cells see features in 32 bits, and so do the gradients that pass through them.
    exact = {"rtol": 1e-9, "atol": 1e-9} if config.cells is None else {"rtol": 1e-5, "atol": 1e-3}
    for image, total in zip(x, log_det.sum((1, 2)), strict=True):
        jacobian = image_jacobian(lambda v: base.latent(expert, v, place=place)[0], image)
        torch.testing.assert_close(total, torch.linalg.slogdet(jacobian).logabsdet, **exact)


def test_cells_of_one_size_have_the_same_jacobian_over_the_whole_grid():
    base, expert = random_flow(BEGUN, 5, grid=EVEN)
    x = features_for(base, 1)
    _, log_det = base.latent(expert, x)
    expected = torch.linalg.slogdet(image_jacobian(lambda v: base.latent(expert, v)[0], x[0])).logabsdet
    torch.testing.assert_close(log_det.sum(), expected, rtol=1e-5, atol=1e-3)


@every_start
@odd_and_even
def test_the_whole_chain_is_undone_by_its_inverse(config, channels):
    base, expert = random_flow(config, channels)
    x = features_for(base, 2)
    z, log_det = base.latent(expert, x)
    back, inverse_log_det = base.inverse(expert, z)
    exact = {"rtol": 1e-9, "atol": 1e-9} if config.cells is None else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(back, x, **exact)
    torch.testing.assert_close(inverse_log_det, -log_det)
    begun = x + base.position if config.cells is None else expert.start_cells(x)[0]
    assert (z - begun).abs().max() > 0.1


@every_start
def test_log_prob_is_the_standard_normal_of_the_latent_plus_log_det(config):
    base, expert = random_flow(config, 5)
    x = features_for(base, 2)
    z, log_det = base.latent(expert, x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(base.log_prob(expert, x), normal + log_det)


def test_density_integrates_to_one():
    config = replace(SMALL, hidden=4, dia=Dia(blocks=2, hidden=4))
    base, expert = random_flow(config, 2, grid=(1, 1))
    side = torch.linspace(-20, 20, 601, dtype=torch.float64)
    points = torch.cartesian_prod(side, side).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        density = base.log_prob(expert, points).exp()
    mass = density.sum() * (side[1] - side[0]) ** 2
    assert abs(float(mass) - 1) < 1e-3


def test_a_new_expert_is_the_identity_around_the_base():
    base = Base(GRID, 6, SMALL)
    randomised(base, 4, 0.4)
    x = grids(2, 6)
    z, log_det = base.latent(Expert(base).double(), x)
    bare, bare_log_det = base.mixer(x + base.position)
    for coupling in base.couplings:
        bare, step = coupling(bare)
        bare_log_det = bare_log_det + step
    assert torch.equal(z, bare)
    torch.testing.assert_close(log_det, bare_log_det, rtol=1e-12, atol=1e-12)
    assert (z - x - base.position).abs().max() > 0.1  # the base itself does something


@every_cells
@pytest.mark.parametrize("grid", [EVEN, GRID])
def test_a_new_expert_with_cells_scores_as_the_cells_do(cells, grid):
    base = Base(grid, 5, replace(BEGUN, cells=cells))
    expert = Expert(base)
    train, test = placed(25, 5, grid, seed=30), 2 * placed(4, 5, grid)
    expert.start(base, base.prepare(train))
    beside = CellGaussians(grid, 5, cells)
    beside.fit(train)
    with torch.no_grad():
        scores = base.score(expert, base.prepare(test))
    # Rounded directions are not quite at right angles, which the two ways to reckon feel differently.
    rounded = 5e-3 if cells.bits == 8 else 5e-4
    torch.testing.assert_close(scores, beside(test), rtol=rounded, atol=rounded)
    torch.testing.assert_close(scores, beside.whiten(test)[0].norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert scores.std() > 0.5


@pytest.mark.parametrize("bits", [8, 16])
def test_where_rounding_leaves_the_directions_at_right_angles_the_score_is_the_cells_distance(bits):
    """Channels that vary by themselves have directions along them, which any number of bits holds."""
    config = Cells(side=1, rank=3, mean_side=3, bits=bits)
    base = Base(GRID, 5, replace(BEGUN, cells=config))
    expert = Expert(base)
    spread = torch.tensor([5.0, 1.0, 3.0, 0.5, 2.0])
    signs = torch.tensor([[(i >> k & 1) * 2.0 - 1 for k in range(5)] for i in range(32)])  # uncorrelated
    train = (spread * signs)[:, None, None].expand(32, *GRID, 5).contiguous()
    expert.start(base, base.prepare(train))
    axes = F.normalize(expert.gaussians.directions[0], dim=-1)
    assert axes.abs().max(-1).values.min() > 1 - 1e-6
    test = 3 * grids(4, 5).float()
    beside = CellGaussians(GRID, 5, config)
    beside.fit(train)
    with torch.no_grad():
        scores = base.score(expert, base.prepare(test))
    torch.testing.assert_close(scores, beside(test), rtol=1e-4, atol=1e-4)
    variances = spread.square()
    kept = torch.where(variances >= 4, variances, 0.0) + 0.3 * variances.mean()
    torch.testing.assert_close(scores, (test.square() / kept).sum(-1).sqrt(), rtol=1e-2, atol=1e-2)


def test_a_new_expert_is_a_gaussian_for_every_cell():
    base = Base(GRID, 5, replace(BEGUN, cells=Cells(side=2, rank=5, mean_side=64, bits=16)))
    expert = Expert(base).double()
    base.double()
    train, test = placed(400, 5, GRID, seed=30), placed(3, 5, GRID).double()
    expert.start(base, base.prepare(train))
    got, centred = base.log_prob(expert, test), (train - train.mean(0)).double()
    for rows, columns in expert.gaussians._cells():
        own = centred[:, rows, columns].reshape(-1, 5)
        covariance = own.T @ own / len(own) + expert.gaussians.noise * torch.eye(5)
        offset = test[:, rows, columns] - train.double().mean(0)[rows, columns]
        normal = torch.distributions.MultivariateNormal(torch.zeros(5).double(), covariance)
        torch.testing.assert_close(got[:, rows, columns], normal.log_prob(offset), rtol=1e-2, atol=2e-2)


def test_the_score_behind_cells_is_the_root_of_the_latents_length_less_twice_what_was_learned():
    base, expert = random_flow(BEGUN, 5)
    x = 3 * features_for(base, 2)  # far out, where nothing is clamped
    passage = base.passage(expert, x)
    learned = passage.log_det - expert.start_cells(x)[1]
    squared = passage.z.square().sum(-1) - 2 * learned
    assert squared.min() > 0
    torch.testing.assert_close(base.score(expert, x), squared.sqrt())
    assert (squared - passage.z.square().sum(-1)).abs().max() > 0.1


def test_a_score_behind_cells_is_a_number_even_where_the_learned_part_has_grown_beyond_the_distance():
    base, expert = random_flow(replace(BEGUN, couplings=0, mixer=None, lora=None, dia=None), 5)
    expert.whitening.b.data.zero_()
    expert.whitening.a.data.fill_(100.0)
    scores = base.score(expert, base.inverse(expert, torch.zeros(1, *GRID, 5).double())[0])
    assert torch.equal(scores, torch.zeros(1, *GRID).double())


def test_without_cells_the_score_is_minus_the_log_density():
    base, expert = random_flow(SMALL, 5)
    x = features_for(base, 2)
    assert torch.equal(base.score(expert, x), -base.log_prob(expert, x))


def test_noise_is_added_behind_the_cells_and_to_the_features_without_them():
    noise = 0.3 * grids(2, 5, seed=3)
    base, expert = random_flow(SMALL, 5)
    x = features_for(base, 2)
    torch.testing.assert_close(base.passage(expert, x, noise=noise).z, base.passage(expert, x + noise).z)
    base, expert = random_flow(BEGUN, 5)
    x = features_for(base, 2)
    white, log_det = expert.start_cells(x)
    noisy = base.passage(expert, x, noise=noise)
    coloured, _ = expert.start_cells.inverse(white + noise)
    torch.testing.assert_close(noisy.z, base.passage(expert, coloured).z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noisy.log_det_start, log_det)


def test_beginning_with_other_cells_shares_what_was_learned_and_changes_nothing_in_the_original():
    base, expert = random_flow(BEGUN, 5)
    x = features_for(base, 2)
    cells, score = expert.start_cells, base.score(expert, x)
    kept = {name: value.clone() for name, value in expert.state_dict().items()}
    others = gaussians_of(5, GRID, BEGUN.cells, seed=77)
    other = expert.beginning_with(others)
    assert other.gaussians is others
    assert type(other) is Expert
    named = dict(other.named_parameters())
    assert named.keys() == dict(expert.named_parameters()).keys()
    assert all(parameter is named[name] for name, parameter in expert.named_parameters())
    assert (base.score(other, x) - score).abs().min() > 1e-4
    assert expert.start_cells is cells
    assert torch.equal(base.score(expert, x), score)
    assert expert.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in expert.state_dict().items())
    again = other.beginning_with(expert.gaussians)
    assert torch.equal(base.score(again, x), score)


@pytest.mark.parametrize("channels", [5, 6])
def test_what_an_expert_learned_behind_cells_sees_the_channels_in_the_order_of_the_couplings(channels):
    base, expert = random_flow(BEGUN, channels)
    x = features_for(base, 1)
    white, _ = expert.gaussians.whiten(x)
    assert torch.equal(expert.start_cells(x)[0], interleave(white))


@pytest.mark.parametrize("part", ["couplings", "dia"])
def test_behind_cells_the_learned_maps_are_told_the_place_and_it_is_not_added_to_what_is_judged(part):
    bare = dict.fromkeys(("mixer", "context", "lora", "whitening"))
    bare |= {"dia": None} if part == "couplings" else {"couplings": 0}
    x = grids(1, 5)[:, :1, :1].expand(1, *GRID, 5).contiguous()
    for amplitude, places in ((1.0, 12), (0.0, 1)):
        base, expert = random_flow(replace(BEGUN, position=amplitude, **bare), 5)
        expert = expert.beginning_with(CellGaussians(GRID, 5, BEGUN.cells).double())  # the identity
        passage = base.passage(expert, x)
        assert len(passage.log_det.round(decimals=8).unique()) == places
    untaught = Expert(Base(GRID, 5, BEGUN))
    white = Base(GRID, 5, BEGUN).passage(untaught, x.float()).z
    assert torch.equal(white, interleave(x.float()))


def test_start_gives_prepared_features_mean_zero_and_spread_one():
    base = Base(GRID, 6, SMALL).double()
    expert = Expert(base).double()
    x = 5 + 2 * grids(30, 6)
    expert.start(base, x)
    z, _ = base.latent(expert, x)  # everything else is still the identity
    torch.testing.assert_close(z.mean((0, 1, 2)), torch.zeros(6).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.std((0, 1, 2), unbiased=False), torch.ones(6).double(), rtol=1e-6, atol=0)


@every_start
def test_experts_passed_in_turn_leave_no_trace(config):
    base, first = random_flow(config, 5)
    second = randomised(Expert(base), 11, 0.4)
    if config.cells is not None:
        second = second.beginning_with(gaussians_of(5, GRID, config.cells, seed=31))
    x = features_for(base, 2)
    before = base.log_prob(first, x)
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    other = base.log_prob(second, x)
    assert (other - before).abs().min() > 1e-6
    assert torch.equal(base.log_prob(first, x), before)
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())


@every_start
def test_every_weight_of_base_and_expert_reaches_the_density(config):
    base, expert = random_flow(config, 6)
    base.log_prob(expert, features_for(base, 3)).sum().backward()
    owned = {f"base.{n}": p for n, p in base.named_parameters()}
    owned |= {f"expert.{n}": p for n, p in expert.named_parameters()}
    idle = [n for n, p in owned.items() if p.grad is None or p.grad.abs().max() == 0]
    assert not idle


@every_start
def test_a_window_with_its_own_place_agrees_with_the_whole_grid_where_nothing_looks_sideways(config):
    base, expert = random_flow(replace(config, mixer=None, context=None), 5)
    x = features_for(base, 2)
    whole = base.log_prob(expert, x)
    window = base.log_prob(expert, x[:, 1:, 2:], place=place_of(base, numbers_of(GRID, 2)[:, 1:, 2:]))
    torch.testing.assert_close(window, whole[:, 1:, 2:], rtol=1e-6, atol=1e-6)
    elsewhere = base.log_prob(expert, x[:, 1:, 2:], place=place_of(base, numbers_of(GRID, 2)[:, :2, :2]))
    assert (elsewhere - window).abs().min() > 1e-4


def test_passage_parts_the_log_det_of_couplings_and_dia_from_the_rest():
    base, expert = random_flow(SMALL, 6)
    x = grids(2, 6)
    passage = base.passage(expert, x)
    rest = sum(owned(x)[1] for owned in (expert.statistics, expert.whitening, base.mixer))
    assert rest.abs().min() > 0.1
    torch.testing.assert_close(passage.log_det, passage.log_det_flow + rest)
    assert torch.equal(passage.penalised("chain"), passage.log_det)
    assert passage.penalised("flow") is passage.log_det_flow


def test_the_log_det_of_the_cells_is_penalised_by_nobody():
    base, expert = random_flow(BEGUN, 6)
    x = features_for(base, 2)
    passage = base.passage(expert, x)
    white, start = expert.start_cells(x)
    assert start.abs().min() > 0.1
    assert torch.equal(passage.log_det_start, start)
    learned = expert.whitening(white)[1] + base.mixer(white)[1] + passage.log_det_flow
    torch.testing.assert_close(passage.log_det, learned + start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(passage.penalised("chain"), learned, rtol=1e-6, atol=1e-6)
    assert passage.penalised("flow") is passage.log_det_flow


@every_start
@pytest.mark.parametrize("kernel", ["symmetric", "full"])
def test_a_window_with_the_reach_around_it_sees_what_the_whole_image_shows(config, kernel):
    config = replace(config, couplings=2, mixer=Mixer(kernel=kernel), context=Context(kernel=5, gate=0.5))
    base, expert = random_flow(config, 6, grid=(12, 12))
    assert base.reach == 1 + 2 * 2
    image = features_for(base, 1)
    whole = base.passage(expert, image)
    place = place_of(base, numbers_of((12, 12))[:, :11, :11])
    window = base.passage(expert, image[:, :11, :11], place=place)
    inner = (slice(None), slice(0, 6), slice(0, 6))  # five patches from where it was cut, or at the border
    exact = {} if config.cells is None else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(window.z[inner], whole.z[inner], **exact)
    torch.testing.assert_close(window.log_det_flow[inner], whole.log_det_flow[inner], **exact)
    assert (window.z[:, 6, 6] - whole.z[:, 6, 6]).abs().max() > (1e-9 if config.cells is None else 1e-4)


# -- ablations ---------------------------------------------------------------------------------------

ABLATIONS = {
    "whitening": ({"whitening": None}, "whitening."),
    "statistics": ({"statistics": False}, "statistics."),
    "mixer": ({"mixer": None}, "mixer."),
    "context": ({"context": None}, "context."),
    "lora": ({"lora": None}, "adapters."),
    "dia": ({"dia": None}, "dia."),
    "couplings": ({"couplings": 0}, "couplings."),
    "couplings-lora": ({"couplings": 0}, "adapters."),
    "position": ({"position": 0.0}, None),
    "normalisation": ({"normalisation": "none"}, None),
    "sphere": ({"normalisation": "sphere"}, None),
    "mixer-full": ({"mixer": Mixer(kernel="full")}, "mixer.sides"),
}


def weight_names(config: FlowConfig) -> set[str]:
    base = Base(GRID, 5, config)
    return {*base.state_dict(), *Expert(base).state_dict()}


LEFT_OUT = {f"layer-{name}": (SMALL, *row) for name, row in ABLATIONS.items()}
LEFT_OUT |= {
    f"cells-{name}": (BEGUN, *row)
    for name, row in ABLATIONS.items()
    if name not in ("statistics", "normalisation", "sphere")
}
LEFT_OUT["cells"] = BEGUN, {"cells": None}, "start_cells."


@pytest.mark.parametrize(("whole", "changes", "part"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_every_part_can_be_left_out(whole, changes, part):
    config = replace(whole, **changes)
    base, expert = random_flow(config, 5)
    x = base.prepare(grids(2, 5)).double()
    log_prob = base.log_prob(expert, x)
    assert log_prob.shape == (2, *GRID)
    assert torch.isfinite(log_prob).all()
    exact = {} if config.cells is None else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(base.inverse(expert, base.latent(expert, x)[0])[0], x, **exact)
    if part is not None:
        assert any(part in name for name in weight_names(whole))
        assert not any(part in name for name in weight_names(config))


def test_with_everything_left_out_the_density_is_the_standard_normal():
    nothing = {"cells": None, "position": 0.0, "couplings": 0}
    nothing |= dict.fromkeys(("whitening", "mixer", "context", "lora", "dia"))
    base = Base(GRID, 5, FlowConfig(**nothing))
    expert = Expert(base)
    assert not [*expert.parameters(), *base.parameters()]
    x = grids(2, 5).float()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(base.log_prob(expert, x), expected)


def test_position_zero_makes_the_density_blind_to_place():
    x = grids(1, 5)[:, :1, :1].expand(1, *GRID, 5).contiguous()
    for amplitude, places in ((1.0, 12), (0.0, 1)):
        config = replace(SMALL, position=amplitude, mixer=None, context=None)
        base, expert = random_flow(config, 5)
        assert len(base.log_prob(expert, x).round(decimals=8).unique()) == places


def test_halves_are_parted_and_joined_again_and_interleaving_mixes_them():
    x = grids(1, 5)
    for parity in (0, 1):
        assert torch.equal(joined(*halves(x, parity), parity), x)
    assert interleave(torch.arange(5)).tolist() == [0, 2, 4, 1, 3]


def test_normalisation_is_layer_sphere_or_none():
    x = 3 * grids(2, 5).float() + 1

    def prepared(normalisation: str) -> Tensor:
        return Base(GRID, 5, FlowConfig(cells=None, normalisation=normalisation)).prepare(x)

    assert torch.equal(prepared("none"), interleave(x))
    assert torch.equal(prepared("layer"), layer_norm(interleave(x)))
    torch.testing.assert_close(sphere_points(prepared("sphere")), prepared("layer"), rtol=1e-3, atol=1e-4)


def test_a_flow_that_begins_with_cells_is_over_features_as_they_are():
    x = 3 * grids(2, 5).float() + 1
    base = Base(GRID, 5, FlowConfig())
    assert torch.equal(base.prepare(x), x)
    assert base.prepare(x.half()).dtype == torch.float32
