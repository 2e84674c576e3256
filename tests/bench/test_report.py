from __future__ import annotations

from pathlib import Path

from bench.engines.beside import BesideTimes
from bench.engines.command import _build_settings, _find_model
from bench.engines.report import ErrorRates, ModelReport, format_tables
from bench.engines.served import ServedFigures, ThroughputFigure
from eardrum import config


def test_a_server_gets_the_users_settings_with_one_model_and_one_batch_size(tmp_path: Path) -> None:
    file = tmp_path / "eardrum.yaml"
    file.write_text(
        """
        limits: {requests: 3}
        default_model: far
        models:
          near: {source: Systran/faster-whisper-tiny}
          far:
            engine: openai_api
            options: {url: "http://127.0.0.1:9/v1", model: big}
            aliases: [cloud]
            fallback: [moonshine-tiny-en]
        """
    )
    settings = config.load_settings(file, environment={})
    written = config.Settings(**_build_settings(settings, _find_model(settings, "cloud"), 4))
    assert written.limits.requests == 3
    assert written.default_model == "far"
    (model,) = written.models.values()
    assert (model.engine, model.source, model.batch_size, model.fallback) == ("openai_api", "", 4, ())
    assert model.options["model"] == "big"


def test_a_model_that_the_config_does_not_name_is_found_and_its_files_are_named() -> None:
    settings = config.load_settings(environment={})
    (model,) = _build_settings(settings, _find_model(settings, "moonshine-tiny-en"), 0)["models"].values()
    assert model["engine"] == "moonshine"
    assert Path(model["source"]).is_dir()


def test_tables_show_the_best_speed_and_every_combination() -> None:
    throughput = [ThroughputFigure(4, True, 1, 20.0), ThroughputFigure(4, True, 8, 50.0), ThroughputFigure(1, False, 1, 19.0)]
    served = ServedFigures(throughput, ["a"], 3.0, 2.0, 0.5, BesideTimes(0.25, 0.5, 33.0), 300.0, 200.0)
    text = format_tables([ModelReport("m", "moonshine", ErrorRates(0.05, 7, 0.04, 0.03), served, ["a note"])])
    row = "| m | moonshine | 5.0 % | 4.0 %, 3.0 % (7 recordings) | 50.0 | 0.25 s, 0.50 s | 33.0 audio s/s | 2.5 s, 1.5 s |"
    assert f"{row} 300 MB (200 MB) |" in text
    assert "| m | 4, its own choice | 20.0 | 50.0 |" in text
    assert "| m | 1 | 19.0 |  |" in text
    assert "- m: a note" in text
