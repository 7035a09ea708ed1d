"""``astrolabe config``: the resolved configuration as YAML, to look at or to save and train from."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from astrolabe.commands.choosing import configuration_arguments, configured
from astrolabe.runtime.config import yaml_of

FIELDS = True


def arguments(parser: ArgumentParser) -> None:
    """See ``commands``."""
    configuration_arguments(parser)


def run(args: Namespace, rest: Sequence[str]) -> None:
    """Print it."""
    sys.stdout.write(yaml_of(configured(args, rest)))
