"""Unit settings: every one in the table, held against systemd's own parser where there is one."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from dbus_next._private.unmarshaller import Unmarshaller

from llamaswapd.config import unit_values
from llamaswapd.config.settings import SETTINGS, check, minimum_version, properties
from llamaswapd.config.unit_kinds import Property
from llamaswapd.config.unit_words import BadValue, literals, quote, words

_CONDITIONS = {name: ["/etc", "!/x", "|/x", "|!/x"] for name in SETTINGS if name.startswith(("Condition", "Assert"))}
EXAMPLES: Mapping[str, Sequence[str]] = _CONDITIONS | {
    "Description": ["a model"],
    "Documentation": ["man:llamaswapd(8) https://example.org/"],
    "Wants": ["a.service b.target"],
    "Requires": ["a.service"],
    "Requisite": ["a.service"],
    "BindsTo": ["a.service"],
    "PartOf": ["a.service"],
    "Upholds": ["a.service"],
    "Conflicts": ["a.service"],
    "Before": ["a.service"],
    "After": ["network.target", "a@b:c.service nvidia-persistenced.service"],
    "OnFailure": ["a.service"],
    "OnSuccess": ["a.service"],
    "PropagatesStopTo": ["a.service"],
    "StopPropagatedFrom": ["a.service"],
    "JoinsNamespaceOf": ["a.service"],
    "RequiresMountsFor": ["/srv/models /mnt"],
    "WantsMountsFor": ["/srv"],
    "DefaultDependencies": ["no"],
    "SurviveFinalKillSignal": ["yes"],
    "CollectMode": ["inactive-or-failed"],
    "JobRunningTimeoutSec": ["1min"],
    "StartLimitIntervalSec": ["0", "10s"],
    "StartLimitBurst": ["5"],
    "Type": ["exec", "notify"],
    "ExitType": ["cgroup"],
    "NotifyAccess": ["all"],
    "RemainAfterExit": ["no"],
    "ExecCondition": ["/bin/true"],
    "ExecStartPre": ["/bin/echo 'a b' \"c\\td\" e", "-/bin/false", ":/bin/echo $x", "+/bin/id", "!/bin/id", "!!/bin/id",
                     "-:+/bin/id", "@/bin/sh name -c exit", "touch /run/x", '/bin/echo ";" a\\x20b'],
    "ExecStart": ["/bin/true"],
    "ExecStartPost": ["/bin/true"],
    "ExecReload": ["/bin/kill -HUP $MAINPID"],
    "ExecStop": ["-/bin/kill ${MAINPID}"],
    "ExecStopPost": ["podman rm -f x"],
    "TimeoutStartSec": ["infinity", "5min 20s"],
    "TimeoutStopSec": ["90"],
    "TimeoutAbortSec": ["1h30m"],
    "TimeoutSec": ["2.5s"],
    "TimeoutStartFailureMode": ["terminate"],
    "TimeoutStopFailureMode": ["kill"],
    "RuntimeMaxSec": ["1d"],
    "RuntimeRandomizedExtraSec": ["10"],
    "WatchdogSec": ["500ms"],
    "Restart": ["no"],
    "RestartMode": ["direct"],
    "RestartSec": ["100ms"],
    "RestartSteps": ["5"],
    "RestartMaxDelaySec": ["1min"],
    "SuccessExitStatus": ["7 TEMPFAIL SIGUSR1", "SIGTERM 255"],
    "RestartPreventExitStatus": ["EXEC 1"],
    "RestartForceExitStatus": ["SIGKILL"],
    "OOMPolicy": ["kill"],
    "OpenFile": ["/etc/x:x:read-only,graceful", "/etc/x"],
    "FileDescriptorStoreMax": ["3"],
    "FileDescriptorStorePreserve": ["restart"],
    "ReloadSignal": ["HUP"],
    "KillMode": ["control-group", "mixed"],
    "KillSignal": ["SIGINT", "TERM", "15", "RTMIN+3", "SIGRTMIN+3"],
    "RestartKillSignal": ["SIGTERM"],
    "FinalKillSignal": ["SIGKILL"],
    "WatchdogSignal": ["SIGABRT"],
    "SendSIGHUP": ["on"],
    "SendSIGKILL": ["no"],
    "WorkingDirectory": ["/srv", "-/srv", "~"],
    "RootDirectory": ["/srv/root"],
    "RootImage": ["/srv/root.img"],
    "MountAPIVFS": ["yes"],
    "BindPaths": ["/a", "/a:/b", "-/a:/b:norbind /c:/d:rbind"],
    "BindReadOnlyPaths": ["/srv/models:/models"],
    "User": ["llama", "1000"],
    "Group": ["video"],
    "DynamicUser": ["yes"],
    "SupplementaryGroups": ["video render"],
    "SetLoginEnvironment": ["yes"],
    "PAMName": ["login"],
    "RuntimeDirectory": ["a b/c"],
    "StateDirectory": ["a"],
    "CacheDirectory": ["a"],
    "LogsDirectory": ["a"],
    "ConfigurationDirectory": ["a"],
    "RuntimeDirectoryMode": ["0700"],
    "StateDirectoryMode": ["750"],
    "CacheDirectoryMode": ["0755"],
    "LogsDirectoryMode": ["0755"],
    "ConfigurationDirectoryMode": ["0755"],
    "RuntimeDirectoryPreserve": ["restart", "no"],
    "LoadCredential": ["key:/etc/key", "key"],
    "LoadCredentialEncrypted": ["key:/etc/key"],
    "ImportCredential": ["llm.*"],
    "SetCredential": ["name:some text"],
    "Environment": ["A=1 'B=two words' \"C=x\\ty\"", "D=", "E='a b'"],
    "EnvironmentFile": ["/etc/default/x", "-/etc/default/y"],
    "PassEnvironment": ["HOME LANG"],
    "UnsetEnvironment": ["HOME LANG=C"],
    "UMask": ["0077", "22"],
    "Nice": ["-5", "10"],
    "OOMScoreAdjust": ["-1000", "500"],
    "Personality": ["x86-64"],
    "KeyringMode": ["private"],
    "IgnoreSIGPIPE": ["no"],
    "MemoryKSM": ["yes"],
    "LimitCPU": ["60", "1min:2min"],
    "LimitFSIZE": ["1G"],
    "LimitDATA": ["1G"],
    "LimitSTACK": ["8M:infinity"],
    "LimitCORE": ["0", "infinity"],
    "LimitRSS": ["1G"],
    "LimitNOFILE": ["1024:524288"],
    "LimitAS": ["1T"],
    "LimitNPROC": ["100"],
    "LimitMEMLOCK": ["infinity", "64K"],
    "LimitLOCKS": ["10"],
    "LimitSIGPENDING": ["10"],
    "LimitMSGQUEUE": ["800K"],
    "LimitRTPRIO": ["10"],
    "LimitRTTIME": ["200ms", "1000"],
    "CPUSchedulingPolicy": ["batch", "rr"],
    "CPUSchedulingPriority": ["10"],
    "CPUSchedulingResetOnFork": ["yes"],
    "CPUAffinity": ["0-3 8,9", "1", "numa"],
    "NUMAPolicy": ["bind"],
    "NUMAMask": ["0-1"],
    "IOSchedulingClass": ["best-effort"],
    "IOSchedulingPriority": ["7"],
    "ProtectSystem": ["strict", "yes"],
    "ProtectHome": ["read-only"],
    "ProtectProc": ["invisible"],
    "ProcSubset": ["pid"],
    "ReadWritePaths": ["/srv -/var/tmp +/x -+/y '/with blank'"],
    "ReadOnlyPaths": ["/"],
    "InaccessiblePaths": ["/home"],
    "ExecPaths": ["/usr"],
    "NoExecPaths": ["/"],
    "TemporaryFileSystem": ["/var:ro,mode=0700 /x"],
    "PrivateTmp": ["yes", "disconnected"],
    "PrivateDevices": ["yes"],
    "PrivateNetwork": ["yes"],
    "NetworkNamespacePath": ["/run/netns/x"],
    "PrivateIPC": ["yes"],
    "IPCNamespacePath": ["/proc/1/ns/ipc"],
    "PrivateUsers": ["yes", "identity"],
    "PrivatePIDs": ["yes"],
    "PrivateMounts": ["yes"],
    "ProtectHostname": ["yes"],
    "ProtectClock": ["yes"],
    "ProtectKernelTunables": ["yes"],
    "ProtectKernelModules": ["yes"],
    "ProtectKernelLogs": ["yes"],
    "ProtectControlGroups": ["yes", "strict"],
    "RestrictAddressFamilies": ["AF_UNIX AF_INET", "~AF_PACKET"],
    "RestrictNamespaces": ["yes", "no", "user mnt", "~net"],
    "RestrictRealtime": ["yes"],
    "RestrictSUIDSGID": ["yes"],
    "LockPersonality": ["yes"],
    "MemoryDenyWriteExecute": ["yes"],
    "RemoveIPC": ["yes"],
    "NoNewPrivileges": ["1"],
    "CapabilityBoundingSet": ["CAP_NET_ADMIN cap_sys_nice", ""],
    "AmbientCapabilities": ["CAP_SYS_NICE"],
    "SystemCallFilter": ["@system-service", "~@privileged @resources", "~ioperm:EPERM"],
    "SystemCallLog": ["~@debug"],
    "SystemCallErrorNumber": ["EPERM", "kill", "1"],
    "SystemCallArchitectures": ["native x86"],
    "StandardInput": ["null", "file:/etc/x", "fd:x"],
    "StandardOutput": ["journal", "append:/var/log/x", "truncate:/x", "file:/x"],
    "StandardError": ["inherit"],
    "SyslogIdentifier": ["a model"],
    "SyslogLevel": ["warning"],
    "SyslogLevelPrefix": ["no"],
    "LogLevelMax": ["err", "7"],
    "LogExtraFields": ["FIELD=value"],
    "LogFilterPatterns": ["~GET /health", "error"],
    "LogRateLimitIntervalSec": ["1s"],
    "LogRateLimitBurst": ["1000000"],
    "LogNamespace": ["llm"],
    "Slice": ["llm.slice"],
    "CPUAccounting": ["yes"],
    "CPUWeight": ["50", "idle"],
    "StartupCPUWeight": ["50"],
    "CPUQuota": ["150%", "400%", "12.5%"],
    "CPUQuotaPeriodSec": ["10ms"],
    "AllowedCPUs": ["0-7"],
    "StartupAllowedCPUs": ["0"],
    "AllowedMemoryNodes": ["0"],
    "StartupAllowedMemoryNodes": ["0"],
    "MemoryAccounting": ["yes"],
    "MemoryMin": ["10%", "0"],
    "MemoryLow": ["1G"],
    "MemoryHigh": ["infinity"],
    "MemoryMax": ["24G", "50%", "33.33%", "1.5G", "infinity"],
    "MemorySwapMax": ["0"],
    "MemoryZSwapMax": ["1G"],
    "MemoryPressureWatch": ["off"],
    "TasksAccounting": ["yes"],
    "TasksMax": ["4096", "80%", "infinity"],
    "IOAccounting": ["yes"],
    "IOWeight": ["100"],
    "StartupIOWeight": ["100"],
    "IODeviceWeight": ["/dev/sda 200"],
    "IOReadBandwidthMax": ["/dev/sda 5M"],
    "IOWriteBandwidthMax": ["/dev/sda 5M"],
    "IOReadIOPSMax": ["/dev/sda 1K"],
    "IOWriteIOPSMax": ["/dev/sda 1000"],
    "IPAccounting": ["yes"],
    "IPAddressAllow": ["localhost", "10.0.0.0/8 fd00::/8", "192.0.2.1", "link-local", "multicast"],
    "IPAddressDeny": ["any"],
    "SocketBindAllow": ["tcp:8080", "ipv4:udp:1000-1010", "5800", "ipv6:tcp", "any", "ipv4"],
    "SocketBindDeny": ["any"],
    "RestrictNetworkInterfaces": ["lo eth0", "~eth1"],
    "DeviceAllow": ["/dev/nvidia0 rw", "char-nvidia* rw", "/dev/kfd", "char-drm"],
    "DevicePolicy": ["closed"],
    "Delegate": ["yes", "no", "cpu memory"],
    "DelegateSubgroup": ["payload"],
    "ManagedOOMSwap": ["kill"],
    "ManagedOOMMemoryPressure": ["auto"],
    "ManagedOOMPreference": ["avoid"],
}  # fmt: skip

# What a model's unit may need, by D-Bus name. MemoryMaxScale and the like come from other notations of one setting.
WANTED = """
    Description Documentation CollectMode After Before Requires Wants BindsTo PartOf Conflicts Upholds
    StopPropagatedFrom OnFailure OnSuccess DefaultDependencies StartLimitIntervalUSec StartLimitBurst
    JobRunningTimeoutUSec RequiresMountsFor Conditions Slice
    Type ExitType NotifyAccess RemainAfterExit TimeoutStartUSec TimeoutStopUSec TimeoutAbortUSec RuntimeMaxUSec
    WatchdogUSec TimeoutStopFailureMode Restart RestartUSec SuccessExitStatus RestartPreventExitStatus
    RestartForceExitStatus KillMode KillSignal FinalKillSignal WatchdogSignal SendSIGKILL ExecStartPreEx ExecStartPre
    ExecStart ExecStartPost ExecCondition ExecReload ExecStop ExecStopPost OOMPolicy FileDescriptorStoreMax
    User Group SupplementaryGroups DynamicUser WorkingDirectory UMask Environment EnvironmentFiles UnsetEnvironment
    PassEnvironment Nice OOMScoreAdjust LimitNOFILE LimitNOFILESoft LimitMEMLOCK LimitMEMLOCKSoft LimitCORE
    LimitCORESoft SetCredential LoadCredential RuntimeDirectory StateDirectory CacheDirectory LogsDirectory
    StandardOutput StandardError StandardInput SyslogIdentifier SyslogLevelPrefix LogLevelMax LogExtraFields
    LogRateLimitIntervalUSec LogRateLimitBurst LogNamespace
    MemoryMax MemoryHigh MemoryLow MemoryMin MemorySwapMax MemoryMaxScale TasksMax CPUQuotaPerSecUSec CPUWeight
    IOWeight AllowedCPUs AllowedMemoryNodes CPUAffinity NUMAMask NUMAPolicy IOReadBandwidthMax Delegate
    DelegateControllers IPAddressAllow IPAddressDeny SocketBindAllow SocketBindDeny RestrictNetworkInterfaces
    DevicePolicy DeviceAllow
    ProtectSystem ProtectHome ProtectProc ProcSubset KeyringMode PrivateTmp PrivateDevices PrivateNetwork PrivateUsers
    PrivateIPC PrivateMounts NoNewPrivileges ProtectKernelTunables ProtectKernelModules ProtectKernelLogs
    ProtectControlGroups ProtectClock ProtectHostname RestrictRealtime RestrictSUIDSGID LockPersonality
    MemoryDenyWriteExecute RemoveIPC RestrictNamespaces CapabilityBoundingSet AmbientCapabilities
    RestrictAddressFamilies SystemCallFilter SystemCallLog SystemCallArchitectures SystemCallErrorNumber
    ReadWritePaths ReadOnlyPaths InaccessiblePaths ExecPaths NoExecPaths BindPaths BindReadOnlyPaths
    TemporaryFileSystem
    RestartSteps RestartMaxDelayUSec RestartMode SurviveFinalKillSignal SetLoginEnvironment LogFilterPatterns
    ImportCredential MemoryZSwapMax DelegateSubgroup PrivateTmpEx PrivateUsersEx PrivatePIDs ProtectControlGroupsEx
    FileDescriptorStorePreserve OpenFile ReloadSignal MemoryKSM MemoryPressureWatch
