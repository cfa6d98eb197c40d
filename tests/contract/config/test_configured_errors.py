"""The error texts of config.md: a file that llama-swap refuses is refused at a reload, and nothing changes.

The same texts end a start with exit status 1; one place decides about both.
"""

from __future__ import annotations

import pytest
from live import Live

pytestmark = pytest.mark.private

MODEL = "cmd: 'x ${PORT}'"
TWO = f"models: {{a: {{{MODEL}}}, b: {{{MODEL}}}}}"
LONG = "n" * 64


def model(keys: str) -> str:
    return f"models: {{a: {{{MODEL}, {keys}}}}}"


def with_two(rest: str) -> str:
    return f"{TWO}\n{rest}"


def matrix(rest: str) -> str:
    return with_two(f"matrix: {rest}")


REFUSED: dict[str, list[tuple[str, str]]] = {
    "§1, §2 loading": [
        ("- a", "yaml: "),
        ("models: [", "yaml: "),
        ("globalTTL: 1\nglobalTTL: 2", 'mapping key "globalTTL" already defined at line 1'),
        ("models:\n\ta: 1", "yaml: "),
        ('globalTTL: "30"', "cannot unmarshal !!str `30` into int"),
        ('sendLoadingState: "true"', "cannot unmarshal !!str `true` into bool"),
        ("models: {a: {cmd: [x, y]}}", "cannot unmarshal !!seq into string"),
    ],
    "§3 environment": [
        ("globalTTL: ${env.LLAMASWAPD_NONE}", "environment variable 'LLAMASWAPD_NONE' is not set"),
    ],
    "§4 macros": [
        (f"macros: {{{LONG}: 1}}", f"macro name '{LONG}' exceeds maximum length of 63 characters"),
        ("macros: {a.b: 1}", "macro name 'a.b' contains invalid characters, must match pattern ^[a-zA-Z0-9_-]+$"),
        ("macros: {a: [1]}", "macro 'a' has invalid type"),
        ("macros: {a: [1]}", "must be a scalar type (string, int, float, or bool)"),
        ("macros: {a: ~}", "macro 'a' has invalid type"),
        ("macros: {a: 2024-01-02}", "macro 'a' has invalid type"),
        ("macros: {a: 'x${a}'}", "macro 'a' contains self-reference"),
        ("macros: {PORT: 1}", "macro name 'PORT' is reserved"),
        ("macros: {PID: 1}", "macro name 'PID' is reserved"),
        ("macros: {MODEL_ID: 1}", "macro name 'MODEL_ID' is reserved"),
        ("macros: [1]", "macros must be a mapping"),
        (model("macros: {PORT: 1}"), "model a: macro name 'PORT' is reserved"),
        ("models: {a: {cmd: 'x ${PORT} ${nope}'}}", "unknown macro '${nope}' found in a.cmd"),
        (model("cmdStop: '${nope}'"), "unknown macro '${nope}' found in a.cmdStop"),
        (model("proxy: 'http://${nope}'"), "unknown macro '${nope}' found in a.proxy"),
        (model("checkEndpoint: '${nope}'"), "unknown macro '${nope}' found in a.checkEndpoint"),
        (model("name: '${nope}'"), "unknown macro '${nope}' found in a.name"),
        (model("description: '${nope}'"), "unknown macro '${nope}' found in a.description"),
        (model("filters: {stripParams: '${nope}'}"), "unknown macro '${nope}' found in a.filters.stripParams"),
        (model("metadata: {k: '${nope}'}"), "model a metadata: unknown macro '${nope}'"),
        (model("useModelName: '${nope}'"), "model a useModelName: unknown macro '${nope}'"),
        (model("filters: {setParamsByID: {'${nope}': {}}}"),
         "unknown macro '${nope}' found in model a filters.setParamsByID key"),
        ("apiKeys: ['${nope}']", "apiKeys[0]: unknown macro '${nope}'"),
        ("peers: {p: {proxy: '${nope}', models: [x]}}", "peers.p.proxy: unknown macro '${nope}'"),
        ("macros: {a: '${b}', b: 1}\n" + model("name: '${a}'"), "unknown macro '${b}'"),
    ],
    "§6 ports": [
        ("models: {a: {cmd: x}}",
         "model a: proxy uses ${PORT} but cmd does not - ${PORT} is only available when used in cmd"),
        ("startPort: 0", "startPort must be greater than 1"),
    ],
    "§7 top-level keys": [
        ("globalTTL: -1", "globalTTL must be >= 0"),
        ("unloadTimeout: -1", "unloadTimeout must be >= 0"),
        ("apiKeys: ['']", "empty api key found in apiKeys"),
        ("apiKeys: [k, 'a b']", "apiKeys[1]: api key cannot contain spaces"),
        ("logToStdout: nowhere", "logToStdout must be one of: proxy, upstream, both, none"),
    ],
    "§8 keys of a model": [
        (model("ttl: -2"), "model a: invalid TTL value -2"),
        (model("unloadTimeout: -1"), "model a: invalid unloadTimeout value -1"),
        (model("aliases: [x, x]"), "duplicate alias x found in model: a"),
        (f"models: {{a: {{{MODEL}, aliases: [x]}}, b: {{{MODEL}, aliases: [x]}}}}",
         "duplicate alias x found in model: b"),
        (model("env: {A: b}"), "cannot unmarshal !!map into []string"),
        (model("proxy: 'http://h/%zz'"), "model a: invalid proxy URL: "),
        (model("proxy: 'http://h:port'"), "model a: invalid proxy URL: "),
        (model("capabilities: {in: [smell]}"),
         'model a: capabilities.in: invalid modality "smell", must be one of: text, audio, image'),
        (model("capabilities: {context: -1}"), "model a: capabilities.context: must be >= 0"),
        (model("checkEndpoint: /%zz"), "%zz"),
    ],
    "§9 filters": [
        (f"models: {{a: {{{MODEL}, filters: {{setParamsByID: {{b: {{}}}}}}}}, b: {{{MODEL}}}}}",
         "model a filters.setParamsByID: key 'b' conflicts with an existing model ID"),
        (f"models: {{a: {{{MODEL}, aliases: [k]}}, b: {{{MODEL}, filters: {{setParamsByID: {{k: {{}}}}}}}}}}",
         "duplicate alias 'k' in model b filters.setParamsByID, already used by model a"),
        ("macros: {m: k}\n" + model("filters: {setParamsByID: {k: {}, '${m}': {}}}"),
         "resolve to the same value"),
    ],
    "§11 groups": [
        (with_two("groups: {g: {members: [a, a]}}"), "duplicate model member a found in group: g"),
        (with_two("groups: {g: {members: [a]}, h: {members: [a]}}"), "model member a is used in multiple groups: "),
        (with_two("groups: {g: {members: [z]}}"), 'no model config for "z"'),
    ],
    "§12 matrix": [
        (matrix("{sets: {s: a}}\ngroups: {g: {members: [a]}}"), "config cannot use both 'groups' and 'matrix'"),
        (matrix("{vars: {a_b: a}, sets: {s: a}}"),
         'matrix: var key "a_b" must contain only alphanumeric, \'-\' or \'.\' characters and be 1-32 characters long'),
        (matrix("{vars: {v: z}, sets: {s: a}}"), 'matrix: var key "v" references unknown model "z"'),
        (matrix("{evict_costs: {a: 0}, sets: {s: a}}"),
         'matrix: evict_cost for "a" must be a positive integer, got 0'),
        (matrix("{evict_costs: {z: 1}, sets: {s: a}}"), 'matrix: evict_costs: unknown var or model "z"'),
        (matrix("{sets: {}}"), "matrix must define at least one set"),
        (matrix("{sets: {s: ''}}"), 'set "s": empty DSL expression'),
        (matrix("{sets: {s: 'a @ b'}}"), "tokenize: unexpected character '@' at position 2"),
        (matrix("{sets: {s: 'a & + '}}"), "tokenize: expected set name after '+'"),
        (matrix("{sets: {s: '(a & b'}}"), "parse: missing closing parenthesis"),
        (matrix("{sets: {s: 'a b'}}"), "parse: unexpected token"),
        (matrix("{sets: {s: 'a & z'}}"), 'set "s": unknown var or model "z"'),
        (matrix("{sets: {s: '+t'}}"), 'set "s" references undefined set "t"'),
        (matrix("{sets: {s: '+t', t: '+s'}}"), "circular reference detected involving set "),
    ],
    "§13 routing": [
        (with_two("routing: {router: {use: matrix}}"),
         "routing.router.use is 'matrix' but routing.router.settings.matrix is not set"),
        ("routing: {router: {use: x}}", 'routing.router.use: unknown router "x" (valid: group, matrix)'),
        ("routing: {scheduler: {use: x}}", 'routing.scheduler.use: unknown scheduler "x" (valid: fifo)'),
        ("routing: {scheduler: {settings: {fifo: {priority: {x: 1}}}}}",
         'routing.scheduler.settings.fifo.priority references unknown model "x"'),
        (with_two("groups: {g: {members: [a]}}\nrouting: {router: {settings: {groups: {h: {members: [b]}}}}}"),
         "routing.router"),
    ],
    "§14 selectors": [
        (with_two("selectors: {' ': {strategy: pin, targets: [a]}}"), "selectors: selector names cannot be empty"),
        (with_two("selectors: {a: {strategy: pin, targets: [b]}}"), 'name conflicts with model ID "a"'),
        (with_two("selectors: {s: {targets: [b]}}"), "selectors.s.strategy is required"),
        (with_two("selectors: {s: {strategy: x, targets: [b]}}"),
         'selectors.s.strategy: unknown strategy "x" (valid: warm, pin, spillover)'),
        (with_two("selectors: {s: {strategy: pin}}"), "selectors.s.targets must contain at least one entry"),
        (with_two("selectors: {s: {strategy: pin, targets: [t]}, t: {strategy: pin, targets: [a]}}"),
         'selectors.s.targets[0] references selector "t"; selector chaining is not supported'),
        (with_two("selectors: {s: {strategy: pin, targets: [z]}}"),
         'selectors.s.targets[0] references unknown model "z"'),
        (with_two("selectors: {s: {strategy: spillover, targets: [a], settings: {spillover: 0}}}"),
         "selectors.s.settings.spillover must be >= 1"),
        (with_two("selectors: {s: {strategy: spillover, targets: [a, a]}}"),
         'selectors.s.targets contains duplicate resolved model "a"'),
        (with_two("peers: {p: {proxy: 'http://x', models: [y]}}\nselectors: {s: {strategy: warm, targets: [y]}}"),
         'selectors.s.targets[0] must resolve to a local model for strategy "warm"'),
        (with_two("groups: {g: {members: [a, b]}}\nselectors: {s: {strategy: spillover, targets: [a, b]}}"),
         "spillover targets must share a group with swap: false"),
        (with_two("matrix: {sets: {s: a, t: b}}\nselectors: {s: {strategy: spillover, targets: [a, b]}}"),
         "targets must all appear together in one expanded matrix set"),
    ],
    "§15 profiles": [
        (with_two("profiles: {'': {pins: {x: a}}}"), "profiles: profile names cannot be empty"),
        (with_two("profiles: {p: {}}"), "profiles.p.pins must contain at least one entry"),
        (with_two("profiles: {p: {pins: {'': a}}}"), "profiles.p.pins: pin names cannot be empty"),
        (with_two("profiles: {p: {pins: {n: z}}}"), 'profiles.p.pins.n references unknown model "z"'),
        (with_two("profiles: {p: [a]}"),
         "profile must be a mapping with description and pins; the legacy list syntax is no longer supported"),
    ],
    "§16 peers": [
        ("peers: {p: {models: [x]}}", "proxy is required"),
        ("peers: {p: {proxy: 'http://h/%zz', models: [x]}}", "invalid peer proxy URL (http://h/%zz): "),
        ("peers: {p: {proxy: 'http://x', models: []}}", "peer models can not be empty"),
        ("peers: {p: {proxy: 'http://x', models: [q/x]}, p/q: {proxy: 'http://x', models: [x]}}",
         'peer model name "p/q/x" is ambiguous between '),
        (f"peers: {{p: {{proxy: 'http://x', models: [x]}}}}\nmodels: {{p/x: {{{MODEL}}}}}",
         'model ID "p/x" conflicts with fully qualified peer model name'),
    ],
    "§17 the remaining sections": [
        ("upstream: {ignorePaths: ['(']}", 'upstream.ignorePaths: invalid regular expression "(": '),
        ("upstream: {ignorePaths: ['(?=x)']}", 'upstream.ignorePaths: invalid regular expression "(?=x)": '),
        ("performance: {every: 1s}", "performance: every must be at least 5s, got 1s"),
        ("performance: {every: 15}", "every"),
        ("store: {path: ''}", "store.path must not be empty"),
        ("store: {path: /tmp}", "store.path: /tmp is a directory, not a file"),
        ("store: {path: /nonexistent/x.db}", "store.path: directory /nonexistent is not writable: "),
    ],
}  # fmt: skip

CASES = [
    pytest.param(text, message, id=f"{place[1:]}: {message}".encode("ascii", "ignore").decode())
    for place, cases in REFUSED.items()
    for text, message in cases
]


@pytest.mark.parametrize(("text", "message"), CASES)
async def test_it_is_refused_with_this_text(live: Live, text: str, message: str) -> None:
    assert message in await live.refused(text)


@pytest.mark.parametrize("text", [model("proxy: 'http://%zz'"), "peers: {p: {proxy: 'http://%zz', models: [x]}}"])
async def test_a_bad_escape_in_the_host_of_a_proxy_is_refused(live: Live, text: str) -> None:
    assert "proxy URL" in await live.refused(text)


VALID = ["", "# only a comment", "models:\n", "models: {}\n---\nmodels: [broken]", "startPort: 1"]


@pytest.mark.parametrize("text", VALID)
async def test_what_is_empty_or_odd_is_valid(live: Live, text: str) -> None:
    it = await live.reload_text(text)
    assert (await it.ask("/v1/models")).json()["data"] == []
