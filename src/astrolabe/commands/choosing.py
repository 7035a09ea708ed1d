"""What words on the command line stand for: recipes, configurations, models."""

from __future__ import annotations

import importlib.util
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from astrolabe.experiment import ModelChoice, ModelSettings, TrainConfig, model_settings
from astrolabe.recipes import RECIPES
from astrolabe.rewards.spec import parse_spec, split_spec
from astrolabe.rl.settings import GuardSettings
from astrolabe.runs.adapter import run_of, split
from astrolabe.runs.folder import RunFolder
from astrolabe.runtime.config import from_dict, load_yaml, override, parse_overrides, read_yaml, to_dict
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.files import place
from astrolabe.runtime.settings import Leaf, complaint, construct, fields_of, parse

RECIPE_HELP = (
    "a recipe's name, a run's folder, a config.yaml, or path/to/recipe.py:function; its fields may follow as "
    "--field value"
)
SPEC_HELP = "in place of the recipe's: NAME or path/to/file.py:Class and its settings, as hpsv3,weight=1,role=judge"
GUARD_HELP = "in place of the recipe's: a measure or reward and its settings, as motion_energy,below=0.6,action=slow"
RUN_HELP = "the run's folder; RUN@STEP and RUN@best name an adapter of it (default: the finished one, or the newest)"
ADAPTER_HELP = "a run (RUN@STEP and RUN@best name an adapter of it), a PEFT folder or a LoRA file"
MODEL_FIELDS = """\
Fields of the model may be set too, such as --model.weights FOLDER or
--model.window_frames 21; `astrolabe train longlive --help` shows all."""


def configuration_arguments(parser: ArgumentParser, optional: bool = False) -> None:
    """What names and changes a configuration, alike in every command that takes one."""
    parser.add_argument("recipe", nargs="?" if optional else None, help=RECIPE_HELP)
    parser.add_argument("--rewards", action="append", metavar="SPEC", help=f"a reward {SPEC_HELP} (may be repeated)")
    parser.add_argument("--guards", action="append", metavar="SPEC", help=f"a guard {GUARD_HELP} (may be repeated)")
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="let a configuration or recipe run the code, install the packages and send the files that it names",
    )


def processes_argument(parser: ArgumentParser) -> None:
    """How many processes share the videos."""
    parser.add_argument(
        "--processes", type=process_number, default="auto", metavar="N",
        help="processes that share the work on the CPU; the videos are the same (default: auto, one a core)",
    )  # fmt: skip


def process_number(text: str) -> Literal["auto"] | int:
    """``auto``, or a whole number from 1 on."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--processes {text}: expected auto, or at least 1")
    return int(text)


def configured(args: Namespace, rest: Sequence[str], runs: bool = False) -> TrainConfig:
    """The configuration that a command line names; ``runs``: its rewards will be opened. UserError for what it does
    not accept, or would have to trust."""
    cfg = recipe_of(args.recipe, args.trust_code)
    foreign = list(trusting(cfg))
    whole: dict[str, Any] = {}
    if args.rewards:
        whole["rewards"] = tuple(parse_spec(text) for text in args.rewards)
    if args.guards:
        whole["watch.guards"] = tuple(parse_guard(text) for text in args.guards)
    cfg = override(cfg, parse_overrides(rest), whole)
    # What the command line itself names is trusted; what a file brought is not, unless it is no longer there.
    named = [said for said in trusting(cfg) if said in foreign]
    if runs and named and plain(args.recipe) not in RECIPES and not args.trust_code:
        raise UserError(
            f"{args.recipe} names what is to be trusted: {'; '.join(named)}; look at it, and if you do add --trust-code"
        )
    return cfg


def plain(name: str) -> str:
    """A recipe's name, whether it is written as a recipe or as a model: ``self-forcing`` is ``self_forcing``."""
    return name.replace("-", "_").removesuffix("_14b")


def default_out(recipe: str) -> Path:
    """The folder of a run without ``--out``; a run that is named is continued."""
    if plain(recipe) not in RECIPES and RunFolder(place(recipe)).exists:
        return place(recipe)
    return Path("runs") / (plain(recipe) if plain(recipe) in RECIPES else Path(recipe.rpartition(".py:")[2]).stem)


def recipe_of(name: str, trusted: bool = False) -> TrainConfig:
    """The configuration of a recipe's name, of a run, of a YAML file, or of a function in a file of Python, if that is
    ``trusted``. A YAML file may begin with ``recipe: NAME`` and hold only what differs."""
    if plain(name) in RECIPES:
        return RECIPES[plain(name)]()
    if name.endswith((".yaml", ".yml")):
        return from_yaml(place(name))
    if ".py:" in name:
        return from_python(name, trusted)
    if RunFolder(place(name)).exists:
        return RunFolder(place(name)).config()
    raise UserError(unknown(name))


