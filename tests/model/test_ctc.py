"""The CTC head, its loss against a sum over all paths, and the consistency of two copies."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from local.config import load_config
from model.build import build_model
from model.ctc import consistency_loss, ctc_loss
from model.transducer import Transducer, training_loss
from tests.toy_experiment import SMALL

import pytest
import torch
from torch import Tensor


def toy(*overrides: str) -> Transducer:
    torch.manual_seed(0)
    return build_model(load_config(None, [*SMALL, *overrides]), 20)


def batch(model: Transducer, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, their lengths, tokens and their lengths of three utterances."""
    torch.manual_seed(seed)
    x = torch.randn(3, 60, model.encoder.num_features)
    return x, torch.tensor([60, 40, 50]), torch.randint(3, 20, (3, 4)), torch.tensor([4, 0, 3])


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != 0]


def test_loss_is_the_sum_over_all_paths() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(4, 5, 3, dtype=torch.float64).log_softmax(dim=-1)
    lens, tokens, token_lens = [5, 4, 2, 3], [[1, 2], [1, 1], [2, 2], [1, 9]], [2, 2, 2, 1]
    found = ctc_loss(log_probs, torch.tensor(lens), torch.tensor(tokens).clamp(max=2), torch.tensor(token_lens), blank=0)
    for n, (length, size) in enumerate(zip(lens, token_lens, strict=True)):
        paths = [p for p in itertools.product(range(3), repeat=length) if collapsed(p) == tokens[n][:size]]
        total = sum(float(log_probs[n, range(length), p].sum().exp()) for p in paths)
        expected = -torch.tensor(total).log() if paths else torch.tensor(0.0)  # [2, 2] does not fit into 2 frames
        assert float(found[n]) == pytest.approx(float(expected), rel=1e-6)


def test_consistency_by_hand() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 3, 4, dtype=torch.float64).log_softmax(dim=-1)
    found = consistency_loss(first, second, torch.tensor([3, 1]))
    for n, length in enumerate((3, 1)):
        p, q = first[n, :length].exp(), second[n, :length].exp()
        expected = 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
        assert float(found[n]) == pytest.approx(expected)
    assert float(consistency_loss(first, first, torch.tensor([3, 3])).abs().max()) == 0.0


def test_each_copy_is_drawn_to_the_other_as_it_is() -> None:
    """The gradient of a copy is that of its divergence from the other, which counts as constant."""
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(dim=-1)
    (grad,) = torch.autograd.grad(consistency_loss(log_probs[0], log_probs[1], torch.tensor([3])).sum(), logits)
    p = log_probs.detach().exp()
    assert torch.allclose(grad[0], 0.5 * (p[0] - p[1])) and torch.allclose(grad[1], 0.5 * (p[1] - p[0]))


def test_gradients_in_float64() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    lens, tokens, token_lens = torch.tensor([6, 5, 1]), torch.tensor([[1, 1, 2], [3, 1, 0], [1, 2, 0]]), torch.tensor([3, 2, 2])

    def loss(x: Tensor) -> Tensor:
        return ctc_loss(x.log_softmax(dim=-1), lens, tokens, token_lens, blank=0)

    assert torch.autograd.gradcheck(loss, logits)


def test_off_is_as_without() -> None:
    """No head, the same initial values, and the same losses."""
    off, on = toy(), toy("loss.ctc_scale=0.3")
    assert off.ctc_head is None
    ours = off.state_dict()
    assert {name for name in on.state_dict() if name not in ours} == {
        f"ctc_head.output_linear.{name}" for name in ("weight", "bias", "weight_scale", "bias_scale")
    }
    assert all(torch.equal(value, on.state_dict()[name]) for name, value in ours.items())
    found, more = off.eval()(*batch(off)), on.eval()(*batch(on))
    assert set(found) == {"simple", "pruned"} and set(more) == {"simple", "pruned", "ctc"}
    assert all(torch.equal(found[name], more[name]) for name in found)


