"""What can be in a model's way: its program, its files, its port, its users and groups, its settings."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

from llamaswapd.config.containers import nvidia_gpus
from llamaswapd.doctor.access import EXECUTE, READ, Hidden, Identity, obstacle, resolved
from llamaswapd.doctor.case import Case
from llamaswapd.doctor.finding import Finding, ok, problem, unseen, warning
from llamaswapd.doctor.machine import Machine
from llamaswapd.systemd import container

LOOPBACK = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}

# Options of llama.cpp, whisper.cpp, stable-diffusion.cpp and their like that name a file to be read.
FILE_OPTIONS = {
    "-m", "--model", "-mm", "--mmproj", "-md", "--model-draft", "-mv", "--model-vocoder", "--lora", "--control-vector",
    "--chat-template-file", "--grammar-file", "--api-key-file", "--ssl-key-file", "--ssl-cert-file", "--vae",
    "--clip_l", "--diffusion-model", "--models-dir",
}  # fmt: skip

MANY = 200  # files of a folder that are looked at
MODEL_FILES = (".gguf", ".safetensors", ".bin", ".json", ".onnx", ".pt", ".pth", ".model")

# Where programs are that are not in the PATH of services.
ELSEWHERE = ("/usr/local/bin", "/opt/*/bin", "/opt/*", "/home/*/.local/bin", "/home/*/*/build/bin", "/home/*/bin",
             "/root/.local/bin", "/home/linuxbrew/.linuxbrew/bin", "/snap/bin")  # fmt: skip


def program(machine: Machine, case: Case) -> Iterator[Finding]:
    """Can the command be executed, and what interprets it if it is a script?"""
    if not case.words:
        yield problem(case.id, "has no command", "set cmd")
        return
    name = case.words[0]
    thing = f"{case.id}: program {name}"
    if not name.startswith("/"):
        yield problem(thing, "is not in the PATH of the daemon", _where_it_is(machine, case, name))
        return
    if case.has_own_root:
        yield unseen(thing, "is in a root directory of the unit's own (RootDirectory=, RootImage=)")
        return
    if case.who is None:
        return
    if in_the_way := obstacle(machine, case.as_seen_outside(name), case.who, EXECUTE, _hidden(case, name)):
        remedy = _where_it_is(machine, case, name.rpartition("/")[2]) if in_the_way.is_missing else in_the_way.remedy
        yield problem(thing, _why(name, in_the_way.step, in_the_way.why), remedy)
        return
    if machine.is_noexec(name):
        yield problem(thing, "is on a file system that is mounted noexec", "put it elsewhere, such as /usr/local/bin")
        return
    interpreter = _interpreter(machine, name)
    if interpreter and (in_the_way := obstacle(machine, interpreter, case.who, EXECUTE, _hidden(case, interpreter))):
        why = _why(interpreter, in_the_way.step, in_the_way.why)
        remedy = in_the_way.remedy or f"install what {name} needs, or write another program in cmd"
        yield problem(thing, f"its interpreter {interpreter} cannot be run: {why}", remedy)
        return
    yield ok(thing, f"can be executed by {case.who}")


def _where_it_is(machine: Machine, case: Case, name: str) -> str:
    found = [path for folder in ELSEWHERE for path in machine.glob(f"{folder}/{name}")]
    if found:
        return f"write the path in cmd: {found[0]} {shlex.join(case.words[1:])}".rstrip()
    return f"install {name}, or write the path of the program in cmd"


def _interpreter(machine: Machine, name: str) -> str:
    match = re.match(rb"#!\s*(/[^\s]+)", machine.head(resolved(machine, name), 256))
    return match[1].decode(errors="replace") if match else ""


def _hidden(case: Case, path: str) -> Sequence[Hidden]:
    return () if case.is_bound(path) else case.hidden


def _why(path: str, step: str, why: str) -> str:
    """Say what is wrong; a step on the way is named, the path itself has been."""
    return why if step == path else f"{step} {why}"


def files(machine: Machine, case: Case) -> Iterator[Finding]:
    """Can the model read what its command line names?"""
    if not case.words or case.who is None or case.client or case.has_own_root:
        return
    for path, is_needed in sorted(_paths(machine, case).items()):
        if not any(path == folder or path.startswith(f"{folder}/") for folder in case.made):
            yield from _file(machine, case, case.who, path, is_needed)
        elif is_needed and not machine.exists(path) and not path.startswith("/run/"):
            remedy = "write its absolute path in cmd, or put it there"
            yield problem(f"{case.id}: {path}", "does not exist", remedy)


def _paths(machine: Machine, case: Case) -> dict[str, bool]:
    """Return the paths of files in the command line, absolute, and whether there must be something at each.

    What is relative may be anything else, such as a model's name on a hub, unless it is there or is called like a file.
    """
    folder = case.last("WorkingDirectory").lstrip("-").replace("%%", "%")
    found: dict[str, bool] = {}
    for option, value in _options(case.words):
        is_file = option in FILE_OPTIONS
        path = os.path.normpath(os.path.join(folder, value))
        if not value.startswith("/") and not (
            is_file and (value.endswith(MODEL_FILES) or machine.exists(case.as_seen_outside(path)))
        ):
            continue
        if path.startswith("/") and len(path) > 1:
            found[path] = is_file or found.get(path, False)
    return found


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each argument with the option before it; "" where there is none."""
    is_python = re.match(r"python[0-9.]*$", words[0].rpartition("/")[2])
    arguments = words[3:] if is_python and words[1:2] == ["-m"] else words[1:]  # python -m MODULE
    before = ""
    for word in arguments:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            yield option, value
        elif not word.startswith("-"):
            yield before, word
        before = word if word.startswith("-") else ""


