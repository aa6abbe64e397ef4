"""``python -m anomalyclip``."""

from anomalyclip.cli import main

main()
