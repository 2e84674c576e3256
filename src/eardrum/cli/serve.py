"""The command `serve`: starts the server, with the options that users of Whisper servers know."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from eardrum import config, logging_setup
from eardrum.cli.models import download_missing
from eardrum.cli.options import AssignmentsOption, ConfigFileOption, ConfigFolderOption, parse_period
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.gateway.models.names import DEFAULT_ALIASES
from eardrum.gateway.models.store import expand_home, is_written_as_path
from eardrum.server.reload import ConfigSource

log = logging.getLogger(__name__)


HostOption = Annotated[
    str | None, typer.Option(metavar="HOST", show_default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every network.")
]
PortOption = Annotated[int | None, typer.Option(metavar="PORT", show_default="8100", help="Port to listen on.")]
TlsCertificateOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-certificate",
        "--tls-cert-file",
        metavar="FILE",
        help="PEM file with a certificate; the server then speaks HTTPS only.",
    ),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option("--tls-key", "--tls-key-file", metavar="FILE", help="PEM file with the certificate's private key."),
]
WyomingOption = Annotated[
    bool | None,
    typer.Option(
        "--wyoming/--no-wyoming", show_default="on, unless api_keys are set", help="Serve Home Assistant (Wyoming protocol)."
    ),
]
WyomingPortOption = Annotated[int | None, typer.Option(metavar="PORT", show_default="10300", help="Port for Home Assistant.")]
ServedModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Model to serve, in addition to those of the config: a name, a Hugging Face id or a folder; repeatable. The first "
        "one is the default. Missing ones are downloaded at the start.",
    ),
]
DefaultModelOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Model behind `whisper-1`, and of requests that name none.")
]
DeviceOption = Annotated[str | None, typer.Option(metavar="DEVICE", show_default="auto", help="auto, cpu or cuda.")]
ComputeTypeOption = Annotated[
    str | None, typer.Option(metavar="TYPE", show_default="auto", help="Number format of the weights: int8, float16 ...")
]
TtlOption = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=parse_period,
        show_default="never",
        help="Unload a model after this time without a request: 300, 10m, 1h.",
    ),
]
PreloadOption = Annotated[
    bool, typer.Option("--preload", help="Load every --model at the start; without --model, the default model.")
]
ModelDirOption = Annotated[
    Path | None,
    typer.Option(
        "--model-dir", "--cache-dir", metavar="FOLDER", show_default="the Hugging Face cache", help="Folder of the models."
    ),
]
MetricsOption = Annotated[
    bool | None, typer.Option("--metrics/--no-metrics", show_default="on", help="Serve /metrics for Prometheus.")
]
PageOption = Annotated[bool | None, typer.Option("--page/--no-page", show_default="on", help="Serve the web page at `/`.")]
DownloadOnlyOption = Annotated[
    bool,
    typer.Option("--download-only", help="Download every --model that is missing, and exit; without --model, the default model."),
]
LogFormatOption = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", show_default="text", help="text for people; json for machines, an object per line."),
]
LogLevelOption = Annotated[
    str | None, typer.Option(metavar="LEVEL", show_default="info", help="Least severe level: debug, info, warning or error.")
]
WatchOption = Annotated[
    bool, typer.Option("--watch-config", help="Load the config again when a file changes. SIGHUP loads it too.")
]
SampleOption = Annotated[bool, typer.Option("--sample", help="Transcribe the sample recording after the start.")]


def serve(
    host: HostOption = None,
    port: PortOption = None,
    models: ServedModelsOption = None,
    default_model: DefaultModelOption = None,
    device: DeviceOption = None,
    compute_type: ComputeTypeOption = None,
    ttl: TtlOption = None,
    preload: PreloadOption = False,
    model_dir: ModelDirOption = None,
    download_only: DownloadOnlyOption = False,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    wyoming: WyomingOption = None,
    wyoming_port: WyomingPortOption = None,
    metrics: MetricsOption = None,
    page: PageOption = None,
    log_format: LogFormatOption = None,
    log_level: LogLevelOption = None,
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    watch: WatchOption = False,
    sample: SampleOption = False,
) -> None:
    """Start the server."""
    overrides = {
        "host": host,
        "port": port,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "wyoming": _drop_unset({"enabled": wyoming, "port": wyoming_port}) or None,
        "default_model": default_model,
        "device": device,
        "compute_type": compute_type,
        "default_ttl": ttl,
        "model_dir": model_dir,
        "metrics": metrics,
        "page": page,
        "log": _drop_unset({"format": log_format, "level": log_level}) or None,
    }
    overrides |= configure_models(models or [], default_model, preload=preload)
    source = ConfigSource(
        lambda ports: config.load_config(config_file, assignments or (), overrides=overrides, folder=config_folder, ports=ports),
        config_folder,
    )
    loaded = source.read_first()
    logging_setup.configure_logging(loaded.settings.log.level, loaded.settings.log.format)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    if download_only:
        download_missing(loaded.settings)
        return
    with pause_garbage_collection():
        from eardrum.server import lifecycle
    lifecycle.run_gateway(loaded.settings, source, watch=watch, sample=sample)


def _drop_unset(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def configure_models(given: Sequence[str], default: str | None, *, preload: bool) -> dict[str, Any]:
    """Return the settings for the models of the command line."""
    if not given:
        return {"hooks": {"on_startup": {"preload": [DEFAULT_ALIASES[0]]}}} if preload else {}
    sources = {expand_home(name).resolve().name if is_written_as_path(name) else name: name for name in given}
    names = list(sources)
    return {
        "models": {name: {"source": source} if source != name else {} for name, source in sources.items()},
        "default_model": default or names[0],
        "hooks": {"on_startup": {"pull": names, **({"preload": names} if preload else {})}},
    }


COMMANDS: dict[str, Callable[..., Any]] = {"serve": serve}