""".split()  # noqa: SIM905 - a list that long reads better as text


def one(name: str, *values: str) -> object:
    """Return the value of the only property that a setting becomes."""
    [(_, _, value)] = properties(name, values)
    return value


# The table


def test_every_setting_has_an_example_and_every_example_passes() -> None:
    assert EXAMPLES.keys() == SETTINGS.keys()
    forbidden = {"ExecStart", "ExecStop", "RemainAfterExit", "CollectMode"}
    assert {name: problems for name in EXAMPLES.keys() - forbidden if (problems := check(name, EXAMPLES[name]))} == {}


def test_every_property_that_a_model_may_need_can_be_set() -> None:
    made = {prop for name, values in EXAMPLES.items() for value in values for prop, _, _ in properties(name, [value])}
    assert set(WANTED) - made == set()


def test_all_values_of_an_example_together_make_properties_too() -> None:
    for name, values in EXAMPLES.items():
        assert properties(name, values), name


# systemd-run cannot read these, the first before 255 and the others in 257, though the manager takes what they become.
UNREADABLE = {
    ("OpenFile", "/etc/x"),
    ("PrivateTmp", "disconnected"),
    ("PrivateUsers", "identity"),
    ("ProtectControlGroups", "strict"),
}
# What systemd-run makes something else of by 262: a prefix is gone, a kind of namespace is new, accounting always on.
CHANGED_SINCE_257 = {
    ("ExecStartPre", "!!/bin/id"),
    ("RestrictNamespaces", "no"),
    ("RestrictNamespaces", "~net"),
    ("CPUAccounting", "yes"),
}


@pytest.mark.skipif(not shutil.which("systemd-run"), reason="needs systemd-run to compare with")
def test_every_example_means_what_systemd_takes_it_for(tmp_path: Path) -> None:
    version = _systemd_version()
    known = [
        (name, value)
        for name, values in EXAMPLES.items()
        for value in values
        if minimum_version(name, [value]) <= version
        if (name, value) not in UNREADABLE
        if version <= 257 or (name, value) not in CHANGED_SINCE_257
    ]
    theirs = _read_by_systemd_run(known, tmp_path)
    ours = [_alike(prop) for name, value in known for prop in properties(name, [value])]
    assert ours == theirs


def _systemd_version() -> int:
    output = subprocess.run(["systemd-run", "--version"], capture_output=True, text=True, check=True).stdout
    return int(output.split()[1])


def _read_by_systemd_run(settings: list[tuple[str, str]], directory: Path) -> list[Property]:
    """Return the properties that `systemd-run` makes of the settings, listening in the manager's place."""
    (directory / "systemd").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "systemd/private"))
        listener.listen()
        listener.settimeout(10)
        arguments = [f"--property={name}={value}" for name, value in settings]
        command = ["systemd-run", "--user", "--no-block", "--quiet", "--unit=x.service", *arguments, "/bin/true"]
        environment = {"XDG_RUNTIME_DIR": str(directory), "PATH": os.environ["PATH"]}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    message = _first_message(connection)
            except (OSError, EOFError):
                process.kill()
                assert process.stderr is not None
                pytest.fail(f"systemd-run refuses: {process.stderr.read()}")
    # The first property is the description, the last the command; both are systemd-run's own.
    return [_alike((name, variant.signature, variant.value)) for name, variant in message.body[2][1:-1]]


