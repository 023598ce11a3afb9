"""Stage "train": local/train.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

With --nproc or --nnodes it starts itself through torchrun; `torchrun ... local/train.py` works too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from local.artifacts.checkpoint import provenance
from local.common.allocator import tune_memory
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.processes import is_launched, launch, start
from local.config import load_config
from local.config.schema import Config
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer, lang_dir
from local.training.trainer import Trainer

import torch
import yaml


def write_config(cfg: Config, tokenizer: Tokenizer, max_duration: float, path: Path) -> None:
    """exp/<name>/config.yaml: the resolved config, and a `run` section on where it comes from.

    max_duration: what train.max_duration stands for; that key itself stays `auto`.
    """
    origin = provenance(cfg, tokenizer)
    run = {k: origin[k] for k in ("git_commit", "versions", "tokens_hash", "vocab_size")}
    run["max_duration"] = max_duration
    with atomic_write(path) as tmp:
        tmp.write_text(yaml.safe_dump({**origin["config"], "run": run}, sort_keys=False), encoding="utf-8")


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--nproc", type=int, default=0, help="processes on this machine; 0: one per GPU, one without")
    parser.add_argument("--nnodes", type=int, default=1, help="machines, each running this command")
    parser.add_argument("--rdzv", default="", metavar="HOST:PORT", help="where they find each other")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    cfg = load_config(args.conf, args.overrides)
    nproc = args.nproc or max(1, torch.cuda.device_count())
    if nproc * args.nnodes > 1 and not is_launched():
        own = ["--conf", args.conf] if args.conf else []
        own += ["--data-dir", str(args.data_dir), "--exp-dir", str(args.exp_dir), *args.overrides]
        launch("local.train", own, nproc, args.nnodes, args.rdzv)
        return
    tune_memory()
    processes, device = start()
    tokenizer = Tokenizer.from_file(lang_dir(args.data_dir, cfg.lang) / "bpe.model")
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    data = AsrDataModule(cfg, args.data_dir, tokenizer, processes)
    trainer = Trainer(cfg, data, args.exp_dir, device, processes)
    if processes.rank == 0:
        write_config(cfg, tokenizer, trainer.max_duration, args.exp_dir / "config.yaml")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{device}, {torch.get_num_threads()} threads" + (f", {processes.size} processes" if processes.size > 1 else "")
    print(f"training {parameters:,} parameters on {where}", flush=True)
    trainer.run()
    processes.stop()


if __name__ == "__main__":
    main()
