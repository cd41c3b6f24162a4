"""Corpora: where documents come from, how they become windows, and in what order windows come."""
