"""From prepared manifests to batches: tokens, cuts, features, batches."""
