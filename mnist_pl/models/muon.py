"""An optimiser that learns more from each step than Adam does, for runs of few steps."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Of the polynomial whose repetition brings all singular values near 1; from the authors' page (see Muon).
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Muon (Jordan and others 2024, kellerjordan.github.io/posts/muon): momentum, with steps that go equally far in
    every direction of a matrix. Weights of more than one dimension take them, a filter as a row; biases, batch norms
    and the last layer's weights take Adam's, as its authors advise. (torch.optim.Muon takes no filters.)

    Args:
        lr: how far the weights of a matrix are moved in every direction, in a step.
        momentum: the share of earlier gradients, with Nesterov's look ahead.
        weight_decay: of the matrices, as AdamW's.
        iterations: of the polynomial.
        adam_share: Adam's learning rate, as a share of `lr`.
        betas, eps: Adam's.

    Raises ValueError where a setting is out of range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.2,
        momentum: float = 0.8,
        weight_decay: float = 0.0,
        iterations: int = 3,
        adam_share: float = 0.1,
        betas: tuple[float, float] = (0.7, 0.9),
        eps: float = 1e-8,
    ) -> None:
        for name, value in {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"optimizer.{name} must be from 0 up to but not 1, got {value!r}")
        for name, value in {"weight_decay": weight_decay, "adam_share": adam_share, "eps": eps}.items():
            if not value >= 0:
                raise ValueError(f"optimizer.{name} must be a number from 0 up, got {value!r}")
        if not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"optimizer.iterations must be a positive whole number, got {iterations!r}")
        params = list(params)
        if not all(isinstance(p, Tensor) for p in params):
            raise ValueError("Muon takes parameters, not groups or names of them: it has groups of its own")
        matrices = [p for p in params if p.dim() > 1][:-1]
        others = [p for p in params if not any(p is matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [{"params": others, "betas": betas, "eps": eps, "adam_share": adam_share}]
        groups += [{"params": matrices, "weight_decay": weight_decay, "iterations": iterations}] if matrices else []
        super().__init__(groups, {"lr": lr, "momentum": momentum})  # which schedules look for here

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            move = self._adam if "betas" in group else self._muon
            for weights in group["params"]:
                if weights.grad is not None:
                    move(weights, weights.grad, self.state[weights], group)
        return loss

    @staticmethod
    def _muon(weights: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        mean = state.setdefault("mean", torch.zeros_like(weights)).lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(mean, group["momentum"]).flatten(1)
        rows, columns = direction.shape
        length = group["lr"] * max(1, rows / columns) ** 0.5
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.sub_(orthogonal(direction, group["iterations"]).view(weights.shape), alpha=length)

    @staticmethod
    def _adam(weights: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] = step = state.get("step", 0) + 1
        one, two = group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(weights)).lerp_(gradient, 1 - one)
        square = state.setdefault("square", torch.zeros_like(weights)).lerp_(gradient * gradient, 1 - two)
        spread = (square / (1 - two**step)).sqrt().add_(group["eps"])
        weights.addcdiv_(mean, spread, value=-group["lr"] * group["adam_share"] / (1 - one**step))


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:  # (rows, columns) -> the same
    """Near the matrix of the same directions whose singular values are all 1 (Newton and Schulz's iteration)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)  # so that no singular value is beyond 1
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x
