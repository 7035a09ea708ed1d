"""What a person types: one file a command, with its arguments and what it prints, imported when it is called.

``arguments(parser)`` declares what follows the command's name, and ``run(args, rest)`` does it; ``rest`` are the
``--field value`` pairs of a configuration, for commands whose file says ``FIELDS = True``. At its top such a file
imports nothing that is slow: help and a user's mistake need no torch. What a command *does* stands elsewhere.
"""

from __future__ import annotations

COMMANDS = {
    "demo": "align the embedded model, evaluate it, write a report",
    "train": "run a recipe, or continue a run",
    "runs": "list runs: steps, state, result, and what made them",
    "evaluate": "compare a run with its base on held-out prompts",
    "report": "write RUN/report.html",
    "generate": "make videos of any length",
    "models": "list the released models that can be loaded",
    "embed": "embed prompts, so that training needs no text encoder",
    "export": "write an adapter for other programs",
    "config": "print the configuration that a recipe and its fields make",
    "doctor": "check this machine, and whether a recipe could start",
    "plan": "estimate the memory and time of a training step",
    "rewards": "list, check and compare rewards; score videos",
}
