"""Predictions that do not move where they would move most."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from npg.curvature import Fisher, SameConditions
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from npg.objectives.checks import check_inputs, check_weight, draw_like


class VirtualAdversarial:
    """Mean over samples of max KL(p(·|x) ‖ p(·|x + r)) over ‖r‖₂ ≤ ε, which needs no labels.

    KL ≈ ½ rᵀ F r, with F the Fisher matrix of one sample's prediction in its inputs. Power
    iteration d ← F d / ‖F d‖ finds F's top eigenvector and r = ε d. The products with F are exact
    (:class:`npg.curvature.Fisher` over the inputs), where the paper takes a finite difference. No
    gradient goes through p(·|x) and r.

    All forward passes, of which there are two, see the same dropout masks; they leave BatchNorm's
    statistics and torch's generators as they were. A model that lets samples meet (BatchNorm in
    training) couples the directions; each is still of length ε.

    ```python
    adversarial = VirtualAdversarial(model, epsilon=0.5, likelihood="categorical")
    loss = F.cross_entropy(model(x), y) + adversarial(torch.cat([x, unlabelled]))
    ```

    In a closure that is evaluated several times a step, ``start = adversarial.start(x)`` before it
    and ``adversarial(x, start)`` inside make all evaluations search from the same directions.

    Args:
        model: Module whose passes these are.
        epsilon: ε, the length of r in the units of the inputs. High values smooth the prediction
            over longer distances; beyond those between classes they destroy it.
        likelihood: How the model's output parametrises the prediction:
            ``"categorical"``, ``"bernoulli"``, ``"normal"``, ``"mse"``, or a callable
            output → Distribution; not needed if it returns a Distribution.
        predict: Inputs → the model's output or Distribution. Default: the model itself. For a
            policy of Stable-Baselines3: ``lambda x: policy.get_distribution(x).distribution``,
            a Normal wrapped in ``Independent(…, 1)``.
        power_iterations: Products with F. One is enough in practice; more come closer to the top
            eigenvector, at a backward and a forward-mode pass each.
        seed: Seeds the directions from which the iteration starts.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Miyato et al., "Virtual adversarial training: a regularization method for supervised and
        semi-supervised learning", 2018, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float,
        likelihood: str | Callable[[Tensor], Distribution] | None = None,
        *,
        predict: Callable[[Tensor], Distribution | Tensor] | None = None,
        power_iterations: int = 1,
        seed: int = 0,
    ) -> None:
        check_weight("epsilon", epsilon)
        if power_iterations < 1:
            raise ConfigurationError(f"power_iterations must be at least 1, got {power_iterations}")
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "model must be the module, whose BatchNorm statistics are kept; pass a function of "
                "the inputs as predict="
            )
        self.model = model
        self.epsilon = epsilon
        self.likelihood = likelihood
        self.predict = model if predict is None else predict
        self.power_iterations = power_iterations
        first = next(model.parameters(), torch.empty(0))
        self.generator = torch.Generator("cpu" if first.is_meta else first.device)
        self.generator.manual_seed(seed)

    def __call__(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        """Returns the mean divergence of a batch.

        Args:
            inputs: Floating-point [N, ...], one sample per entry of dimension 0.
            start: Directions of the inputs' shape, from which to search. Default: drawn.

        Returns:
            A scalar ≥ 0 in nats, with its graph.
        """
        conditions = SameConditions(self.model)
        fisher, perturbation = self._search(inputs, start, conditions)
        with conditions:
            moved = self._prediction(inputs + perturbation)
        return kl_divergence(fisher.prediction, moved).mean()

    def perturbation(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        """Returns r, of the inputs' shape and of length ε for each sample; no graph."""
        return self._search(inputs, start, SameConditions(self.model))[1]

    def start(self, inputs: Tensor) -> Tensor:
        """Draws directions of the inputs' shape, of length 1 for each sample."""
        check_inputs(inputs)
        drawn = draw_like(inputs, self.generator)
        return _unit(drawn, drawn)

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.generator.set_state(state_dict["generator"].cpu())

    def _search(
        self, inputs: Tensor, start: Tensor | None, conditions: SameConditions
    ) -> tuple[Fisher, Tensor]:
        direction = self.start(inputs) if start is None else start
        if direction.shape != inputs.shape:
            raise ConfigurationError(
                f"start must have the inputs' shape {list(inputs.shape)}, got "
                f"{list(direction.shape)}: draw it by start(inputs)"
            )
        leaf = inputs.detach().clone().requires_grad_()
        with conditions:
            fisher = Fisher([leaf], lambda: self._prediction(leaf))
        for _ in range(self.power_iterations):
            product = fisher @ direction.reshape(-1)
            direction = _unit(product.view_as(direction), direction)
        return fisher, self.epsilon * direction

    def _prediction(self, inputs: Tensor) -> Distribution:
        return as_distribution(self.predict(inputs), self.likelihood)


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """Divides each sample by its length; a saturated prediction, F d = 0, keeps its direction."""
    rows = vectors.detach().flatten(1) if vectors.ndim > 1 else vectors.detach().unsqueeze(1)
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / largest  # whose squares do not underflow
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(largest > 0, rows, otherwise.reshape(rows.shape)).view_as(vectors)
