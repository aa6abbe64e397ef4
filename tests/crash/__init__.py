"""Commands that are killed, run out of disk or may not write: what they leave behind, and that they go on from it."""
