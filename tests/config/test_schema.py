"""The schema that editors check a config against."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import yaml

from eardrum.config import load_settings
from eardrum.config.setting_names import list_spellings

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "reference" / "config.schema.json"


def test_the_schema_takes_both_spellings_as_the_loader_does_and_offers_one(tmp_path: Path) -> None:
    whole = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(whole)
    parts = {"": whole} | {name: part for name, part in whole["$defs"].items() if "properties" in part}
    for where, part in parts.items():
        for name in part["properties"]:
            for spelled in list_spellings(name):
                errors = validator.evolve(schema=part).iter_errors({spelled: object()})
                assert "additionalProperties" not in {error.validator for error in errors}, (where, spelled)
    same = """
api_keys: [a]
defaultModel: m
limits: {uploadBytes: 1M}
models: {m: {cmd: 'x ${PORT}', check_endpoint: /h, maxRequests: 1}}
"""
    file = tmp_path / "config.yaml"
    file.write_text(same)
    assert load_settings(file, environment={}).limits.upload_bytes == 1_000_000
    validator.validate(yaml.safe_load(same))
    for wrong_part in (
        {"api_keys": 1},
        {"defaultModel": 1},
        {"api_keyss": []},
        {"limits": {"uploadBytes": -1}},
        {"limits": {"Upload_bytes": 1}},
    ):
        assert not validator.is_valid(wrong_part), wrong_part
    camel = [
        name for part in parts.values() for name in part["properties"] if len(list_spellings(name) & {*part["properties"]}) > 1
    ]
    assert camel == [], "each is offered once"
