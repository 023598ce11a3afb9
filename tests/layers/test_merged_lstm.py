"""train.lstm=merged: the LSTM whose projection is within its recurrent weights gives the numbers of the standard one."""

from __future__ import annotations

from collections.abc import Callable

from local.common.errors import UserError
from local.config import load_config
from local.data.batch import Batch
from local.training.losses import forward_losses
from model.build import build_model
from model.layers import scaled
from model.layers.gradient_filter import GradientFilter
from model.layers.lstm import lstm_cpu
from model.layers.scaled import ScaledRNN
from model.transducer import Transducer

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    *("model.encoder.d_model=16", "model.encoder.rnn_hidden_size=24", "model.encoder.dim_feedforward=32"),
    *("model.decoder.dim=16", "model.joiner.dim=16", "model.encoder.dropout=0", "model.encoder.layer_dropout=0"),
    *("model.encoder.balance_prob=0", "gradient.threshold=0.2"),  # the filter damps many sequences
]
LENS = [121, 95, 104, 77, 60]  # frames
CLASSES, ROUNDING = 20, {torch.float32: 2**-24, torch.bfloat16: 2**-9}
Run = Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]]


def by_frames(x: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs (T, N, P) and the last cells (N, H) by the definition, frame by frame, from states of zeros."""
    w_ih, w_hh, b_ih, b_hh, w_hr = params
    h, c = x.new_zeros(x.size(1), w_hr.size(0)), x.new_zeros(x.size(1), w_hr.size(1))
    out = []
    for frame in x:
        i, f, g, o = (frame @ w_ih.t() + b_ih + h @ w_hh.t() + b_hh).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = (o.sigmoid() * c.tanh()) @ w_hr.t()
        out.append(h)
    return torch.stack(out), c


def by_torch(x: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the same of torch's LSTM."""
    h0, c0 = (x.new_zeros(1, x.size(1), n) for n in params[4].shape)
    out, _, c = torch._VF.lstm(x, (h0, c0), params, True, 1, 0.0, True, False, False)  # type: ignore[attr-defined]
    return out, c[0]


def ours(merged: bool, dtype: torch.dtype = torch.float32) -> Run:
    """Return a function that runs our layer, under autocast if `dtype` is bfloat16."""

    def run(x: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
        proj, hidden = params[4].shape
        rnn = ScaledRNN("lstm", x.size(2), hidden, proj).train()
        states = x.new_zeros(1, x.size(1), proj), x.new_zeros(1, x.size(1), hidden)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out, h, c = rnn(x, *states, params, merged=merged)
        assert torch.equal(h[0], out[-1])
        return out, c[0]

    return run


def problem(t: int, n: int, c: int, hidden: int, proj: int) -> list[Tensor]:
    """Return x (T, N, C) and the five parameters, random numbers as large as in training, in float64."""
    torch.manual_seed(t + n)
    rnn = ScaledRNN("lstm", c, hidden, proj)
    params = [p.double() if p.dim() > 1 else 0.1 * torch.randn(len(p)).double() for p in rnn.scaled_parameters()]
    return [torch.randn(t, n, c).double(), *params]


def numbers(run: Run, tensors: list[Tensor]) -> list[Tensor]:
    """Return outputs, last cells, and the gradients of x and of the parameters."""
    x, *params = (p.detach().requires_grad_() for p in tensors)
    out, c = run(x, params)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in (out, c)]
    total = (out * weights[0]).sum() + (c * weights[1]).sum()
    return [out.detach(), c.detach(), *torch.autograd.grad(total, [x, *params])]


def apart(a: Tensor, b: Tensor) -> float:
    """Return the norm of the difference, relative to that of `b`."""
    return float(torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double()))


