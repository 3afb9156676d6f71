"""The commands of `python3 -m localcluster`. Results go to stdout, progress and errors to stderr.

CLUSTER=kind|local in the environment chooses what provides the cluster; the default is kind where a Docker engine
answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from localcluster import paths, programs
from localcluster.controlplane import ControlPlane
from localcluster.errors import LocalClusterError
from localcluster.images import choose_engine
from localcluster.images.engine import SERVICE_TAGS
from localcluster.progress import say, step
from localcluster.provider import choose_provider

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
    parser.add_argument("--name", default=paths.DEFAULT_CLUSTER, help="the cluster's name; default %(default)s")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("up", _up, "bring the cluster up, mend what is broken, print the kubeconfig's path"),
        ("down", _down, "remove the cluster and all that belongs to it"),
        ("status", _status, "say what of the cluster works; exit code 1 where something does not"),
        ("kubeconfig", _kubeconfig, "print the path of the administrator's kubeconfig"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=run)
    _add_control_plane(commands)
    _add_programs(commands)
    _add_images(commands)
    return parser


def _up(options: argparse.Namespace) -> int:
    provider = choose_provider(options.name)
    provider.create()
    print(provider.kubeconfig())
    return 0


def _down(options: argparse.Namespace) -> int:
    with step(f"removing the cluster {options.name}"):
        choose_provider(options.name).delete()
    return 0


def _status(options: argparse.Namespace) -> int:
    parts = choose_provider(options.name).status()
    for part, text in parts.items():
        print(f"{part:<24} {text}")
    return 0 if all(text == "ok" for text in parts.values()) else 1


def _kubeconfig(options: argparse.Namespace) -> int:
    print(choose_provider(options.name).kubeconfig())
    return 0


def _add_control_plane(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def _add_programs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = commands.add_parser("build", help="build the programs that are not in the cache yet")
    build.add_argument("names", nargs="*", metavar="PROGRAM", help=f"of {', '.join(programs.PROGRAMS)}; default all")
    build.set_defaults(run=_build)
    tools = commands.add_parser("tools", help="print the path of a program, built where needed")
    tools.add_argument("program", choices=sorted(programs.PROGRAMS))
    tools.set_defaults(run=_tools)


def _build(options: argparse.Namespace) -> int:
    unknown = sorted(set(options.names) - set(programs.PROGRAMS))
    if unknown:
        raise LocalClusterError(f"Unknown program {', '.join(unknown)}. Known: {', '.join(programs.PROGRAMS)}.")
    programs.ensure(options.names or programs.PROGRAMS)
    return 0


def _tools(options: argparse.Namespace) -> int:
    if options.program == "kubectl":
        print(choose_provider(options.name).kubectl())
    else:
        print(programs.ensure([options.program])[options.program])
    return 0


def _add_images(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("image", help="build images and make them known to the cluster")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build from a Dockerfile unless nothing changed; print the archive's path")
    build.add_argument("--dockerfile", type=Path, required=True)
    build.add_argument("--context", type=Path, required=True)
    build.add_argument("--tag", required=True)
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    build.set_defaults(run=_image_build)
    service = actions.add_parser("service", help="make the image of a service; print the archive's path")
    service.add_argument("tag", choices=sorted(SERVICE_TAGS))
    service.set_defaults(run=_image_service)
    base = actions.add_parser("base", help="make the base image with Python, where the provider needs one")
    base.set_defaults(run=_image_base)
    load = actions.add_parser("load", help="make the image of an archive known to the cluster's node")
    load.add_argument("archive", type=Path)
    load.set_defaults(run=_image_load)


def _image_build(options: argparse.Namespace) -> int:
    pairs = [argument.partition("=") for argument in options.build_arg]
    if any(not separator for _, separator, _ in pairs):
        raise LocalClusterError("--build-arg wants NAME=VALUE.")
    image = choose_engine().build(
        dockerfile=options.dockerfile.resolve(),
        context=options.context.resolve(),
        tag=options.tag,
        build_args={name: value for name, _, value in pairs},
    )
    print(image.archive)
    return 0


def _image_service(options: argparse.Namespace) -> int:
    print(choose_engine().service(options.tag).archive)
    return 0


def _image_base(options: argparse.Namespace) -> int:
    image = choose_engine().base()
    print(image.tag if image else f"{options.name}: the Dockerfile's own default is used")
    return 0


def _image_load(options: argparse.Namespace) -> int:
    choose_provider(options.name).load_image(options.archive.resolve())
    return 0
