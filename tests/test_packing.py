"""Numbers in 4 and 8 bits: how far rounding moves them, and that what is kept is what was used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moleflow.packing import levels, numbers_in, pack, packed, paired, parted, unpack, unpacked

in_bits = pytest.mark.parametrize("bits", [4, 8])


def rows(length: int, count: int = 40) -> Tensor:
    """Rows of very different size."""
    generator = torch.Generator().manual_seed(length)
    size = 10 ** (3 * torch.randn(count, 1, generator=generator))
    return size * torch.randn(count, length, generator=generator)


@in_bits
@pytest.mark.parametrize("length", [1, 2, 7, 152])
def test_no_number_moves_by_more_than_half_a_step_of_its_row(bits, length):
    tensor = rows(length)
    codes, step = pack(tensor, bits)
    assert codes.abs().amax() == levels(bits)
    assert step.shape == (40, 1)
    assert ((unpack(codes, step) - tensor).abs() <= 0.501 * step).all()
    largest = tensor.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(step, largest / levels(bits), rtol=1e-4, atol=0)


@in_bits
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("shape", [(40, 1), (40, 7), (40, 152), (3, 5, 9), (0, 9), (0, 8)])
def test_what_was_unpacked_packs_to_the_very_same(bits, lengths, shape):
    tensor = rows(shape[-1], max(1, shape[0])).expand(*shape) if len(shape) == 2 else torch.randn(shape)
    if not shape[0]:
        tensor = torch.zeros(shape)
    kept = packed("own", tensor, bits, lengths=lengths)
    back = unpacked(kept)["own"]
    assert back.shape == shape
    again = packed("own", back, bits, lengths=lengths)
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], value) for name, value in kept.items())
    assert torch.equal(unpacked(again)["own"], back)


@in_bits
def test_rows_keep_their_length_where_that_is_asked_for(bits):
    tensor = rows(60)
    back = unpack(*pack(tensor, bits, lengths=True))
    torch.testing.assert_close(back.norm(dim=-1), tensor.norm(dim=-1), rtol=1e-4, atol=0)
    plain = unpack(*pack(tensor, bits))
    assert (plain.norm(dim=-1) / tensor.norm(dim=-1) - 1).abs().max() > 1e-4


@in_bits
def test_zeros_stay_zeros(bits):
    for lengths in (False, True):
        assert torch.equal(unpack(*pack(torch.zeros(3, 5), bits, lengths=lengths)), torch.zeros(3, 5))


@pytest.mark.parametrize("length", [1, 6, 7])
def test_two_codes_share_a_byte(length):
    codes = torch.randint(16, (5, length), generator=torch.Generator().manual_seed(0))
    pairs = paired(codes)
    assert pairs.shape == (5, (length + 1) // 2)
    assert pairs.dtype == torch.uint8
    assert torch.equal(parted(pairs, length).long(), codes)


@pytest.mark.parametrize("length", [1, 6, 7])
def test_numbers_are_counted_and_not_bytes(length):
    for bits in (4, 8):
        kept = packed("own", torch.randn(5, length), bits)
        assert sum(numbers_in(name, tensor) for name, tensor in kept.items()) == 5 * length + 5
    assert numbers_in("plain", torch.zeros(3, 4)) == 12


def test_what_is_kept_otherwise_is_left_as_it_is():
    found = unpacked(
        {"half": torch.ones(2).half(), **packed("few", torch.ones(2, 3), 4), "a.step": torch.ones(1)}
    )
    assert found.keys() == {"half", "few", "a.step"}
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