def _first_message(connection: socket.socket) -> Any:
    """Play the server's part of the D-Bus handshake (D-Bus specification, "Authentication Protocol")."""
    received = b""
    while b"BEGIN\r\n" not in received:
        received += _some(connection)
    connection.sendall(b"DATA\r\nOK 0123456789abcdef0123456789abcdef\r\nAGREE_UNIX_FD\r\n")
    received = received.partition(b"BEGIN\r\n")[2]
    while len(received) < 16 or len(received) < _length(received):
        received += _some(connection)
    return Unmarshaller(io.BytesIO(received)).unmarshall()


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 20)
    if not data:
        raise EOFError
    return data


def _length(message: bytes) -> int:
    """Return the length of a message from its fixed part: header, fields padded to 8, body."""
    body, fields = (int.from_bytes(message[at : at + 4], "little") for at in (4, 12))
    return 16 + (fields + 7) // 8 * 8 + body


def _alike(prop: Property) -> Property:
    """Even out what means the same: command lines with and without flags, bit masks of any length."""
    name, signature, value = prop
    if signature == "a(sasb)":
        assert isinstance(value, list)
        commands = [[path, argv, ["ignore-failure"] if ignore else []] for path, argv, ignore in value]
        return f"{name}Ex", "a(sasas)", commands
    if signature == "a(sasas)":
        assert isinstance(value, list)
        return name, signature, [[path, argv, sorted(flags)] for path, argv, flags in value]
    if signature == "ay":
        assert isinstance(value, bytes)
        return name, signature, value.rstrip(b"\0")
    return name, signature, [list(item) for item in value] if isinstance(value, tuple) else value


