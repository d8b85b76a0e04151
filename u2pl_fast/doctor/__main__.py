"""``python -m u2pl_fast.doctor --dataset D --data-root DIR``: everything that is wrong with a data set, and the fixes.

The flags that choose the data are those of the training. Every file is decoded, and nothing is written to the data set.
Exit status 0: a training can start; 1: it cannot.
"""

import json
import sys

import tyro
from rich.console import Console
from rich.progress import Progress

from ..utils.atomic import write_text
from . import checks, report
from .evidence import Evidence, gather
from .findings import Finding
from .settings import DoctorConfig, settings_of


def run(config: DoctorConfig) -> tuple[Evidence, list[Finding]]:
    """Look at the data and find.

    Raises:
        ValueError: an argument, rather than the data, can't be used.
    """
    if config.max_files is not None and config.max_files < 1:
        raise ValueError(f"max_files: expected at least 1, got {config.max_files}")
    settings = settings_of(config)
    progress = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
    evidence = gather(settings, config.max_files, progress)
    found = checks.all_findings(evidence)
    if config.json is not None:
        config.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(config.json, json.dumps(report.as_json(evidence, found), indent=2) + "\n")
    return evidence, found


def main(arguments: list[str] | None = None) -> None:
    """Parse flags, look, and tell."""
    config = tyro.cli(DoctorConfig, args=arguments, prog="python -m u2pl_fast.doctor", description=__doc__)
    try:
        evidence, found = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    report.show(Console(), evidence, found)
    if any(finding.severity == "error" for finding in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
