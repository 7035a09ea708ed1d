"""What pip installs is whole, and runs where nothing but the user's own folder can be written.

The wheel is built from the tracked files, installed into an empty environment outside the checkout (dependencies are
those of this environment), and used from there by another user, whose umask is 077 and whose home cannot be written.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_release

ROOT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OTHER, PROMPT = "nobody", "a red circle moving left"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # one worker builds and installs, for all tests here


@dataclass(frozen=True)
class Installed:
    """An environment that holds the package alone, and the user who works in ``folder / "own"``."""

    folder: Path
    user: dict[str, Any]
    variables: dict[str, str]

    def __call__(self, program: str, *words: str) -> str:
        """What a program of the environment prints; it must succeed."""
        done = subprocess.run(
            [self.folder / "env" / "bin" / program, *words], cwd=self.folder / "own", env=self.variables, umask=0o077,
            capture_output=True, text=True, timeout=300, check=False, **self.user,
        )  # fmt: skip
        assert done.returncode == 0, f"{program} {' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout


def tracked() -> list[str]:
    """The files of the checkout that git knows and that are there."""
    words = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as ``pip install .`` builds it, beside what running and testing leave in a checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    for place in ("", "rewards", "shapes/weights"):
        leftover = source / "src" / "astrolabe" / place / "__pycache__" / "left.pyc"
        leftover.parent.mkdir()
        leftover.touch()
    subprocess.run(
        [*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, source], cwd=out, check=True
    )
    (path,) = out.glob("*.whl")
    return path


def another() -> dict[str, Any]:
    """How ``subprocess`` becomes another user; empty when this process may not."""
    if os.geteuid():
        return {}
    other = pwd.getpwnam(OTHER)
    return {"user": other.pw_uid, "group": other.pw_gid, "extra_groups": []}


def within_reach(place: str | Path, user: dict[str, Any]) -> bool:
    """Whether the user may read what is there."""
    return not subprocess.run(["ls", f"{place}/"], cwd="/", capture_output=True, check=False, **user).returncode


def carry(folder: Path) -> Path:
    """A copy of the interpreter that runs this, for one who may not look into the folder where it lies."""
    library = Path(str(sysconfig.get_config_var("LIBDIR")))
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*", "idlelib", "ensurepip")
    shutil.copytree(sysconfig.get_path("stdlib"), folder / "lib" / PYTHON, ignore=left_out)
    for shared in library.glob("libpython*.so*"):
        shutil.copy2(shared, folder / "lib")
    (folder / "bin").mkdir()
    return Path(shutil.copy2(Path(sys.executable).resolve(), folder / "bin" / PYTHON))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Iterator[Installed]:
    """The wheel in an environment of its own that nobody may write to; the user may, in one folder."""
    folder = Path(tempfile.mkdtemp(prefix="astrolabe-"))
    folder.chmod(0o755)
    dependencies = sorted({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")})
    user = another()
    if user and not all(within_reach(place, user) for place in (str(folder), *dependencies)):
        user = {}
    base, variables = Path(sys.executable).resolve(), {"PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    if user and not within_reach(base.parent, user):
        base = carry(folder / "python")
        variables["LD_LIBRARY_PATH"] = str(base.parents[1] / "lib")
    env, own, home = folder / "env", folder / "own", folder / "home"
    variables |= {"HOME": str(home), "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([base, "-m", "venv", "--without-pip", env], env=variables, check=True)
    packages = env / "lib" / PYTHON / "site-packages"
    # Folders named here come after the environment's own, and their .pth files (an editable install) are not read.
    (packages / "shared.pth").write_text("\n".join(dependencies), encoding="utf-8")
    pip = [*PIP, "--python", str(env / "bin" / "python"), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(pip, env=os.environ | variables, check=True)
    tiny_release.judges(folder / "judges")
    for made in (own, home):
        made.mkdir()
    if user:
        os.chown(own, user["user"], user["group"])
    subprocess.run(["chmod", "-R", "a+rX,a-w", env, home, folder / "judges"], check=True)
    yield Installed(folder, user, variables)
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(installed: Installed) -> Path:
    """A run of two steps, trained from the installation in two processes."""
    installed("astrolabe", "train", "shapes_tiny", "--processes", "2", "--out", "run")
    return installed.folder / "own" / "run"


def test_a_wheel_holds_every_tracked_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        held = {name: packed.read(name) for name in packed.namelist() if ".dist-info/" not in name}
    wanted = {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in tracked() if name.startswith("src/")}
    assert sorted(held) == sorted(wanted)
    assert held == wanted


def test_what_runs_is_the_installation_and_it_cannot_be_written(installed: Installed) -> None:
    asks = "import astrolabe, os; print(os.path.realpath(astrolabe.__file__), os.access(astrolabe.__file__, os.W_OK))"
    place, writable = installed("python", "-c", asks).split()
    assert Path(place).is_relative_to(installed.folder.resolve() / "env")
    assert installed("astrolabe", "--version").startswith("astrolabe ")
    if not installed.user:
        pytest.skip("run by oneself: this process may not become another user, or that one cannot read its packages")
    assert writable == "False"


@pytest.fixture(scope="module")
def video(installed: Installed, run: Path) -> Path:
    """One that the run's adapter made."""
    installed("astrolabe", "generate", "--adapter", "run", "--prompt", PROMPT, "--frames", "6", "--out", "videos")
    return run.parent / "videos" / "0000.mp4"


def test_it_generates_and_reports(installed: Installed, run: Path, video: Path) -> None:
    assert video.stat().st_size
    installed("astrolabe", "report", "run")
    assert "<!doctype html>" in (run / "report.html").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize(("reward", "weights"), [("hpsv3", "HPSv3.safetensors"), ("videoalign_mq", "model.pth")])
def test_it_has_the_words_that_reward_models_are_asked_with(
    installed: Installed, video: Path, reward: str, weights: str
) -> None:
    judges = installed.folder / "judges"
    spec = f"{reward},model.weights={judges / weights},model.base={judges / 'tokens'}"
    score, judged = installed("astrolabe", "rewards", "score", spec, str(video), "--prompt", PROMPT).split()
    assert float(score) and judged == str(video)


def test_its_workers_are_those_of_the_installation(installed: Installed, run: Path) -> None:
    installed("astrolabe", "train", "shapes_tiny", "--pool.backend", "ray", "--out", "ray")
    adapter = installed.folder / "own" / "ray" / "adapter.safetensors"
    assert adapter.read_bytes() == (run / "adapter.safetensors").read_bytes()
