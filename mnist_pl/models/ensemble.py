"""Several networks that answer together."""

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_pl.models.classifier import DigitClassifier, known_as, networks, rebuild
from mnist_pl.models.metrics import CLASSES

VOTES = ("mean", "majority")
MOST = 100  # members: a stranger's file may name as many as it likes
TIE_BREAK = 1e-3  # less than a vote of any of them
SIDE = 28  # pixels


class Ensemble(DigitClassifier):
    """Networks that were trained one by one; softmax of its logits is the mean of their probabilities.

    Each has its own normalisation: `mean` and `std` of the ensemble count for nothing. `Ensemble.of` makes one of
    networks that are there.

    Args:
        members: of each, `model`, the name of its class (with the module, where it is not of this project; nothing is
            imported because it is named), and `hyper_parameters`, plain values.
        vote: `majority` takes a 1 for each one's likeliest digit in place of its probabilities, which break ties.
        shifts: pixels by which an image is moved to each of the four sides, too: what a network says is then the mean
            of what it says of the five images. 0: of the image alone.

    Raises:
        ValueError: a setting is out of range, or a member cannot be made.
    """

    net: nn.ModuleList

    def __init__(
        self, members: Sequence[Mapping[str, Any]], vote: str = "mean", shifts: int = 0, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if not isinstance(members, Sequence) or not 0 < len(members) <= MOST:
            raise ValueError(f"model.members must be a list of 1 to {MOST} networks")
        if vote not in VOTES:
            raise ValueError(f"model.vote must be {' or '.join(VOTES)}, got {vote!r}")
        if not isinstance(shifts, int) or not 0 <= shifts < SIDE:
            raise ValueError(f"model.shifts must be a whole number of pixels from 0 to {SIDE - 1}, got {shifts!r}")
        self.vote, self.shifts = vote, shifts
        self.net = nn.ModuleList(map(_make, members))
        self.refuses = all(network.refuses for network in self.net)

    @classmethod
    def of(cls, given: Sequence[DigitClassifier], **how: Any) -> Self:
        """Of copies of these networks; `how` has `vote` and `shifts`."""
        members = []
        for network in given:
            settings = {**network.hparams, "optimizer": None, "scheduler": None}
            members.append({"model": known_as(type(network)), "hyper_parameters": settings})
        ensemble = cls(members, **how)
        for copy, network in zip(ensemble.net, given, strict=True):
            copy.load_state_dict(network.state_dict())
        return ensemble.eval()

    def forward(self, images: Tensor) -> Tensor:  # (B, 1, 28, 28) in [0, 1] -> (B, 10) logs of probabilities
        looks = list(_shifted(images, self.shifts)) if self.shifts else [images]
        said = [_mean([network(look).float().log_softmax(dim=1) for look in looks]) for network in self.net]
        mean = _mean(said)
        if self.vote == "mean":
            return mean
        votes = torch.stack([F.one_hot(one.argmax(dim=1), CLASSES) for one in said]).float().mean(dim=0)
        return torch.logaddexp(votes.log(), mean + log(TIE_BREAK))

    def configure_optimizers(self) -> Any:
        raise ValueError("an Ensemble cannot be trained; train its members one by one, and join their checkpoints")


def _make(member: Any) -> DigitClassifier:
    """Lightning takes the hyper-parameters of each from its own frame, which this one keeps apart."""
    match member:
        case {"model": str(name), "hyper_parameters": Mapping() as settings}:
            kind = networks().get(name)
        case _:
            raise ValueError("model.members must each have a model, and its hyper_parameters")
    if kind is None:
        raise ValueError(f"model.members: there is no network {name!r}; one of your own has to be imported before")
    if issubclass(kind, Ensemble):
        raise ValueError("model.members: one of them is an ensemble itself; name its members in its place")
    return rebuild(kind, dict(settings))


def _mean(logs: Iterable[Tensor]) -> Tensor:  # of probabilities, (B, 10) each, as their logarithms
    stacked = torch.stack(list(logs))
    return stacked.logsumexp(dim=0) - log(len(stacked))


def _shifted(images: Tensor, by: int) -> Iterable[Tensor]:
    """As they are, and up, down, left and right."""
    wide = F.pad(images, (by, by, by, by))
    for top, left in ((by, by), (2 * by, by), (0, by), (by, 2 * by), (by, 0)):
        yield wide[:, :, top : top + SIDE, left : left + SIDE]
