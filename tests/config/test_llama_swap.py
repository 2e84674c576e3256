"""What llama-swap loads, loads here, and to the same effect."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest

from eardrum.config.llama_swap import UpstreamRoutes
from tests.config.conftest import Reader

MODEL = "models: {a: {cmd: 's ${PORT}'}}\n"

LOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "minimal": (
        "models:\n  a:\n    cmd: server --port ${PORT}\n",
        {
            "models[a].cmd": "server --port 5800",
            "models[a].proxy": "http://localhost:5800",
            "models[a].check_endpoint": "/health",
        },
    ),
    "empty file": ("", {"models": {}, "health_check_timeout": 120, "start_port": 5800, "unload_timeout": 10}),
    "no models": ("models:\n", {"models": {}}),
    "macros in comments": (
        "# ${nothing}\nmodels:\n  a:\n    cmd: |\n      # ${nothing}\n      server ${PORT}\n        # ${PORT}\n",
        {"models[a].cmd": "server 5800\n"},
    ),
    "unknown keys": ("foo: 1\nmodels: {a: {cmd: 's ${PORT}', bar: {baz: 1}}}", {"models[a].cmd": "s 5800"}),
    "anchors and merges": (
        "x: &base {cmd: 's ${PORT} ${MODEL_ID}', ttl: 5}\nmodels:\n  a: {<<: *base, ttl: 6}\n  b: *base\n",
        {"models[a].ttl": 6, "models[b].ttl": 5, "models[a].cmd": "s 5800 a", "models[b].cmd": "s 5801 b"},
    ),
    "a list of merges": (
        "x: &x {cmd: 's ${PORT}'}\ny: &y {ttl: 3, cmd: no}\nmodels: {a: {<<: [*x, *y]}}",
        {"models[a].cmd": "s 5800", "models[a].ttl": 3},
    ),
    "strip_params": (
        "models: {a: {cmd: 's ${PORT}', filters: {strip_params: 'top_k, seed'}}}",
        {"models[a].filters.strip_params": "top_k, seed"},
    ),
    "env macro in a comment": (f"# ${{env.NOTHING}}\n{MODEL}  # ${{env.NOTHING}}", {"models[a].cmd": "s 5800"}),
    "an empty proxy": ("models: {a: {cmd: 's ${PORT}', proxy: ''}}", {"models[a].proxy": "http://localhost:5800"}),
    "no paths to ignore": ("upstream: {ignorePaths: []}", {"upstream.ignore_paths": UpstreamRoutes().ignore_paths}),
    "empty cmd": ("models: {a: {cmd: '', proxy: 'http://x'}}", {"models[a].cmd": "", "models[a].proxy": "http://x"}),
    "healthCheckTimeout of 3": (f"healthCheckTimeout: 3\n{MODEL}", {"health_check_timeout": 15}),
    "preload of unknown": (
        f"hooks: {{on_startup: {{preload: [' a ', '', nobody]}}}}\n{MODEL}",
        {"hooks.on_startup.preload": ("a", "nobody")},
    ),
    "preload by alias": (
        "hooks: {on_startup: {preload: [b]}}\nmodels: {a: {cmd: 's ${PORT}', aliases: [b]}}",
        {"hooks.on_startup.preload": ("a",)},
    ),
    "members left empty": (f"groups:\n  x:\n    members:\n{MODEL}", {"groups[x].members": (), "groups[x].swap": True}),
    "PID in cmdStop": (
        "models: {a: {cmd: 's ${PORT}', cmdStop: 'kill ${PID} ${PORT}'}}",
        {"models[a].cmd_stop": "kill ${PID} 5800"},
    ),
    "macros in keys of setParamsByID": (
        "macros: {m: fast}\nmodels: {a: {cmd: 's ${PORT}', filters: {setParamsByID: {'${MODEL_ID}:${m}': {x: '${PORT}'}}}}}",
        {"models[a].filters.set_params_by_id": {"a:fast": {"x": 5800}}, "models[a].aliases": ("a:fast",)},
    ),
    "parameters by a name that is known": (
        "models: {a: {cmd: 's ${PORT}', aliases: [x], filters: {setParamsByID: {y: {}, x: {}, a: {}}}}}",
        {"models[a].aliases": ("x", "y")},
    ),
    "typed macros": (
        "macros: {n: 5, b: true, f: 0.5}\nmodels: {a: {cmd: 's ${PORT} ${n} ${b} ${f}', ttl: '${n}', unlisted: '${b}',"
        " metadata: {f: '${f}', n: [x, '${n}'], s: '${n}k'}}}",
        {
            "models[a].ttl": 5,
            "models[a].unlisted": True,
            "models[a].cmd": "s 5800 5 true 0.5",
            "models[a].metadata": {"f": 0.5, "n": ["x", 5], "s": "5k"},
        },
    ),
    "yes and on": (
        "models: {a: {cmd: 's ${PORT}', unlisted: yes, sendLoadingState: on}, b: {cmd: 's ${PORT}', unlisted: off}}",
        {"models[a].unlisted": True, "models[a].send_loading_state": True, "models[b].unlisted": False},
    ),
    "words that are text": (
        "models: {a: {cmd: 's ${PORT}', aliases: [no, on, 1:30, 012, 1.10, true, 0x10, ~x]}}",
        {"models[a].aliases": ("no", "on", "1:30", "012", "1.10", "true", "0x10", "~x")},
    ),
    "octal": ("startPort: 012000\n" + MODEL, {"start_port": 5120, "models[a].cmd": "s 5120"}),
    "logLevel: banana": (f"logLevel: banana\n{MODEL}", {"log.level": "info"}),
    "logLevel: warn": ("logLevel: warn", {"log.level": "warning"}),
    "log.level wins": ("logLevel: debug\nlog: {level: error}", {"log.level": "error"}),
    "peer and local of one name": (f"peers: {{p: {{proxy: 'http://x', models: [a]}}}}\n{MODEL}", {"peers[p].models": ("a",)}),
    "matrix": (
        "models: {a: {cmd: 's ${PORT}'}, b/c: {cmd: 's ${PORT}'}}\n"
        "matrix: {vars: {v: b/c}, evict_costs: {v: 9}, sets: {x: a & v, y: a | +x}}",
        {"matrix.sets": {"x": "a & v", "y": "a | +x"}, "groups": {}},
    ),
    "a model that is null": ("models: {a: }", {"models[a].cmd": "", "models[a].proxy": ""}),
    "numbers as names": (
        "models:\n  2: {cmd: 's ${PORT} ${MODEL_ID}'}\n  x: {cmd: 's ${PORT}'}\n",
        {"models[2].cmd": "s 5800 2", "models[x].cmd": "s 5801"},
    ),
    "an alias that is another model": (
        "models: {a: {cmd: 's ${PORT}', aliases: [b, c]}, b: {cmd: 's ${PORT}'}}",
        {"models[a].aliases": ("c",)},
    ),
    "ttl of 1.5": ("models: {a: {cmd: 's ${PORT}', ttl: 1.5}}", {"models[a].ttl": 1.5}),
    "whole numbers with a fraction": (
        "models: {a: {cmd: 's ${PORT}', concurrencyLimit: 2.7}}",
        {"models[a].concurrency_limit": 2},
    ),
    "ports by the order of names": (
        "startPort: 9000\nmodels: {z: {cmd: 's ${PORT}'}, b: {cmd: s, proxy: 'http://x'}, a: {cmd: 's ${PORT}'},"
        " B: {cmd: 's ${PORT}'}}",
        {"models[B].cmd": "s 9000", "models[a].cmd": "s 9001", "models[b].proxy": "http://x", "models[z].cmd": "s 9002"},
    ),
    "macros of a model win": (
        "macros: {x: one, y: '${x}!'}\nmodels: {a: {macros: {x: two}, cmd: 's ${PORT} ${y}'}, b: {cmd: 's ${PORT} ${y}'}}",
        {"models[a].cmd": "s 5800 two!", "models[b].cmd": "s 5801 one!"},
    ),
    "a macro may hold PORT and MODEL_ID": (
        "macros: {s: 'server --port ${PORT} -m ${MODEL_ID}'}\nmodels: {a: {cmd: '${s}'}}",
        {"models[a].cmd": "server --port 5800 -m a"},
    ),
    "macros in peers and elsewhere": (
        "macros: {k: secret, n: 3}\n"
        "peers: {p: {proxy: 'http://${k}', apiKey: '${k}', models: [m], filters: {setParams: {t: '${n}'}}}}\n"
        "apiKeys: ['${k}']\nglobalTTL: ${n}",
        {"peers[p].api_key": "secret", "peers[p].filters.set_params": {"t": 3}, "api_keys[0].key": "secret", "default_ttl": 3},
    ),
    "routing": (
        MODEL + "routing: {router: {settings: {groups: {g: {members: [a], swap: false}}}},"
        " scheduler: {settings: {fifo: {priority: {a: 5}}}}}",
        {"groups[g].swap": False, "matrix": None, "models[a].priority": 5},
    ),
    "routing by matrix": (
        MODEL + "routing: {router: {use: matrix, settings: {groups: {g: {members: [a]}}, matrix: {sets: {x: a}}}}}",
        {"groups": {}, "matrix.sets": {"x": "a"}},
    ),
    "per-model healthCheckTimeout": (
        "healthCheckTimeout: 60\nmodels: {a: {cmd: 's ${PORT}', healthCheckTimeout: 500}}",
        {"health_check_timeout": 60},
    ),
    "unloadTimeout": (
        "unloadTimeout: 0\nmodels: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}', unloadTimeout: 3}}",
        {"unload_timeout": 10, "models[a].unload_timeout": 10, "models[b].unload_timeout": 3},
    ),
    "sendLoadingState": (
        "sendLoadingState: true\nmodels: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}', sendLoadingState: false}}",
        {"models[a].send_loading_state": True, "models[b].send_loading_state": False},
    ),
    "comfyui_auto": (
        "models: {comfyui_auto: {cmd: 's ${PORT}', concurrencyLimit: 4}}",
        {"models[comfyui_auto].concurrency_limit": 50, "models[comfyui_auto].compat.ignore_websockets": True},
    ),
    "comfyui_auto with a higher limit": (
        "models: {comfyui_auto: {cmd: 's ${PORT}', concurrencyLimit: 400}}",
        {"models[comfyui_auto].concurrency_limit": 400},
    ),
    "profiles": (
        f"profiles: {{p: {{pins: {{x: a, y: '', z: ~}}}}}}\n{MODEL}",
        {"profiles[p].pins": {"x": "a", "y": "", "z": None}},
    ),
    "spillover in a group": (
        "models: {a: {cmd: 's ${PORT}', aliases: [aa]}, b: {cmd: 's ${PORT}'}}\ngroups: {g: {swap: false, members: [a, b]}}\n"
        "selectors: {s: {strategy: spillover, targets: [aa, b], settings: {spillover: 2}}}",
        {"selectors[s].settings.spillover": 2},
    ),
    "spillover in a matrix": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}, c: {cmd: 's ${PORT}'}}\nmatrix: {sets: {x: c | a & (c | b)}}\n"
        "selectors: {s: {strategy: spillover, targets: [a, b]}}",
        {"selectors[s].targets": ("a", "b")},
    ),
    "spillover to a peer": (
        "models: {a: {cmd: 's ${PORT}'}, b: {cmd: 's ${PORT}'}}\npeers: {p: {proxy: 'http://x', models: [m]}}\n"
        "selectors: {s: {strategy: spillover, targets: [a, m, p/m]}}",
        {"selectors[s].targets": ("a", "m", "p/m")},
    ),
    "capabilities": (
        "models: {a: {cmd: 's ${PORT}', capabilities: {in: [text, audio], out: [text], context: 4096, tools: true}}}",
        {"models[a].capabilities.inputs": ("text", "audio"), "models[a].capabilities.context": 4096},
    ),
    "performance": ("performance: {disabled: true, every: 1m30s}", {"performance.every": "1m30s"}),
    "env": ("models: {a: {cmd: 's ${PORT}', env: ['X=${PORT}', Y=]}}", {"models[a].env": ("X=5800", "Y=")}),
    "two documents": (f"{MODEL}---\nmodels: {{b: {{cmd: x}}}}", {"models[a].cmd": "s 5800"}),
    "an empty list of paths to ignore": (
        "upstream: {ignorePaths: }",
        {"upstream.ignore_paths": (r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",)},
    ),
}


@pytest.mark.parametrize(("text", "expected"), LOADS.values(), ids=LOADS.keys())
def test_what_loads(read_config: Reader, text: str, expected: dict[str, Any]) -> None:
    settings = read_config(text).settings
    assert {path: get_value(settings, path) for path in expected} == expected


def get_value(value: Any, path: str) -> Any:
    """The value behind `a.b[c].d`."""
    for part in path.replace("]", "").split("."):
        name, _, key = part.partition("[")
        value = attrgetter(name)(value)
        value = (value[int(key)] if isinstance(value, tuple) else value[key]) if key else value
    return value
