"""Rules of the keys at the top that stand for themselves."""

from __future__ import annotations

from llamaswapd.config.duration import go_duration
from llamaswapd.config.regex import RegexError, compile_re2
from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.units import unit_settings
from llamaswapd.config.schema import Config

_LEAST_INTERVAL_S = 5.0


def general(config: Config) -> Problems:
    # 0s means the default, to llama-swap as well.
    if config.performance.every < _LEAST_INTERVAL_S and config.performance.every != 0:
        written = go_duration(config.performance.every)
        yield ("performance", "every"), f"performance: every must be at least 5s, got {written}"
    if config.start_port < 1:
        yield ("startPort",), f"startPort must be greater than 1; it is {config.start_port}"
    if config.global_ttl < 0:
        yield ("globalTTL",), f"globalTTL must be >= 0; it is {config.global_ttl}, write 0 to never unload"
    if config.unload_timeout < 0:
        yield ("unloadTimeout",), f"unloadTimeout must be >= 0; it is {config.unload_timeout}"
    if config.overtake_limit < 0:
        yield ("overtakeLimit",), f"overtakeLimit must be >= 0; it is {config.overtake_limit}"
    if config.drain_timeout < 0:
        what = f"drainTimeout must be >= 0; it is {config.drain_timeout}, write 0 to cut requests at once"
        yield ("drainTimeout",), what
    if config.store is not None and not config.store.path.strip():
        yield ("store", "path"), "store.path must not be empty; name a file, or take store out to keep rows in memory"
    yield from _ignored_paths(config)
    yield from unit_settings(config.systemd)


def _ignored_paths(config: Config) -> Problems:
    for index, pattern in enumerate(config.upstream.ignore_paths):
        try:
            compile_re2(pattern)
        except RegexError as error:
            what = f'upstream.ignorePaths: invalid regular expression "{pattern}": {error}'
            yield ("upstream", "ignorePaths", index), what


def api_keys(config: Config) -> Problems:
    for index, key in enumerate(config.api_keys):
        if not key:
            yield ("apiKeys", index), "empty api key found in apiKeys; remove it or give it a value"
        elif " " in key:
            yield ("apiKeys", index), f"apiKeys[{index}]: api key cannot contain spaces"