# Repetition


def test_the_last_assignment_of_a_single_value_counts() -> None:
    assert one("MemoryMax", "1G", "2G") == 2 << 30


def test_assignments_of_a_list_add_up() -> None:
    assert one("After", "a.service b.service", "c.service") == ["a.service", "b.service", "c.service"]


def test_an_empty_assignment_forgets_those_before_it() -> None:
    assert one("After", "a.service", "", "b.service") == ["b.service"]
    assert properties("MemoryMax", ["1G", ""]) == []
    assert properties("After", ["a.service", ""]) == []


def test_allow_and_deny_lists_are_applied_one_after_the_other() -> None:
    assert properties("SystemCallFilter", ["@system-service", "~@privileged"]) == [
        ("SystemCallFilter", "(bas)", [True, ["@system-service"]]),
        ("SystemCallFilter", "(bas)", [False, ["@privileged"]]),
    ]


def test_capability_sets_merge_as_systemd_merges_them() -> None:
    admin, nice = 1 << 12, 1 << 23
    assert one("CapabilityBoundingSet", "CAP_NET_ADMIN", "CAP_SYS_NICE") == admin | nice
    assert (
        one("CapabilityBoundingSet", "~CAP_NET_ADMIN", "~CAP_SYS_NICE") == unit_values.ALL_CAPABILITIES & ~admin & ~nice
    )
    assert one("CapabilityBoundingSet", "CAP_NET_ADMIN CAP_SYS_NICE", "~CAP_SYS_NICE") == admin
    assert one("CapabilityBoundingSet", "") == 0
    assert one("AmbientCapabilities", "CAP_NET_ADMIN", "") == 0


