"""What this machine can and cannot do, and why: `vimdeploy doctor`.

Collecting (:func:`collect`), judging (:func:`judge`) and printing (:func:`render`) are apart, so that ``--json``, the
tables and other commands read the same facts::

    report = examine()
    render(report, Console())
    print(json.dumps(report.to_dict()))
"""

from __future__ import annotations

from collections.abc import Collection

from vimdeploy.doctor.examine import collect
from vimdeploy.doctor.machine import Machine
from vimdeploy.doctor.render import render
from vimdeploy.doctor.report import Report
from vimdeploy.doctor.verdict import judge

__all__ = ["Machine", "Report", "collect", "examine", "judge", "render"]


def examine(machine: Machine | None = None, available: Collection[str] | None = None) -> Report:
    """Look at a machine and say what it can do. Never raises for what it finds.

    Args:
        machine: where to look; None stands for this machine.
        available: the commands that the command line has; None stands for all.

    """
    return judge(collect(machine or Machine()), available)
