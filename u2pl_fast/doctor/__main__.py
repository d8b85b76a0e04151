"""List every problem of a data set, with its fix.

It takes the same data flags as `u2pl train`. Every file is decoded; nothing is written to the data set. The
exit status is 0 if a training can start, else 1.
"""

import json
import sys

from rich.console import Console
from rich.progress import Progress

from ..utils.atomic import write_text
from ..utils.command_line import parse
from . import checks, report
from .evidence import Evidence, gather
from .findings import Finding
from .settings import DoctorConfig, settings_of


def run(config: DoctorConfig) -> tuple[Evidence, list[Finding]]:
    """Check the data. Return what was read and the findings.

    Raises:
        ValueError: a setting cannot be used. Problems of the data are findings.
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
    """Parse flags, check the data and print the findings."""
    try:
        config = parse(DoctorConfig, arguments, command="doctor", description=__doc__)
        evidence, found = run(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    report.show(Console(), evidence, found)
    if any(finding.severity == "error" for finding in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
