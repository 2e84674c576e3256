"""What is accepted but probably not meant."""

from __future__ import annotations

import pytest

from tests.config.conftest import Reader, list_warnings

MODEL = "models: {a: {cmd: 's ${PORT}'}}\n"

WARNS = {
    "an unknown key": (f"{MODEL}globalTtl: 3", ["config.yaml:2: Unknown setting globalTtl. Did you mean globalTTL?"]),
    "a key in the wrong place": (
        "ttl: 1800",
        ["config.yaml:1: Unknown setting ttl. There is a models.NAME.ttl: is it in the right place?"],
    ),
    "an unknown key of a model": (
        "models:\n  a:\n    cmd: s ${PORT}\n    chekEndpoint: none",
        ["config.yaml:4: Unknown setting models.a.chekEndpoint. Did you mean checkEndpoint?"],
    ),
    "a setting of everybody's for one model": (
        "models:\n  a: {source: tiny, device: cuda}",
        [
            "config.yaml:2: Unknown setting models.a.device. `device` at the top is for all models. Options of a model's engine "
            "belong below its `options:`."
        ],
    ),
    "a setting of an engine": (
        "models:\n  a: {source: tiny, beam_size: 3}",
        [
            "config.yaml:2: Unknown setting models.a.beam_size. Did you mean batch_size? Options of a model's engine "
            "belong below its `options:`."
        ],
    ),
    "an unknown key deeper": (
        "groups: {g: {persistant: true}}",
        ["config.yaml:1: Unknown setting groups.g.persistant. Did you mean persistent?"],
    ),
    "a key of ours deeper": (
        "live: {idle_timout: 1}",
        ["config.yaml:1: Unknown setting live.idle_timout. Did you mean idle_timeout?"],
    ),
    "a key like nothing": (
        "zzzzzz: 1",
        ["config.yaml:1: Unknown setting zzzzzz. `docs/reference/config.md` lists all settings."],
    ),
    "somebody's own": ("x-mine: &a {ttl: 1}\nmodels: {a: {proxy: 'http://x', <<: *a}}", []),
    "in the order of the file": ("bbbbbb: 1\naaaaaa: 1", ["bbbbbb", "aaaaaa"]),
    "without effect": (
        "logTimeFormat: rfc3339\nmodels: {a: {cmd: 's ${PORT}', healthCheckTimeout: 20}}",
        [
            "config.yaml:1: logTimeFormat has no effect here",
            "models.a.healthCheckTimeout has no effect here: the server's counts",
        ],
    ),
    "without effect, deeper": (
        "peers: {p: {proxy: 'http://x', models: [m], timeouts: {expectContinue: 1}}}",
        ["expectContinue has no"],
    ),
    "a short time to start": ("healthCheckTimeout: 3", ["healthCheckTimeout is at least 15 seconds."]),
    "a level that is none": ("logLevel: banana", ["logLevel 'banana' is none of debug, info,"]),
    "two levels": ("logLevel: debug\nlog: {level: error}", ["logLevel has no effect: log.level is set too"]),
    "a fraction": ("metricsMaxInMemory: 1.5", ["is a whole number: 1 counts.", "metricsMaxInMemory has no effect"]),
    "an alias never used": (
        "models:\n  a:\n    cmd: s ${PORT}\n    aliases:\n    - b\n  b: {cmd: 's ${PORT}'}",
        ["config.yaml:5: The alias 'b' of a is also the name of a model"],
    ),
    "an alias twice": ("models: {a: {cmd: 's ${PORT}', aliases: [x, x]}}", ["The alias 'x' of a is here twice."]),
    "a peer's model behind ours": (f"{MODEL}peers: {{p: {{proxy: 'http://x', models: [a]}}}}", ["the one of the peer is p/a"]),
    "a model of two peers": (
        "peers:\n  p: {proxy: 'http://x', models: [m]}\n  q: {proxy: 'http://y', models: [n, m]}",
        ["config.yaml:3: 'm' is a model of p, too: it is only found as p/m and q/m."],
    ),
    "one port for two": (
        "memory: {cpu: 1G}\nmodels:\n  a: {cmd: s --port 80, proxy: 'http://localhost:80'}\n  b: {cmd: s --port=80, proxy: 'http://localhost:80'}",
        ["config.yaml:4: a and b both listen on port 80."],
    ),
    "one port for two by proxy": (
        "groups: {g: {swap: false, members: [a, b]}}\nmodels:\n  a: {cmd: s, proxy: 'http://127.0.0.1:81'}\n  b: {cmd: s, proxy: 'http://localhost:81'}",
        ["both listen on port 81"],
    ),
    "one port for two in turn": (
        "groups: {g: {members: [a, b]}}\nmodels:\n  a: {cmd: s --port 80, proxy: 'http://localhost:80'}\n"
        "  b: {cmd: s --port 80, proxy: 'http://localhost:80'}",
        [],
    ),
    "one port inside two containers": (
        "groups: {g: {swap: false, members: [a, b]}}\nmodels:\n  a: {cmd: 'docker run -p ${PORT}:80 x --port 80'}\n"
        "  b: {cmd: 'docker run -p ${PORT}:80 x --port 80'}",
        [],
    ),
    "the port for Home Assistant, where there is none": (
        "wyoming: {enabled: false}\nmodels: {a: {cmd: s --port 10300, proxy: 'http://localhost:10300'}}",
        [],
    ),
    "nothing to run": ("models: {a: {cmd: '  ', proxy: 'http://x'}}", ["The `cmd` of a is empty"]),
    "nothing to stop": ("models: {a: {cmdStop: x, proxy: 'http://x'}}", ["cmdStop has no effect"]),
    "a variable without a value": (
        "models: {a: {cmd: 's ${PORT}', env: [X]}}",
        ["models.a.env[0] is not of the form NAME=value."],
    ),
    "a second document": (f"{MODEL}---\nx: 1", ["Only the first document of a file counts"]),
    "nothing to say": (MODEL, []),
}


@pytest.mark.parametrize(("text", "says"), WARNS.values(), ids=WARNS.keys())
def test_what_is_told(read_config: Reader, text: str, says: list[str]) -> None:
    warnings = list_warnings(read_config(text))
    assert len(warnings) == len(says), warnings
    assert all(expected in warning for expected, warning in zip(says, warnings, strict=True)), warnings
