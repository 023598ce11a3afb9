"""Tensors only: no files, no YAML, no import of `local`."""