def _file(machine: Machine, case: Case, who: Identity, path: str, is_needed: bool) -> Iterator[Finding]:
    thing, outside = f"{case.id}: {path}", case.as_seen_outside(path)
    hidden = _hidden(case, path)
    in_the_way = obstacle(machine, outside, who, READ, hidden)
    if in_the_way is None and _is_folder(machine, outside):
        in_the_way = obstacle(machine, outside, who, READ | EXECUTE, hidden)
        for name in [] if in_the_way else machine.names(outside)[:MANY]:
            if name.endswith(MODEL_FILES) and not in_the_way:
                in_the_way = obstacle(machine, f"{outside}/{name}", who, READ, hidden)
    if in_the_way is None:
        yield ok(thing, f"can be read by {who}")
    elif not in_the_way.is_missing:
        level = problem if is_needed else warning
        yield level(thing, _why(outside, in_the_way.step, in_the_way.why), in_the_way.remedy)
    elif is_needed:
        yield problem(
            thing, _why(path, in_the_way.step, in_the_way.why), f"ls -l {shlex.quote(_parent(in_the_way.step))}"
        )
    elif in_the_way.step == outside and _parent(outside) != "/":
        # It may be made by the model, or be no path at all (a prefix of URLs).
        yield warning(thing, "does not exist", f"ls -l {shlex.quote(_parent(outside))}")


def _is_folder(machine: Machine, path: str) -> bool:
    return machine.path(resolved(machine, path)).is_dir()


def _parent(path: str) -> str:
    return os.path.dirname(path)


def port(machine: Machine, case: Case) -> Iterator[Finding]:
    """Is the port free, or in the hands of a model of ours?"""
    proxy = urlsplit(case.model.proxy)
    number = proxy.port
    if number is None or proxy.hostname not in LOOPBACK or not case.model.names_port(number):
        return
    holder = machine.holder(number)
    thing = f"{case.id}: port {number}"
    if holder is None:
        yield ok(thing, "is free")
    elif re.search(r" of unit llamaswapd-(\w+-)?model-", holder):
        yield ok(thing, f"is in use by {holder}")
    elif (unit := re.search(r" of unit (\S+\.service)$", holder)) and unit[1] not in ("init.scope",):
        yield problem(
            thing, f"is taken by {holder}", f"systemctl stop {unit[1]}; or give models other ports by startPort"
        )
    elif pid := re.match(r"process (\d+)", holder):
        yield problem(thing, f"is taken by {holder}", f"kill {pid[1]}; or give models other ports by startPort")
    else:
        yield problem(thing, f"is taken by {holder}", "give models other ports by startPort")


def accounts(machine: Machine, case: Case) -> Iterator[Finding]:
    """Do the user and the groups of the unit exist? Without them it does not start (216, 217)."""
    user = case.last("User")
    if user and not case.is_on("DynamicUser") and machine.user(user) is None:
        yield problem(f"{case.id}: user {user}", "does not exist", f"useradd --system {shlex.quote(user)}")
    own = [] if case.is_on("DynamicUser") else filter(None, [case.last("Group")])  # a dynamic one is made
    for name in dict.fromkeys((*case.words_of("SupplementaryGroups"), *own)):
        if machine.group(name) is None:
            remedy = f"groupadd --system {shlex.quote(name)}"
            yield problem(f"{case.id}: group {name}", "does not exist, and the unit does not start without it", remedy)


# Lists of paths without which a unit does not start (226, 243), and how the path is written in them.
_NEEDED = {
    **dict.fromkeys(("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths"), r"\+?(/.*)"),
    **dict.fromkeys(("BindPaths", "BindReadOnlyPaths"), r"(/[^:]*).*"),
    "LoadCredential": r"[^:]+:(/.*)",
    "EnvironmentFile": r"(/.*)",
}


def paths(machine: Machine, case: Case) -> Iterator[Finding]:
    """Is everything there that the unit's own settings name? With - before it, it may be missing."""
    for name, pattern in _NEEDED.items():
        if name not in case.model.systemd:
            continue
        ours = case.words_of(name)[:1] if name == "EnvironmentFile" and case.spec.environment_file else []
        for word in case.words_of(name):
            match = re.fullmatch(pattern, word)
            if match and word not in ours and not machine.exists(match[1]):
                remedy = f"ls -l {shlex.quote(_parent(match[1]))}"
                yield problem(f"{case.id}: {name}={word}", "does not exist, and the unit does not start", remedy)
    yield from _folder(machine, case)
    yield from _devices(machine, case)


