"""`fcn doctor`: check what a run needs of this machine."""

import argparse
import json
import sys


def add_doctor(commands) -> None:
    text = (
        "check what a run of the profile in params.yaml needs: Python, packages, memory, GPU, disk, Ray, MLflow, DVC, "
        "data; each line is ok or states what to do. Exit code 1 if a run would fail (docs/surroundings.md)"
    )
    command = commands.add_parser("doctor", help="check what a run needs of this machine", description=text)
    command.add_argument("--json", action="store_true", help="print a list of {check, state, text}")
    command.set_defaults(run=doctor)


def doctor(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from pipeline import config
    from pipeline.doctor import findings, quick, thorough

    root = Path.cwd()
    setting = findings.Setting(root, *config.load(root))
    found = []
    for finding in findings.find({**quick.CHECKS, **thorough.CHECKS}, setting):
        found.append(finding)
        if not arguments.json:
            print(f"{finding.state:4}  {finding.check:16}  {finding.text}", flush=True)
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in found], indent=1, ensure_ascii=False))
    if any(finding.state == "fail" for finding in found):
        sys.exit(1)
