"""Flags and config fields, checked before JAX is imported."""
