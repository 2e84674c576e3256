"""What llama-swap refuses is refused here, with the line and what to do."""

from __future__ import annotations

import pytest

from tests.config.conftest import Refuser

MODEL = "models: {a: {cmd: 's ${PORT}'}}\n"

FAILS = {
    "forward macro": ("macros:\n  x: ${y}\n  y: 1\nmodels: {a: {cmd: 's ${PORT} ${x}'}}", 4, "${y} is used before it is defined"),
    "a global that uses a model's": (
        "macros: {x: '${y}'}\nmodels:\n  a: {cmd: 's ${PORT} ${x}', macros: {y: 1}}",
        3,
        "used before it is defined",
    ),
    "a model that stands in for itself": (
        "models:\n  b: {proxy: 'http://x'}\n  a: {proxy: 'http://x', fallback: [b, a]}",
        3,
        "models.a.fallback names a itself, which cannot replace itself.",
    ),
    "a model that stands in for itself under an alias": (
        "models:\n  a: {proxy: 'http://x', aliases: [other], fallback: [other]}",
        2,
        "models.a.fallback names a itself (as other)",
    ),
    "unknown macro": (
        "macros: {model: m}\nmodels:\n  a:\n    cmd: s ${PORT}\n    name: ${modle}",
        5,
        "models.a.name: There is no macro ${modle}. Did you mean ${model}?",
    ),
    "a variable of the shell": ("models:\n  a: {cmd: 'sh ${HOME} ${PORT}'}", 2, "environment is ${env.HOME}"),
    "PID elsewhere": ("models: {a: {cmd: 's ${PORT} ${PID}'}}", 1, "models.a.cmd: ${PID} is not known here"),
    "unknown macro in a list": ("models:\n  a:\n    cmd: s ${PORT}\n    env:\n    - A=b\n    - B=${x}", 6, "models.a.env[1]"),
    "unknown macro in a key": (
        "models:\n  a:\n    cmd: s ${PORT}\n    filters:\n      setParamsByID:\n        ${x}: {}",
        6,
        "no macro ${x}",
    ),
    "unknown macro in a peer": ("peers:\n  p: {proxy: 'http://x', apiKey: '${x}', models: [m]}", 2, "peers.p.apiKey"),
    "macro in a model key": (
        "macros: {m: x}\nmodels:\n  ${m}:\n    cmd: s ${MODEL_ID}",
        3,
        "The name of a model cannot hold macros: ${m}.",
    ),
    "missing env": ("a: 1\nmodels:\n  a: {cmd: '${env.NOTHING}'}", 3, "The environment variable NOTHING is not set."),
    "missing env in a flow": ("apiKeys: [${env.NOTHING}]", 1, "NOTHING is not set"),
    "missing env in a key": ("models:\n  ${env.NOTHING}: {cmd: x}", 2, "NOTHING is not set"),
    "default proxy without PORT": ("models:\n  a:\n    cmd: server", 2, "http://localhost:${PORT}, which uses ${PORT}"),
    "proxy with PORT but not cmd": ("models:\n  a:\n    cmd: server\n    proxy: http://x:${PORT}", 4, "but its `cmd` does not"),
    "profiles that are lists": ("profiles:\n  p: [a]", 2, "lists of models are no longer supported"),
    "profiles without pins": ("profiles:\n  p: {description: x}", 2, "profiles.p.pins is missing"),
    "profiles with no pin": ("profiles:\n  p:\n    pins: {}", 3, "profiles.p.pins is wrong"),
    "a pin to nobody": (f"{MODEL}profiles:\n  p:\n    pins:\n      x: nobody", 5, "there is no model 'nobody'"),
    "duplicate alias": (
        "models:\n  a: {cmd: 's ${PORT}', aliases: [x]}\n  b:\n    cmd: s ${PORT}\n    aliases:\n    - y\n    - x",
        7,
        "The alias 'x' of b is already one of a",
    ),
    "parameters by another model's name": (
        "models:\n  a:\n    cmd: s ${PORT}\n    filters:\n      setParamsByID:\n        b: {}\n  b: {cmd: 's ${PORT}'}",
        6,
        "aliases of a, but 'b' is the name of another model",
    ),
    "parameters by another model's alias": (
        "models:\n  a: {cmd: 's ${PORT}', filters: {setParamsByID: {x: {}}}}\n  b: {cmd: 's ${PORT}', aliases: [x]}",
        2,
        "'x' is one of b",
    ),
    "groups and routing": (f"{MODEL}groups: {{g: {{members: [a]}}}}\nrouting: {{router: {{use: group}}}}", 2, "both `groups`"),
    "matrix and routing": (f"{MODEL}matrix: {{sets: {{g: a}}}}\nrouting: {{router: {{use: group}}}}", 2, "both `matrix`"),
    "groups and matrix": (f"{MODEL}groups: {{g: {{members: [a]}}}}\nmatrix: {{sets: {{x: a}}}}", 3, "only one can decide"),
    "routing by a matrix that is not there": ("routing:\n  router:\n    use: matrix", 3, "routing.router.settings has none"),
    "an unknown router": ("routing:\n  router:\n    use: dice", 3, "'group' or 'matrix'"),
    "an unknown scheduler": ("routing:\n  scheduler:\n    use: lifo", 3, "'fifo'"),
    "two groups": (f"{MODEL}groups:\n  g: {{members: [a]}}\n  h: {{members: [a]}}", 4, "in the group g and in h"),
    "twice in a group": (f"{MODEL}groups:\n  g:\n    members:\n    - a\n    - a", 6, "twice in the group g"),
    "an unknown member": (f"{MODEL}groups:\n  g: {{members: [aa]}}", 3, "no model 'aa' under `models:`. Did you mean a?"),
    "an alias as a member": (
        "models: {a: {cmd: 's ${PORT}', aliases: [x]}}\ngroups:\n  g: {members: [x]}",
        3,
        "'x' is an alias of a",
    ),
    "a priority of nobody": (
        f"{MODEL}routing:\n  scheduler:\n    settings:\n      fifo:\n        priority:\n          bb: 1",
        7,
        "there is no model 'bb'",
    ),
    "ttl -2": ("models:\n  a: {cmd: 's ${PORT}', ttl: -2}", 2, "models.a.ttl is wrong"),
    "ttl in quotes": ("models:\n  a:\n    cmd: s ${PORT}\n    ttl: '60'", 4, "must be a number, without quotes (it is '60')"),
    "ttl true": ("models: {a: {cmd: 's ${PORT}', ttl: true}}", 1, "must be a number or a time such as 10m (it is True)"),
    "globalTTL -1": ("globalTTL: -1", 1, "globalTTL is wrong"),
    "startPort 0": ("startPort: 0", 1, "startPort is wrong"),
    "unloadTimeout -1": ("unloadTimeout: -1", 1, "unloadTimeout is wrong"),
    "too many models for the ports": (
        "startPort: 65535\nmodels: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}",
        0,
        "startPort 65535 is too high",
    ),
    "macro that is a list": ("macros:\n  x: [1]", 2, "The macro x must be text, a number, true or false."),
    "macro that is null": ("macros:\n  x:", 2, "The macro x must be"),
    "macros that are a list": ("macros:\n- x", 1, "macros must map names to values"),
    "reserved macro": ("macros:\n  PORT: 1", 2, "reserved"),
    "reserved macro of a model": ("models:\n  a:\n    macros:\n      MODEL_ID: x", 4, "reserved"),
    "self macro": ("macros:\n  x: a ${x} b", 2, "The macro x contains itself."),
    "macro with a bad name": ("macros:\n  a.b: 1", 2, "needs another name"),
    "macro with a long name": (f"macros:\n  {'x' * 64}: 1", 2, "needs another name"),
    "duplicate key": ("models:\n  a:\n    ttl: 1\n    cmd: x ${PORT}\n    ttl: 2", 5, "'ttl' is here twice, first in line 3"),
    "duplicate model": ("models:\n  2: {}\n  '2': {}", 3, "'2' is here twice"),
    "performance.every: 1s": ("performance:\n  every: 1s", 2, "performance.every is wrong: at least 5s"),
    "performance.every: often": ("performance:\n  every: often", 2, "not a duration"),
    "capability video": (
        "models:\n  a:\n    cmd: s ${PORT}\n    capabilities:\n      in: [video]",
        5,
        "'text', 'audio' or 'image'",
    ),
    "a time without end": ("default_ttl: .inf", 1, "default_ttl is wrong: Input should be a finite number"),
    "a model's time without end": (
        "models:\n  a: {cmd: 's ${PORT}', ttl: 1e999}",
        2,
        "ttl is wrong: Input should be a finite number",
    ),
    "a negative context": ("models:\n  a: {cmd: 's ${PORT}', capabilities: {context: -1}}", 2, "context is wrong"),
    "env map": ("models:\n  a:\n    cmd: s ${PORT}\n    env:\n      KEY: secret", 4, "models.a.env is wrong: it must be a list"),
    "models that are a list": ("models: [a]", 1, "models is wrong: it must map names to values"),
    "a model that is text": ("models:\n  a: x", 2, "models.a is wrong: it must hold settings by name"),
    "api key with space": ("apiKeys:\n- a\n- b c", 3, "apiKeys[1] holds a space"),
    "empty api key": ("apiKeys: ['']", 1, "apiKeys[0] is empty"),
    "logToStdout": ("logToStdout: banana", 1, "'proxy', 'upstream', 'both' or 'none'"),
    "store without a path": ("store:\n  path: ''", 2, "store.path is wrong"),
    "a peer without models": ("peers:\n  p: {proxy: 'http://x', models: []}", 2, "peers.p.models is wrong"),
    "a peer without an address": ("peers:\n  p: {models: [m]}", 2, "peers.p.proxy is missing"),
    "a peer with half an address": ("peers:\n  p: {proxy: 'x:80', models: [m]}", 2, "peers.p.proxy must be an address"),
    "a proxy that is no address": ("models:\n  a: {proxy: 'http://x:port'}", 2, "models.a.proxy must be an address"),
    "a bad pattern": ("upstream: {ignorePaths: ['(']}", 1, "not a regular expression"),
    "a selector named like a model": (f"{MODEL}selectors:\n  a: {{targets: [a]}}", 3, "has the name of a model"),
    "a selector of nobody": (f"{MODEL}selectors:\n  s: {{targets: [nobody]}}", 3, "selectors.s.targets[0]: there is no model"),
    "a target that two peers have": (
        "peers: {p: {proxy: 'http://x', models: [m]}, q: {proxy: 'http://y', models: [m]}}\nselectors:\n  s: {targets: [p/m, m]}",
        3,
        "selectors.s.targets[1]: there is no model 'm'",
    ),
    "a selector without targets": ("selectors:\n  s: {targets: []}", 2, "selectors.s.targets is wrong"),
    "a selector of selectors": (
        f"{MODEL}selectors:\n  s: {{targets: [a]}}\n  t: {{targets: [s]}}",
        4,
        "'s' is a selector itself",
    ),
    "an unknown strategy": (f"{MODEL}selectors:\n  s: {{strategy: dice, targets: [a]}}", 3, "'warm', 'pin' or 'spillover'"),
    "spillover between rivals": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}\ngroups: {g: {members: [a, b]}}\n"
        "selectors:\n  s:\n    strategy: spillover\n    targets: [a, b]",
        6,
        "evict each other",
    ),
    "spillover across groups": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}\n"
        "groups: {g: {swap: false, members: [a]}, h: {swap: false, members: [b]}}\n"
        "selectors: {s: {strategy: spillover, targets: [a, b]}}",
        3,
        "evict each other",
    ),
    "spillover without groups": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}\nselectors: {s: {strategy: spillover, targets: [a, b]}}",
        2,
        "put them into one group with `swap: false`",
    ),
    "spillover without a set": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}\nmatrix: {sets: {g: a | b}}\n"
        "selectors: {s: {strategy: spillover, targets: [a, b]}}",
        3,
        "No set of the matrix holds all targets of s",
    ),
    "spillover twice": (
        "models: {a: {cmd: 's ${PORT}', aliases: [x]}}\nselectors: {s: {strategy: spillover, targets: [a, x]}}",
        2,
        "has the target a twice",
    ),
    "an unknown word in a matrix": (
        f"{MODEL}matrix:\n  sets:\n    g: aa & a",
        4,
        "The set g cannot be read: there is no model 'aa'. Did you mean a?",
    ),
    "a matrix without sets": (f"{MODEL}matrix:\n  vars: {{x: a}}", 2, "matrix.sets is missing"),
    "a var of nobody": (f"{MODEL}matrix:\n  vars:\n    x: b\n  sets: {{g: x}}", 4, "There is no model 'b'."),
    "a cost of nothing": (f"{MODEL}matrix:\n  sets: {{g: a}}\n  evict_costs:\n    a: 0", 5, "matrix.evict_costs.a is wrong"),
    "a mistake in the new place": (
        f"{MODEL}routing:\n  router:\n    use: matrix\n    settings:\n      matrix:\n        sets:\n          g: a &",
        8,
        "it ends where a model is expected",
    ),
    "the server's own port": (
        "port: 8100\nmodels: {a: {cmd: s --port 8100, proxy: 'http://localhost:8100'}}",
        2,
        "a listens on port 8100, which is the server's own (port).",
    ),
    "the port for Home Assistant": (
        "models: {a: {cmd: s --port 10300, proxy: 'http://localhost:10300'}}",
        1,
        "the server's own (wyoming.port)",
    ),
    "one port for the server and for Home Assistant": (
        "port: 9000\nwyoming:\n  port: 9000",
        3,
        "port and wyoming.port are both 9000, and a port has one listener.",
    ),
    "the server where Home Assistant looks": ("host: 0.0.0.0\nport: 10300", 2, "port and wyoming.port are both 10300"),
    "one port on an address and on all of them": (
        "host: 0.0.0.0\nport: 9000\nwyoming: {host: 127.0.0.1, port: 9000}",
        3,
        "port and wyoming.port are both 9000",
    ),
    "two macros of one name": (
        "macros: {x: fast, y: fast}\nmodels:\n  a:\n    cmd: s ${PORT}\n    filters:\n      setParamsByID:\n"
        "        ${x}: {t: 1}\n        ${y}: {t: 2}",
        8,
        "${y} and ${x} are both 'fast' below models.a.filters.setParamsByID: keep one of them.",
    ),
    "a macro of a name that is there": (
        "macros: {x: fast}\nmodels:\n  a: {cmd: 's ${PORT}', filters: {setParamsByID: {fast: {t: 1}, '${x}': {t: 2}}}}",
        3,
        "${x} and fast are both 'fast'",
    ),
    "one setting in two spellings": (
        "models:\n  a: {cmd: 's ${PORT}', filters: {stripParams: a, strip_params: b}}",
        2,
        "strip_params and stripParams are the same setting: keep one of them.",
    ),
    "a time that is none": (
        "models:\n  a: {cmd: 's ${PORT}', ttl: soon}",
        2,
        "must be a number or a time such as 10m (it is 'soon')",
    ),
    "a size that is none": ("limits:\n  upload_bytes: big", 2, "must be a number or a size such as 50M (it is 'big')"),
    "a size of nothing": ("limits:\n  upload_bytes: 0M", 2, "limits.upload_bytes is wrong"),
    "a time below its bound": ("models:\n  a: {cmd: 's ${PORT}', ttl: -5m}", 2, "models.a.ttl is wrong: Input should be greater"),
    "a word like a known one": ("device: cudda", 1, "Did you mean cuda?"),
    "not YAML": ("models:\n  a: {\n", 3, "This is not valid YAML"),
    "no settings": ("- a", 0, "must hold settings by name"),
}


