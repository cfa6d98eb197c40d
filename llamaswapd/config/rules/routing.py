"""Rules of `groups` and of `routing`; those of the matrix have a module of their own."""

from __future__ import annotations

from llamaswapd.config.router import ROUTED, InUse, in_use
from llamaswapd.config.rules import Problems
from llamaswapd.config.rules.matrix import matrix
from llamaswapd.config.schema import Config, Group
from llamaswapd.config.tree import Map, Path, Scalar, is_null

# llama-swap's name for the group of the models that are in no other.
DEFAULT_GROUP = "(default)"


def routing(config: Config, root: Map) -> Problems:
    """Check what is in use; the block of the router that is not used may hold anything."""
    router = config.routing.router
    use = root.get("routing", "router", "use")
    is_use_written = isinstance(use, Scalar) and not is_null(use) and use.text != ""
    is_at_top = bool(config.groups) or config.matrix is not None
    if is_at_top and (is_use_written or router.settings.groups or router.settings.matrix is not None):
        yield (
            ("routing", "router"),
            "config uses both the legacy top-level 'matrix'/'groups' keys and the new 'routing.router' block; "
            "please migrate the top-level keys into 'routing.router' and remove them",
        )
        return
    if config.groups and config.matrix is not None:
        yield ("matrix",), "config cannot use both 'groups' and 'matrix'; remove one of them"
    if router.use not in ("", "group", "matrix"):
        yield ("routing", "router", "use"), f'routing.router.use: unknown router "{router.use}" (valid: group, matrix)'
    is_matrix_missing = router.use == "matrix" and is_null(root.get(*map(str, ROUTED), "matrix"))
    if is_matrix_missing and not is_at_top:
        what = "routing.router.use is 'matrix' but routing.router.settings.matrix is not set"
        yield ("routing", "router", "use"), f"{what}; write it, or use group"
    used = in_use(config)
    if used.matrix is not None:
        for path, problem in matrix(used.matrix, config.models):
            yield (*used.path, "matrix", *path), f"matrix: {problem}"
    yield from _groups(config, used)


def scheduler(config: Config) -> Problems:
    use = config.routing.scheduler.use
    if use not in ("", "fifo"):
        yield ("routing", "scheduler", "use"), f'routing.scheduler.use: unknown scheduler "{use}" (valid: fifo)'
    for name in config.priority:
        if config.resolve(name) is None:
            what = f'routing.scheduler.settings.fifo.priority references unknown model "{name}"'
            yield ("routing", "scheduler", "settings", "fifo", "priority", name), what


def _groups(config: Config, used: InUse) -> Problems:
    homes: dict[str, str] = {}
    for name, group in used.groups.items():
        path = (*used.path, "groups", name)
        if name == DEFAULT_GROUP and group.members:
            yield path, f"{DEFAULT_GROUP} is the group of the models in no other; choose another name"
        yield from _members(name, group, path, homes, config)


def _members(name: str, group: Group, path: Path, homes: dict[str, str], config: Config) -> Problems:
    for index, member in enumerate(group.members):
        at = (*path, "members", index)
        if member in group.members[:index]:
            yield at, f"duplicate model member {member} found in group: {name}"
        elif member in homes:
            yield at, f"model member {member} is used in multiple groups: {homes[member]} and {name}"
        elif config.resolve(member) is None:
            yield at, f'no model config for "{member}"; a member is the id of a model'
        homes.setdefault(member, name)
