"""Checks of the doctor: the environment, the machine, the data, the configuration, the experiment. They change nothing."""
