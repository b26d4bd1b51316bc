"""The loggers that conf/logger names, from the room that they live in."""

from mnist_pl.runs.loggers import MetricsCSV, TensorBoard
