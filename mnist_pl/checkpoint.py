"""The names of version 0.1 for two callbacks, for configurations that still have them."""

from mnist_pl.engine.checkpoints import Best, Last
