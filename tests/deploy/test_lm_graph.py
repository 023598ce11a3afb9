"""The language model's ONNX graph against the model, step by step and over a sentence."""

from __future__ import annotations

from pathlib import Path

from local.deploy.lm_graph import write_lm
from model.lm import LstmLm
from tests.deploy.test_graphs import TOLERANCE, error, run, start

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("packages")
VOCAB = 30


@pytest.mark.parametrize(("dim", "hidden", "layers"), [(16, 16, 1), (12, 20, 2)])  # with and without shared embeddings
@torch.no_grad()
def test_steps_with_states(tmp_path: Path, dim: int, hidden: int, layers: int) -> None:
    import onnx

    torch.manual_seed(0)
    lm = LstmLm(VOCAB, dim, hidden, layers, dropout=0.5, sos_eos_id=1).eval()
    for p in lm.parameters():
        p.normal_(std=0.7)
    write_lm(lm, tmp_path / "lm.onnx")
    facts = {p.key: p.value for p in onnx.load(tmp_path / "lm.onnx").metadata_props}
    assert facts == {"num_layers": str(layers), "hidden_size": str(hidden), "sos_id": "1"}
    session = start(tmp_path / "lm.onnx")
    assert [x.name for x in session.get_outputs()] == ["log_softmax", "next_h0", "next_c0"]
    for n in (1, 3):
        tokens = torch.randint(3, VOCAB, (n, 8))
        tokens[:, 0] = lm.sos_eos_id
        state, zeros = lm.init_state(n, "cpu"), np.zeros((layers, n, hidden), np.float32)
        theirs, scores = [zeros, zeros], []
        for u in range(8):
            ours, state = lm.step(tokens[:, u], state)
            log_probs, *theirs = run(session, tokens[:, u : u + 1], *theirs)
            assert error(log_probs[:, 0], ours) <= TOLERANCE
            assert all(error(a, b.transpose(0, 1)) <= TOLERANCE for a, b in zip(theirs, state, strict=True))
            scores.append(ours)
        whole = run(session, tokens, zeros, zeros)[0]  # several tokens in one call
        assert error(whole, torch.stack(scores, 1)) <= TOLERANCE
        ends = torch.full((n,), 7)
        nll = -(whole[:, :-1] * np.eye(VOCAB)[tokens[:, 1:]]).sum((1, 2)) - whole[:, -1, lm.sos_eos_id]
        np.testing.assert_allclose(nll, lm(tokens[:, 1:], ends).numpy(), rtol=1e-4)
