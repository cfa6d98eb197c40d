"""Which unit settings a `systemd:` block may hold, and what each becomes on the bus.

A setting is spelled as in unit files and given as the list of its assignments: the last one counts, lists grow with
each, an empty one forgets those before it. `check` says what is wrong with one, `properties` turns it into arguments
of StartTransientUnit. Nothing here knows D-Bus, only its type signatures.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamaswapd.config import unit_kinds as kind
from llamaswapd.config.unit_kinds import Kind, Property
from llamaswapd.config.unit_words import BadValue


@dataclass(frozen=True)
class Setting:
    name: str
    kind: Kind
    property: str = ""  # on the bus; "" when spelled alike
    since: int = 0  # first systemd version that has it; 0 when Debian 12's 252 does
    words_since: int = 0  # the same for the values beyond yes and no


_UNIT = (
    # systemd.unit(5), [Unit] section options
    Setting("Description", kind.TEXT),
    Setting("Documentation", kind.WORDS),
    Setting("Wants", kind.UNITS),
    Setting("Requires", kind.UNITS),
    Setting("Requisite", kind.UNITS),
    Setting("BindsTo", kind.UNITS),
    Setting("PartOf", kind.UNITS),
    Setting("Upholds", kind.UNITS),
    Setting("Conflicts", kind.UNITS),
    Setting("Before", kind.UNITS),
    Setting("After", kind.UNITS),
    Setting("OnFailure", kind.UNITS),
    Setting("OnSuccess", kind.UNITS),
    Setting("PropagatesStopTo", kind.UNITS),
    Setting("StopPropagatedFrom", kind.UNITS),
    Setting("JoinsNamespaceOf", kind.UNITS),
    Setting("RequiresMountsFor", kind.PATHS),
    Setting("WantsMountsFor", kind.PATHS, since=256),
    Setting("DefaultDependencies", kind.FLAG),
    Setting("SurviveFinalKillSignal", kind.FLAG, since=255),
    Setting("CollectMode", kind.choice("inactive", "inactive-or-failed")),
    Setting("JobRunningTimeoutSec", kind.TIME, "JobRunningTimeoutUSec"),
    Setting("StartLimitIntervalSec", kind.TIME, "StartLimitIntervalUSec"),
    Setting("StartLimitBurst", kind.COUNT),
    # systemd.unit(5), conditions and asserts
    *(
        Setting(prefix + test, kind.condition(prefix + test))
        for prefix in ("Condition", "Assert")
        for test in (
            "ACPower", "Architecture", "CPUFeature", "CPUs", "ControlGroupController", "Credential",
            "DirectoryNotEmpty", "Environment", "FileIsExecutable", "FileNotEmpty", "Group", "Host",
            "KernelCommandLine", "KernelVersion", "Memory", "PathExists", "PathExistsGlob", "PathIsDirectory",
            "PathIsMountPoint", "PathIsReadWrite", "PathIsSymbolicLink", "Security", "User", "Virtualization",
        )
    ),
)  # fmt: skip

_SERVICE = (
    # systemd.service(5)
    Setting("Type", kind.choice("exec", "notify")),
    Setting("ExitType", kind.choice("main", "cgroup")),
    Setting("NotifyAccess", kind.choice("none", "main", "exec", "all")),
    Setting("RemainAfterExit", kind.FLAG),
    Setting("ExecCondition", kind.COMMANDS),
    Setting("ExecStartPre", kind.COMMANDS),
    Setting("ExecStart", kind.COMMANDS),
    Setting("ExecStartPost", kind.COMMANDS),
    Setting("ExecReload", kind.COMMANDS),
    Setting("ExecStop", kind.COMMANDS),
    Setting("ExecStopPost", kind.COMMANDS),
    Setting("TimeoutStartSec", kind.TIME, "TimeoutStartUSec"),
    Setting("TimeoutStopSec", kind.TIME, "TimeoutStopUSec"),
    Setting("TimeoutAbortSec", kind.TIME, "TimeoutAbortUSec"),
    Setting("TimeoutSec", kind.TIMEOUTS),
    Setting("TimeoutStartFailureMode", kind.choice("terminate", "abort", "kill")),
    Setting("TimeoutStopFailureMode", kind.choice("terminate", "abort", "kill")),
    Setting("RuntimeMaxSec", kind.TIME, "RuntimeMaxUSec"),
    Setting("RuntimeRandomizedExtraSec", kind.TIME, "RuntimeRandomizedExtraUSec"),
    Setting("WatchdogSec", kind.TIME, "WatchdogUSec"),
    Setting("Restart", kind.choice("no")),
    Setting("RestartMode", kind.choice("normal", "direct"), since=254),
    Setting("RestartSec", kind.TIME, "RestartUSec"),
    Setting("RestartSteps", kind.COUNT, since=254),
    Setting("RestartMaxDelaySec", kind.TIME, "RestartMaxDelayUSec", since=254),
    Setting("SuccessExitStatus", kind.STATUSES),
    Setting("RestartPreventExitStatus", kind.STATUSES),
    Setting("RestartForceExitStatus", kind.STATUSES),
    Setting("OOMPolicy", kind.choice("continue", "stop", "kill")),
    Setting("OpenFile", kind.FILES_TO_OPEN, since=253),
    Setting("FileDescriptorStoreMax", kind.COUNT),
    Setting("FileDescriptorStorePreserve", kind.flag_or("restart"), since=254),
    Setting("ReloadSignal", kind.SIGNAL, since=253),
    # systemd.kill(5)
    Setting("KillMode", kind.choice("control-group", "mixed")),
    Setting("KillSignal", kind.SIGNAL),
    Setting("RestartKillSignal", kind.SIGNAL),
    Setting("FinalKillSignal", kind.SIGNAL),
    Setting("WatchdogSignal", kind.SIGNAL),
    Setting("SendSIGHUP", kind.FLAG),
    Setting("SendSIGKILL", kind.FLAG),
    # systemd.exec(5): paths, user, credentials, directories
    Setting("WorkingDirectory", kind.WORKING_DIRECTORY),
    Setting("RootDirectory", kind.PATH),
    Setting("RootImage", kind.PATH),
    Setting("MountAPIVFS", kind.FLAG),
    Setting("BindPaths", kind.BINDS),
    Setting("BindReadOnlyPaths", kind.BINDS),
    Setting("User", kind.TEXT),
    Setting("Group", kind.TEXT),
    Setting("DynamicUser", kind.FLAG),
    Setting("SupplementaryGroups", kind.WORDS),
    Setting("SetLoginEnvironment", kind.FLAG, since=255),
    Setting("PAMName", kind.TEXT),
    Setting("RuntimeDirectory", kind.DIRECTORIES),
    Setting("StateDirectory", kind.DIRECTORIES),
    Setting("CacheDirectory", kind.DIRECTORIES),
    Setting("LogsDirectory", kind.DIRECTORIES),
    Setting("ConfigurationDirectory", kind.DIRECTORIES),
    Setting("RuntimeDirectoryMode", kind.MODE),
    Setting("StateDirectoryMode", kind.MODE),
    Setting("CacheDirectoryMode", kind.MODE),
    Setting("LogsDirectoryMode", kind.MODE),
    Setting("ConfigurationDirectoryMode", kind.MODE),
    Setting("RuntimeDirectoryPreserve", kind.flag_or("restart")),
    Setting("LoadCredential", kind.CREDENTIALS),
    Setting("LoadCredentialEncrypted", kind.CREDENTIALS),
    Setting("ImportCredential", kind.WORDS, since=254),
    Setting("SetCredential", kind.CREDENTIAL_DATA),
    # systemd.exec(5): environment
    Setting("Environment", kind.ENVIRONMENT),
    Setting("EnvironmentFile", kind.ENVIRONMENT_FILES, "EnvironmentFiles"),
    Setting("PassEnvironment", kind.VARIABLES),
    Setting("UnsetEnvironment", kind.UNSET_ENVIRONMENT),
    # systemd.exec(5): process properties
    Setting("UMask", kind.MODE),
    Setting("Nice", kind.number("i", -20, 19)),
    Setting("OOMScoreAdjust", kind.number("i", -1000, 1000)),
    Setting("Personality", kind.PERSONALITY),
    Setting("KeyringMode", kind.choice("inherit", "private", "shared")),
    Setting("IgnoreSIGPIPE", kind.FLAG),
    Setting("MemoryKSM", kind.FLAG, since=254),
    Setting("LimitCPU", kind.TIME_LIMIT),
    Setting("LimitFSIZE", kind.BYTES_LIMIT),
    Setting("LimitDATA", kind.BYTES_LIMIT),
    Setting("LimitSTACK", kind.BYTES_LIMIT),
    Setting("LimitCORE", kind.BYTES_LIMIT),
    Setting("LimitRSS", kind.BYTES_LIMIT),
    Setting("LimitNOFILE", kind.COUNT_LIMIT),
    Setting("LimitAS", kind.BYTES_LIMIT),
    Setting("LimitNPROC", kind.COUNT_LIMIT),
    Setting("LimitMEMLOCK", kind.BYTES_LIMIT),
    Setting("LimitLOCKS", kind.COUNT_LIMIT),
    Setting("LimitSIGPENDING", kind.COUNT_LIMIT),
    Setting("LimitMSGQUEUE", kind.BYTES_LIMIT),
    Setting("LimitRTPRIO", kind.COUNT_LIMIT),
    Setting("LimitRTTIME", kind.REALTIME_LIMIT),
    # systemd.exec(5): scheduling
    Setting("CPUSchedulingPolicy", kind.numbered({"other": 0, "batch": 3, "idle": 5, "fifo": 1, "rr": 2}, high=5)),
    Setting("CPUSchedulingPriority", kind.number("i", 0, 99)),
    Setting("CPUSchedulingResetOnFork", kind.FLAG),
    Setting("CPUAffinity", kind.AFFINITY),
    Setting("NUMAPolicy", kind.NUMA_POLICY),
    Setting("NUMAMask", kind.CPUS),
    Setting("IOSchedulingClass", kind.numbered({"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}, high=3)),
    Setting("IOSchedulingPriority", kind.number("i", 0, 7)),
    # systemd.exec(5): sandboxing
    Setting("ProtectSystem", kind.flag_or("full", "strict")),
    Setting("ProtectHome", kind.flag_or("read-only", "tmpfs")),
    Setting("ProtectProc", kind.choice("noaccess", "invisible", "ptraceable", "default")),
    Setting("ProcSubset", kind.choice("all", "pid")),
    Setting("ReadWritePaths", kind.PATHS),
    Setting("ReadOnlyPaths", kind.PATHS),
    Setting("InaccessiblePaths", kind.PATHS),
    Setting("ExecPaths", kind.PATHS),
    Setting("NoExecPaths", kind.PATHS),
    Setting("TemporaryFileSystem", kind.TEMPORARY_FILESYSTEMS),
    Setting("PrivateTmp", kind.flag_or("disconnected", suffix="Ex"), words_since=257),
    Setting("PrivateDevices", kind.FLAG),
    Setting("PrivateNetwork", kind.FLAG),
    Setting("NetworkNamespacePath", kind.PATH),
    Setting("PrivateIPC", kind.FLAG),
    Setting("IPCNamespacePath", kind.PATH),
    Setting("PrivateUsers", kind.flag_or("self", "identity", suffix="Ex"), words_since=257),
    Setting("PrivatePIDs", kind.flag_or(), since=257),
    Setting("PrivateMounts", kind.FLAG),
    Setting("ProtectHostname", kind.FLAG),
    Setting("ProtectClock", kind.FLAG),
    Setting("ProtectKernelTunables", kind.FLAG),
    Setting("ProtectKernelModules", kind.FLAG),
    Setting("ProtectKernelLogs", kind.FLAG),
    Setting("ProtectControlGroups", kind.flag_or("private", "strict", suffix="Ex"), words_since=257),
    Setting("RestrictAddressFamilies", kind.FAMILIES),
    Setting("RestrictNamespaces", kind.NAMESPACES),
    Setting("RestrictRealtime", kind.FLAG),
    Setting("RestrictSUIDSGID", kind.FLAG),
    Setting("LockPersonality", kind.FLAG),
    Setting("MemoryDenyWriteExecute", kind.FLAG),
    Setting("RemoveIPC", kind.FLAG),
    Setting("NoNewPrivileges", kind.FLAG),
    Setting("CapabilityBoundingSet", kind.CAPABILITIES),
    Setting("AmbientCapabilities", kind.AMBIENT),
    Setting("SystemCallFilter", kind.CALLS),
    Setting("SystemCallLog", kind.CALLS),
    Setting("SystemCallErrorNumber", kind.ERROR),
    Setting("SystemCallArchitectures", kind.ARCHITECTURES),
    # systemd.exec(5): logging
    Setting("StandardInput", kind.INPUT),
    Setting("StandardOutput", kind.OUTPUT),
    Setting("StandardError", kind.OUTPUT),
    Setting("SyslogIdentifier", kind.TEXT),
    Setting("SyslogLevel", kind.LOG_LEVEL),
    Setting("SyslogLevelPrefix", kind.FLAG),
    Setting("LogLevelMax", kind.LOG_LEVEL),
    Setting("LogExtraFields", kind.JOURNAL_FIELDS),
    Setting("LogFilterPatterns", kind.LOG_FILTERS, since=253),
    Setting("LogRateLimitIntervalSec", kind.TIME, "LogRateLimitIntervalUSec"),
    Setting("LogRateLimitBurst", kind.COUNT),
    Setting("LogNamespace", kind.TEXT),
    # systemd.resource-control(5)
    Setting("Slice", kind.SLICE),
    Setting("CPUAccounting", kind.FLAG),
    Setting("CPUWeight", kind.CPU_WEIGHT),
    Setting("StartupCPUWeight", kind.CPU_WEIGHT),
    Setting("CPUQuota", kind.CPU_QUOTA, "CPUQuotaPerSecUSec"),
    Setting("CPUQuotaPeriodSec", kind.TIME, "CPUQuotaPeriodUSec"),
    Setting("AllowedCPUs", kind.CPUS),
    Setting("StartupAllowedCPUs", kind.CPUS),
    Setting("AllowedMemoryNodes", kind.CPUS),
    Setting("StartupAllowedMemoryNodes", kind.CPUS),
    Setting("MemoryAccounting", kind.FLAG),
    Setting("MemoryMin", kind.MEMORY),
    Setting("MemoryLow", kind.MEMORY),
    Setting("MemoryHigh", kind.MEMORY),
    Setting("MemoryMax", kind.MEMORY),
    Setting("MemorySwapMax", kind.MEMORY),
    Setting("MemoryZSwapMax", kind.MEMORY, since=253),
    Setting("MemoryPressureWatch", kind.choice("auto", "on", "off", "skip"), since=254),
    Setting("TasksAccounting", kind.FLAG),
    Setting("TasksMax", kind.TASKS),
    Setting("IOAccounting", kind.FLAG),
    Setting("IOWeight", kind.WEIGHT),
    Setting("StartupIOWeight", kind.WEIGHT),
    Setting("IODeviceWeight", kind.DEVICE_WEIGHTS),
    Setting("IOReadBandwidthMax", kind.DEVICE_SIZES),
    Setting("IOWriteBandwidthMax", kind.DEVICE_SIZES),
    Setting("IOReadIOPSMax", kind.DEVICE_SIZES),
    Setting("IOWriteIOPSMax", kind.DEVICE_SIZES),
    Setting("IPAccounting", kind.FLAG),
    Setting("IPAddressAllow", kind.NETWORKS),
    Setting("IPAddressDeny", kind.NETWORKS),
    Setting("SocketBindAllow", kind.PORTS),
    Setting("SocketBindDeny", kind.PORTS),
    Setting("RestrictNetworkInterfaces", kind.INTERFACES),
    Setting("DeviceAllow", kind.DEVICES),
    Setting("DevicePolicy", kind.choice("auto", "closed", "strict")),
    Setting("Delegate", kind.DELEGATE),
    Setting("DelegateSubgroup", kind.TEXT, since=254),
    Setting("ManagedOOMSwap", kind.choice("auto", "kill")),
    Setting("ManagedOOMMemoryPressure", kind.choice("auto", "kill")),
    Setting("ManagedOOMPreference", kind.choice("none", "avoid", "omit")),
)

SECTIONS: Mapping[str, tuple[Setting, ...]] = {"Unit": _UNIT, "Service": _SERVICE}
SETTINGS: Mapping[str, Setting] = {setting.name: setting for section in SECTIONS.values() for setting in section}

_DAEMON_STARTS = "the daemon starts and stops models itself"
_FORBIDDEN = {
    "ExecStart": "use the model's cmd instead",
    "ExecStop": "use the model's cmdStop instead",
    "RemainAfterExit": "a model whose main process is gone must not look alive",
    **dict.fromkeys(("CollectMode", "AddRef"), "the unit must be gone before the model can start again"),
    "RefuseManualStart": "systemd would refuse to start the model",
    "RefuseManualStop": "systemd would refuse to stop the model",
    **dict.fromkeys(("JobTimeoutSec", "Sockets"), "systemd does not take it for transient units"),
    **dict.fromkeys(("WantedBy", "RequiredBy", "UpheldBy", "Alias", "Also", "DefaultInstance"), _DAEMON_STARTS),
}
_REASONS = {  # why fewer values are taken than systemd knows
    "Restart": _DAEMON_STARTS,
    "Type": "the daemon must know the main process",
    "KillMode": "a stopped model leaves no process behind",
}
# What is behind the sign may be a secret, which the half of the program that repeats our words must not come to know.
_NAME_ENDS_WITH = {"Environment": "=", "SetCredential": ":", "SetCredentialEncrypted": ":"}


def check(name: str, values: Sequence[str]) -> list[str]:
    """Return what is wrong with a setting: that it cannot be set, or every bad value; empty when it is right."""
    if why := _refusal(name):
        return [why]
    setting = SETTINGS[name]
    reason = f"; {_REASONS[name]}" if name in _REASONS else ""
    return [
        f'"{_shown(name, value)}" is not {setting.kind.takes}{reason}{why}'
        for value in values
        for why in _objections(setting.kind, value.strip())
    ]


def _shown(name: str, value: str) -> str:
    sign = _NAME_ENDS_WITH.get(name)
    if sign is None:
        return value
    shown, found, _ = value.partition(sign)
    return f"{shown if found else ''}{found}***"


def _refusal(name: str) -> str:
    if name in _FORBIDDEN:
        return f'"{name}" cannot be set: {_FORBIDDEN[name]}'
    if name.startswith("X-"):
        return f'"{name}" cannot be set: transient units have no X- settings'
    if name in SETTINGS:
        return ""
    nearest = difflib.get_close_matches(name, SETTINGS, 1)
    return f'unknown unit setting "{name}"' + (f', did you mean "{nearest[0]}"?' if nearest else "")


def _objections(taken: Kind, text: str) -> list[str]:
    if not text:
        return []
    try:
        if "\n" in text:
            raise BadValue("it has a line break; write a list")
        taken.make("", [text])
    except BadValue as error:
        return [f": {error}" if str(error) else ""]
    return []


def properties(name: str, values: Sequence[str]) -> list[Property]:
    """Return what a setting that passed `check` becomes on the bus; nothing when it is left at systemd's default."""
    setting = SETTINGS[name]
    texts = _effective(setting.kind, values)
    return setting.kind.make(setting.property or name, texts) if texts else []


def _effective(taken: Kind, values: Sequence[str]) -> list[str]:
    texts = [value.strip() for value in values]
    if not taken.resets:
        return texts
    after_reset = max((i + 1 for i, text in enumerate(texts) if not text), default=0)
    return texts[after_reset:]


def minimum_version(name: str, values: Sequence[str] = ()) -> int:
    """Return the first systemd version that knows the setting with these values, 0 if every supported one does."""
    setting = SETTINGS[name]
    if setting.words_since and any(signature == "s" for _, signature, _ in properties(name, values)):
        return setting.words_since
    return setting.since