def unknown(name: str) -> str:
    """What to say of a word that stands for no configuration: as near as can be to what was meant."""
    run, which = split(name)
    if which is not None:
        return (
            f"recipe {name}: that is an adapter of a run; `astrolabe train {run.path}` goes on from its end, and "
            f"--init {name} --out NEW begins another from there"
        )
    if name.endswith(".py"):
        return f"recipe {name}: name the function of it that returns a TrainConfig, {name}:FUNCTION --trust-code"
    if os.sep in name:
        return f"recipe {name}: no run is there (a folder with a config.yaml), and a configuration is named .yaml"
    return (
        f"recipe {name!r} is unknown{nearest(plain(name), RECIPES)}; there are: {', '.join(RECIPES)}; "
        "it comes before the fields"
    )


def from_yaml(path: Path) -> TrainConfig:
    """See ``recipe_of``."""
    mapping = read_yaml(path)
    if not isinstance(mapping, dict) or "recipe" not in mapping:
        run = RunFolder(path.parent)  # its files are found from wherever the command is given
        return run.config() if path.name == run.config_file.name and run.begun else load_yaml(TrainConfig, path)
    name = mapping.pop("recipe")
    if not isinstance(name, str) or plain(name) not in RECIPES:
        raise UserError(f"{path}: recipe: {name!r} is unknown{nearest(str(name), RECIPES)}; "
                        f"there are: {', '.join(RECIPES)}")  # fmt: skip
    return from_dict(TrainConfig, changed(to_dict(RECIPES[plain(name)]()), mapping), str(path))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with what ``changes`` say, group by group; a group of another ``name`` (an algorithm, a model) and a
    list take the place of the whole."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[key] = changed(old, value)
        else:
            merged[key] = value
    return merged


def from_python(spec: str, trusted: bool) -> TrainConfig:
    """What a user's function returns; it is run only when that is ``trusted``."""
    file, _, function = spec.rpartition(":")
    path = place(file)
    if not path.is_file():
        raise UserError(f"recipe {spec}: no such file as {path}")
    if not trusted:
        raise UserError(f"recipe {spec}: this runs the code in {path}; look at it, and if you do add --trust-code")
    found = importlib.util.spec_from_file_location(f"astrolabe_recipe_{path.stem}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        make = getattr(module, function, None)
        cfg = make() if callable(make) else None
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise UserError(f"recipe {spec}: {type(error).__name__}: {error}") from error
    if not isinstance(cfg, TrainConfig):
        what = "has no function of that name" if make is None else f"gave {type(cfg).__name__}"
        raise UserError(f"recipe {spec}: {path.name} {what}; expected a function that returns a TrainConfig")
    return cfg


def parse_guard(text: str) -> GuardSettings:
    """The guard that ``MEASURE,below=0.6,steps=5,action=slow`` stands for; UserError says why it stands for none."""
    try:
        name, texts = split_spec(text)
        fields = fields_of(GuardSettings)
        if unknown := [key for key in texts if key not in fields]:
            raise UserError(f"unknown setting {unknown[0]}{nearest(unknown[0], fields)}")

        def refusal(key: str) -> str:
            return complaint(Leaf(key, fields[key], None), texts[key])

        values: dict[str, Any] = {"watch": name}
        for key, value in texts.items():
            try:
                values[key] = parse(fields[key].annotation, value)
            except ValueError:
                raise UserError(refusal(key)) from None
        guard: GuardSettings = construct(lambda: GuardSettings(**values), "", refusal)
        return guard
    except (UserError, ValueError) as error:
        raise UserError(f"--guards {text}: {error}") from None


def trusting(cfg: TrainConfig) -> Iterator[str]:
    """What a configuration asks of its reader: to run code, to install packages, to send files away."""
    for reward in cfg.rewards:
        if reward.own:
            yield f"code to run, {reward.name}"
        if reward.worker.packages:
            yield f"packages to install, {' '.join(reward.worker.packages)}"
        if reward.server is not None:
            files = [str(path) for path in (reward.server.rubric, reward.server.key) if path]
            yield f"files to send to {reward.server.url}, {' '.join(files)}"
    if cfg.pool.address:
        yield f"a cluster to work on, {cfg.pool.address}"


def chosen_model(name: str | None, adapter: Path | None, rest: Sequence[str]) -> ModelSettings:
    """The model that was named, else that of the run that ``adapter`` is, else the embedded one; with fields set by
    ``--model.field value``."""
    texts = parse_overrides(rest)
    if strange := [flag for flag in texts if not flag.startswith("model.")]:
        raise UserError(f"unknown argument --{strange[0]}; settings of the model are written --model.field value")
    settings = model_of_run(adapter) if adapter and name is None else None
    return override(ModelChoice(model=settings or model_settings(name or "shapes")), texts).model


def model_of_run(adapter: Path) -> ModelSettings | None:
    """The model of a run; None when ``adapter`` is none."""
    folder = run_of(adapter)
    return folder.config().model if folder else None
