"""Stage "train": train a transducer on prepared data; resume if EXP/checkpoints holds one.

    local/train.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

With --nproc or --nnodes it starts itself through torchrun; `torchrun -m local.train` works too.
"""

from __future__ import annotations

from local.common.allocator import tune_memory
from local.common.cli import make_parser, program
from local.common.locks import reads, writes
from local.common.processes import is_launched, launch, start
from local.config import load_config
from local.data.datamodule import AsrDataModule
from local.data.prepared_corpus import check_first, other_folders
from local.data.tokenizer import Tokenizer, lang_dir
from local.training.trainer import Trainer

import torch


@program
def main(argv: list[str] | None = None) -> None:
    """Train, in this process or in several that it starts."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--nproc", type=int, default=0, help="processes on this machine; 0: one per GPU, or one without GPUs")
    parser.add_argument("--nnodes", type=int, default=1, help="machines that run this command")
    parser.add_argument("--rdzv", default="", metavar="HOST:PORT", help="where the machines meet; HOST is one of them")
    args = parser.parse_args(argv)
    writes(args.exp_dir, new=True, shared=args.nnodes > 1)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    check_first(cfg.data, args.data_dir)
    for folder in other_folders(cfg.data, args.data_dir):
        reads(folder)
    nproc = args.nproc or max(1, torch.cuda.device_count())
    if nproc * args.nnodes > 1 and not is_launched():
        options = ["--data-dir", str(args.data_dir), "--exp-dir", str(args.exp_dir)]
        options += ["--conf", str(args.conf)] if args.conf else []
        launch("local.train", [*options, *args.overrides], nproc, args.nnodes, args.rdzv)
        return
    tune_memory()
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    processes, device = start()
    tokenizer = Tokenizer.from_file(lang_dir(args.data_dir, cfg.lang) / "bpe.model")
    data = AsrDataModule(cfg, args.data_dir, tokenizer, processes)
    trainer = Trainer(cfg, data, args.exp_dir, device, processes)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    where = f"{device}, {torch.get_num_threads()} threads" + (f", {processes.size} processes" if processes.size > 1 else "")
    print(f"training {parameters:,} parameters on {where}", flush=True)
    trainer.run()
    processes.stop()


if __name__ == "__main__":
    main()
