"""Evaluation: the paper's tables in bounded memory, thresholds with guarantees, and a report."""
