"""What types cannot say: ranges, syntax, and what one part of the configuration demands of another.

Everything wrong is reported, in the order in which llama-swap would find it and in its words where it has any. The
rules stand in `rules/`, section by section.
"""

from __future__ import annotations

from llamaswapd.config.report import Report
from llamaswapd.config.router import in_use
from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.general import api_keys, general
from llamaswapd.config.rules.models import models
from llamaswapd.config.rules.peers import peer_names, peers
from llamaswapd.config.rules.profiles import profiles
from llamaswapd.config.rules.routing import routing, scheduler
from llamaswapd.config.rules.selectors import selectors
from llamaswapd.config.schema import Config, Timeouts
from llamaswapd.config.tree import Map, Path, dotted, is_null

# Of the 45 s that the units in `units/` give the daemon to stop, some are needed for what follows the requests.
_LONGEST_DRAIN_S = 40


def validate(config: Config, root: Map, report: Report) -> None:
    """Report everything wrong with a decoded configuration; `root` is the tree it was decoded from."""
    reported = [problem.path for problem in report.errors]
    for problems in (
        general(config),
        models(config),
        routing(config, root),
        scheduler(config),
        api_keys(config),
        peers(config, root),
        peer_names(config),
        selectors(config),
        profiles(config),
    ):
        for path, problem in problems:
            # What was reported counts as not set, and whatever follows from that is no news.
            at = dotted(path)
            if not any(_is_at_or_below(each, at) or _is_at_or_below(at, each) for each in reported):
                report.error(path, problem)
    for path, oddity in _odd(config, root):
        report.warn(path, oddity)


def _is_at_or_below(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def _odd(config: Config, root: Map) -> Problems:
    """Yield what is accepted and has no useful effect, or not the one that was wanted."""
    used = in_use(config)
    if config.drain_timeout > _LONGEST_DRAIN_S:
        what = f"{config.drain_timeout} s may outlast the TimeoutStopSec of the daemon's unit, which is 45 s as shipped"
        yield ("drainTimeout",), f"{what}; write {_LONGEST_DRAIN_S} or less, or raise that in a drop-in"
    for name, group in used.groups.items():
        for index, member in enumerate(group.members):
            yield from _alias(member, (*used.path, "groups", name, "members", index), config)
    for name in config.priority:
        yield from _alias(name, ("routing", "scheduler", "settings", "fifo", "priority", name), config)
    for index, preload in enumerate(config.hooks.on_startup.preload):
        if preload.strip() and config.resolve(preload.strip()) is None:
            what = f'no model of ours is called "{preload.strip()}"; ignored'
            yield ("hooks", "on_startup", "preload", index), what
    for id_, model in config.models.items():
        yield from _timeouts(model.timeouts, ("models", id_, "timeouts"))
    for id_, peer in config.peers.items():
        yield from _timeouts(peer.timeouts, ("peers", id_, "timeouts"))
        if is_null(root.get("peers", id_)):
            yield ("peers", id_), "nothing is said about this peer; ignored"


def _alias(name: str, path: Path, config: Config) -> Problems:
    model = config.resolve(name)
    if name not in config.models and model is not None:
        yield path, f'"{name}" is an alias and ignored here; write the id, "{model.id}"'


def _timeouts(timeouts: Timeouts, path: Path) -> Problems:
    for name, seconds in timeouts:
        if seconds < 0:
            yield path, f"a time of {seconds} s counts as 0 ({name})"
