"""The commands of `python3 -m localcluster`. Results go to stdout, progress and errors to stderr."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from localcluster import programs
from localcluster.controlplane import ControlPlane
from localcluster.errors import LocalClusterError
from localcluster.progress import say

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed with a message, 130 interrupted."""
    options = _parser().parse_args(arguments)
    command: Command = options.run
    try:
        return command(options)
    except LocalClusterError as error:
        say(f"Error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_control_plane(commands)
    _add_programs(commands)
    return parser


def _add_control_plane(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("control-plane", help="an API server with its store and controllers, without a node")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("up", _control_plane_up, "start it and print the kubeconfig's path"),
        ("down", _control_plane_down, "end it and delete its folder"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--dir", type=Path, required=True, help="the folder of its files; one per control plane")
        action.set_defaults(run=run)


def _control_plane_up(options: argparse.Namespace) -> int:
    print(ControlPlane(options.dir).start())
    return 0


def _control_plane_down(options: argparse.Namespace) -> int:
    ControlPlane(options.dir).remove()
    return 0


def _add_programs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = commands.add_parser("build", help="build the programs that are not in the cache yet")
    build.add_argument("names", nargs="*", metavar="PROGRAM", help=f"of {', '.join(programs.PROGRAMS)}; default all")
    build.set_defaults(run=_build)
    tools = commands.add_parser("tools", help="print the path of a program, built where needed")
    tools.add_argument("name", choices=sorted(programs.PROGRAMS))
    tools.set_defaults(run=_tools)


def _build(options: argparse.Namespace) -> int:
    unknown = sorted(set(options.names) - set(programs.PROGRAMS))
    if unknown:
        raise LocalClusterError(f"Unknown program {', '.join(unknown)}. Known: {', '.join(programs.PROGRAMS)}.")
    programs.ensure(options.names or programs.PROGRAMS)
    return 0


def _tools(options: argparse.Namespace) -> int:
    print(programs.ensure([options.name])[options.name])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
