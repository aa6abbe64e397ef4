"""Damaged files by the thousand: whatever is read may fail with one message, and in no other way.

`mutations.py` damages files, `corpus.py` makes real ones, `targets.py` lists who reads them, `child.py` reads damaged
ones in a process with limits, `hunt.py` hands them out. By hand: ``python -m tests.fuzz --seed 7 --count 2000``.
"""
