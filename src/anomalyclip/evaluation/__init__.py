"""Evaluation: the paper's tables in bounded memory, thresholds one can stand by, and a report."""
