"""Stage "train": local/train.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from local.atomic import atomic_write
from local.checkpoint import provenance
from local.config import load_config
from local.datamodule import AsrDataModule
from local.errors import cli
from local.schema import Config
from local.tokens import Tokenizer
from local.trainer import Trainer


def write_config(cfg: Config, tokenizer: Tokenizer, path: Path) -> None:
    """exp/<name>/config.yaml: the resolved config, and a `run` section on where it comes from."""
    origin = provenance(cfg, tokenizer)
    run = {k: origin[k] for k in ("git_commit", "versions", "tokens_hash", "vocab_size")}
    with atomic_write(path) as tmp:
        tmp.write_text(yaml.safe_dump({**origin["config"], "run": run}, sort_keys=False), encoding="utf-8")


@cli
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    cfg = load_config(args.conf, args.overrides)
    tokenizer = Tokenizer.from_file(args.data_dir / "lang" / "bpe.model")
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    trainer = Trainer(cfg, data, args.exp_dir, device)
    write_config(cfg, tokenizer, args.exp_dir / "config.yaml")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"training {parameters:,} parameters on {device}, {torch.get_num_threads()} threads", flush=True)
    trainer.run()


if __name__ == "__main__":
    main()
