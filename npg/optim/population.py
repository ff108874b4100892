"""The candidates of a step of evolution strategies, and what their objectives say."""

from collections.abc import Iterator

import torch
from torch import Tensor

from npg.optim.deviation import Adapt
from npg.sampling import Displaced, ReplayedNoise


class Population:
    """Candidates θ + σ ε, each beside θ − σ ε where noise comes in pairs.

    Args:
        displaced: The parameters.
        deviation: σ, or one for each parameter [P].
        generator: Draws the noise.
        antithetic: Whether it comes in pairs.
    """

    def __init__(
        self,
        displaced: Displaced,
        deviation: float | Tensor,
        generator: torch.Generator,
        *,
        antithetic: bool,
    ) -> None:
        self.displaced = displaced
        self.deviation = deviation
        self.signs = (1, -1) if antithetic else (1,)
        self.noise = ReplayedNoise(len(displaced.start), displaced.start, generator)

    @property
    def size(self) -> int:
        """Candidates drawn so far."""
        return len(self.signs) * self.noise.count

    def rows(self, number: int) -> Tensor:
        """Draws candidates as flat parameters, [number, P]; of pairs whole ones."""
        noise = self.noise.rows(number // len(self.signs))
        start, deviation = self.displaced.start, self.deviation
        steps = noise * deviation if isinstance(deviation, Tensor) else noise
        scale = 1.0 if isinstance(deviation, Tensor) else deviation
        rows = start.new_empty(len(noise), len(self.signs), len(start))
        for place, sign in enumerate(self.signs):
            torch.add(start, steps, alpha=sign * scale, out=rows[:, place])
        return rows.flatten(0, 1)

    def in_place(self) -> Iterator[None]:
        """Draws a row of noise; moves the parameters to its candidates, one after another."""
        displaced = self.displaced
        for first, noise in self.noise.row():
            for _, place, span in displaced.pieces(first, len(noise)):
                part = noise[span.start - first : span.stop - first]
                place.copy_(part * self._deviation(span) + displaced.start[span])
        displaced.written()
        yield
        if len(self.signs) == 2:
            displaced.reflect()
            yield

    def _deviation(self, span: slice) -> float | Tensor:
        return self.deviation[span] if isinstance(self.deviation, Tensor) else self.deviation

    def forget(self) -> None:
        """Takes back the candidates that were drawn last."""
        self.noise.forget()

    def combined(
        self, weights: Tensor, adapt: Adapt, pair_factor: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Computes gradients from weights, those of the candidates' objectives over n.

        Args:
            weights: [n] in float64, on the CPU, large where the objective is.
            adapt: Whether σ follows; the gradients are natural ones then.
            pair_factor: Of the sums of pairs, where the weights' mean knows both.

        Returns:
            Σ wᵢ εᵢ / σ, the gradient of the mean [P], times σ² where σ follows; and the natural
            gradient of log σ, −Σ wᵢ (εᵢ² − 1) / 2, averaged over parameters if there is one σ.
        """
        noise = self.noise
        pairs = weights.view(-1, len(self.signs))
        signed = pairs @ torch.tensor(self.signs, dtype=weights.dtype)
        both = pair_factor * pairs.sum(1)
        gradient = torch.zeros_like(self.displaced.start, dtype=noise.dtype)
        growth = torch.zeros_like(gradient) if adapt == "separable" else None
        square = 0.0
        row = 0
        for block, (_, number, _) in enumerate(noise.blocks):
            here = slice(row, row + number)
            c, t = (v[here].to(gradient) for v in (signed, both))
            for first, rows in noise.again(block):
                span = slice(first, first + rows.shape[1])
                gradient[span].addmv_(rows.T, c)
                if growth is not None:
                    growth[span].addmv_(rows.square().sub_(1).T, t, alpha=-0.5)
                elif adapt == "global":
                    square += float(rows.square().sum(1).cpu().double() @ both[here])
            row += number
        if adapt == "none":
            return gradient.div_(self.deviation), None
        gradient.mul_(self.deviation)
        if growth is not None:
            return gradient, growth
        return gradient, (both.sum() - square / noise.size) / 2
