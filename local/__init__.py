"""Programs, one per stage, and their libraries in the folders. Everything here knows files; `model` knows only tensors."""

import model as _model  # before torch: it sets GOMP_SPINCOUNT
from local.common.startup import begin as _begin

assert _model
_begin()
