"""Where the tests find the checkout, wherever they stand in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