def _folder(machine: Machine, case: Case) -> Iterator[Finding]:
    folder = case.last("WorkingDirectory") if "WorkingDirectory" in case.model.systemd else ""
    is_made = any(f"{folder}/".startswith(f"{made}/") for made in case.made)
    if folder.startswith("/") and not is_made and not machine.exists(folder):
        remedy = f"mkdir -p {shlex.quote(folder)}"
        yield problem(f"{case.id}: WorkingDirectory={folder}", "does not exist, and the unit does not start", remedy)


def _devices(machine: Machine, case: Case) -> Iterator[Finding]:
    """A device that is not there is left out by systemd, and the unit starts without it."""
    words = case.words_of("DeviceAllow") if "DeviceAllow" in case.model.systemd else []
    for node in dict.fromkeys(word for word in words if word.startswith("/dev/")):
        if not machine.exists(node):
            remedy = "nvidia-modprobe -u -c 0" if node.startswith("/dev/nvidia") else f"ls {os.path.dirname(node)}"
            yield problem(f"{case.id}: DeviceAllow={node}", "does not exist", remedy)


_IMPLIED = {  # by DynamicUser=, systemd.exec(5): the values that it does not let through
    "ProtectHome": ("no",),
    "ProtectSystem": ("no", "yes", "full"),
    "PrivateTmp": ("no",),
    "NoNewPrivileges": ("no",),
    "RestrictSUIDSGID": ("no",),
}


def settings(machine: Machine, case: Case) -> Iterator[Finding]:
    """Are there settings that do nothing, or not what they seem to do?"""
    if case.is_on("DynamicUser"):
        for name, values in _IMPLIED.items():
            if case.last(name) in values and name in case.model.systemd:
                remedy = "give the model a user that exists: User: NAME"
                yield warning(f"{case.id}: {name}={case.last(name)}", "has no effect with DynamicUser=yes", remedy)
    for name in case.spec.left_out:
        yield warning(f"{case.id}: {name}=", "is not known to this systemd and left out", f"remove {name}")
    if "--mlock" in case.words and (limit := _memory_lock(machine, case)):
        yield limit


def _memory_lock(machine: Machine, case: Case) -> Finding | None:
    thing = f"{case.id}: --mlock"
    if value := case.last("LimitMEMLOCK"):
        return None if value == "infinity" else warning(thing, f"is limited to {value}", "set LimitMEMLOCK: infinity")
    match = re.search(r"^Max locked memory +(\S+) +(\S+)", machine.text("/proc/self/limits"), re.MULTILINE)
    if not match or match[2] == "unlimited":
        return None
    remedy = "set LimitMEMLOCK: infinity in the model's systemd block"
    if case.who and case.who.uid:
        remedy = "write LimitMEMLOCK=infinity into a drop-in: systemctl edit user@.service"
    return warning(thing, f"no more than {match[2]} bytes may be locked", remedy)


def containers(machine: Machine, case: Case) -> Iterator[Finding]:
    """Does the container end with the unit, and does its engine answer?"""
    if not case.client:
        return
    is_block, thing = case.model.container is not None, f"{case.id}: {case.client}"
    if not is_block and not container.removed_by_name(case.words):
        called = container.name_given(case.words) or "NAME"
        if case.client != "podman" and not case.model.cmd_stop:
            remedy = f"add --rm and --name={called} to cmd, or use a docker: block"
            yield problem(thing, "is run without cmdStop, so the container outlives the model's stop", remedy)
        elif case.client in ("podman", "docker"):
            remedy = f"add --rm and --name={called} to cmd, or use a {case.client}: block"
            yield warning(thing, "leaves its container behind when it is killed", remedy)
    if case.client == "podman" and not is_block and "--cgroups=split" not in case.words:
        remedy = "add --cgroups=split to cmd, or use a podman: block"
        yield warning(thing, "puts the container outside of the unit, where no limit and no stop reaches it", remedy)
    if case.client == "docker" and not machine.exists("/run/docker.sock"):
        yield problem(thing, "its daemon does not run (/run/docker.sock is missing)", "systemctl start docker")
    if is_block and case.model.container:
        yield from _volumes(machine, case, case.model.container.volumes)
        if nvidia_gpus(case.model.container) and not machine.exists("/dev/nvidiactl"):
            yield problem(f"{case.id}: gpus", "/dev/nvidiactl is missing", "nvidia-modprobe -u -c 0")


def _volumes(machine: Machine, case: Case, volumes: Iterable[str]) -> Iterator[Finding]:
    for source in (volume.partition(":")[0] for volume in volumes):
        if source.startswith("/") and not machine.exists(source):
            yield problem(f"{case.id}: volume {source}", "does not exist", f"mkdir -p {shlex.quote(source)}")


CHECKS = (accounts, program, files, paths, port, containers, settings)
