"""What the packaged program keeps models from: the settings of every model's unit that a model can take back.

Pure but for `packaged`. Left off is what CUDA, ROCm and Vulkan need (devices, memory that is written and executed, all
of /proc, the groups of devices), and nearly everything where a client of a container engine is started: the engine
locks the container up itself, and cannot do its work from inside a sandbox.
"""

from __future__ import annotations

import grp
import re
from collections.abc import Collection, Mapping
from typing import Final

from llamaswapd.config.fingerprint import digest
from llamaswapd.config.unit_words import literals, quote
from llamaswapd.systemd.listeners import CONTAINER_CLIENTS

Settings = Mapping[str, tuple[str, ...]]

MODEL_GROUP = "llamaswapd-model"  # whose files a model may read, by sysusers.d
DEVICE_GROUPS = ("video", "render")  # /dev/dri, /dev/kfd; a unit with a group that is missing does not start

# Closed to models even if they run as a user who could read it. The buses are among it, as root, however little it may
# do itself, can have systemd do everything. Other models' credentials systemd hides by itself.
HIDDEN = (
    "/etc/llamaswapd", "/var/lib/llamaswapd", "/var/lib/private/llamaswapd", "/run/llamaswapd",
    "/run/llamaswapd-launcher", "/run/dbus", "/run/systemd/private",
)  # fmt: skip

CACHE_ROOT = "/var/cache"  # CacheDirectory= is below it, systemd.exec(5)

# What a model sets of these is added to ours, as a drop-in's would be; an empty assignment forgets ours.
LISTS = frozenset(
    {"CacheDirectory", "CapabilityBoundingSet", "InaccessiblePaths", "RestrictAddressFamilies", "SupplementaryGroups",
     "SystemCallArchitectures", "SystemCallFilter"}
)  # fmt: skip

# What remains for a client of a container engine.
FOR_CLIENTS = frozenset({"LimitCORE", "LimitMEMLOCK", "OOMScoreAdjust"})

_OF_MODEL: Final = "%i"  # in CacheDirectory=: the place of the model's id
_LOCKED: Settings = {
    "CapabilityBoundingSet": ("",),
    # Every device that has a driver for GPUs is a character device; disks are block devices.
    "DeviceAllow": ("char-* rw",),
    "DevicePolicy": ("closed",),
    "KeyringMode": ("private",),
    # systemd.exec(5): a limit of systemd's own that is lower is taken for it, and the start does not fail.
    "LimitMEMLOCK": ("infinity",),
    "LimitCORE": ("0",),
    "LockPersonality": ("yes",),
    "NoNewPrivileges": ("yes",),
    # READY=1 of the main process, or of commands around it, is a sign of life; any other could pass itself off as it.
    "NotifyAccess": ("exec",),
    # When memory runs out it is a model that goes, not what else the machine does.
    "OOMScoreAdjust": ("500",),
    "PrivateTmp": ("yes",),
    "ProtectClock": ("yes",),
    "ProtectControlGroups": ("yes",),
    "ProtectHome": ("read-only",),
    "ProtectHostname": ("yes",),
    "ProtectKernelLogs": ("yes",),
    "ProtectKernelModules": ("yes",),
    "ProtectKernelTunables": ("yes",),
    "ProtectProc": ("invisible",),
    "ProtectSystem": ("strict",),
    # AF_NETLINK: how many interfaces there are (NCCL, getifaddrs).
    "RestrictAddressFamilies": ("AF_UNIX AF_INET AF_INET6 AF_NETLINK",),
    # None but those of host names, for which it takes rights that no model has: "none at all" systemd writes into the
    # unit's file as an empty value, and reads that as no restriction at the next daemon-reload (seen with 252 and 257).
    "RestrictNamespaces": ("uts",),
    "RestrictRealtime": ("yes",),
    "RestrictSUIDSGID": ("yes",),
    "SystemCallArchitectures": ("native",),
    # pidfd_getfd: by it processes of one model hand GPU memory to each other. @resources, which is in
    # @system-service, has what binds threads and memory to NUMA nodes.
    "SystemCallFilter": ("@system-service pidfd_getfd", "~@privileged"),
    "SystemCallErrorNumber": ("EPERM",),
    "UMask": ("0077",),
}


def packaged() -> Settings:
    """Return the defaults of this machine, by the groups that it has; for `Host.defaults`."""
    return defaults({group.gr_name for group in grp.getgrall()})


def defaults(groups: Collection[str]) -> Settings:
    """Return the settings of every model's unit, given which groups exist.

    `%i` in them is the place of the model's id; `for_model` puts it there.
    """
    return {
        "DynamicUser": ("yes",),
        "SupplementaryGroups": tuple(name for name in (MODEL_GROUP, *DEVICE_GROUPS) if name in groups),
        # systemd makes it, and gives it to whoever the model runs as: what has been downloaded outlives the model.
        "CacheDirectory": (f"llamaswapd/{_OF_MODEL}",),
        "CacheDirectoryMode": ("0700",),
        "InaccessiblePaths": tuple(f"-{path}" for path in HIDDEN),
        **_LOCKED,
    }


def for_model(settings: Settings, model_id: str, program: str, own: Settings) -> dict[str, tuple[str, ...]]:
    """Return what of these defaults holds for a model; empty if there are none.

    `program` is the name of what `cmd` runs, `own` what the model sets itself: others of ours follow from it.
    """
    if not settings:
        return {}
    if program in CONTAINER_CLIENTS:
        return {name: values for name, values in settings.items() if name in FOR_CLIENTS}
    held = {name: values for name, values in settings.items() if values}
    held["CacheDirectory"] = tuple(quote(name.replace(_OF_MODEL, _folder(model_id))) for name in held["CacheDirectory"])
    if "Type" in own:
        del held["NotifyAccess"]  # one that waits for READY=1 may get it from a child
    if own.get("User", ("",))[-1].strip():
        del held["DynamicUser"]  # it would allocate the user of that name, unless it happens to exist
    if "" not in map(str.strip, own.get("CacheDirectory", ())):
        held |= _home(f"{CACHE_ROOT}/{literals(held['CacheDirectory'][0])[0]}")
    return held


def _home(folder: str) -> dict[str, tuple[str, ...]]:
    """Return what makes a folder the place where programs write: a user made for the model has / for a home."""
    return {
        "WorkingDirectory": (folder,),
        "Environment": tuple(quote(f"{name}={folder}") for name in ("HOME", "XDG_CACHE_HOME")),
    }


_LONGEST = 200  # bytes; a file name has 255


def _folder(model_id: str) -> str:
    """Return a model's folder name: distinct, and without the colon, which has a meaning in CacheDirectory=."""
    name = re.sub(rb"[^A-Za-z0-9_.-]|^\.", lambda m: b"+%02x" % m[0][0], model_id.encode()).decode()
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}+{digest(model_id)}"
