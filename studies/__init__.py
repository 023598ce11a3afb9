"""Small models trained and measured to show something: run as a program, `python studies/study.py --help`."""
