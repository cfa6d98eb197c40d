"""When are two definitions of a model the same unit? When their fingerprints are equal."""

from __future__ import annotations

import hashlib
import json

from llamaswapd.config.commandline import split
from llamaswapd.config.schema import ModelConfig, Section

# What the daemon alone makes use of, or what the next unit may have otherwise without a restart of this one. Everything
# else counts, so that a new setting of units cannot be forgotten here.
_NOT_THE_UNIT = frozenset(
    {
        "id", "fingerprint", "named_port", "ready_log", "ttl", "unload_timeout", "health_check_timeout", "aliases",
        "name", "description", "unlisted", "use_model_name", "filters", "concurrency_limit", "send_loading_state",
        "metadata", "capabilities", "timeouts", "compat", "macros",
    }
)  # fmt: skip


def fingerprint(model: ModelConfig, key: bytes = b"") -> str:
    """Return 16 digits that stand for what makes the running unit and how it is reached: equal ones need no restart.

    They are public and cover secrets; with a `key` (up to 64 bytes) nobody else can try out values against them. What
    is as by default is left out, so that a setting that is new changes no fingerprint.
    """
    definition = {name: value for name, value in model.said().items() if name not in _NOT_THE_UNIT}
    definition |= {"cmd": split(model.cmd), "cmd_stop": split(model.cmd_stop)}
    text = json.dumps(definition, sort_keys=True, default=Section.said)
    return hashlib.blake2b(text.encode(), digest_size=8, key=key).hexdigest()


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
