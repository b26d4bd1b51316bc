"""A CNN that also reads two digits that touch, both together from one wide image."""

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_pl.models.classifier import Batch
from mnist_pl.models.looks import SIDE
from mnist_pl.models.metrics import CLASSES
from mnist_pl.models.networks import RefusingCNN

WIDTH = 48  # pixels of an image of two digits, 28 high
HIDDEN = 256
INK = 0.35  # as bright as that, a pixel is of a stroke
GAPS = -2, 1  # pixels between the strokes of both, at least and at most: below 0 they overlap
LOWER = 3  # pixels by which the right digit may be higher or lower, at most
FAR = 99  # further than any column
FURTHER = 3  # pixels by which the right digit begins right of the left one, at least
SINGLE, TRIPLE = 6, 6  # one in so many images has but one digit, and one has three


class ReadingCNN(RefusingCNN):
    """A RefusingCNN with a second head on its convolutions: two digits at once, from images (B, 1, 28, 48).

    Where digits touch no cut between them is right, and both halves look unlike any digit. The head learns from pairs
    that are made of each batch's own images, placed side by side until they touch; a side whose image shows no digit,
    and both sides of one digit or of three, are to be answered with 0.1 for each digit. The convolutions do not learn
    from it: what the network says of an image (B, 1, 28, 28) is that of a RefusingCNN.

    pairs: made of a batch, at most its number of images.
    """

    net: nn.Sequential
    reads_pairs = True

    def __init__(self, pairs: int = 32, **rest: Any) -> None:
        super().__init__(**rest)
        if not isinstance(pairs, int) or pairs < 1:
            raise ValueError(f"model.pairs must be a whole number from 1 up, got {pairs!r}")
        self.pairs = pairs
        sketch = deepcopy(self.convolutions).to("meta").eval()  # shapes alone
        features = sketch(torch.empty(1, 1, SIDE, WIDTH, device="meta")).numel()
        self.pair_head = nn.Sequential(
            nn.Flatten(), nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * CLASSES)
        )

    @property
    def convolutions(self) -> nn.Sequential:
        layers = list(self.net)
        return nn.Sequential(*layers[: [type(layer) for layer in layers].index(nn.Flatten)])

    def read_pairs(self, images: Tensor) -> Tensor:  # (B, 1, 28, 48) in [0, 1] -> (B, 2, 10) log probabilities
        convolutions = self.convolutions.eval()  # without dropout, and batch norm learns the single images alone
        with torch.no_grad():
            seen = convolutions((images - self.mean) / self.std)
        convolutions.train(self.training)
        return self.pair_head(seen).unflatten(1, (2, CLASSES)).log_softmax(dim=2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        images, targets = make_pairs(*batch, self.pairs)
        return loss - (targets * self.read_pairs(images)).sum(dim=(1, 2)).mean()


def make_pairs(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of images (B, 1, 28, 28): (P, 1, 28, 48), and what to answer, (P, 2, 10); P is count, at most B."""
    count = min(count, len(images))
    left, right, third = (images.roll(-shift, 0)[:count, 0] for shift in (0, count, 2 * count))
    wide = beside(left, right)
    single, triple = wide.new_zeros(2, count, dtype=torch.bool)
    single[::SINGLE], triple[1::TRIPLE] = True, True
    wide[triple] = beside(wide[triple], third[triple])
    wide[single] = beside(left[single], torch.zeros_like(left[single]))
    both = torch.stack([labels, labels.roll(-count)], dim=1)[:count]
    known = (both >= 0) & ~(single | triple)[:, None]
    sure = F.one_hot(both.clamp(min=0), CLASSES).to(images.dtype)
    return wide[:, None], torch.where(known[:, :, None], sure, 1 / CLASSES)


def beside(left: Tensor, right: Tensor) -> Tensor:
    """Images (P, 28, W) side by side until they touch, or nearly so: (P, 28, 48), with the ink in the middle."""
    gap, lower = (
        torch.randint(least, most + 1, (len(left), 1), device=left.device) for least, most in (GAPS, (-LOWER, LOWER))
    )
    right = _moved(right, torch.zeros_like(lower), lower, SIDE)
    # The right one is moved until, in some row, the gap is left between both; rows next to each other touch, too.
    ends = F.max_pool1d(_ends(left, first=False)[:, None].float(), 3, 1, 1)[:, 0].long()
    aside = (ends - _ends(right, first=True)).amax(1, keepdim=True) + 1 + gap
    starts = [_ends(image, first=True).amin(1, keepdim=True) for image in (left, right)]
    stops = [_ends(image, first=False).amax(1, keepdim=True) for image in (left, right)]
    aside = torch.maximum(aside, starts[0] - starts[1] + FURTHER)
    aside = torch.where(starts[1] < FAR, aside, 0)  # nothing to the right
    across = torch.minimum(starts[0], starts[1] + aside) + torch.maximum(stops[0], stops[1] + aside)
    margin = (WIDTH - 1 - across).div(2, rounding_mode="floor")
    inked = (torch.maximum(left.amax(2), right.amax(2)) > INK).long()
    top, bottom = inked.argmax(1, keepdim=True), SIDE - 1 - inked.flip(1).argmax(1, keepdim=True)
    down = (SIDE - 1 - bottom - top).div(2, rounding_mode="floor")
    return torch.maximum(_moved(left, margin, down, WIDTH), _moved(right, margin + aside, down, WIDTH))


def _ends(images: Tensor, first: bool) -> Tensor:  # (P, H, W) -> (P, H): the first or last column with ink
    columns = torch.arange(images.shape[2], device=images.device)
    inked = images > INK
    return torch.where(inked, columns, FAR).amin(2) if first else torch.where(inked, columns, -FAR).amax(2)


def _moved(images: Tensor, aside: Tensor, down: Tensor, width: int) -> Tensor:  # (P, H, W) -> (P, H, width)
    """Each by its own number of pixels, (P, 1); what leaves the image is lost."""
    height = images.shape[1]
    columns = torch.arange(width, device=images.device) - aside
    rows = torch.arange(height, device=images.device) - down
    is_in = ((columns >= 0) & (columns < images.shape[2]))[:, None] & ((rows >= 0) & (rows < height))[:, :, None]
    images = images.gather(2, columns.clamp(0, images.shape[2] - 1)[:, None].expand(-1, height, -1))
    return images.gather(1, rows.clamp(0, height - 1)[:, :, None].expand(-1, -1, width)) * is_in
