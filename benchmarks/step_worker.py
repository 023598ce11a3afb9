"""Measures training steps for bench_step.py, which asks one process per model size and precision by JSON lines."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.worker import serve
from local.common.allocator import release_free_memory, tune_memory
from local.common.meter import Meter
from local.config import load_config
from local.config.schema import Config
from local.data.batch import Batch
from local.training.losses import forward_losses
from local.training.step import make_scaler
from model.average import RunningAverage
from model.build import build_model
from model.kernels import matmul, policy
from model.optim import make_optimizer
from model.transducer import training_loss

import numba
import torch
from torch import Tensor

# name -> configuration, classes, N, frames, tokens of each utterance
SIZES: dict[str, tuple[str | None, int, int, int, int]] = {
    "small": ("conf/model/small.yaml", 28, 20, 300, 18),
    "published": (None, 500, 4, 1200, 60),
}
PRODUCT = (4096, 512, 500)
PRODUCTS = {"auto": policy.onednn, "mkl": False, "onednn": True}
PARTS = ("data", "encoder forward", "head forward", "head backward", "encoder backward", "optimiser", "average")


class Step:
    """A model in training with its optimiser, on one batch, dropout on and both losses with their full weight."""

    def __init__(
        self,
        size: str,
        precision: str,
        data_dir: Path | None = None,
        device: str = "cpu",
        utterances: int = 0,
        lstm: str = "standard",
        vocab_size: int = 500,
    ) -> None:
        """Build the model of `size`, a key of `SIZES`; utterances: N, or 0 for that of the size; lstm: as train.lstm.

        vocab_size: lang.vocab_size of the tokens of data_dir.
        """
        conf, classes, n, frames, tokens = SIZES[size]
        torch.manual_seed(0)
        self.cfg = load_config(conf, ["data.num_workers=0", f"train.lstm={lstm}", f"lang.vocab_size={vocab_size}"])
        self.precision, self.device = precision, torch.device(device)
        self.batches: Iterator[Batch]
        if data_dir is None:
            self.batches = random_batches(classes, utterances or n, frames, tokens)
        else:
            classes, self.batches = real_batches(self.cfg, data_dir)
        self.model = build_model(self.cfg, classes).to(device).train()
        self.optimizer = make_optimizer(self.model.parameters(), self.cfg.optim)
        self.average = RunningAverage(self.model, self.cfg.train.average_period)
        self.scaler = make_scaler(precision, self.device)
        self.now: Callable[[], float] = time.perf_counter
        self.clock: dict[str, float] = {}
        self.model.encoder.register_forward_hook(self._after_encoder)

    def _mark(self, name: str) -> None:
        wait(self.device)
        self.clock[name] = self.now()

    def _after_encoder(self, module: Any, inputs: Any, outputs: Any) -> None:
        self._mark("encoder forward")
        outputs[0].register_hook(lambda grad: self._mark("head backward"))

    def run(self) -> dict[str, float]:
        """Make one step and return the seconds of each part."""
        self._mark("start")
        batch = next(self.batches).to(self.device)
        self._mark("data")
        losses = forward_losses(self.model, batch, warmup=2.0, precision=self.precision)
        total = training_loss(losses.summed(), self.cfg.loss, 1.0)
        self._mark("head forward")
        self.scaler.scale(total).backward()
        self._mark("encoder backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._mark("optimiser")
        self.average.update(self.model, self.average.period)
        self._mark("average")
        times = [self.clock[name] for name in ("start", *PARTS)]
        seconds = {name: b - a for name, a, b in zip(PARTS, times[:-1], times[1:], strict=True)}
        seconds["average"] /= self.average.period
        return seconds


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_batches(classes: int, n: int, frames: int, tokens: int) -> Iterator[Batch]:
    """Yield batches of equally long utterances with random features and tokens, collated again for each step."""
    features = [torch.randn(frames, 80) for _ in range(n)]
    words = torch.randint(3, classes, (n, tokens))
    while True:
        x = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        yield Batch(x, torch.full((n,), frames), words, torch.full((n,), tokens), ids=[""] * n)


def real_batches(cfg: Config, data_dir: Path) -> tuple[int, Iterator[Batch]]:
    """Return the number of tokens and the training batches of a prepared corpus, made in this process."""
    from local.data.datamodule import AsrDataModule
    from local.data.tokenizer import Tokenizer, lang_dir

    tokenizer = Tokenizer.from_file(lang_dir(data_dir, cfg.lang) / "bpe.model")
    data = AsrDataModule(cfg, data_dir, tokenizer)

    def batches() -> Iterator[Batch]:
        epoch = 1
        while True:
            yield from data.train_dataloader(epoch)
            epoch += 1

    return tokenizer.vocab_size, batches()


def product_rate(dtype: torch.dtype, device: torch.device, product: Callable[[Tensor, Tensor], Tensor] = torch.mm) -> float:
    """Return the floating-point operations per second of five (4096, 512) x (512, 500) products."""
    m, k, n = PRODUCT
    a, b = torch.randn(m, k).to(device, dtype), torch.randn(k, n).to(device, dtype)
    product(a, b)
    wait(device)
    start = time.perf_counter()
    for _ in range(5):
        product(a, b)
    wait(device)
    return 5 * 2 * m * k * n / (time.perf_counter() - start)


def main() -> None:
    """Answer requests from stdin until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["native"], default="native")
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--precision", choices=["float32", "bf16"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--products", choices=list(PRODUCTS), default="auto")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--utterances", type=int, default=0)
    args = parser.parse_args()
    tune_memory()  # as training does
    torch.set_num_threads(args.threads)
    policy.onednn = PRODUCTS[args.products]
    step = Step(args.size, args.precision, args.data_dir, args.device, args.utterances, vocab_size=args.vocab_size)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["kind"] == "memory":
            meter = Meter(step.device)
            release_free_memory()
            base = meter.in_use()
            with meter.of("step"):
                step.run()
            return {"mib": meter.peak_mib["step"] - base}
        rates = {"float32": product_rate(torch.float32, step.device), "bf16": product_rate(torch.bfloat16, step.device)}
        own = torch.bfloat16 if args.precision == "bf16" else torch.float32
        rates["layers"] = product_rate(own, step.device, matmul.mm)
        return {"seconds": step.run(), "rates": rates}

    parameters = sum(p.numel() for p in step.model.parameters())
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__}
    if step.device.type == "cuda":
        versions["gpu"] = torch.cuda.get_device_name(step.device)
    serve({**versions, "threads": torch.get_num_threads(), "parameters": parameters}, answer)


if __name__ == "__main__":
    main()
