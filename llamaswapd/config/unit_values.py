"""How values are written in unit files: text in, plain value out.

One function per notation, each taking the text of one assignment and raising BadValue when it is written otherwise. The
notations are those of systemd.syntax(7), systemd.time(7), systemd.exec(5), systemd.service(5) and
systemd.resource-control(5). Structures are lists and byte arrays bytes, as D-Bus libraries want them. Which setting
takes which notation is the question of `settings`.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import signal
import socket
from collections.abc import Collection
from decimal import Decimal

from llamaswapd.config.unit_words import PIECE, BadValue, literal, literals, unescaped, words
from llamaswapd.errors import SYSTEMD_EXIT_STATUSES

INFINITY = 2**64 - 1  # how systemd says "no limit" in 64 bits: USEC_INFINITY, CGROUP_LIMIT_MAX, RLIM_INFINITY


def unit_names(text: str) -> list[str]:
    names = words(text, unescape=False)
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,249}\.[a-z]+", name)]:
        raise BadValue(f"{wrong[0]} is no unit name")
    return names


def path(text: str) -> str:
    if not (value := literal(text)).startswith("/"):
        raise BadValue
    return value


def working_directory(text: str) -> str:
    dash, where = flag_prefix(text)
    return text if where == "~" else dash + path(where)


def flag_prefix(text: str) -> tuple[str, str]:
    """Part a leading `-`, "it may be missing", from the rest."""
    return ("-", text[1:]) if text.startswith("-") else ("", text)


def prefixed_paths(text: str) -> list[str]:
    """Read absolute paths, each after `-` (may be missing) or `+` (below RootDirectory=) or both."""
    found = literals(text)
    if not all(re.match(r"-?\+?/", item) for item in found):
        raise BadValue
    return found


def directories(text: str) -> list[str]:
    found = literals(text)
    if not all(re.fullmatch(r"(?!/)[^:]+", item) and ".." not in item.split("/") for item in found):
        raise BadValue
    return found


def environment(text: str) -> list[str]:
    found = literals(text)
    if not all(is_assignment(item) for item in found):
        raise BadValue
    return found


def is_assignment(text: str) -> bool:
    """Say whether systemd takes this into an environment: a plain name, no control characters but tab and newline."""
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=[^\x00-\x08\x0b-\x1f\x7f]*", text)) and _encodable(text)


def _encodable(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def variable_names(text: str) -> list[str]:
    found = words(text)
    if not all(is_assignment(f"{name}=") for name in found):
        raise BadValue
    return found


def variables_or_assignments(text: str) -> list[str]:
    found = literals(text)
    if not all(is_assignment(item if "=" in item else f"{item}=") for item in found):
        raise BadValue
    return found


def journal_fields(text: str) -> list[bytes]:
    found = literals(text)
    if not all(re.fullmatch(r"[A-Z0-9][A-Z0-9_]{0,63}=.*", field, re.DOTALL) for field in found):
        raise BadValue
    return [field.encode() for field in found]


# Numbers


def boolean(text: str) -> bool:
    if text.lower() in ("1", "yes", "y", "true", "t", "on"):
        return True
    if text.lower() in ("0", "no", "n", "false", "f", "off"):
        return False
    raise BadValue


_SECOND = 1_000_000
_TIME_UNITS = {
    "usec us µs μs": 1,
    "msec ms": 1_000,
    "seconds second sec s": _SECOND,
    "minutes minute min m": 60 * _SECOND,
    "hours hour hr h": 3_600 * _SECOND,
    "days day d": 86_400 * _SECOND,
    "weeks week w": 604_800 * _SECOND,
    "months month M": 2_629_800 * _SECOND,  # 30.44 days
    "years year y": 31_557_600 * _SECOND,  # 365.25 days
}
_USEC = {name: factor for names, factor in _TIME_UNITS.items() for name in names.split()}
_SPAN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zA-Zµμ]*)")


def usec(text: str, unit: str = "s") -> int:
    """Read a time span, `5min 20s`, into microseconds; a bare number counts `unit`s."""
    if text == "infinity":
        return INFINITY
    total, at = Decimal(0), 0
    while at < len(text) and (match := _SPAN.match(text, at)):
        if (name := match[2] or unit) not in _USEC:
            raise BadValue(f'"{name}" is no unit of time')
        total, at = total + Decimal(match[1]) * _USEC[name], match.end()
    if not text or at < len(text) or total >= INFINITY:
        raise BadValue
    return int(total)


def size(text: str, base: int = 1024) -> int:
    """Read bytes: `24G`, `1.5M`; suffixes B K M G T P E count in steps of `base`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([BKMGTPE]?)", text)
    if not match:
        raise BadValue
    value = int(Decimal(match[1]) * base ** "BKMGTPE".index(match[2] or "B"))
    if value >= INFINITY:
        raise BadValue
    return value


