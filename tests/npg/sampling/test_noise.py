import pytest
import torch

from npg.sampling import ReplayedNoise
from npg.sampling import noise as noise_module
from npg.sampling.noise import CHUNK


def noise_of(size, seed=3, dtype=torch.float32):
    return ReplayedNoise(size, torch.empty(0, dtype=dtype), torch.Generator().manual_seed(seed))


def row_of(noise):
    return torch.cat([piece.clone() for _, piece in noise.row()])


@pytest.fixture(autouse=True, params=[0, 100, noise_module.KEPT])
def kept(request, monkeypatch):
    """How many numbers are kept makes no difference to what they are."""
    monkeypatch.setattr(noise_module, "KEPT", request.param)
    return request.param


SIZES = [1, 5, 16, 37, CHUNK["cpu"] + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_the_same_one_by_one_and_together(size, dtype):
    together = noise_of(size, dtype=dtype).rows(3)
    alone = noise_of(size, dtype=dtype)
    assert together.shape == (3, size)
    assert torch.equal(torch.stack([row_of(alone) for _ in range(3)]), together)


@pytest.mark.parametrize("size", SIZES)
def test_rows_come_again(size):
    noise = noise_of(size)
    first, block, last = row_of(noise), noise.rows(2).clone(), row_of(noise)
    for i, rows in enumerate([first.unsqueeze(0), block, last.unsqueeze(0)]):
        again = torch.cat([piece.clone() for _, piece in noise.again(i)], dim=1)
        assert torch.equal(again, rows)
    assert not torch.equal(row_of(noise), last)  # and the generator went on


def test_what_is_forgotten_is_drawn_again():
    noise = noise_of(37)
    first, second = row_of(noise), row_of(noise)
    noise.forget()
    assert noise.count == 1
    assert torch.equal(row_of(noise), second)
    assert not torch.equal(first, second)


def test_few_numbers_are_kept(kept):
    noise = noise_of(37)
    for _ in range(4):
        row_of(noise)
    # Rows of 37 take 48.
    assert sum(rows is not None for _, _, rows in noise.blocks) == min(4, kept // 48)


def test_pieces_say_where_they_begin(monkeypatch):
    monkeypatch.setattr(noise_module, "KEPT", 0)
    firsts = [first for first, _ in noise_of(2 * CHUNK["cpu"] + 1).row()]
    assert firsts == [0, CHUNK["cpu"], 2 * CHUNK["cpu"]]


def test_is_standard_normal():
    rows = noise_of(50_000).rows(4)
    assert abs(float(rows.mean())) < 5 / rows.numel() ** 0.5
    assert float(rows.var()) == pytest.approx(1, abs=5 * (2 / rows.numel()) ** 0.5)


def test_halves_get_single_precision():
    assert noise_of(4, dtype=torch.bfloat16).rows(2).dtype == torch.float32