@pytest.mark.parametrize("reference", [by_frames, by_torch])
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (17, 1), (40, 8), (5, 166)])
def test_float64_gives_the_outputs_and_all_gradients(size: tuple[int, int], reference: Run) -> None:
    tensors = problem(*size, 7, 24, 16)
    got, want = numbers(ours(merged=True), tensors), numbers(reference, tensors)
    assert len(got) == len(want) == 8
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 8), (60, 1), (60, 8), (5, 166)])
def test_rounding_is_that_of_the_standard_layer(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Outputs and gradients are 16 roundings of their type from float64 at most, and at most twice as far as today's."""
    tensors = problem(*size, 128, 256, 128)
    want, low = numbers(by_torch, tensors), [p.float() for p in tensors]
    got, today = (numbers(ours(merged, dtype), low) for merged in (True, False))
    for a, b, exact in zip(got, today, want, strict=True):
        if float(exact.abs().max()) > 0:  # in the first frame, W_hh has no gradient
            assert apart(a, exact) <= min(16 * ROUNDING[dtype], 2 * apart(b, exact) + ROUNDING[dtype])


def test_the_recurrent_weights_are_made_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, too: W_hh and W_hr would be rounded before the product, and the product again."""
    x, *params = (p.float() for p in problem(3, 2, 7, 24, 16))
    taken: list[Tensor] = []

    def recorded(x: Tensor, h0: Tensor, c0: Tensor, params: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        taken.append(params[1])
        return lstm_cpu(x, h0, c0, params, dtype)

    monkeypatch.setattr(scaled, "lstm_cpu", recorded)
    ours(merged=True, dtype=torch.bfloat16)(x, params)
    assert len(taken) == 1 and taken[0].dtype == torch.float32
    torch.testing.assert_close(taken[0].double(), params[1].double() @ params[4].double(), rtol=1e-5, atol=1e-7)


# ---- within the model ----


def models(*overrides: str) -> tuple[Transducer, Transducer]:
    """Return a standard and a merged model with the same weights, in training."""
    cfg, found = load_config(None, [*SMALL, *overrides]), []
    for cfg.train.lstm in ("standard", "merged"):
        torch.manual_seed(1)
        found.append(build_model(cfg, CLASSES).train())
    assert all(torch.equal(a, b) for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values(), strict=True))
    return found[0], found[1]


def batch_of(dtype: torch.dtype) -> Batch:
    """Return utterances of `LENS` frames."""
    torch.manual_seed(2)
    x = torch.randn(len(LENS), max(LENS), 80, dtype=dtype)
    return Batch(x, torch.tensor(LENS), torch.randint(3, CLASSES, (5, 9)), torch.tensor([9, 5, 7, 1, 3]), list("abcde"))


def step(model: Transducer, batch: Batch, precision: str = "float32") -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return losses and gradients of all parameters, and the masks of the gradient filters."""
    model.zero_grad()
    losses = forward_losses(model, batch, warmup=2.0, precision=precision)
    (0.5 * losses.simple.sum() + losses.pruned.sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found |= {"simple": losses.simple.detach(), "pruned": losses.pruned.detach()}
    return found, [m.mask for m in model.modules() if isinstance(m, GradientFilter) and m.mask is not None]


@pytest.mark.parametrize("control", ["filter", "none"])
def test_twelve_layers_of_ragged_utterances_in_float64(control: str) -> None:
    """Losses, the gradients of every parameter and its scale, and what the filters damp."""
    standard, merged = (m.double() for m in models("model.encoder.num_layers=12", f"gradient.control={control}"))
    (want, want_masks), (got, got_masks) = (step(m, batch_of(torch.float64)) for m in (standard, merged))
    assert got.keys() == want.keys() and len(got) > 12 * 10
    assert len(got_masks) == len(want_masks) == (12 if control == "filter" else 0)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()), msg=name)
    for a, b in zip(got_masks, want_masks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)
        assert 0 < float(b.min()) < 0.9  # the filter acts
    name = "encoder.encoder.layers.3.lstm.weight_hh_l0"
    assert not torch.equal(got[name], want[name])  # it was computed in another way


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-4), ("bf16", 0.1)])
def test_lower_precisions_of_the_model(precision: str, within: float) -> None:
    standard, merged = models("model.encoder.num_layers=3", "gradient.control=none")
    want = step(standard.double(), batch_of(torch.float64))[0]
    batch = batch_of(torch.float64)
    batch = Batch(batch.inputs.float(), batch.input_lens, batch.tokens, batch.token_lens, batch.ids)
    got, today = (step(m.float(), batch, precision)[0] for m in (merged, standard))
    norms = {name: [apart(found[name], value) for found in (got, today)] for name, value in want.items() if value.dim() > 1}
    for name, (new, old) in norms.items():
        assert new <= within and new <= 3 * old + ROUNDING[torch.float32 if precision == "float32" else torch.bfloat16], name


def test_an_utterance_does_not_depend_on_the_batch() -> None:
    """Alone, and beside longer and shorter ones."""
    model, batch = models("model.encoder.num_layers=2")[1].double(), batch_of(torch.float64)
    together, lens, _ = model.encoder(batch.inputs, batch.input_lens)
    for n, frames in enumerate(LENS):
        alone, _, _ = model.encoder(batch.inputs[n : n + 1, :frames], batch.input_lens[n : n + 1])
        torch.testing.assert_close(alone[0], together[n, : int(lens[n])], rtol=1e-11, atol=1e-12)


def test_only_training_from_the_first_frame_is_merged() -> None:
    """Evaluation, streaming and calls with states are the standard layer's, bit by bit."""
    standard, merged = models("model.encoder.num_layers=2")
    x, lens = torch.randn(3, 60, 80), torch.full((3,), 60)
    states = torch.randn(2, 3, 16), torch.randn(2, 3, 24)

    def outputs(model: Transducer, training: bool, given: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        out, _, last = model.train(training).encoder(x, lens, given)
        return [out, *last]

    for training, given in ((False, None), (False, states), (True, states)):
        pairs = zip(outputs(standard, training, given), outputs(merged, training, given), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    pairs = list(zip(outputs(standard, True, None), outputs(merged, True, None), strict=True))
    assert not all(torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:  # the states after the last frame, too
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "keys", [["model.encoder.rnn_hidden_size=16"], ["model.encoder.rnn=gru", "model.encoder.rnn_hidden_size=16"]]
)
def test_needs_a_projection(keys: list[str]) -> None:
    assert load_config(None, [*SMALL, *keys]).train.lstm == "standard"
    with pytest.raises(UserError, match=r"train\.lstm.*model\.encoder\.rnn_hidden_size"):
        load_config(None, [*SMALL, *keys, "train.lstm=merged"])