def permyriad(text: str) -> int:
    """Read a percentage with up to two decimals into ten-thousandths."""
    match = re.fullmatch(r"([0-9]{1,7})(?:\.([0-9]{1,2}))?%", text)
    if not match:
        raise BadValue
    return int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0"))


def number(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not low <= int(text) <= high:
        raise BadValue
    return int(text)


def octal(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{1,4}", text):
        raise BadValue
    return int(text, 8)


def number_or_name(text: str, names: dict[str, int], high: int) -> int:
    return names[text] if text in names else number(text, 0, high)


_SIGNALS = {item.name: int(item) for item in signal.Signals}


def signal_number(text: str) -> int:
    name = text if text.startswith("SIG") else f"SIG{text}"
    if match := re.fullmatch(r"SIGRT(MIN\+|MAX-)([0-9]{1,2})", name):
        value = signal.SIGRTMIN + int(match[2]) if match[1] == "MIN+" else signal.SIGRTMAX - int(match[2])
        return number(str(value), signal.SIGRTMIN, signal.SIGRTMAX)
    return _SIGNALS[name] if name in _SIGNALS else number(text, 1, 64)


# systemd.exec(5), "Process Exit Codes": the C library's, LSB's and BSD's; then systemd's own. The page
# gives BPF as 245, `systemd-analyze exit-status` and the program 244.
_EXIT_STATUSES = {
    "SUCCESS": 0, "FAILURE": 1, "INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6, "NOTRUNNING": 7, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75,
    "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78,
} | {name: status for status, name in SYSTEMD_EXIT_STATUSES.items()} | {"EXCEPTION": 255}  # fmt: skip


def exit_statuses(text: str) -> tuple[list[int], list[int]]:
    """Return the exit statuses and the signals that a list names."""
    statuses, signals = [], []
    for word in words(text):
        if word in _EXIT_STATUSES or word.isdigit():
            statuses.append(number_or_name(word, _EXIT_STATUSES, 255))
        else:
            signals.append(signal_number(word))
    return statuses, signals


def error_number(text: str) -> int:
    if text == "kill":
        return 2**31 - 2  # SECCOMP_ERROR_NUMBER_KILL
    return number_or_name(text, {name: value for value, name in errno.errorcode.items()}, 4095)


def bit_mask(text: str) -> bytes:
    """Read CPU or node numbers and ranges, `0-3 8,9`, into a mask of bits, little end first."""
    mask = 0
    for item in re.split(r"[\s,]+", text.strip(" \t,")):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", item)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise BadValue
        first, last = int(match[1]), int(match[2] or match[1])
        mask |= (1 << last + 1) - (1 << first)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


# linux/capability.h, in the order of their bits.
_CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
# linux/sched.h, the CLONE_NEW... flags.
_NAMESPACES = {
    "mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
ALL_CAPABILITIES = (1 << 63) - 1  # systemd's CAP_MASK_ALL, whatever the kernel knows
ALL_NAMESPACES = sum(_NAMESPACES.values())


def inverted(text: str) -> tuple[bool, str]:
    """Part a leading `~`, "all but", from the rest."""
    return (True, text[1:]) if text.startswith("~") else (False, text)


def capabilities(text: str) -> int:
    mask = 0
    for name in words(text):
        short = name.lower().removeprefix("cap_")
        if short not in _CAPABILITIES:
            raise BadValue(f"{name} is no capability")
        mask |= 1 << _CAPABILITIES.index(short)
    return mask


def namespaces(text: str) -> int:
    mask = 0
    for name in words(text):
        if name not in _NAMESPACES:
            raise BadValue(f"{name} is none of {', '.join(sorted(_NAMESPACES))}")
        mask |= _NAMESPACES[name]
    return mask


# Filters, networks and devices


def allow_list(text: str, pattern: str) -> list[object]:
    """Read `a b` into [True, [a, b]] and `~a b` into [False, [a, b]]: an allow list or a deny list."""
    deny, rest = inverted(text)
    found = words(rest)
    if wrong := [item for item in found if not re.fullmatch(pattern, item)]:
        raise BadValue(f"{wrong[0]} is none")
    return [not deny, found]


def system_calls(text: str) -> list[object]:
    """Read a list of system calls and groups; in a deny list each may have the error that it fails with."""
    return allow_list(text, SYSTEM_CALL + (r"(:(kill|[A-Z0-9]+))?" if text.startswith("~") else ""))


_FAMILIES = {name for name in dir(socket) if re.fullmatch("AF_[A-Z0-9]+", name)} - {"AF_UNSPEC"}
ADDRESS_FAMILY = "|".join(sorted(_FAMILIES | {"AF_LOCAL", "AF_XDP", "AF_SMC", "AF_KCM", "AF_NFC", "AF_IB", "AF_MPLS"}))
SYSTEM_CALL = r"@?[a-z][a-z0-9_-]*"
INTERFACE = r"[^\s/:%]{1,127}"
ARCHITECTURES = (
    "native", "x86", "x86-64", "x32", "alpha", "arc-le", "arm", "arm64", "loongarch64", "m68k", "mips", "mips64",
    "mips64-n32", "mips-le", "mips64-le", "mips64-le-n32", "parisc", "parisc64", "ppc", "ppc64", "ppc64-le",
    "riscv32", "riscv64", "s390", "s390x", "tilegx",
)  # fmt: skip

_NETWORKS = {
    "any": ["0.0.0.0/0", "::/0"],
    "localhost": ["127.0.0.0/8", "::1/128"],
    "link-local": ["169.254.0.0/16", "fe80::/64"],
    "multicast": ["224.0.0.0/4", "ff00::/8"],
}


def networks(text: str) -> list[list[object]]:
    """Read addresses, prefixes and systemd's names for some into [family, address, prefix length]."""
    return [_network(item) for word in words(text) for item in _NETWORKS.get(word, [word])]


def _network(text: str) -> list[object]:
    try:
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadValue(f"{text} is neither") from None
    family = socket.AF_INET if net.version == 4 else socket.AF_INET6
    return [int(family), net.network_address.packed, net.prefixlen]


_BIND_FAMILIES = {"ipv4": int(socket.AF_INET), "ipv6": int(socket.AF_INET6)}
_BIND_PROTOCOLS = {"tcp": int(socket.IPPROTO_TCP), "udp": int(socket.IPPROTO_UDP)}


def socket_bind(text: str) -> list[list[int]]:
    """Read `[ipv4|ipv6:][tcp|udp:][port|first-last|any]` into [family, protocol, ports, first port]; 0 is any."""
    parts = text.split(":")
    family = _BIND_FAMILIES.get(parts[0], 0)
    parts = parts[1:] if family else parts
    protocol = _BIND_PROTOCOLS.get("".join(parts[:1]), 0)
    parts = parts[1:] if protocol else parts
    if not parts or parts == ["any"]:
        return [[family, protocol, 0, 0]]
    first, dash, last = ":".join(parts).partition("-")
    low = number(first, 1, 65535)
    return [[family, protocol, number(last, low, 65535) - low + 1 if dash else 1, low]]


def device_rule(text: str) -> list[list[str]]:
    match = re.fullmatch(r"(/dev/\S*|/run/systemd/inaccessible/\S+|(?:char|block)-\S+)(?:\s+([rwm]{1,3}))?", text)
    if not match:
        raise BadValue
    return [[match[1], match[2] or ""]]


def device_amount(text: str, base: int = 1000) -> list[list[object]]:
    """Read `/dev/sda 5M` into [path, amount]."""
    found = words(text)
    if len(found) != 2:
        raise BadValue
    return [[path(found[0]), INFINITY if found[1] == "infinity" else size(found[1], base)]]


# Things with colons in them


MS_REC = 0x4000  # sys/mount.h: bind what is mounted below, too


def bind_mounts(text: str) -> list[list[object]]:
    """Read `[-]source[:destination[:rbind|norbind]]` into [source, destination, may be missing, mount flags]."""
    return [_bind_mount(item) for item in literals(text)]


def _bind_mount(text: str) -> list[object]:
    dash, rest = flag_prefix(text)
    source, _, rest = rest.partition(":")
    destination, _, options = rest.partition(":")
    if options not in ("", "rbind", "norbind"):
        raise BadValue(f"{options} is neither rbind nor norbind")
    destination = destination or source
    if not source.startswith("/") or not destination.startswith("/"):
        raise BadValue
    return [source, destination, bool(dash), 0 if options == "norbind" else MS_REC]


def temporary_filesystems(text: str) -> list[list[str]]:
    found = [item.partition(":") for item in literals(text)]
    if not all(where.startswith("/") for where, _, _ in found):
        raise BadValue
    return [[where, options] for where, _, options in found]


def loaded_credential(text: str) -> list[list[str]]:
    name, colon, source = literal(text).partition(":")
    if not re.fullmatch(r"[^/\s]+", name) or (colon and not source):
        raise BadValue
    return [[name, source or name]]


def credential(text: str) -> list[list[object]]:
    name, colon, data = literal(text).partition(":")
    if not re.fullmatch(r"[^/\s]+", name) or not colon:
        raise BadValue
    pieces = (unescaped(piece) if piece.startswith("\\") else piece.encode() for piece in PIECE.findall(data))
    return [[name, b"".join(pieces)]]


def environment_file(text: str) -> list[list[object]]:
    dash, name = flag_prefix(text)
    return [[path(name), bool(dash)]]


_OPEN_FLAGS = {"read-only": 1, "append": 2, "truncate": 4, "graceful": 8}  # systemd's OpenFileFlag


def open_file(text: str) -> list[list[object]]:
    """Read `path[:name[:options]]` into [path, name, flags]."""
    where, _, rest = literal(text).partition(":")
    name, _, options = rest.partition(":")
    chosen = [option for option in options.split(",") if option]
    if not where.startswith("/") or not set(chosen) <= set(_OPEN_FLAGS):
        raise BadValue
    return [[where, name or where.rpartition("/")[2], sum(_OPEN_FLAGS[option] for option in chosen)]]


def log_filter(text: str) -> list[list[object]]:
    deny, pattern = inverted(text)
    return [[not deny, literal(pattern)]]


def condition(name: str, text: str) -> list[object]:
    """Return [name, triggering, negated, parameter]; `|` makes it one of several of which one must hold."""
    trigger = text.startswith("|")
    rest = text[trigger:].lstrip()
    negate = rest.startswith("!")
    return [name, trigger, negate, literal(rest[negate:].lstrip())]


_COMMAND_FLAGS = {"-": "ignore-failure", ":": "no-env-expand", "+": "privileged", "!": "no-setuid"}
_QUOTED = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL)


def command(text: str) -> tuple[str, list[str], list[str]]:
    """Read `[-:+!@]program arguments...` into program, arguments from the 0th, flags.

    The prefixes are those of systemd.service(5), "Command lines".
    """
    if re.search(r"\s;(\s|$)", _QUOTED.sub("", text)):
        raise BadValue('write a list for several commands, ";" in quotes for the argument')
    rest = text.lstrip("-:+!@ ")
    prefix = text.removesuffix(rest)
    argv = literals(rest)
    if not argv or argv[0].endswith("/") or ("/" in argv[0] and not argv[0].startswith("/")):
        raise BadValue
    flags = [flag for char, flag in _COMMAND_FLAGS.items() if char in prefix.replace("!!", "")]
    if "!!" in prefix:
        flags.append("ambient")
    if "@" not in prefix:
        return argv[0], argv, flags
    if len(argv) < 2:
        raise BadValue("after @ follow the program and the name that it is told")
    return argv[0], argv[1:], flags


def chosen(text: str, among: Collection[str]) -> list[str]:
    found = words(text)
    if not set(found) <= set(among):
        raise BadValue
    return found


def slice_name(text: str) -> str:
    if unit_names(text) != [text] or not text.endswith(".slice"):
        raise BadValue
    return text
