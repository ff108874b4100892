import pytest
import torch

from npg.sampling import Displaced


def tensors():
    base = torch.randn(6, 8, dtype=torch.float64)
    return [
        torch.randn(3, 2),
        torch.randn(()),
        torch.empty(0, 4),
        torch.randn(4, 3).T,
        base[::2, ::3],  # with holes
        torch.randn(5).to(torch.bfloat16),
    ]


def test_moves_and_comes_back_bit_for_bit():
    own = tensors()
    before = [t.clone() for t in own]
    displaced = Displaced(own)
    displaced.set(displaced.start + 0.1 * torch.randn(len(displaced.start)))
    assert not any(torch.equal(a, b) for a, b in zip(own, before, strict=True) if a.numel())
    displaced.restore()
    assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))


@pytest.mark.parametrize("number", [1, 4, 100])
def test_pieces_write_to_the_tensors(number):
    own = tensors()
    displaced = Displaced(own)
    size = len(displaced.start)
    target = torch.arange(size).double()
    for first in range(0, size, number):
        for _, place, span in displaced.pieces(first, min(number, size - first)):
            place.copy_(target[span])
    displaced.written()
    assert torch.equal(torch.cat([t.double().reshape(-1) for t in own]), target)


def test_reflects_at_the_start_and_at_another_centre():
    own = [torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64).T]
    displaced = Displaced(own)
    step, offset = torch.randn(2, len(displaced.start), dtype=torch.float64)
    displaced.set(displaced.start + step)
    displaced.reflect()
    torch.testing.assert_close(flat(own), displaced.start - step)
    displaced.set(displaced.start + offset + step)
    displaced.reflect(offset)
    torch.testing.assert_close(flat(own), displaced.start + offset - step)


def flat(own):
    return torch.cat([t.reshape(-1) for t in own])


def test_views_move_version_counters():
    own = [torch.nn.Parameter(torch.ones(3))]
    displaced = Displaced(own)
    with torch.no_grad():
        next(displaced.whole()).place.mul_(2)
    assert own[0]._version == 1
