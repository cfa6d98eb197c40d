"""What a new configuration changes."""

from __future__ import annotations

from dataclasses import dataclass

from llamaswapd.config.fingerprint import fingerprint
from llamaswapd.config.schema import Config, ModelConfig


@dataclass(frozen=True)
class Diff:
    """Model ids by what became of them, in byte order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    outdated: tuple[str, ...]  # those of the changed ones whose running unit no longer is what it should be
    unchanged: tuple[str, ...]
    is_global_changed: bool  # something outside `models`, as far as it is not part of every model anyway


def diff(old: Config, new: Config) -> Diff:
    """Compare what applies, not what was written: a macro counts only through the settings that use it."""
    both = [id_ for id_ in new.models if id_ in old.models]
    same = {id_ for id_ in both if _without_macros(old.models[id_]) == _without_macros(new.models[id_])}
    return Diff(
        added=tuple(id_ for id_ in new.models if id_ not in old.models),
        removed=tuple(id_ for id_ in old.models if id_ not in new.models),
        changed=tuple(id_ for id_ in both if id_ not in same),
        outdated=tuple(id_ for id_ in both if fingerprint(old.models[id_]) != fingerprint(new.models[id_])),
        unchanged=tuple(id_ for id_ in both if id_ in same),
        is_global_changed=_globals(old) != _globals(new),
    )


def _without_macros(model: ModelConfig) -> ModelConfig:
    return model.having(macros={})


def _globals(config: Config) -> Config:
    return config.having(models={}, macros={})
