"""SOAP against torch's Adam in given bases, and against the published algorithm written out."""

import math

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError, NumericalError
from npg.optim import SOAP
from tests.npg.oracles import TIGHT


def written_out(gradients, lr, betas, eps, decay, interval):
    """The published algorithm for one matrix: where it is after each of the gradients."""
    first, second = betas
    rows, columns = gradients[0].shape
    theta, m, v = (torch.zeros(rows, columns) for _ in range(3))
    left, right = (
        (1 - second) * gradients[0] @ gradients[0].T,
        (1 - second) * (gradients[0].T @ gradients[0]),
    )
    q_left, q_right = (torch.linalg.eigh(x)[1].flip(1) for x in (left, right))
    places = [theta.clone()]
    for t, g in enumerate(gradients[1:], start=1):
        turned = q_left.T @ g @ q_right
        m = first * m + (1 - first) * g
        v = second * v + (1 - second) * turned**2
        step = (q_left.T @ m @ q_right) / ((v / (1 - second**t)).sqrt() + eps)
        theta = theta * (1 - lr * decay)
        theta = theta - lr / (1 - first**t) * (q_left @ step @ q_right.T)
        left = second * left + (1 - second) * g @ g.T
        right = second * right + (1 - second) * g.T @ g
        if t % interval == 0:
            order = (q_left.T @ left @ q_left).diagonal().argsort(descending=True)
            v, q_left = v[order], torch.linalg.qr(left @ q_left[:, order])[0]
            order = (q_right.T @ right @ q_right).diagonal().argsort(descending=True)
            v, q_right = v[:, order], torch.linalg.qr(right @ q_right[:, order])[0]
        places.append(theta.clone())
    return places


def test_is_the_published_algorithm():
    """Square, for eigenvectors of a null space would be anybody's choice."""
    gradients = [torch.randn(4, 4) for _ in range(12)]
    settings = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-8}
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = SOAP([p], **settings, weight_decay=0.1, refresh_interval=3)
    for g, wanted in zip(
        gradients, written_out(gradients, **settings, decay=0.1, interval=3), strict=True
    ):
        p.grad = g
        optimizer.step()
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rotated", [False, True])
def test_in_a_given_basis_it_is_adam_there(rotated):
    """With Q = I it is torch's Adam; with another Q that of the turned problem."""
    left, right = (torch.linalg.qr(torch.randn(n, n))[0] for n in (4, 3))
    if not rotated:
        left, right = torch.eye(4), torch.eye(3)
    p, q = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 3))
    soap = SOAP([p], 0.1, (0.9, 0.99), weight_decay=0.0, refresh_interval=1000)
    adam = torch.optim.Adam([q], 0.1, (0.9, 0.99))
    p.grad = torch.randn(4, 3)
    soap.step()
    assert torch.equal(p, torch.zeros(4, 3)), "the first step gathers only"
    soap.state[p]["bases"] = [left.unsqueeze(0), right.unsqueeze(0)]
    for _ in range(8):
        g = torch.randn(4, 3)
        p.grad, q.grad = g, left.T @ g @ right
        soap.step()
        adam.step()
    torch.testing.assert_close(p.detach(), left @ q.detach() @ right.T, **TIGHT)


def test_vectors_are_adams():
    p, q = (nn.Parameter(torch.zeros(5)) for _ in range(2))
    soap = SOAP([p], 0.1, (0.9, 0.99), weight_decay=0.0)
    adam = torch.optim.Adam([q], 0.1, (0.9, 0.99))
    for t in range(5):
        p.grad = q.grad = torch.randn(5)
        soap.step()
        if t:
            adam.step()
    torch.testing.assert_close(p, q, **TIGHT)
    assert "bases" not in soap.state[p]


