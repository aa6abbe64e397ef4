"""``python -m anomalyclip``."""

from anomalyclip.cli import main

if __name__ == "__main__":  # processes that are spawned import it too
    main()
