"""MNIST on PyTorch Lightning and Hydra."""