def test_namespace_lists_start_anew_after_yes_or_no() -> None:
    user, net = 0x10000000, 0x40000000
    assert one("RestrictNamespaces", "user", "net") == user | net
    assert one("RestrictNamespaces", "yes", "net") == net
    assert one("RestrictNamespaces", "~net", "no") == unit_values.ALL_NAMESPACES


def test_delegated_controllers_add_up_after_yes_or_no() -> None:
    assert one("Delegate", "cpu", "yes", "memory", "pids") == ["memory", "pids"]


def test_cpu_lists_add_up() -> None:
    assert one("AllowedCPUs", "0-1", "9") == bytes([0b11, 0b10])


def test_networks_and_their_names_share_a_list() -> None:
    local = [[2, bytes([127, 0, 0, 0]), 8], [10, bytes(15) + b"\1", 128]]
    assert one("IPAddressAllow", "localhost 10.0.0.0/8") == [*local, [2, bytes([10, 0, 0, 0]), 8]]


def test_a_soft_limit_goes_beside_the_hard_one() -> None:
    assert properties("LimitNOFILE", ["1024:infinity"]) == [
        ("LimitNOFILE", "t", 2**64 - 1),
        ("LimitNOFILESoft", "t", 1024),
    ]


# Refusals


def test_an_unknown_setting_names_the_nearest_known_one() -> None:
    assert check("MemmoryMax", ["1G"]) == ['unknown unit setting "MemmoryMax", did you mean "MemoryMax"?']
    assert check("TimeoutStopUSec", ["1"]) == ['unknown unit setting "TimeoutStopUSec", did you mean "TimeoutStopSec"?']
    assert check("Qqq", ["1"]) == ['unknown unit setting "Qqq"']


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ExecStart", "use the model's cmd instead"),
        ("ExecStop", "use the model's cmdStop instead"),
        ("WantedBy", "the daemon starts and stops models itself"),
        ("JobTimeoutSec", "systemd does not take it for transient units"),
        ("Sockets", "systemd does not take it for transient units"),
        ("X-Note", "transient units have no X- settings"),
    ],
)
def test_a_setting_that_cannot_be_set_says_why(name: str, reason: str) -> None:
    assert check(name, ["x"]) == [f'"{name}" cannot be set: {reason}']


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MemoryMax", "24Q", '"24Q" is not a size such as 24G, a percentage, or infinity'),
        ("MemoryMax", "120%", '"120%" is not a size such as 24G, a percentage, or infinity: it is more than 100%'),
        ("Restart", "always", '"always" is not no; the daemon starts and stops models itself'),
        ("Type", "forking", '"forking" is not one of exec, notify; the daemon must know the main process'),
        ("KillMode", "none", '"none" is not one of control-group, mixed; a stopped model leaves no process behind'),
        ("PrivateTmp", "maybe", '"maybe" is not one of yes, no, disconnected'),
        ("TimeoutStopSec", "5 parsecs", "\"5 parsecs\" is not a time such as \"5min 20s\", 90 (seconds) or infinity: "
                                        '"parsecs" is no unit of time'),
        ("CapabilityBoundingSet", "CAP_ALL", '"CAP_ALL" is not a list of capabilities such as CAP_NET_ADMIN, '
                                             "~ for all but: CAP_ALL is no capability"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_what_is_accepted(name: str, value: str, message: str) -> None:
    assert check(name, [value]) == [message]


REFUSED = {
    "Nice": ["20", "1.5"],
    "OOMScoreAdjust": ["-1001"],
    "UMask": ["0088", "rw"],
    "CPUWeight": ["0"],
    "CPUQuota": ["50", "0%"],
    "IOWeight": ["0", "10K"],
    "StartupIOWeight": ["0", "10K"],
    "TasksMax": ["0"],
    "LimitNOFILE": ["20:10", "1:"],
    "TimeoutStopSec": ["-1", "abc"],
    "KillSignal": ["SIGNONE", "0"],
    "AllowedCPUs": ["3-1", "a"],
    "IPAddressAllow": ["10.0.0.0/33", "example.org"],
    "DeviceAllow": ["nvidia0", "/dev/x rwx"],
    "Environment": ["A", "1A=x", "'A=x", "A=\\q", "A=%h"],
    "ReadWritePaths": ["srv"],
    "BindPaths": ["/a:/b:bind", "/a:b"],
    "SystemCallFilter": ["a b;c", "ioperm:EPERM"],
    "RestrictAddressFamilies": ["AF_NOSUCH"],
    "RestrictNamespaces": ["user disk"],
    "SuccessExitStatus": ["256", "NOSUCH"],
    "LoadCredential": ["a/b:/x"],
    "RuntimeDirectory": ["/run/x", "../x"],
    "ExecStartPre": ["./x", "-", "@/bin/sh", "/bin/a ; /bin/b"],
    "SocketBindAllow": ["tcp:0", "tcp:70000", "sctp:80"],
    "Slice": ["llm.service"],
    "After": ["a b"],
    "LogExtraFields": ["field=x"],
    "StandardInput": ["append:/x"],
    "StandardOutput": ["/dev/null"],
    "SystemCallErrorNumber": ["ENOSUCH"],
    "WorkingDirectory": ["srv"],
    "DynamicUser": ["ja"],
    "Delegate": ["cpu gpu"],
    "Description": ["two\nlines"],
    "OpenFile": ["/x:y:write"],
    "IOReadBandwidthMax": ["/dev/sda"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_value_that_systemd_would_refuse_is_refused(name: str, value: str) -> None:
    assert len(check(name, [value])) == 1


def test_every_bad_value_is_reported() -> None:
    assert len(check("After", ["a", "b.service", "c"])) == 2


@pytest.mark.parametrize("value", ["hush", "A=%hush", '"A=hush', "A=\\qhush", "A=hush\nB=hush", "token=hush"])
@pytest.mark.parametrize("name", ["Environment", "SetCredential", "SetCredentialEncrypted"])
def test_a_value_that_may_be_a_secret_is_not_told(name: str, value: str) -> None:
    assert [problem for problem in check(name, [value]) if "hush" in problem] == []


def test_settings_newer_than_debian_12_say_since_when() -> None:
    assert minimum_version("MemoryMax") == 0
    assert minimum_version("RestartSteps") == 254
    assert minimum_version("PrivateTmp", ["yes"]) == 0
    assert minimum_version("PrivateTmp", ["disconnected"]) == 257


# Notations


@pytest.mark.parametrize(
    "word",
    ["plain", "two words", "", "100%", "%h", 'a"b', "it's", "back\\slash", "a\nb\tc\x1b", "ünï", "a;b", "$HOME", "#x"],
)
def test_a_quoted_word_reads_back_as_itself(word: str) -> None:
    assert literals(quote(word)) == [word]


def test_adjoining_pieces_make_one_word() -> None:
    assert words('a"b c"\'d\' "" e') == ["ab cd", "", "e"]


def test_escapes_may_spell_the_bytes_of_a_character() -> None:
    assert words(r"\xc3\xa9 \101 é \U0001f999") == ["é", "A", "é", "🦙"]
    with pytest.raises(BadValue, match="UTF-8"):
        words(r"\xc3")


def test_unit_names_keep_their_escapes() -> None:
    assert one("After", r"dev-disk-by\x2dlabel-x.device") == [r"dev-disk-by\x2dlabel-x.device"]


def test_a_doubled_percent_sign_is_one() -> None:
    assert one("Description", "100%% local") == "100% local"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze to compare with")
def test_times_are_as_long_as_systemd_says() -> None:
    spans = ["5min 20s", "1h30m", "2.5s", "90", "1y 2M 3w 4d", "100us", "1.5h 3 sec 2ms", "infinity"]
    output = subprocess.run(["systemd-analyze", "timespan", *spans], capture_output=True, text=True, check=True).stdout
    theirs = re.findall(r"[μu]s: (\d+)", output)
    assert [str(unit_values.usec(span)) for span in spans] == theirs


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze to compare with")
def test_exit_status_names_are_those_of_systemd() -> None:
    output = subprocess.run(["systemd-analyze", "exit-status"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in output.splitlines()[1:]]
    assert len(rows) > 40
    for name, status, _ in rows:
        assert unit_values.exit_statuses(name) == ([int(status)], [])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze to compare with")
def test_capabilities_have_the_bits_that_systemd_says() -> None:
    output = subprocess.run(["systemd-analyze", "capability"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in output.splitlines()[1:] if line.startswith("cap_")]
    assert len(rows) > 35
    for name, bit in rows:
        assert unit_values.capabilities(name) == 1 << int(bit)
