"""Torch's Muon for matrices and AdamW for the rest, as one optimizer."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon

from npg.errors import ConfigurationError
from npg.init import NORMALISATIONS
from npg.optim.base import Protocol, attributes, trainable
from npg.optim.finite import usable
from npg.optim.shards import plain_tensors


class MuonWithAdamW(torch.optim.Optimizer):
    """One object, with one ``state_dict`` and one rate for a scheduler to move.

    Muon's steps get the size of AdamW's (``adjust_lr_fn="match_rms_adamw"``), so that one rate
    suits both. Embeddings are matrices whose rows are parameters of their own: AdamW has them, and
    what normalisation layers have.

    Args:
        model: Module, or parameters.
        lr: Rate of both.
        weight_decay: Of both, decoupled.
        momentum: Of Muon.
        nesterov: Whether Muon looks ahead.
        ns_steps: Newton–Schulz iterations of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
        undecayed: Parameters of AdamW's part that do not decay, biases and norms for instance.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If there is nothing to train, or groups are given: their division
            into matrices and others is made here.

    Reference:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al.,
        "Muon is scalable for LLM training", 2025, for the common rate.
    """

    protocol: ClassVar[Protocol] = "gradient"

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        lr: float = 1e-2,
        weight_decay: float = 0.01,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        undecayed: Iterable[Tensor] = (),
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        matrices, others = _divided(model, parameters)
        light = {id(p) for p in undecayed}
        self._parts: dict[str, torch.optim.Optimizer] = {}
        groups: list[dict[str, Any]] = []
        if matrices:
            self._parts["muon"] = Muon(
                matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn="match_rms_adamw",
            )
        if others:
            divided: list[dict[str, Any]] = [
                {"params": [p for p in others if id(p) not in light]},
                {"params": [p for p in others if id(p) in light], "weight_decay": 0.0},
            ]
            self._parts["adamw"] = AdamW(
                [group for group in divided if group["params"]],
                lr=lr,
                weight_decay=weight_decay,
                betas=betas,
                eps=eps,
            )
        for name, part in self._parts.items():
            groups += [{**group, "part": name} for group in part.param_groups]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._join()

    def _join(self) -> None:
        """Lets the parts work on this optimizer's groups and state."""
        for name, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["part"] == name]
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses further groups: matrices and others are divided once.

        Args:
            param_group: A group.

        Raises:
            ConfigurationError: Always, once the optimizer is made.
        """
        if "part" not in param_group:
            raise ConfigurationError(
                "MuonWithAdamW divides its parameters itself: make a new one with all of them"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Takes one step with both.

        Args:
            closure: Calls ``backward()`` and returns the loss. Default: the gradients are there.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():
            with plain_tensors(part, elementwise=name == "adamw"):
                self._step(part)
        return loss

    @staticmethod
    def _step(part: torch.optim.Optimizer) -> None:
        """Takes the step of one of both, with the gradients that are finite."""
        given = [p for group in part.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in given if p.grad is not None]
        dense = all(g.layout == torch.strided for g in gradients)  # else torch's own refuse them
        good = usable(gradients, [{} for _ in gradients]) if dense else [True] * len(given)
        left_out = [(p, g) for p, g, can in zip(given, gradients, good, strict=True) if not can]
        for p, _ in left_out:
            p.grad = None
        part.step()
        for p, g in left_out:
            p.grad = g

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict()`` gave, and leaves that dictionary alone later on."""
        super().load_state_dict(copy.deepcopy(state_dict))

    def __getstate__(self) -> dict[str, Any]:
        """All attributes."""
        return attributes(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and joins the parts again: loading replaces groups and state."""
        super().__setstate__(state)
        self._join()


def _divided(
    model: nn.Module | Iterable[Tensor], parameters: Iterable[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices, and what is none."""
    rows: set[int] = set()  # weights whose rows are parameters of their own, and gains
    if isinstance(model, nn.Module):
        kinds = (nn.Embedding, nn.EmbeddingBag, *NORMALISATIONS)
        rows = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    given: list[Any] = list(trainable(model, parameters))
    if not given or any(isinstance(p, dict) for p in given):
        raise ConfigurationError("MuonWithAdamW takes a module or its parameters, not groups")
    matrices = [p for p in given if p.ndim == 2 and id(p) not in rows]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in given if id(p) not in chosen]
