"""Programs, one per stage, and their libraries in nine folders. Everything here knows files; `model` knows only tensors."""

import model as _model  # before torch: it sets GOMP_SPINCOUNT

assert _model
