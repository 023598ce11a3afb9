"""Studies of small models; `python -m studies.study --help` and `python -m studies.ablation --help` describe them."""
