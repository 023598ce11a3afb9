"""The report of an experiment: EXP/report.html."""