@pytest.mark.parametrize(("text", "line", "says"), FAILS.values(), ids=FAILS.keys())
def test_what_is_refused(get_refusal: Refuser, text: str, line: int, says: str) -> None:
    message = get_refusal(text)
    assert says in message
    assert not line or message.startswith(f"config.yaml:{line}: ")


def test_no_message_shows_a_secret(get_refusal: Refuser) -> None:
    for text in (
        "apiKeys: [hush hush]",
        "apiKeys: hush",
        "models: {a: {env: {KEY: hush}}}",
        "models: {a: {env: hush}}",
        "peers: {p: {apiKey: [hush], models: [m], proxy: 'http://x'}}",
        "apiKeys: [hush",
        "models: {a: {options: hush}}",
        "models: {a: {proxy: 'me:hush@x'}}",
    ):
        assert "hush" not in get_refusal(text)
    assert "hush" not in get_refusal("apiKeys: [${env.KEY}]", KEY="hush\n")
    assert "hush" not in get_refusal("apiKeys: ['${env.KEY}']", KEY="hush '")


def test_all_wrong_values_are_told_at_once(get_refusal: Refuser) -> None:
    text = "port: high\nstartPort: 0\nmodels:\n  a: {ttl: '60', env: x}\n  b: {ttl: -2}\npeers: {p: {models: m, proxy: x}}"
    told = get_refusal(text).split("\n")
    assert [line.split(" is ")[0] for line in told] == [
        "config.yaml:1: The setting port",
        "config.yaml:2: The setting startPort",
        "config.yaml:4: The setting models.a.ttl",
        "config.yaml:4: The setting models.a.env",
        "config.yaml:5: The setting models.b.ttl",
        "config.yaml:6: The setting peers.p.models",
    ]


def test_there_is_an_end_to_it(get_refusal: Refuser) -> None:
    told = get_refusal("models:\n" + "".join(f"  m{n}: {{ttl: x}}\n" for n in range(100))).split("\n")
    assert (len(told), told[-1]) == (21, "... and 80 more.")