@torch.no_grad()
def test_two_copies_give_the_mean_of_both() -> None:
    model = toy("loss.ctc_scale=0.3").eval()
    x, lens, tokens, token_lens = batch(model)
    other = batch(model, 2)[0]
    found = model(x, lens, tokens, token_lens, second=other, monitor=True)
    alone = [model(copy, lens, tokens, token_lens, monitor=True) for copy in (x, other)]
    for name in ("simple", "pruned", "ctc", "outside"):
        assert torch.allclose(found[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-5), name
    assert (found["consistency"] > 0).all()
    assert float(model(x, lens, tokens, token_lens, second=x)["consistency"].abs().max()) < 1e-5


def plain_ctc(log_probs: Tensor, tokens: list[int]) -> Tensor:
    """Return the loss over log_probs (T, C) by the forward recursion over tokens with blanks around them; 0 if none fits."""
    states = [0]
    for token in tokens:
        states += [token, 0]
    alpha = [log_probs[0, states[s]] if s < 2 else torch.tensor(-torch.inf) for s in range(len(states))]
    for frame in log_probs[1:]:
        new = []
        for s, state in enumerate(states):
            ways = [alpha[s]] + ([alpha[s - 1]] if s else [])
            if s > 1 and state != 0 and state != states[s - 2]:
                ways.append(alpha[s - 2])
            possible = [way for way in ways if way > -torch.inf]
            new.append(torch.logsumexp(torch.stack(possible), 0) + frame[state] if possible else alpha[s])
        alpha = new
    ends = [way for way in alpha[-2:] if way > -torch.inf]
    return -torch.logsumexp(torch.stack(ends), 0) if ends else 0 * log_probs.sum()


def plain_consistency(first: Tensor, second: Tensor) -> Tensor:
    """Return the loss over log-probabilities (T, C) of two copies, by loops."""
    total = first.new_zeros(())
    for t in range(len(first)):
        for c in range(first.size(1)):
            for own, other in ((first[t, c], second[t, c].detach()), (second[t, c], first[t, c].detach())):
                total = total + 0.5 * other.exp() * (other - own)
    return total


@pytest.mark.parametrize(("ctc_scale", "cr_scale"), [(0.3, 0.0), (1e-9, 0.2), (0.3, 0.2)])
def test_gradients_of_the_model_in_float64(ctc_scale: float, cr_scale: float) -> None:
    """Of every parameter, by Transducer.forward, as of plain loops over the encoder's output; one transcript is too long."""
    scales = load_config(None, [f"loss.ctc_scale={ctc_scale}", f"loss.cr_scale={cr_scale}"]).loss
    model = toy(f"loss.ctc_scale={ctc_scale}").double().eval()  # no dropout, which would differ
    head = model.ctc_head
    assert head is not None
    head.forward = lambda out: head.output_linear(out).log_softmax(dim=-1)  # type: ignore[method-assign]  # not in float32
    torch.manual_seed(2)
    x, other = torch.randn(2, 3, 44, model.encoder.num_features, dtype=torch.float64)
    lens, tokens = torch.tensor([44, 29, 13]), torch.randint(3, 20, (3, 4))
    tokens[0], token_lens = torch.tensor([5, 5, 7, 5]), torch.tensor([4, 2, 4])
    copies = (x, other) if cr_scale else (x,)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    losses = model(x, lens, tokens, token_lens, second=other if cr_scale else None)
    found = gradients((scales.ctc_scale * losses["ctc"] + scales.cr_scale * losses.get("consistency", 0.0)).sum())

    outputs = [model.encoder(copy, lens) for copy in copies]
    log_probs = [head(out) for out, _, _ in outputs]
    assert outputs[0][1][2] < 4, "the last transcript must be too long"
    loss = torch.zeros((), dtype=torch.float64)
    for n, (frames, size) in enumerate(zip(outputs[0][1].tolist(), token_lens.tolist(), strict=True)):
        own = [lp[n, :frames] for lp in log_probs]
        ctc = sum(plain_ctc(lp, tokens[n, :size].tolist()) for lp in own) / len(own)
        assert float(ctc) == pytest.approx(float(losses["ctc"][n]), rel=1e-9, abs=1e-12)
        loss = loss + scales.ctc_scale * ctc
        if cr_scale:
            loss = loss + scales.cr_scale * plain_consistency(*own)
    assert float(losses["ctc"][2]) == 0.0
    expected = gradients(loss)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-10, msg=name)


def test_weights_of_the_losses() -> None:
    losses = SimpleNamespace(simple=1.0, pruned=10.0, ctc=100.0, consistency=1000.0)
    scales = SimpleNamespace(simple_scale=0.5, ctc_scale=0.2, cr_scale=0.1)
    assert training_loss(losses, scales, 0.1) == pytest.approx(0.5 + 1 + 20 + 100)
    losses.ctc = losses.consistency = None
    losses.pruned = float("inf")
    assert training_loss(losses, scales, 0.0) == 0.5
