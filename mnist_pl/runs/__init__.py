"""A run as a whole: its configuration, its folder, what it tells its loggers and leaves behind; sweeps of runs."""
