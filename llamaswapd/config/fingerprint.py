"""When are two definitions of a model the same unit? When their fingerprints are equal."""

from __future__ import annotations

import hashlib
import json

from llamaswapd.config.commandline import split
from llamaswapd.config.schema import ModelConfig


def fingerprint(model: ModelConfig) -> str:
    """Return a hash of what makes the running unit and how it is reached: equal ones need no restart."""
    definition = [
        split(model.cmd), split(model.cmd_stop), model.proxy, model.port, model.env, model.check_endpoint,
        sorted(model.systemd.items()),
    ]  # fmt: skip
    return digest(json.dumps(definition))


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
