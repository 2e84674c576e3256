"""Whatever stands in a config, it loads or it is refused in words."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_origin

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eardrum import config
from eardrum.config import setting_names
from eardrum.errors import ConfigError
from tests.generated_cases import count_cases

WORDS = [
    "",
    "a",
    "b",
    "no",
    "yes",
    "60",
    "1.5",
    "${m}",
    "${n}",
    "${PORT}",
    "${MODEL_ID}",
    "http://x:1",
    "s ${PORT}",
    "a & (b | +a)",
    "warm",
]

scalars = st.none() | st.booleans() | st.integers(-2, 70000) | st.floats(-2, 3) | st.sampled_from(WORDS)
names = st.sampled_from(["a", "b", "m", "n", "2", "x-y", "${m}"])
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2), max_leaves=4)


def build_shaped(kind: Any) -> st.SearchStrategy[Any]:
    """Mostly what a setting can be, and sometimes what it cannot."""
    return st.one_of(*([build_proper(kind)] * 9), junk)


def build_proper(kind: Any) -> st.SearchStrategy[Any]:
    kind = setting_names.unwrap_optional(kind)
    if setting_names.is_section(kind):
        optional = {
            written: st.deferred(lambda kind=kind.model_fields[name].annotation: build_shaped(kind))
            for written, name in setting_names.list_names(kind).items()
        }
        return st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True).flatmap(
            lambda chosen: st.fixed_dictionaries({name: optional[name] for name in chosen})
        )
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return st.dictionaries(names, build_shaped(arguments[1]), max_size=3)
    if get_origin(kind) is tuple:
        return st.lists(build_shaped(arguments[0]), max_size=2)
    return scalars


@settings(max_examples=count_cases(150), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(build_shaped(config.Settings), min_size=1, max_size=2))
def test_any_config(trees: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{position}.yaml" for position in range(len(trees))]
        for path, tree in zip(paths, trees, strict=True):
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
        with suppress(ConfigError):
            loaded = config.load_config(paths, environment={})
            assert all(str(warning).startswith(folder) for warning in loaded.warnings)
            assert config.load_config(paths, environment={}).settings == loaded.settings
            assert loaded.settings.model_copy() == loaded.settings
