"""Where the optional reference data and fixtures lie, and the mark for tests that read them."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"reference data and fixtures are not at {SHARED}; the other tests do not need them"
)
