"""Each logger of conf/logger gets the figures, the settings and the pictures."""

from pathlib import Path

import pytest
from conftest import Run, Train

from mnist_pl.figures import plots
from mnist_pl.loggers import MetricsCSV

WORDS = ("train.py", "data=digits", "model=mlp", "trainer.max_epochs=2", "trainer.log_every_n_steps=20")
PICTURES = {"samples", "curves", "confusion", "mistakes", "calibration", "filters"}


def test_a_record_is_resumed_where_a_killed_process_left_it(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    for step in (1, 2, 3):
        logger.log_metrics({"a": step / 2}, step)
        logger.save()
    with open(logger.path, "a") as file:
        file.write("4,2.")  # killed here
    resumed = MetricsCSV(str(tmp_path))
    resumed.rewind(2, within_epoch=False)
    resumed.log_metrics({"a": 9.0, "b": 1.0}, 3)
    resumed.finalize("success")
    expected = [{"step": 1, "a": 0.5}, {"step": 2, "a": 1.0}, {"step": 3, "a": 9.0, "b": 1.0}]
    assert plots.rows(tmp_path / "metrics.csv") == expected


@pytest.mark.parametrize("left_out", ["samples mistakes filters", "confusion calibration pr_curves projector"])
def test_each_picture_can_be_left_out(train_here: Train, trained: Path, tmp_path: Path, left_out: str) -> None:
    assert {path.stem for path in trained.glob("*.png")} == PICTURES
    words = ("data=digits", "fit=false", f"ckpt_path={trained}", "logger=csv")
    train_here(*words, *(f"callbacks.{name}=null" for name in left_out.split()))
    drawn = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert drawn == PICTURES - set(left_out.split()) - {"curves"}, "nothing was trained, so there are no curves"


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of what MLflow uses
def test_mlflow_on_this_machine(run: Run, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    ended = run(*WORDS, "logger=mlflow", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'mnist_pl'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_name == "digits-mlp-adam-lr0.001-max_epochs2-seed1"
    assert kept.info.status == "FINISHED"
    assert kept.data.params["model"] == "MLP" and kept.data.params["settings/model/hidden"] == "[200]"
    assert kept.data.metrics["test/acc"] > 0.8 and {"train/loss", "train/loss_step"} <= kept.data.metrics.keys()
    names = {Path(artifact.path).stem for artifact in client.list_artifacts(kept.info.run_id)}
    assert names == PICTURES


@pytest.mark.long
def test_weights_and_biases_offline(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    ended = run(WORDS[0], "-m", *WORDS[1:], "logger=wandb", "seed=1,2", "hydra.sweep.dir=sweep", HOME=str(tmp_path))
    assert ended.code == 0, ended.err
    for job in ("0", "1"):
        (folder,) = (tmp_path / "sweep" / job / "wandb").glob("offline-run-*")
        assert {path.name.partition("_")[0] for path in folder.glob("files/media/images/*.png")} == PICTURES
        (record,) = folder.glob("*.wandb")
        content = record.read_bytes()
        words = (b"val_best/acc", b"train/loss_step", b"test/calibration_error", b"mnist_pl.models.MLP")
        assert all(word in content for word in words)
