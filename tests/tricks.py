"""What the speed records for CIFAR-10 do, for `experiment=fast`: tried, and not taken. RESULTS.md, Experiments, has the
commands, which find this file by `PYTHONPATH=tests`."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from mnist_pl.data import to_float
from mnist_pl.models import CNN


class Whiten(Callback):
    """The first layer's filters are the directions of most variance of the training images' patches, whitened, and
    the same with the sign turned; they stay as they are where `frozen`."""

    hooks_every_n_steps = None

    def __init__(self, frozen: bool = True) -> None:
        self.frozen = frozen

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first: Any = next(module for module in pl_module.modules() if isinstance(module, nn.Conv2d))
        images = to_float(trainer.datamodule.splits["train"][0][:2000])  # type: ignore[attr-defined]
        patches = functional.unfold(images - images.mean(), first.kernel_size).transpose(1, 2).flatten(0, 1)
        variances, directions = torch.linalg.eigh(patches.T.cov())
        half = first.out_channels // 2
        filters = (directions / (variances + 0.01).sqrt()).T.flip(0)[:half].view(half, *first.weight.shape[1:])
        with torch.no_grad():
            first.weight.copy_(torch.cat([filters, -filters]))
            first.bias.zero_()
        first.weight.requires_grad_(not self.frozen)


class Cropped(CNN):
    """Without the margins, in which MNIST has next to no ink."""

    def __init__(self, margin: int = 2, **rest: Any) -> None:
        super().__init__(**rest)
        self.margin = margin
        layers = list(self.net)
        place = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        side = 28 - 2 * margin
        inputs = nn.Sequential(*layers[:place]).eval()(torch.zeros(1, 1, side, side)).shape[1]
        layers[place] = nn.Linear(inputs, layers[place].out_features)
        self.net = nn.Sequential(*layers).to(memory_format=torch.channels_last).train()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[..., self.margin : 28 - self.margin, self.margin : 28 - self.margin])


class Growing(CNN):
    """Sees smaller images in the first part of the training: `small` pixels of side, for `steps` steps."""

    def __init__(self, small: int = 20, steps: int = 50, **rest: Any) -> None:
        super().__init__(**rest)
        self.small, self.steps = small, steps
        self.taken = 0
        layers = list(self.net)
        place = next(number for number, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
        side = round((layers[place + 1].in_features / rest["channels"][-1]) ** 0.5)
        self.net = nn.Sequential(*layers[:place], nn.AdaptiveMaxPool2d(side), *layers[place:])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        if self.taken < self.steps:
            images = functional.interpolate(images, self.small, mode="area")
        self.taken += 1
        return super().training_step((images, labels), batch_idx)
