"""Everything that can go wrong, in the program's own terms.

One tree. Each class carries the HTTP status that a client should see; type and code of the error envelope follow from
the status (`envelope`). Messages name the thing, the value and the remedy, and hold llama-swap's text where it has one,
because users and tools grep for it.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass


class Error(Exception):
    """Base of every error that the program raises itself."""

    status = 500
    retry_after_s: int | None = None  # when it may be worth to try again

    @property
    def type(self) -> str:
        return envelope_kind(self.status)[0]

    @property
    def code(self) -> str:
        return envelope_kind(self.status)[1]


# ---- the configuration is wrong ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the configuration, or worth a warning.

    `path` is dotted (`models.qwen.ttl`), "" for the file as a whole; `message` names value and remedy.
    """

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        file = f"config {self.file}" if self.file else ""
        return ": ".join(part for part in (file, self.path, self.message) if part)


class ConfigError(Error):
    """The configuration cannot be used; `problems` holds every reason, in the order of validation."""

    def __init__(self, problems: Iterable[Problem], warnings: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @property
    def where(self) -> str:
        """Where the first problem is, without its value: `config.yaml: models.qwen.ttl`."""
        first = self.problems[0]
        return ": ".join(part for part in (first.file, first.path) if part) or "the files"


class UsageError(Error):
    """The command line or the environment asks for something impossible."""


# ---- the request is wrong ------------------------------------------------------------------------------------------


class RequestError(Error):
    status = 400


class Unauthorized(RequestError):
    status = 401

    def __init__(self) -> None:
        super().__init__("unauthorized: invalid or missing API key")


class NotFound(RequestError):
    status = 404


class NoModel(NotFound):
    """The request names no model."""

    def __init__(self, why: str = "") -> None:
        super().__init__("no model id could be identified" + (f": {why}" if why else ""))


class UnknownModel(NotFound):
    """No configured model has this name or alias."""

    def __init__(self, name: str, nearest: str | None = None) -> None:
        hint = f', did you mean "{nearest}"?' if nearest else ""
        super().__init__(f'no router for requested model: "{name}" is not configured{hint}')


class ModelNotFound(NotFound):
    """The same, where the model stands in the path (`/upstream`, unload)."""

    def __init__(self) -> None:
        super().__init__("model not found")


class Conflict(RequestError):
    """The request would need a model that it may not start."""

    status = 409


class ProfileNotFound(NotFound):
    def __init__(self, name: str) -> None:
        super().__init__(f'profile "{name}" not found')


class RequestTimeout(RequestError):
    """The client did not send the rest of its request in time."""

    status = 408


class RequestTooLarge(RequestError):
    """The request would have to be kept, and there is too much of it."""

    status = 413


class PathTooDeep(RequestError):
    """To look for the route of a path takes time with the square of its slashes."""

    status = 414


class TooManyRequests(RequestError):
    """`concurrencyLimit` requests of the model are admitted already."""

    status = 429
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("Too many requests")


# ---- the model cannot run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnitResult:
    """How a unit ended, in systemd's words.

    `result` is the unit's Result property (`success`, `exit-code`, `signal`, `core-dump`, `oom-kill`, `timeout`, ...),
    `code` ExecMainCode (CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3, 0 never ran), `exit_status` ExecMainStatus (exit
    status or signal number). See systemd.service(5) and systemd.exec(5), "Process Exit Codes".
    """

    result: str = "success"
    code: int = 0
    exit_status: int = 0

    def __str__(self) -> str:
        """Say it in a sentence fragment: `exit status 3 (exit-code)`, `killed by SIGKILL (oom-kill)`."""
        if self.code == 0:
            return f"ended ({self.result})"
        if self.code == 1:
            name = SYSTEMD_EXIT_STATUSES.get(self.exit_status)
            what = f"exit status {self.exit_status}" + (f"/{name}" if name else "")
        else:
            try:
                name = signal.Signals(self.exit_status).name
            except ValueError:
                name = f"signal {self.exit_status}"
            what = f"killed by {name}"
        return what if self.result == "success" else f"{what} ({self.result})"


# systemd.exec(5): what systemd itself exits with when it cannot set the process up.
SYSTEMD_EXIT_STATUSES = {
    200: "CHDIR", 201: "NICE", 202: "FDS", 203: "EXEC", 204: "MEMORY", 205: "LIMITS", 206: "OOM_ADJUST",
    207: "SIGNAL_MASK", 208: "STDIN", 209: "STDOUT", 210: "CHROOT", 211: "IOPRIO", 212: "TIMERSLACK",
    213: "SECUREBITS", 214: "SETSCHEDULER", 215: "CPUAFFINITY", 216: "GROUP", 217: "USER", 218: "CAPABILITIES",
    219: "CGROUP", 220: "SETSID", 221: "CONFIRM", 222: "STDERR", 224: "PAM", 225: "NETWORK", 226: "NAMESPACE",
    227: "NO_NEW_PRIVILEGES", 228: "SECCOMP", 229: "SELINUX_CONTEXT", 230: "PERSONALITY", 231: "APPARMOR",
    232: "ADDRESS_FAMILIES", 233: "RUNTIME_DIRECTORY", 235: "CHOWN", 236: "SMACK_PROCESS_LABEL", 237: "KEYRING",
    238: "STATE_DIRECTORY", 239: "CACHE_DIRECTORY", 240: "LOGS_DIRECTORY", 241: "CONFIGURATION_DIRECTORY",
    242: "NUMA_POLICY", 243: "CREDENTIALS", 244: "BPF", 245: "KSM", 246: "MEMORY_THP",
}  # fmt: skip


class StartError(Error):
    """The model could not be brought up. llama-swap's prefix is kept: clients match on it."""

    prefix = "unspecific error: "

    def __init__(self, what: str, log: Iterable[str] = ()) -> None:
        self.log = tuple(log)
        tail = "".join(f"\n  {line}" for line in self.log)
        super().__init__(f"{self.prefix}{what}" + (f"; last lines of its log:{tail}" if tail else ""))


class NotStarted(StartError):
    """Nothing has run: the command, its port or systemd stood in the way. Trying again costs nothing."""


class CrashLoop(Error):
    """The model keeps dying, and is not started again for a while."""

    status = 503

    def __init__(self, model: str, deaths: int, error: Exception, retry_in_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(retry_in_s))
        why = str(error).removeprefix(StartError.prefix)
        super().__init__(
            f'model "{model}" died {deaths} times in a row; it is tried again in {self.retry_after_s} s, or at once '
            f"after it was loaded or unloaded by hand; the last time it died of: {why}"
        )


class Unloaded(Error):
    """The model was unloaded while the request waited for it."""

    def __init__(self, router: str = "group") -> None:
        super().__init__(f"unspecific error: {router}: model unloaded")


class ShuttingDown(Error):
    """The daemon is stopping."""

    def __init__(self, router: str = "group") -> None:
        super().__init__(f"unspecific error: {router} is shutting down")


class NoSpilloverTarget(Error):
    """Every model that a selector could choose is being stopped."""

    status = 503
    retry_after_s = 1

    def __init__(self, selector: str) -> None:
        super().__init__(f'selector "{selector}" has no available spillover targets')


# ---- the model's server misbehaves ---------------------------------------------------------------------------------


class UpstreamError(Error):
    """The model's server refused the connection, broke it or answered what is not HTTP."""

    status = 502


class Cancelled(UpstreamError):
    """Somebody ended the request by `/api/inflight/{id}/cancel`."""

    def __init__(self) -> None:
        super().__init__("the request was cancelled by /api/inflight")


# ---- systemd says no -----------------------------------------------------------------------------------------------


class UnitError(Error):
    """systemd refused a call; the message holds its error name and text."""


class BusLost(UnitError):
    """The connection to the bus ended."""

    status = 503
    retry_after_s = 1


class ManagerUnavailable(Error):
    """No systemd manager can be used; the message names what is missing."""


# ---- the envelope --------------------------------------------------------------------------------------------------

_KINDS = {
    400: ("invalid_request_error", "bad_request"),
    401: ("authentication_error", "unauthorized"),
    403: ("authentication_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    409: ("invalid_request_error", "conflict"),
    429: ("rate_limit_error", "concurrency_limit"),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "service_unavailable"),
    504: ("server_error", "gateway_timeout"),
}


def envelope_kind(status: int) -> tuple[str, str]:
    """Return (type, code) of the error envelope for an HTTP status, as llama-swap derives them."""
    if status in _KINDS:
        return _KINDS[status]
    return ("invalid_request_error", "invalid_request") if status < 500 else ("server_error", "internal_error")


def envelope(status: int, message: str) -> dict[str, object]:
    """Return the body of an error answer: OpenAI's error object, marked as coming from the proxy."""
    kind, code = envelope_kind(status)
    return {"src": "llama-swap", "error": {"message": message, "type": kind, "param": None, "code": code}}
