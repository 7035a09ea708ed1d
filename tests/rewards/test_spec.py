"""A reward as one word: what belongs to its name, to a setting, and to a setting's value."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from astrolabe.rewards.settings import MODELS, RewardSettings
from astrolabe.rewards.spec import parse_spec, split_spec
from astrolabe.runtime.config import from_dict, override, to_dict
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.settings import Plain, shown

TEXT = st.text("ab ,=._\"'\\é\n\u2028059-+eENonetrue", max_size=9)
NAMES = st.sampled_from(["threshold", "name", "größe", "_x1", "a"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ARGS = st.dictionaries(NAMES, PLAIN, max_size=3)


@given(st.text(alphabet="ab ,=.:~/-é'\"", max_size=20), ARGS, st.integers(1, 99))
def test_a_path_may_hold_what_a_path_can_and_a_value_what_text_can(
    folder: str, args: dict[str, Plain], frames: int
) -> None:
    name = f"/{folder}/mine.py:Mine"
    assume(parse_spec(name).name == name)
    held = RewardSettings(name=name, args=args)
    words = [f"args.{key}={shown({'v': value}).removeprefix('v=')}" for key, value in args.items()]
    found = parse_spec(",".join([name, f"frames={frames}", *words]))
    assert found == RewardSettings(name=name, args=held.args, frames=frames)
    assert {key: type(value) for key, value in found.args.items()} == {k: type(v) for k, v in args.items()}


@given(ARGS, NAMES, PLAIN)
def test_arguments_are_typed_back_kept_and_changed_one_by_one(args: dict[str, Plain], key: str, value: Plain) -> None:
    plain = RewardSettings(name="mine.py:Mine")
    held = RewardSettings(name="mine.py:Mine", args=args)
    assert override(plain, {"args": shown(held.args)}) == held
    assert from_dict(RewardSettings, to_dict(held), "file") == held
    changed = override(held, {f"args.{key}": shown({"v": value}).removeprefix("v=")})
    assert changed.args == args | {key: value} and held.args == args and not plain.args


@pytest.mark.parametrize(
    ("spec", "name", "texts"),
    [
        ("joint", "joint", {}),
        ("hpsv3,frames=8,model.weights=/m,x/hpsv3", "hpsv3", {"frames": "8", "model.weights": "/m,x/hpsv3"}),
        ("/a,b=c/mine.py:Mine,weight=2", "/a,b=c/mine.py:Mine", {"weight": "2"}),
        ("joint,x/mine.py:Mine", "joint,x/mine.py:Mine", {}),
        ("C:\\mine.py:Mine,args.x=y.py:Z", "C:\\mine.py:Mine", {"args.x": "y.py:Z"}),
        ("pack.age:Mine,args.a=1,2,args.b=x", "pack.age:Mine", {"args.a": "1,2", "args.b": "x"}),
        ("joint,worker.packages=a==1,b==2,weight=3", "joint", {"worker.packages": "a==1,b==2", "weight": "3"}),
    ],
)
def test_a_comma_begins_a_setting_only_before_its_name(spec: str, name: str, texts: dict[str, str]) -> None:
    assert split_spec(spec) == (name, texts)


def test_every_group_of_settings_is_reached() -> None:
    found = parse_spec("hpsv3,weight=0.5,role=judge,span=video,frames=8,model.device=cpu,worker.gpus=0.5")
    assert found.model is not None and found.model.device == "cpu" and found.worker.gpus == 0.5
    assert (found.weight, found.role, found.span, found.frames) == (0.5, "judge", "video", 8)
    asked = parse_spec("server,server.url=http://x/v1,server.model=m,server.rubric=/r,s/rubric.txt,server.shown=3")
    assert asked.server is not None and asked.server.shown == 3 and str(asked.server.rubric) == "/r,s/rubric.txt"
    mine = parse_spec('mine.py:Mine,args.a=0.3,args.b=yes,args.c=true,args.d=7,args.e="7",args.f=none,args.g=007')
    assert mine.args == {"a": 0.3, "b": "yes", "c": True, "d": 7, "e": "7", "f": None, "g": "007"}
    assert all(parse_spec(name).name == name for name in MODELS)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "no reward is named"),
        ("hpsv3,frames", "'frames' is no setting; write NAME,frames=8"),
        ("hpsv3, frames=8", "' frames=8' is no setting"),
        ("mine.py:Mine,frames", "'frames' is no setting"),
        ("hspv3,frames=8", "'hspv3' is unknown; did you mean hpsv3"),
        ("hpsv3,framse=8", "unknown setting framse; did you mean frames"),
        ("hpsv3,frames=x", "frames=x: expected a whole number"),
        ("hpsv3,frames=8,frames=9", "frames is set twice"),
        ("hpsv3,name=joint", "the name stands first"),
        ("hpsv3,server.url=http://x", "is for the reward `server` alone"),
        ("joint,args.x=1", "args are for a reward of your own"),
        ("mine.py:Mine,args.x=1e999", "args="),
        ("mine.py:Mine,args=threshold", "expected name=value"),
        ("mine.py:Mine,model.device=cpu", "model is for hpsv3"),
        ("server,server.model=m", r"needs server\.url, server\.rubric"),
        ("server,server.url=x,server.model=m,server.rubric=r", "does not begin with http://"),
        ("mine.py:my class", "expected path/to/file.py:Class"),
    ],
)
def test_a_word_that_is_wrong_is_told_whole_and_on_one_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        parse_spec(spec)
    assert spec in str(told.value) and "\n" not in str(told.value)
