"""Where the checkout and the real data lie."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = REPOSITORY.parent / "shared" / "data"
