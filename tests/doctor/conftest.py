from __future__ import annotations

from pathlib import Path

import pytest
from folders import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    tmp_path.chmod(0o755)
    return Folder(tmp_path)
