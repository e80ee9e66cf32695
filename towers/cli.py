"""The `towers` command: a table from verb to module, nothing more. Everything after the verb is the job's, and Hydra's to read."""

import difflib
import importlib
import os
import sys

from towers import __version__
from towers.errors import EXIT_CONFIG, EXIT_DONE
from towers.interrupts import end_at_once
from towers.verbs import VERBS, Verb, config_groups, missing_library

HYDRA_FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
    "--info", "-i",
)  # fmt: skip


WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
"""Those of HYDRA_FLAGS that a value follows, where it is not joined with `=`."""


def main() -> int:
    """Run `towers <job> [overrides]`; returns the exit code where the job itself did not exit."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return EXIT_DONE if arguments else EXIT_CONFIG
    if arguments[0] in ("--version", "version"):
        print(f"towers {__version__}")
        return EXIT_DONE
    verb = VERBS.get(arguments[0])
    problem = unknown_verb(arguments[0]) if verb is None else dashed_option(arguments[1:])
    if verb is None or problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    return run(verb, arguments[1:])


def run(verb: Verb, arguments: list[str]) -> int:
    """Import the job's module and hand over; the job exits with its own code."""
    end_at_once()
    # OpenMP's waiting threads spin by default: on cores that others use too, a step then takes several times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, _, function = verb.target.partition(":")
    sys.argv = [f"towers {verb.name}", *options_first(arguments)]
    try:
        entry = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        problem = missing_library(verb.name, error)
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_CONFIG
    entry()
    return EXIT_DONE


def unknown_verb(word: str) -> str:
    near = difflib.get_close_matches(word, VERBS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(VERBS)}"
    return f"no job named {word!r}: {hint} `towers --help` lists the jobs"


def dashed_option(arguments: list[str]) -> str | None:
    """What to write instead of the first option with dashes that Hydra does not have; None where there is none."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if flag.startswith("-") and flag not in HYDRA_FLAGS:
            key = flag.lstrip("-").replace("-", "_")
            return f"unknown option {flag!r}: settings are written without dashes, as key=value: {key}={value or '...'}"
    return None


def options_first(arguments: list[str]) -> list[str]:
    """The same arguments, options before settings: Hydra's reader would refuse settings on both sides of an option.

    >>> options_first(["run_dir=r", "--config-dir", "mine", "data=shop", "-m"])
    ['--config-dir', 'mine', '-m', 'run_dir=r', 'data=shop']
    """
    options: list[str] = []
    settings: list[str] = []
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        is_value = before in WITH_VALUE or (before in ("--info", "-i") and "=" not in argument)
        (options if is_value or argument.startswith("-") else settings).append(argument)
    return options + settings


def usage() -> str:
    width = max(map(len, VERBS))
    jobs = "\n".join(f"  {verb.name:<{width}}  {verb.sentence}" for verb in VERBS.values())
    groups = config_groups()
    wide = max(map(len, groups))
    options = "\n".join(f"  {name:<{wide}}  {', '.join(choices)}" for name, choices in groups.items())
    return f"""\
Two-tower retrieval: from an interaction log to recommendations over HTTP.

usage: towers <job> [key=value ...]

Jobs, in the order they are run
{jobs}

Config groups: choose with group=option
{options}

Settings are Hydra overrides, without dashes:
  towers demo                                        the synthetic world, about a minute
  towers demo data=ml_1m data.path=ml-1m             MovieLens-1M
  towers train model=transformer optim.lr=0.001      a group's option, and one setting
  towers train -m seed=0,1,2                         several runs, one after another
  towers train --help                                what a job reads, writes and can be told
  towers train --cfg job                             the settings it would run with

A run lies in run_dir: runs/default, runs/<name> with experiment=<name>, runs/demo_<data> for the demo.
`towers --version` prints the version."""
