"""How a benchmark tells what it measured: tables, bars and targets on the terminal, a picture and JSON in files.

A figure without the machine and the versions it comes from is worth nothing, so all outputs carry them.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

Role = Literal["ours", "baseline", "peer"]
_WIDTH = 120
_BAR_CHARACTERS = 60
_COLOURS: dict[Role, tuple[str, str]] = {  # on the terminal, in the picture
    "ours": ("green", "#1a7f37"),
    "baseline": ("bright_black", "#8c959f"),
    "peer": ("blue", "#4f8fd9"),
}
# A picture in a document cannot know the page's colours: it has a ground of its own, which follows the reader's scheme.
_STYLE = """<style>
text {fill: #1f2328} #ground path {fill: #ffffff !important}
@media (prefers-color-scheme: dark) {text {fill: #e6edf3} #ground path {fill: #0d1117 !important}}
</style>"""


@dataclass(frozen=True)
class Bar:
    """One bar: its length is `value`, in the chart's unit; `note` stands behind the figure."""

    label: str
    value: float
    role: Role
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars that are compared with each other."""

    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Target:
    """What was promised, and what came out."""

    promise: str
    bound: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured, and with which versions."""

    when: str
    processor: str
    cores: int
    load_average: float
    versions: Mapping[str, str]

    @property
    def text(self) -> str:
        """All of it in one line."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.when}, {self.cores} x {self.processor}, load average {self.load_average:.1f}; {versions}"


def this_machine(packages: Sequence[str], servers: Mapping[str, str]) -> Machine:
    """Return what this machine is now; `packages` are Python distributions, `servers` programs with their versions."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Machine(
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=names[0].partition(": ")[2] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        load_average=os.getloadavg()[0],
        versions={**servers, "Python": platform.python_version(), **{name: version(name) for name in packages}},
    )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column is text, the others are figures."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    _console().print("", f"[bold]{title}[/]", table, sep="\n")


def print_chart(chart: Chart) -> None:
    """Print bars."""
    longest = max(bar.value for bar in chart.bars)
    table = Table(box=None, pad_edge=False, show_header=False)
    for bar in chart.bars:
        length = max(1, round(bar.value / longest * _BAR_CHARACTERS))
        colour, _ = _COLOURS[bar.role]
        table.add_row(bar.label, f"[{colour}]{'█' * length}[/] {bar.value:,.0f} {bar.note}")
    _console().print("", f"[bold]{chart.title} ({chart.unit})[/]", table, sep="\n")


def print_targets(targets: Sequence[Target]) -> None:
    """Print each target with its outcome."""
    rows = [(each.promise, each.bound, each.measured, _outcome(each)) for each in targets]
    print_table("Targets", ("target", "bound", "measured", ""), rows)


def _outcome(target: Target) -> str:
    return "[green]met[/]" if target.met else "[bold red]MISSED[/]"


def _console() -> Console:
    return Console(width=_WIDTH, highlight=False)


def write_picture(path: Path, chart: Chart, machine: Machine) -> None:
    """Write the bars as SVG, for light and for dark pages."""
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, in a font that the reader has
    matplotlib.rcParams["font.sans-serif"] = ["DejaVu Sans", "Verdana"]  # as wide as each other
    matplotlib.rcParams["svg.hashsalt"] = "shipkeeper"  # the same figures give the same file
    figure = Figure(figsize=(9, 0.34 * len(chart.bars) + 1.2), layout="constrained")
    figure.patch.set_gid("ground")
    axes = figure.subplots()
    drawn = axes.barh(
        [bar.label for bar in chart.bars],
        [bar.value for bar in chart.bars],
        color=[_COLOURS[bar.role][1] for bar in chart.bars],
    )
    axes.bar_label(drawn, [f"{bar.value:,.0f} {bar.note}" for bar in chart.bars], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9)
    figure.suptitle(f"{chart.title} ({chart.unit})", x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(machine.text.replace("; ", "\n"), fontsize=7, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None, "Title": chart.title})
    drawing = path.read_text()
    path.write_text(drawing.replace("<defs>", f"{_STYLE}\n <defs>", 1))


def write_json(path: Path, machine: Machine, targets: Sequence[Target], figures: Mapping[str, Any]) -> None:
    """Write everything that was measured."""
    document = {"machine": asdict(machine), "targets": [asdict(each) for each in targets], **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
