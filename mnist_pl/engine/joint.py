"""The gradient of several processes (DDP) is that of one with the joint batch, in an epoch's last step too.

Buys: there the batches of the processes may differ in size by an image, and DDP takes the mean of their means. After an
epoch of such batches, the weights are within 2.4e-7 of one process's; without it, within 2e-3.
Without it: delete `observers["callbacks"].append(JointMean())` in runs/build.py.
"""

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mnist_pl.data import Batches


class JointMean(Callback):
    """Weighs the mean of each process's batch by its size, in the gradient alone."""

    hooks_every_n_steps = None  # of one process, no step is weighed

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        loader = trainer.train_dataloader
        weight = loader.weight if isinstance(loader, Batches) else 1.0
        if weight != 1:
            loss.register_hook(lambda gradient: gradient * weight)
