"""The kinds of unit settings: how the assignments of one become properties on the bus.

A kind joins a notation (`unit_values`) with a D-Bus signature and with what repetition means. `settings` says which
setting is of which kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from llamaswapd.config import unit_values as read
from llamaswapd.config.unit_words import BadValue, literal, literals, words

Property = tuple[str, str, object]  # name, signature, value


@dataclass(frozen=True)
class Kind:
    """One way of writing values.

    `make` takes the name of the property and the assignments that count, at least one.
    `takes` completes the sentence `"value" is not ...`.
    """

    takes: str
    make: Callable[[str, Sequence[str]], list[Property]]
    resets: bool = True  # an empty assignment forgets the earlier ones; else it is a value


def one(signature: str, parse: Callable[[str], object], takes: str) -> Kind:
    """A single value: the last assignment counts."""
    return Kind(takes, lambda name, texts: [(name, signature, parse(texts[-1]))])


def many(signature: str, parse: Callable[[str], Sequence[object]], takes: str) -> Kind:
    """A list that grows with each assignment."""
    return Kind(takes, lambda name, texts: [(name, signature, [x for text in texts for x in parse(text)])])


def each(signature: str, parse: Callable[[str], object], takes: str) -> Kind:
    """A property for each assignment, applied in order: how allow lists and deny lists mix."""
    return Kind(takes, lambda name, texts: [(name, signature, parse(text)) for text in texts])


def choice(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text not in words:
            raise BadValue
        return text

    return one("s", parse, f"one of {', '.join(words)}" if len(words) > 1 else words[0])


def numbered(names: Mapping[str, int], high: int) -> Kind:
    parse = partial(read.number_or_name, names=dict(names), high=high)
    return one("i", parse, f"one of {', '.join(names)}")


def number(signature: str, low: int, high: int) -> Kind:
    return one(signature, partial(read.number, low=low, high=high), f"a number from {low} to {high}")


def flag_or(*words: str, suffix: str = "") -> Kind:
    """yes and no, and some words more; where those came later they have a property of their own, with a suffix."""

    def make(name: str, texts: Sequence[str]) -> list[Property]:
        if texts[-1] in words:
            return [(name + suffix, "s", texts[-1])]
        value = read.boolean(texts[-1])
        return [(name, "b", value)] if suffix else [(name, "s", "yes" if value else "no")]

    return Kind(f"one of {', '.join(('yes', 'no', *words))}", make)


def amount(parse: Callable[[str], int], takes: str) -> Kind:
    """An absolute value, a share of what the machine has, or infinity."""

    def make(name: str, texts: Sequence[str]) -> list[Property]:
        text = texts[-1]
        if text.endswith("%"):
            share = read.permyriad(text)
            if share > 10_000:
                raise BadValue("it is more than 100%")
            return [(f"{name}Scale", "u", (share * (2**32 - 1) + 5_000) // 10_000)]
        return [(name, "t", read.INFINITY if text == "infinity" else parse(text))]

    return Kind(f"{takes}, a percentage, or infinity", make)


def limit(parse: Callable[[str], int], takes: str) -> Kind:
    """A resource limit, `soft:hard` or one value for both."""

    def make(name: str, texts: Sequence[str]) -> list[Property]:
        soft, colon, hard = texts[-1].partition(":")
        values = [read.INFINITY if text == "infinity" else parse(text) for text in (soft, hard if colon else soft)]
        if values[0] > values[1]:
            raise BadValue("the soft limit is above the hard one")
        return [(name, "t", values[1]), (f"{name}Soft", "t", values[0])]

    return Kind(f"{takes}, infinity, or soft:hard", make)


def mask(parse: Callable[[str], int], everything: int, initial: int, takes: str) -> Kind:
    """A set of bits. Further assignments add to it, those with `~` take away; the first with `~` means all but."""

    def make(name: str, texts: Sequence[str]) -> list[Property]:
        value = initial
        for text in texts:
            but, rest = read.inverted(text)
            bits = parse(rest)
            if bits == 0 or value == initial:
                value = everything & ~bits if but else bits
            else:
                value = value & ~bits if but else value | bits
        return [(name, "t", value)]

    return Kind(takes, make, resets=False)


def _cpu_quota(text: str) -> int:
    if text == "infinity":
        return read.INFINITY
    return (read.permyriad(text) or read.number(text, 1, 0)) * 100  # microseconds of CPU time a second; 0 is refused


def _weight(text: str) -> int:
    return 0 if text == "idle" else read.number(text, 1, 10_000)


def _cpus(name: str, texts: Sequence[str]) -> list[Property]:
    if "numa" in texts:
        return [(f"{name}FromNUMA", "b", True)]
    masks = [int.from_bytes(read.bit_mask(text), "little") for text in texts]
    joined = 0
    for bits in masks:
        joined |= bits
    return [(name, "ay", joined.to_bytes((joined.bit_length() + 7) // 8, "little"))]


def _delegate(name: str, texts: Sequence[str]) -> list[Property]:
    flag, lists = _flag_or_lists(texts)
    if not lists:
        return [(name, "b", flag)]
    controllers = [word for text in lists for word in words(text)]
    if not set(controllers) <= _CONTROLLERS:
        raise BadValue
    return [(f"{name}Controllers", "as", controllers)]


_CONTROLLERS = {"cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "bpf-firewall", "bpf-devices",
                "bpf-foreign", "bpf-socket-bind", "bpf-restrict-network-interfaces"}  # fmt: skip


def _namespaces(name: str, texts: Sequence[str]) -> list[Property]:
    flag, lists = _flag_or_lists(texts)
    if not lists:
        return [(name, "t", 0 if flag else read.ALL_NAMESPACES)]
    return mask(read.namespaces, read.ALL_NAMESPACES, -1, "").make(name, lists)


def _flag_or_lists(texts: Sequence[str]) -> tuple[bool, list[str]]:
    """Return the last yes or no and the assignments after it."""
    flag = False
    lists: list[str] = []
    for text in texts:
        try:
            flag, lists = read.boolean(text), []
        except BadValue:
            lists.append(text)
    return flag, lists


def _both_timeouts(name: str, texts: Sequence[str]) -> list[Property]:
    value = read.usec(texts[-1])
    return [("TimeoutStartUSec", "t", value), ("TimeoutStopUSec", "t", value)]


def _commands(name: str, texts: Sequence[str]) -> list[Property]:
    """Return the plain property where it can say all of it: systemd 252 cannot read its own file with the other one."""
    commands = [read.command(text) for text in texts]
    if all({*flags} <= {"ignore-failure"} for _, _, flags in commands):
        return [(name, "a(sasb)", [[path, argv, bool(flags)] for path, argv, flags in commands])]
    return [(f"{name}Ex", "a(sasas)", [[path, argv, flags] for path, argv, flags in commands])]


def _exit_statuses(name: str, texts: Sequence[str]) -> list[Property]:
    lists = [read.exit_statuses(text) for text in texts]
    return [(name, "(aiai)", [[x for first, _ in lists for x in first], [x for _, second in lists for x in second]])]


def stream(*words: str, files: Mapping[str, str]) -> Kind:
    """Where a standard stream comes from or goes to; files and descriptors have properties of their own."""

    def make(name: str, texts: Sequence[str]) -> list[Property]:
        how, colon, where = texts[-1].partition(":")
        if texts[-1] in words:
            return [(name, "s", texts[-1])]
        if how == "fd" and colon:
            return [(f"{name}FileDescriptorName", "s", literal(where))]
        if how in files:
            return [(f"{name}{files[how]}", "s", read.path(where))]
        raise BadValue

    return Kind(f"one of {', '.join(words)}, fd:name, {', '.join(f'{how}:path' for how in files)}", make)


def condition(name: str) -> Kind:
    prefix = "Condition" if name.startswith("Condition") else "Assert"
    return Kind(
        "a condition",
        lambda _, texts: [(f"{prefix}s", "a(sbbs)", [read.condition(name, text) for text in texts])],
    )


_MAX_U32, _MAX_U64 = 2**32 - 1, 2**64 - 2

TEXT = one("s", literal, "a text")
FLAG = one("b", read.boolean, "yes or no")
TIME = one("t", read.usec, 'a time such as "5min 20s", 90 (seconds) or infinity')
COUNT = number("u", 0, _MAX_U32)
MODE = one("u", read.octal, "an octal file mode such as 0077")
SIGNAL = one("i", read.signal_number, "a signal such as SIGTERM or 15")
STATUSES = Kind("a list of exit statuses and signals such as 7 TEMPFAIL SIGUSR1", _exit_statuses)
COMMANDS = Kind("a command line with an absolute path or plain program name", _commands)
UNITS = many("as", read.unit_names, "a list of unit names such as network.target")
WORDS = many("as", literals, "a list of words")
VARIABLES = many("as", read.variable_names, "a list of variable names")
PATH = one("s", read.path, "an absolute path")
PATHS = many("as", read.prefixed_paths, "a list of absolute paths, with - before those that may be missing")
DIRECTORIES = many("as", read.directories, "a list of relative directory names")
BINDS = many("a(ssbt)", read.bind_mounts, "a list of source:destination:rbind with absolute paths")
DEVICE_SIZES = many("a(st)", read.device_amount, "a device and bytes such as /dev/sda 5M")
DEVICE_WEIGHTS = many("a(st)", partial(read.device_amount, base=1), "a device and a weight such as /dev/sda 200")
MEMORY = amount(read.size, "a size such as 24G")
WEIGHT = number("t", 1, 10_000)
CPU_WEIGHT = one("t", _weight, "a number from 1 to 10000, or idle")
CPUS = Kind("a list of numbers and ranges such as 0-3 8", _cpus)
NETWORKS = many("a(iayu)", read.networks, "a list of addresses and prefixes, or any, localhost, link-local, multicast")
PORTS = many("a(iiqq)", read.socket_bind, "[ipv4:|ipv6:][tcp:|udp:] and a port, a range first-last, or any")
CAPABILITIES = mask(
    read.capabilities,
    read.ALL_CAPABILITIES,
    read.ALL_CAPABILITIES,
    "a list of capabilities such as CAP_NET_ADMIN, ~ for all but",
)
AMBIENT = mask(read.capabilities, read.ALL_CAPABILITIES, 0, CAPABILITIES.takes)
CALLS = each("(bas)", read.system_calls, "a list of system calls and @groups, ~ for a deny list")
INPUT = stream("null", "tty", "tty-force", "tty-fail", "data", "socket", files={"file": "File"})
OUTPUT = stream(
    *("inherit", "null", "tty", "journal", "kmsg", "journal+console", "kmsg+console", "socket"),
    files={"file": "File", "append": "FileToAppend", "truncate": "FileToTruncate"},
)
LOG_LEVEL = numbered(
    {"emerg": 0, "alert": 1, "crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}, high=7
)
BYTES_LIMIT = limit(read.size, "a size such as 8M")
COUNT_LIMIT = limit(partial(read.number, low=0, high=_MAX_U64), "a number")
WORKING_DIRECTORY = one("s", read.working_directory, "an absolute path or ~, with - before if it may be missing")
ENVIRONMENT = many("as", read.environment, 'a list of NAME=value, with "..." around those with blanks')
ENVIRONMENT_FILES = many("a(sb)", read.environment_file, "an absolute path, with - before if it may be missing")
UNSET_ENVIRONMENT = many("as", read.variables_or_assignments, "a list of NAME or NAME=value")
CREDENTIALS = many("a(ss)", read.loaded_credential, "id:path")
CREDENTIAL_DATA = many("a(say)", read.credential, "id:data")
FILES_TO_OPEN = many("a(sst)", read.open_file, "path:name:options")
TEMPORARY_FILESYSTEMS = many("a(ss)", read.temporary_filesystems, "a list of path:options")
PERSONALITY = choice("x86", "x86-64", "ppc", "ppc-le", "ppc64", "ppc64-le", "s390", "s390x", "arm64", "arm")
TIME_LIMIT = limit(lambda text: -(-read.usec(text) // 1_000_000), "a time such as 5min")
REALTIME_LIMIT = limit(partial(read.usec, unit="us"), "a time such as 200ms")
NAMESPACES = Kind("yes, no, or a list of namespace types, ~ for all but", _namespaces)
FAMILIES = each(
    "(bas)", partial(read.allow_list, pattern=read.ADDRESS_FAMILY), "a list such as AF_INET, ~ for a deny list"
)
INTERFACES = each("(bas)", partial(read.allow_list, pattern=read.INTERFACE), "a list of interfaces, ~ for a deny list")
ARCHITECTURES = many("as", partial(read.chosen, among=read.ARCHITECTURES), "a list of architectures such as native")
ERROR = one("i", read.error_number, "an error such as EPERM, or kill")
JOURNAL_FIELDS = many("aay", read.journal_fields, "a list of FIELD=value")
LOG_FILTERS = many("a(bs)", read.log_filter, "a regular expression, ~ before one that drops lines")
SLICE = one("s", read.slice_name, "the name of a slice such as llm.slice")
CPU_QUOTA = one("t", _cpu_quota, "a percentage of one CPU such as 150%, or infinity")
TASKS = amount(partial(read.number, low=1, high=_MAX_U64), "a number")
DEVICES = many("a(ss)", read.device_rule, "a device and its rights such as /dev/nvidia0 rw or char-nvidia* rw")
DELEGATE = Kind("yes, no, or a list of controllers", _delegate)
NUMA_POLICY = numbered({"default": 0, "preferred": 1, "bind": 2, "interleave": 3, "local": 4}, high=4)
TIMEOUTS = Kind(TIME.takes, _both_timeouts)
AFFINITY = Kind(f"{CPUS.takes}, or numa", _cpus)
