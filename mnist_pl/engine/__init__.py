"""What Lightning is taught beyond its documentation: one plug-in per file. To live without one, delete the line that it
names; its file can go once nothing imports it.

This wing alone touches private names of Lightning, PyTorch and torchmetrics. A test looks whether they are still there,
from a Trainer in its training, whenever one of the three is newer.
"""

PRIVATE = {  # from a Trainer: where it is used, and why
    "fit_loop._data_fetcher": "strategy: fetches the further batches of a round, and knows the last",
    "fit_loop.epoch_loop._results.batch": "strategy: where `log` looks for the batch",
    "fit_loop.epoch_loop._results.batch_size": "strategy: what `log` found there for the batch before",
    "fit_loop.epoch_loop._batches_that_stepped": "strategy, resume: the step that Lightning's own logging counts by",
    "fit_loop.epoch_loop.batch_progress.is_last_batch": "strategy: tells the loop that the epoch ends",
    "fit_loop.epoch_loop.batch_progress.current.ready": "strategy, checkpoints: batches of this epoch",
    "fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed": "strategy: global_step",
    "fit_loop.epoch_loop.update_lr_schedulers": "strategy: schedules that step with the optimiser",
    "fit_loop.epoch_loop._skip_next_val": "checkpoints: a training that ends within an epoch does not validate there",
    "fit_loop._can_stop_early": "checkpoints: whether the training ends",
    "fit_loop.epoch_progress.current.processed": "record: epochs that are done when a checkpoint is written",
    "fit_loop.epoch_loop.total_batch_idx": "checkpoints: batches of the whole run",
    "_signal_connector.register_signal_handlers": "checkpoints: signals are handled by this project alone",
    "val_check_batch": "checkpoints: whether a validation follows the batch",
    "checkpoint_callback._every_n_train_steps": "strategy: at which steps a ModelCheckpoint has to be asked",
    "checkpoint_callback._train_time_interval": "strategy: the same, of one that saves by time",
    "lr_scheduler_configs.0.scheduler._get_closed_form_lr": "resume: the rate of a schedule that became longer",
    "lightning_module.train_scores.acc._update_count": "resume: else torchmetrics takes a metric for unused",
}
