"""Exact detection metrics: arrays in, numbers out."""
