"""What can be in every model's way: systemd, cgroups, GPUs, the journal, the package, a full disk."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator

from llamaswapd.doctor.access import READ, WRITE, Identity, obstacle, way
from llamaswapd.doctor.case import Case, Situation
from llamaswapd.doctor.finding import Finding, ok, problem, unseen, warning
from llamaswapd.doctor.machine import Machine
from llamaswapd.systemd.sandbox import MODEL_GROUP

OLDEST_SYSTEMD = 252


def manager(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Is there a systemd that can run models, and will it stay?"""
    is_booted = machine.exists("/run/systemd/system")
    if situation.scope in ("launcher", "system") and not is_booted:
        remedy = "run llamaswapd with -manager private, or boot the machine with systemd"
        yield problem("systemd", "is not PID 1 of this machine", remedy)
        return
    answer = machine.ask(["systemctl", "--version"])
    version = re.match(r"systemd (\d+)", answer or "")
    if not version:
        yield unseen("systemd", "does not say its version (systemctl --version)")
    elif int(version[1]) < OLDEST_SYSTEMD:
        remedy = "use a newer release of the system"
        yield problem("systemd", f"is version {version[1]}, and {OLDEST_SYSTEMD} is needed", remedy)
    else:
        yield ok("systemd", f"is version {version[1]}")
    if situation.scope == "user" and is_booted:
        yield from _linger(machine, situation.runs_as)


def _linger(machine: Machine, user: str) -> Iterator[Finding]:
    if user == "root" or machine.exists(f"/var/lib/systemd/linger/{user}"):
        return
    remedy = f"loginctl enable-linger {user}"
    yield warning(f"user manager of {user}", "ends with the last login session, and the models with it", remedy)


# What counts a resource, by the settings that need it; systemd.resource-control(5)
_CONTROLLERS = {
    "cpu": ("CPUWeight", "StartupCPUWeight", "CPUQuota"),
    "cpuset": ("AllowedCPUs", "StartupAllowedCPUs", "AllowedMemoryNodes", "StartupAllowedMemoryNodes"),
    "io": (
        "IOWeight",
        "IODeviceWeight",
        "IOReadBandwidthMax",
        "IOWriteBandwidthMax",
        "IOReadIOPSMax",
        "IOWriteIOPSMax",
    ),
    "memory": ("MemoryMin", "MemoryLow", "MemoryHigh", "MemoryMax", "MemorySwapMax", "MemoryZSwapMax"),
    "pids": ("TasksMax",),
}
_ALWAYS_WANTED = ("cpu", "memory", "pids")


