"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch


def describe() -> str:
    """The machine, its load and the versions that matter, as Markdown lines."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    memory = psutil.virtual_memory().total / 2**30
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return "\n".join(
        (
            f"- {processor()}, {os.cpu_count()} logical cores, {memory:.0f} GiB; GPU: {device}",
            f"- {platform.system()} {platform.release()}, Python {platform.python_version()}, "
            f"torch {torch.__version__} ({torch.get_num_threads()} threads), "
            f"diffusers {version('diffusers')}",
            f"- load average before: {load}",
        )
    )


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
