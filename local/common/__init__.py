"""Helpers that any room may use; they import no other room."""
