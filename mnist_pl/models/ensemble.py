"""Several networks that answer together."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_pl.models.classifier import DigitClassifier, known_as, networks, rebuild
from mnist_pl.models.looks import mean, say_mean
from mnist_pl.models.metrics import CLASSES

VOTES = ("mean", "majority")
MOST = 100  # members: a stranger's file may name as many as it likes
TIE_BREAK = 1e-3  # less than a vote of any of them


class Ensemble(DigitClassifier):
    """Networks that were trained one by one; softmax of its logits is the mean of their probabilities.

    Each has its own normalisation: `mean` and `std` of the ensemble count for nothing. `Ensemble.of` makes one of
    networks that are there.

    Args:
        members: of each, `model`, the name of its class (with the module, where it is not of this project; nothing is
            imported because it is named), and `hyper_parameters`, plain values.
        vote: `majority` takes a 1 for each one's likeliest digit in place of its probabilities, which break ties.
        shifts: of each member, too.

    Raises ValueError where a setting is out of range, or a member cannot be made.
    """

    net: nn.ModuleList

    def __init__(self, members: Sequence[Mapping[str, Any]], vote: str = "mean", **shared: Any) -> None:
        super().__init__(**shared)
        if not isinstance(members, Sequence) or not 0 < len(members) <= MOST:
            raise ValueError(f"model.members must be a list of 1 to {MOST} networks")
        if vote not in VOTES:
            raise ValueError(f"model.vote must be {' or '.join(VOTES)}, got {vote!r}")
        self.vote = vote
        self.net = nn.ModuleList(map(_make, members))
        self.refuses = all(network.refuses for network in self.net)
        self.reads_pairs = all(network.reads_pairs for network in self.net)

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
        said = [say_mean(network, images, self.shifts) for network in self.net]
        together = mean(said)
        if self.vote == "mean":
            return together
        votes = torch.stack([F.one_hot(one.argmax(dim=1), CLASSES) for one in said]).float().mean(dim=0)
        return torch.logaddexp(votes.log(), together + log(TIE_BREAK))

    def read_pairs(self, images: Tensor) -> Tensor:  # (B, 1, 28, 48) in [0, 1] -> (B, 2, 10) log probabilities
        return mean(cast(DigitClassifier, network).read_pairs(images) for network in self.net)

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