def controllers(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Does the manager of the models have the cgroup controllers that limits need?"""
    if situation.scope == "private":
        return
    folder = "/sys/fs/cgroup"
    if not machine.exists(f"{folder}/cgroup.controllers"):
        remedy = "boot with systemd.unified_cgroup_hierarchy=1"
        yield warning("cgroups", "are of version 1, or not mounted on /sys/fs/cgroup: limits may do nothing", remedy)
        return
    where = f"the kernel's ({folder}/cgroup.controllers)"
    help_ = "boot with cgroup_enable=memory; in a container, have it delegated"
    if situation.scope == "user":
        uid = machine.uid
        folder += f"/user.slice/user-{uid}.slice/user@{uid}.service"
        where, help_ = f"the user manager's (user@{uid}.service)", ""
        if not machine.exists(folder):
            yield unseen(
                "cgroup controllers", f"{folder} does not exist", f"loginctl enable-linger {situation.runs_as}"
            )
            return
    present = machine.text(f"{folder}/cgroup.controllers").split()
    missing = [name for name in _CONTROLLERS if name not in present]
    remedy = help_ or f"systemctl edit user@.service, with [Service] and Delegate={' '.join(_CONTROLLERS)}"
    for name in missing:
        if limited := [case.id for case in situation.cases if _needs(case, _CONTROLLERS[name])]:
            value = f"is none of {where}, so limits of {', '.join(limited)} do nothing"
            yield problem(f"cgroup controller {name}", value, remedy)
    if wanted := [name for name in missing if name in _ALWAYS_WANTED]:
        yield warning("cgroup controllers", f"{', '.join(wanted)} missing in {where}: limits do nothing", remedy)
    if not missing:
        yield ok("cgroup controllers", " ".join(present))


def _needs(case: Case, settings: Iterable[str]) -> bool:
    return any(name in case.spec.settings for name in settings)


# pci_ids.h, and the classes of what computes: display (03), processing accelerators (12).
_NVIDIA, _AMD, _INTEL = "0x10de", "0x1002", "0x8086"
_CLASSES = ("0x03", "0x12")


def gpus(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Do the GPUs have their device nodes, and may models use them?"""
    vendors = _vendors(machine)
    nodes = [node for pattern in ("/dev/nvidia*", "/dev/kfd", "/dev/dri/renderD*") for node in machine.glob(pattern)]
    if _NVIDIA in vendors or machine.exists("/proc/driver/nvidia/version"):
        yield from _nvidia(machine, nodes)
    if _AMD in vendors:
        yield from _amd(nodes)
    if _INTEL in vendors and not any("/dri/" in node for node in nodes):
        yield warning("Intel GPU", "/dev/dri/renderD* is missing", "modprobe i915 || modprobe xe")
    if not nodes and not vendors & {_NVIDIA, _AMD, _INTEL}:
        yield ok("GPUs", "there are none")
    for case in situation.cases:
        yield from _gpus_of(machine, case, nodes)


def _vendors(machine: Machine) -> set[str]:
    devices = [f"/sys/bus/pci/devices/{name}" for name in machine.names("/sys/bus/pci/devices")]
    computing = [device for device in devices if machine.text(f"{device}/class").startswith(_CLASSES)]
    return {machine.text(f"{device}/vendor").strip() for device in computing}


def _nvidia(machine: Machine, nodes: list[str]) -> Iterator[Finding]:
    if not machine.exists("/proc/driver/nvidia/version"):
        yield problem("NVIDIA GPU", "its driver is not loaded (/proc/driver/nvidia is missing)", "modprobe nvidia")
        return
    missing = [node for node in ("/dev/nvidiactl", "/dev/nvidia-uvm") if node not in nodes]
    if not any(re.fullmatch(r"/dev/nvidia\d+", node) for node in nodes):
        missing.append("/dev/nvidia0")
    for node in sorted(missing):
        # Models may not make it themselves: NoNewPrivileges= stops the setuid nvidia-modprobe.
        yield problem(
            "NVIDIA GPU", f"{node} is missing", "nvidia-modprobe -u -c 0; systemctl enable nvidia-persistenced"
        )
    if not missing:
        yield ok("NVIDIA GPU", f"has {' '.join(node for node in nodes if 'nvidia' in node)}")


def _amd(nodes: list[str]) -> Iterator[Finding]:
    renders = [node for node in nodes if "/dri/" in node]
    if not renders:
        yield problem("AMD GPU", "/dev/dri/renderD* is missing", "modprobe amdgpu")
    if "/dev/kfd" not in nodes:
        level = warning if renders else problem
        yield level("AMD GPU", "/dev/kfd is missing, which ROCm needs (Vulkan does not)", "modprobe amdgpu")
    if renders and "/dev/kfd" in nodes:
        yield ok("AMD GPU", f"has /dev/kfd {' '.join(renders)}")


def _gpus_of(machine: Machine, case: Case, nodes: list[str]) -> Iterator[Finding]:
    """Yield which devices a model cannot use. One that has no use for a GPU is not known to have none."""
    if case.who is None or case.client:
        return
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if node.startswith("/dev/nvidia-cap"):
            continue
        found = obstacle(machine, node, case.who, READ | WRITE, case.hidden)
        if found and "PrivateDevices" in found.why:
            yield warning(f"{case.id}: PrivateDevices=yes", "hides all GPUs", "set PrivateDevices: no")
            return
        if found:
            groups.setdefault(machine.group_name(machine.lstat(node).st_gid), []).append(node)
    for group, refused in groups.items():
        remedy = f"set SupplementaryGroups: {group} in the model's systemd block"
        if case.who.uid and case.who.name:
            remedy = f"usermod -aG {group} {case.who.name}, and log in again"
        yield warning(f"{case.id}: {' '.join(refused)}", f"cannot be used by {case.who}", remedy)


def journal(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Can the daemon read what models write?"""
    if situation.scope == "private":
        return
    folders = [f"{place}/{name}" for place in ("/run/log/journal", "/var/log/journal") for name in machine.names(place)]
    found = [f"{folder}/system.journal" for folder in folders if machine.exists(f"{folder}/system.journal")]
    if not found:
        yield problem(
            "journal", "there is none in /run/log/journal or /var/log/journal", "systemctl start systemd-journald"
        )
        return
    group = machine.group("systemd-journal")
    if situation.is_packaged and group is None:
        yield problem("journal", "the group systemd-journal does not exist", "systemd-sysusers")
        return
    reader = _reader(machine, situation, group)
    own = f"user-{machine.uid}.journal"
    if situation.scope == "user" and any(machine.exists(f"{folder}/{own}") for folder in folders):
        yield ok("journal", f"{own} can be read")
    elif in_the_way := obstacle(machine, found[-1], reader, READ):
        remedy = f"usermod -aG systemd-journal {reader.name}, and log in again"
        yield problem("journal", f"{in_the_way.step} {in_the_way.why}", remedy)
    else:
        yield ok("journal", f"can be read by {reader}")


def _reader(machine: Machine, situation: Situation, group: int | None) -> Identity:
    if situation.is_packaged and group is not None:
        return Identity("llamaswapd", -1, frozenset({group}))  # SupplementaryGroups= of llamaswapd.service
    user = machine.user(str(machine.uid))
    return Identity(user.name if user else "", machine.uid, user.gids if user else frozenset(), machine.uid == 0)


# What the package brings, by what is missing without it.
_PARTS = {
    "launcher": ("/usr/lib/systemd/system/llamaswapd-launcher.service",
                 "/etc/systemd/system/llamaswapd-launcher.service"),
    "policy of the bus": ("/usr/share/dbus-1/system.d/org.llamaswapd.Launcher1.conf",
                          "/etc/dbus-1/system.d/org.llamaswapd.Launcher1.conf"),
    "bus activation": ("/usr/share/dbus-1/system-services/org.llamaswapd.Launcher1.service",),
}  # fmt: skip
_BUS = "org.freedesktop.DBus"


def launcher(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Is all there that starts models for the packaged daemon?"""
    if not situation.is_packaged:
        return
    missing = [part for part, paths in _PARTS.items() if not any(map(machine.exists, paths))]
    for part in missing:
        installer = "dnf reinstall" if machine.exists("/usr/bin/dnf") else "apt install --reinstall"
        yield problem(part, f"{_PARTS[part][0]} is missing", f"{installer} llamaswapd")
    if machine.user("llamaswapd") is None or machine.group(MODEL_GROUP) is None:
        yield problem("accounts", f"user llamaswapd or group {MODEL_GROUP} is missing", "systemd-sysusers")
    if missing:
        return
    answer = machine.ask(["busctl", "--system", "--no-pager", "call", _BUS, "/", _BUS, "ListActivatableNames"])
    if answer is None:
        yield unseen("launcher", "the system's bus does not answer", "systemctl status dbus")
    elif "org.llamaswapd.Launcher1" not in answer:
        yield problem("launcher", "the bus does not know org.llamaswapd.Launcher1", "systemctl reload dbus")
    else:
        yield from _launcher_unit(machine)


def _launcher_unit(machine: Machine) -> Iterator[Finding]:
    loaded, state = (
        (machine.ask(["systemctl", "show", "-P", name, "llamaswapd-launcher.service"]) or "").strip()
        for name in ("LoadState", "ActiveState")
    )
    if loaded == "masked":
        yield problem("launcher", "is masked, so the bus cannot start it", "systemctl unmask llamaswapd-launcher")
    elif state == "failed":
        yield problem("launcher", "has failed", "journalctl -u llamaswapd-launcher -n 20")
    else:
        yield ok("launcher", f"is {state or 'known to the bus'}; the bus starts it when it is needed")


_HOMES = {"/home", "/root", "/run/user"}  # what ProtectHome= of the launcher hides, systemd.exec(5)
_NO_LINK = "put the file itself into /etc/llamaswapd, in place of a link"


def owners(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Can somebody but root write what root does? The launcher would refuse it."""
    if not situation.is_packaged:
        return
    ways = {file: {step: found for step, found in way(machine, file) if found} for file in situation.files}
    hidden = [file for file, steps in ways.items() if _HOMES & steps.keys()]
    steps = {step: found for file, steps in ways.items() if file not in hidden for step, found in steps.items()}
    bad = [finding for step, found in steps.items() for finding in _owner(machine, step, found)]
    bad += [problem(file, "leads into a home, where the launcher may not look", _NO_LINK) for file in hidden]
    yield from bad
    if any(map(machine.exists, situation.files)) and not bad:
        yield ok("configuration", "can be written by root alone")
    yield from _secrets(machine)


def _owner(machine: Machine, path: str, found: os.stat_result) -> Iterator[Finding]:
    if found.st_uid != 0:
        user = machine.user(str(found.st_uid))
        value = f"belongs to {user.name if user else found.st_uid}, and the launcher takes root's only"
        yield problem(path, value, f"chown root {path}")
    if stat.S_ISLNK(found.st_mode):  # whose mode says nothing
        return
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        yield problem(path, f"can be written by others than root (mode {mode:04o})", f"chmod go-w {path}")


def roots(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Would a model be root without the configuration's saying so? The launcher would refuse all of it."""
    if not situation.is_packaged:
        return
    for case in situation.cases:
        if case.model.container is None and case.who and case.who.uid == 0 and not case.last("User"):
            remedy = "give it a User: of its own; write User: root if that is what you want"
            yield problem(f"{case.id}: user", "is root, and the launcher refuses a file that does not say so", remedy)


CREDENTIALS = "/etc/llamaswapd/credentials"


def _secrets(machine: Machine) -> Iterator[Finding]:
    if not machine.exists(CREDENTIALS):
        yield problem(CREDENTIALS, "is missing, and the launcher does not start", f"install -d -m 0700 {CREDENTIALS}")
        return
    if machine.path(CREDENTIALS).stat().st_mode & 0o077:
        yield problem(CREDENTIALS, "can be looked into by others than root", f"chmod 0700 {CREDENTIALS}")
    for name in machine.names(CREDENTIALS):
        path = f"{CREDENTIALS}/{name}"
        if machine.path(path).stat().st_mode & 0o077:
            yield warning(path, "can be read by others than root", f"chmod 0600 {path}")


_FULL, _NEARLY_FULL = 100 << 20, 1 << 30  # bytes


def disk(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Is there room for the daemon's state and for what models download?"""
    places = {"/var/lib": "state", "/var/cache": "models' caches"} if situation.is_packaged else {}
    for place, what in places.items():
        folder = f"{place}/llamaswapd" if machine.path(f"{place}/llamaswapd").is_dir() else place
        space = machine.space(folder)
        if space is None:
            continue
        free, _ = space
        if free >= _NEARLY_FULL:
            yield ok(folder, f"has {free / (1 << 30):.1f} GiB free for {what}")
        else:
            level = problem if free < _FULL else warning
            yield level(folder, f"has {free >> 20} MiB left for {what}", f"du -xsh {folder}/*")


def listening(machine: Machine, situation: Situation) -> Iterator[Finding]:
    """Is the packaged daemon's port in somebody else's hands?"""
    if not situation.is_packaged:
        return
    text = machine.ask(["systemctl", "show", "-P", "Listen", "llamaswapd.socket"]) or ""
    for number in dict.fromkeys(map(int, re.findall(r":(\d+) \(Stream\)", text))):
        holder = machine.holder(number)
        # PID 1 holds the socket unit's.
        if holder is None or "llamaswapd" in holder or re.search(r"process 1 |unit init\.scope", holder):
            yield ok(f"port {number}", "is free" if holder is None else "is the daemon's")
        elif "cannot be seen" in holder:
            yield unseen(f"port {number}", f"is in use by {holder}", "run llamaswapd doctor as root")
        else:
            unit = re.search(r" of unit (\S+)$", holder)
            remedy = f"systemctl stop {unit[1]}" if unit else "stop that"
            yield problem(f"port {number}", f"is taken by {holder}", f"{remedy}; or systemctl edit llamaswapd.socket")


CHECKS = (manager, launcher, owners, roots, listening, controllers, journal, gpus, disk)
