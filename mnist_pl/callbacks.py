"""The callbacks that conf/callbacks names, from the rooms that they live in."""

from mnist_pl.engine.checkpoints import Best, Last
from mnist_pl.engine.nan import StopOnNaN
from mnist_pl.engine.record import Record
from mnist_pl.engine.resume import ExactResume
from mnist_pl.figures.answers import GatherAnswers
from mnist_pl.figures.drawings import (
    Calibration,
    Confusion,
    Curves,
    Drawing,
    Filters,
    Mistakes,
    PRCurves,
    Projector,
    Samples,
)
from mnist_pl.figures.progress import Progress