def test_a_turned_quadratic_is_as_easy_as_a_straight_one():
    """½ tr(Xᵀ A X B), A and B ill-conditioned and turned: where Adam crawls, SOAP does not."""
    turns = [torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2)]
    a, b = (q @ torch.diag(torch.logspace(0, 2, 8)) @ q.T for q in turns)
    losses = {}
    for kind in (SOAP, torch.optim.Adam):
        torch.manual_seed(3)
        x = nn.Parameter(torch.randn(8, 8))
        options = {"weight_decay": 0.0, "refresh_interval": 1} if kind is SOAP else {}
        optimizer = kind([x], lr=0.05, betas=(0.9, 0.95), **options)
        for _ in range(150):
            optimizer.zero_grad()
            loss = 0.5 * (x * (a @ x @ b)).sum()
            loss.backward()
            optimizer.step()
        losses[kind] = float(loss.detach())
    assert losses[SOAP] < 0.3 * losses[torch.optim.Adam]


def test_blocks_are_tensors_of_their_own():
    whole = nn.Parameter(torch.zeros(4, 6))
    parts = [nn.Parameter(torch.zeros(2, 3)) for _ in range(4)]
    settings = {"lr": 0.1, "refresh_interval": 2}
    one, many = SOAP([whole], block_size=3, **settings), SOAP(parts, **settings)
    for _ in range(6):
        whole.grad = torch.randn(4, 6)
        for i, part in enumerate(parts):
            part.grad = whole.grad[2 * (i // 2) :][:2, 3 * (i % 2) :][:, :3].clone()
        one.step()
        many.step()
    joined = torch.cat([torch.cat(parts[:2], 1), torch.cat(parts[2:], 1)])
    torch.testing.assert_close(whole, joined, rtol=1e-6, atol=1e-8)


def test_a_factorisation_that_fails_leaves_the_basis(monkeypatch):
    p = nn.Parameter(torch.zeros(3, 3))
    optimizer = SOAP([p], 0.1, refresh_interval=1)
    for i in range(3):
        p.grad = torch.randn(3, 3)
        if i == 2:
            kept = [q.clone() for q in optimizer.state[p]["bases"]]
            monkeypatch.setattr(torch.linalg, "qr", _fails)
        optimizer.step()
    for q, before in zip(optimizer.state[p]["bases"], kept, strict=True):
        assert torch.equal(q, before)
    assert torch.isfinite(p).all()


def test_a_moment_that_is_not_finite_spoils_no_other_of_its_batch():
    p, q = (nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
    alone = nn.Parameter(torch.zeros(3, 3))
    both, one = (SOAP(x, 0.1, refresh_interval=1) for x in ([p, q], [alone]))
    for i in range(3):
        p.grad, q.grad = torch.randn(3, 3), torch.randn(3, 3)
        alone.grad = q.grad.clone()
        if i == 2:
            kept = [basis.clone() for basis in both.state[p]["bases"]]
            both.state[p]["moments"][0].fill_(math.nan)
        both.step()
        one.step()
    torch.testing.assert_close(q, alone, **TIGHT)
    assert torch.equal(both.state[p]["bases"][0], kept[0])
    assert not torch.equal(both.state[p]["bases"][1], kept[1])
    assert torch.isfinite(p).all()


def _fails(*_):
    raise torch.linalg.LinAlgError("no")


def test_no_eigenvectors_at_first(monkeypatch):
    p = nn.Parameter(torch.zeros(3, 3))
    p.grad = torch.randn(3, 3)
    monkeypatch.setattr(torch.linalg, "eigh", _fails)
    with pytest.raises(NumericalError, match="no eigenvectors"):
        SOAP([p]).step()
    assert torch.equal(p, torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"block_size": 0}, "block_size"),
        ({"refresh_interval": 0}, "refresh_interval"),
        ({"betas": (0.9, 1.0)}, "betas must be in"),
        ({"basis_decay": 1.5}, "basis_decay must be in"),
        ({"eps": -1.0}, "eps must be in"),
    ],
)
def test_settings(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        SOAP([nn.Parameter(torch.zeros(2))], **settings)
