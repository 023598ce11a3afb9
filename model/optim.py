"""Optimisers and the learning-rate schedule, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SCALAR_MIN, SCALAR_MAX = -10.0, 2.0


class _Optimizer(Optimizer):
    """An optimiser whose subclasses say what a step does to the parameters of a group that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient; return what `closure`, which computes them, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group; each optimiser defines it."""
        raise NotImplementedError


class Eve(_Optimizer):
    """Adam whose weight decay acts on large tensors only (icefall, D. Povey, 2022).

    The k-th step is p -= lr / (1 - b1^k) m / (sqrt(v) (1 - b2^k)^-1/2 + eps). Before it, tensors of several elements with an
    rms above target_rms are multiplied by 1 - weight_decay; after it, scalars (the learned scales) are clamped to [-10, 2].
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 1e-3,
        target_rms: float = 0.1,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or target_rms <= 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"Eve: {lr=}, {betas=}, {eps=}, {weight_decay=}, {target_rms=} are out of range")
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, target_rms=target_rms)
        super().__init__(params, defaults)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        by_step: dict[int, list[Tensor]] = {}
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
            by_step.setdefault(state["step"], []).append(p)
        for k, together in by_step.items():
            self._step(together, group, k)

    def _step(self, params: list[Tensor], group: dict[str, Any], k: int) -> None:
        """Make the k-th step of these parameters; each operation takes all their tensors at once."""
        b1, b2 = group["betas"]
        grads: list[Any] = [p.grad for p in params]
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        torch._foreach_mul_(m, b1)
        torch._foreach_add_(m, grads, alpha=1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - b2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_mul_(denominator, (1 - b2**k) ** -0.5)
        torch._foreach_add_(denominator, group["eps"])
        tensors = [p for p in params if p.numel() > 1]
        if group["weight_decay"] > 0 and tensors:
            for p, norm in zip(tensors, torch._foreach_norm(tensors), strict=True):
                p.mul_(1 - group["weight_decay"] * (norm > group["target_rms"] * math.sqrt(p.numel())))
        torch._foreach_addcdiv_(params, m, denominator, value=-group["lr"] / (1 - b1**k))
        for p in params:
            if p.numel() == 1:
                p.clamp_(SCALAR_MIN, SCALAR_MAX)


class ScaledAdam(_Optimizer):
    """Adam on each tensor relative to its own rms, with the rms itself learned as one more parameter.

    It follows icefall's ScaledAdam (D. Povey, 2022; described in Yao et al., "Zipformer", 2023, section 3.5), without its
    clipping: the update of p is -lr * rms(p) * m / (sqrt(v) + eps), plus p times the step of the log-scale, whose gradient
    is <g, p>. Tensors of one element take plain Adam steps of lr * scalar_lr_scale.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_lr_scale: float = 0.1,
    ) -> None:
        bounds = dict(param_min_rms=param_min_rms, param_max_rms=param_max_rms)
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, scalar_lr_scale=scalar_lr_scale, **bounds))

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            self._step(p, group)

    def _step(self, p: Tensor, group: dict[str, Any]) -> None:
        (b1, b2), grad = group["betas"], p.grad
        assert grad is not None
        state = self.state[p]
        if not state:
            state.update(step=0, delta=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["scale_exp_avg_sq"] = p.new_zeros(())
        state["step"] += 1
        k = state["step"]
        v = state["exp_avg_sq"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        direction = grad / (v.sqrt() * (1 - b2**k) ** -0.5 + group["eps"])
        if p.numel() == 1:
            update = direction * (-group["lr"] * group["scalar_lr_scale"])
        else:
            rms = p.square().mean().sqrt()
            update = direction * (-group["lr"] * rms.clamp(min=group["param_min_rms"]))
            scale_grad = (p * grad).sum()
            scale_v = state["scale_exp_avg_sq"].mul_(b2).addcmul_(scale_grad, scale_grad, value=1 - b2)
            scale_step = scale_grad / (scale_v.sqrt() * (1 - b2**k) ** -0.5 + group["eps"])
            bound = group["lr"] * group["scalar_lr_scale"]
            scale_step = scale_step * -bound
            scale_step = torch.where(rms < group["param_min_rms"], scale_step.new_tensor(bound), scale_step)
            scale_step = torch.where(rms > group["param_max_rms"], scale_step.new_tensor(-bound), scale_step)
            update = update + p * scale_step
        delta = state["delta"].mul_(b1).add_(update, alpha=1 - b1)
        p.add_(delta)


class Eden:
    """lr = lr0 ((b^2 + B^2) / B^2)^-1/4 ((e^2 + E^2) / E^2)^-1/4 after b batches and e epochs (icefall, D. Povey, 2022)."""

    def __init__(self, optimizer: Optimizer, lr_batches: float, lr_epochs: float) -> None:
        self.optimizer, self.lr_batches, self.lr_epochs = optimizer, lr_batches, lr_epochs
        self.batch, self.epoch = 0, 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def step_batch(self, batch: int | None = None) -> None:
        """Set the rate after an optimiser step; `batch`: the number of steps so far (None: one more than before)."""
        self.batch = self.batch + 1 if batch is None else batch
        self._set_lr()

    def step_epoch(self, epoch: int | None = None) -> None:
        """Set the rate when an epoch begins; `epoch`: the number of epochs so far (None: one more than before)."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._set_lr()

    def factor(self) -> float:
        """Return the present rate divided by the initial one."""
        by_batch = ((self.batch**2 + self.lr_batches**2) / self.lr_batches**2) ** -0.25
        by_epoch = ((self.epoch**2 + self.lr_epochs**2) / self.lr_epochs**2) ** -0.25
        return by_batch * by_epoch

    def get_last_lr(self) -> list[float]:
        """Return the rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """Return the state for `load_state_dict`."""
        return {"batch": self.batch, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from the values of `state_dict()`."""
        self.batch, self.epoch = state["batch"], state["epoch"]
        self._set_lr()

    def _set_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor()


BETAS = (0.9, 0.98)
# name -> constructor (params, section `optim` of the config)
OPTIMIZERS: dict[str, Callable[[Any, Any], Optimizer]] = {
    "eve": lambda p, o: Eve(p, lr=o.lr, betas=BETAS, weight_decay=o.weight_decay),
    "adam": lambda p, o: torch.optim.Adam(p, lr=o.lr, betas=BETAS),
    "adamw": lambda p, o: torch.optim.AdamW(p, lr=o.lr, betas=BETAS, weight_decay=o.weight_decay),
    "sgd": lambda p, o: torch.optim.SGD(p, lr=o.lr, weight_decay=o.weight_decay),
    "momentum": lambda p, o: torch.optim.SGD(p, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay),
    "adagrad": lambda p, o: torch.optim.Adagrad(p, lr=o.lr),
    "rmsprop": lambda p, o: torch.optim.RMSprop(p, lr=o.lr, momentum=o.momentum),
    "scaled_adam": lambda p, o: ScaledAdam(p, lr=o.lr, betas=BETAS),
}


def make_optimizer(params: Iterable[Any], optim: Any) -> Optimizer:
    """Return the optimiser called `optim.name` with the options in `optim`; ValueError if it is unknown."""
    if optim.name not in OPTIMIZERS:
        raise ValueError(f"unknown optimiser '{optim.name}'; choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[optim.name](params, optim)
