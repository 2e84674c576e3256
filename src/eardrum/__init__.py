"""Eardrum: speech to text, and text to speech, behind one port."""

import os

__version__ = "0.1.0"

# What people say to this server stays here, and so does that they use it. ONNX Runtime reports to its maker unless it
# is told not to before it is first imported (its releases differ in the name); the children inherit the setting.
for _name in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
