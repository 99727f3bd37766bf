"""Where things are in the checkout, for tests that read documents and configuration."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gateway"
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "docs"
