"""Our model, losses, gradients and optimiser against numbers made by the reference implementation.

Tolerances are relative to each tensor's largest value; the reference against itself differs by up to 1e-6 in
activations, 2e-7 in losses, 4e-5 in gradients and 4e-4 in the parameters after five steps.
"""

from __future__ import annotations

from pathlib import Path

from local.config import load_config
from local.config.schema import Config
from model.build import build_model
from model.optim import Eden, Eve
from model.transducer import Transducer

import numpy as np
import pytest
import torch

FILES = ["lstm_transducer_threshold25.npz", "lstm_transducer_threshold0.2.npz"]
BACKENDS = ["native", pytest.param("k2", marks=pytest.mark.k2)]


def hyper_config(numbers: np.lib.npyio.NpzFile, backend: str) -> Config:
    layers, d_model, hidden, feedforward, _, decoder, joiner, prune_range = numbers["meta/hyper"].tolist()
    threshold, lm_scale, am_scale = numbers["meta/scales"].tolist()
    return load_config(
        None,
        [
            f"model.encoder.num_layers={layers}",
            f"model.encoder.d_model={d_model}",
            f"model.encoder.rnn_hidden_size={hidden}",
            f"model.encoder.dim_feedforward={feedforward}",
            "model.encoder.dropout=0",
            "model.encoder.layer_dropout=0",
            "model.encoder.balance_prob=1",
            f"model.decoder.dim={decoder}",
            f"model.joiner.dim={joiner}",
            f"gradient.threshold={threshold}",
            f"loss.backend={backend}",
            f"loss.prune_range={prune_range}",
            f"loss.lm_scale={lm_scale}",
            f"loss.am_scale={am_scale}",
        ],
    )


def load(path: Path, backend: str) -> tuple[dict[str, np.ndarray], Transducer, dict[str, torch.Tensor]]:
    """Return the file's numbers, the model with its initial parameters, and the arguments of `Transducer.forward`."""
    with np.load(path) as archive:
        numbers = {key: archive[key] for key in archive.files}
    model = build_model(hyper_config(numbers, backend), int(numbers["meta/hyper"][4])).train()
    state = {k[len("param/") :]: torch.from_numpy(v) for k, v in numbers.items() if k.startswith("param/")}
    model.load_state_dict(state)
    token_lens = torch.from_numpy(numbers["y_lens"])
    rows = torch.from_numpy(numbers["y"]).split(token_lens.tolist())
    batch = {
        "x": torch.from_numpy(numbers["x"]),
        "x_lens": torch.from_numpy(numbers["x_lens"]),
        "tokens": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        "token_lens": token_lens,
    }
    return numbers, model, batch


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """Return the largest difference divided by the reference tensor's largest value."""
    difference = np.abs(ours.detach().numpy() - theirs).max()
    return float(difference / max(np.abs(theirs).max(), 1e-30))


def rounding(name: str, parameters: dict[str, torch.nn.Parameter]) -> float:
    """Return what float32 rounding may change in the gradient of a scale.

    That is sum(p * dL/dp), whose terms may nearly cancel: here to 1 / 150,000 of their absolute sum for
    encoder_embed.out.weight_scale. Each term has a relative error of about 1e-8 after the sums over frames.
    """
    scaled = parameters.get(name.removesuffix("_scale"))
    if not name.endswith("_scale") or scaled is None:
        return 0.0
    return 1e-8 * float((scaled.grad * scaled).abs().sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file", FILES)
def test_losses_gradients_and_five_steps(shared: Path, file: str, backend: str) -> None:
    if backend == "k2":
        pytest.importorskip("k2", reason="k2 is not in this environment")
    numbers, model, batch = load(shared / "reference" / file, backend)
    out, out_lens, _ = model.encoder(batch["x"], batch["x_lens"], warmup=2.0)
    assert out_lens.tolist() == numbers["encoder_out_lens"].tolist()
    assert relative(out, numbers["encoder_out"]) < 1e-5

    losses = model(**batch, warmup=2.0)
    assert relative(losses["simple"], numbers["simple_loss"]) < 1e-5
    assert relative(losses["pruned"], numbers["pruned_loss"]) < 1e-5

    (0.5 * losses["simple"].sum() + losses["pruned"].sum()).backward()
    gradients = {k[len("grad/") :]: v for k, v in numbers.items() if k.startswith("grad/")}
    parameters = dict(model.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, theirs in gradients.items():
        error = np.abs(parameters[name].grad.numpy() - theirs).max()
        assert error <= 1e-4 * np.abs(theirs).max() + rounding(name, parameters), name
    model.zero_grad()

    optimizer = Eve(model.parameters(), lr=0.003)
    schedule = Eden(optimizer, lr_batches=5000, lr_epochs=10)
    for k in range(5):
        assert schedule.get_last_lr()[0] == pytest.approx(float(numbers[f"lr/{k}"]), rel=1e-6)
        losses = model(**batch, warmup=2.0)
        total = 0.5 * losses["simple"].sum() + losses["pruned"].sum()
        if k > 0:
            theirs = numbers[f"train_loss/{k}"]
            ours = torch.stack([losses["simple"].sum(), losses["pruned"].sum()])
            assert relative(ours, theirs) < 3e-4
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step_batch()
    after = {k[len("param_after_5_steps/") :]: v for k, v in numbers.items() if k.startswith("param_after_5_steps/")}
    assert after
    worst = {k: relative(parameters[k], v) for k, v in after.items() if k in parameters}
    assert worst.keys() == parameters.keys()
    assert max(worst.values()) < 3e-3, max(worst, key=lambda k: worst[k])

    model.eval()
    x = batch["x"][:, :95]
    out, _, (h, c) = model.encoder(x, torch.full((x.size(0),), 95), model.encoder.initial_states(x.size(0), x))
    assert relative(out, numbers["eval_stream_out"]) < 3e-3
    assert relative(h, numbers["eval_stream_h"]) < 3e-3
    assert relative(c, numbers["eval_stream_c"]) < 3e-3


@pytest.mark.parametrize("file", FILES)
def test_streaming_states_from_the_references_own_parameters(shared: Path, file: str) -> None:
    """With the reference's own parameters after five steps, only rounding may differ."""
    numbers, model, batch = load(shared / "reference" / file, "native")
    after = {k[len("param_after_5_steps/") :]: v for k, v in numbers.items() if k.startswith("param_after_5_steps/")}
    state = model.state_dict()
    state.update({k: torch.from_numpy(v) for k, v in after.items()})
    model.load_state_dict(state)
    model.eval()
    x = batch["x"][:, :95]
    out, _, (h, c) = model.encoder(x, torch.full((x.size(0),), 95))
    assert relative(out, numbers["eval_stream_out"]) < 1e-5
    assert relative(h, numbers["eval_stream_h"]) < 1e-5
    assert relative(c, numbers["eval_stream_c"]) < 1e-5


def test_published_size() -> None:
    """The LibriSpeech model of icefall's lstm_transducer_stateless3, part by part."""
    model = build_model(load_config(None), 500)
    counts = {
        "encoder.encoder.": 81_918_072,
        "encoder.encoder_embed.": 1_219_576,
        "decoder.": 257_026,
        "joiner.": 781_818,
        "simple_": 513_004,
    }
    for prefix, expected in counts.items():
        assert sum(p.numel() for n, p in model.named_parameters() if n.startswith(prefix)) == expected, prefix
    assert sum(p.numel() for p in model.parameters()) == 84_689_496
