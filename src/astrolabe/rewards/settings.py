"""Rewards as a configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from astrolabe.runtime.config import config, setting
from astrolabe.runtime.device import Dtype, torch_dtype, usual_device
from astrolabe.runtime.errors import UserError, nearest
from astrolabe.runtime.settings import Plain
from astrolabe.words import Span

if TYPE_CHECKING:
    import torch

ORACLES = ("joint", "right", "made", "colour", "shape", "motion", "colour_fit", "shape_fit", "motion_fit", "vividness",
           "cleanliness", "smoothness", "steadiness")  # fmt: skip
PICTURE_MODELS = ("hpsv3", "clipscore", "pickscore", "hpsv2", "aesthetic")
VIDEO_MODELS = ("videoalign_vq", "videoalign_mq", "videoalign_ta")
MODELS = (*PICTURE_MODELS, *VIDEO_MODELS)
ONE_FRAME = ("colour", "shape", "colour_fit", "shape_fit", "vividness", "cleanliness", "pixel_saturation",
             "pixel_sharpness", "server", *PICTURE_MODELS)  # fmt: skip
DOUBTING = ("hpsv3",)  # those that know how uncertain they are
MEASURES = ("pixel_motion", "pixel_steadiness", "pixel_saturation", "pixel_sharpness", "flow_degree", "flow_smoothness",
            "pixel_seamlessness")  # fmt: skip  # of any video, without weights
KNOWN = (*ORACLES, *MEASURES, "random", *MODELS, "server")

Role = Literal["primary", "auxiliary", "judge"]


@config
class RewardModelSettings:
    """A reward model: its files, where it runs, and what it looks at."""

    weights: str = setting(
        "checkpoint: a file, a folder or a hub id; empty: its authors' on the hub", default="", path=True
    )
    base: str = setting(
        "tokenizer, and for hpsv2 and the aesthetic predictor the CLIP beneath: a folder or a hub id; empty: the base "
        "model's on the hub",
        default="",
        path=True,
    )
    device: str = setting(
        "where it runs: cpu, cuda, cuda:1; `auto` is the GPU where there is one", default="auto", affects="rounding"
    )
    dtype: Dtype = setting(
        "what it computes in, but for its head; `auto` is bfloat16 where the machine multiplies it natively",
        default="auto",
    )
    every: int = setting("image models score one of so many frames", unit="frames", default=1, ge=1)
    best_share: float = setting("hpsv3: the mean over this share of the frames, the best ones, counts", default=0.3,
                                gt=0, le=1)  # fmt: skip
    token_budget: int = setting("models with a language model: the most tokens in one forward", unit="tokens",
                                default=16384, ge=1, affects="rounding")  # fmt: skip

    @property
    def place(self) -> str:
        """The device, with nothing left open."""
        return usual_device() if self.device == "auto" else self.device

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype, with nothing left open."""
        return torch_dtype(self.dtype, self.place)


@config
class ServerSettings:
    """A server with an OpenAI-compatible API (vLLM, SGLang and others), and what it is asked."""

    url: str = setting("URL of the server, up to /v1: http://localhost:8000/v1")
    model: str = setting("name of the model there")
    rubric: Path = setting("text file that says how to judge; {prompt} stands for the video's prompt", path=True)
    shown: int = setting("frames of a video that are sent, evenly spread", default=8, ge=1)
    lowest: float = setting("score of the worst", default=0.0)
    highest: float = setting("score of the best", default=10.0)
    concurrency: int = setting("requests at the same time", default=8, ge=1, affects="nothing")
    max_tokens: int = setting(
        "the longest answer, thoughts included; a judge that thinks needs thousands", unit="tokens", default=4096, ge=1
    )
    timeout: float = setting(
        "of one request; no wait between two is longer", unit="seconds", default=120.0, gt=0, affects="nothing"
    )
    tries: int = setting(
        "of one request, when the server is busy, fails or is not reached; longer and longer waits are between them",
        default=4, ge=1, affects="nothing",
    )  # fmt: skip
    wait: float = setting(
        "before the second try; doubled before each other", unit="seconds", default=1.0, ge=0, affects="nothing"
    )
    key: Path | None = setting(
        "file that holds the API key; none: no key is sent", default=None, path=True, affects="nothing"
    )

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url={self.url} does not begin with http:// or https://")
        if self.lowest >= self.highest:
            raise ValueError(f"lowest={self.lowest:g} must be under highest={self.highest:g}")


@config
class WorkerSettings:
    """The processes of a reward, under pool.backend=ray."""

    replicas: int = setting("workers that share its batches", default=1, ge=1, affects="rounding")
    gpus: float = setting("GPUs of each worker; parts of one are shared", default=0.0, ge=0, affects="rounding")
    packages: tuple[str, ...] = setting(
        "pip packages to install in an environment of its own (transformers==4.45.2, say); empty: this one", default=()
    )


@config
class RewardSettings:
    """One reward: its weight, its role, and what it sees."""

    name: str = setting(
        f"an oracle of the shapes world ({', '.join(ORACLES)}), a measure of any video ({', '.join(MEASURES)}), a "
        f"reward model ({', '.join(MODELS)}), server: a judge that is asked over HTTP, random: a control, or one of "
        "your own: path/to/file.py:Class or package.module:Class",
        path=True,
    )
    weight: float = setting("share of influence on the sum", default=1.0, ge=0)
    role: Role = setting(
        "primary: the one that may be hacked; auxiliary: trained on too; judge: measured and logged, never trained on",
        default="auxiliary",
    )
    span: Span = setting(
        "what it judges: the clip, the video so far, or both mixed as window.credit says", default="mixed"
    )
    frames: int | None = setting(
        "number of frames that it sees, evenly spread over what it judges; the default is all", default=None, ge=1
    )
    model: RewardModelSettings | None = setting("settings of a reward model; none: as its authors use it", default=None)
    server: ServerSettings | None = setting(
        "settings of the reward `server`: its URL, model and questions", default=None
    )
    worker: WorkerSettings = WorkerSettings()
    args: dict[str, Plain] = setting(
        "arguments of the class of a reward of your own, by the names in its __init__", default={}
    )

    @property
    def own(self) -> bool:
        """Whether it is the user's own class."""
        return ":" in self.name

    @property
    def reward_model(self) -> RewardModelSettings:
        """The settings of a reward model."""
        return self.model or RewardModelSettings()

    def __post_init__(self) -> None:
        if self.name.endswith(".py"):
            raise UserError(f"reward {self.name!r} is a file; name its class too: {self.name}:Class")
        if self.name not in KNOWN and not self.own:
            raise UserError(
                f"reward {self.name!r} is unknown{nearest(self.name, KNOWN)}; there are: {', '.join(KNOWN)}; one of "
                "your own is named path/to/file.py:Class"
            )
        if self.own and not self.name.rpartition(":")[2].isidentifier():
            raise UserError(f"reward {self.name!r}: expected path/to/file.py:Class or package.module:Class")
        if (self.server is not None) != (self.name == "server"):
            raise UserError(f"reward {self.name}: `server` (url, model, rubric) is for the reward of that name alone")
        if self.model is not None and self.name not in MODELS:
            raise UserError(f"reward {self.name}: model is for {', '.join(MODELS)}; leave it out")
        if self.args and not self.own:
            raise UserError(f"reward {self.name}: args are for a reward of your own, path/to/file.py:Class")
        if odd := [name for name in self.args if not name.isidentifier()]:
            raise UserError(f"reward {self.name}: args: {odd[0]!r} is no name of an argument")


@config
class PoolSettings:
    """Where rewards are computed."""

    backend: Literal["inline", "ray"] = setting(
        "inline: in the training process, between its other work; ray: in processes of their own, while candidates are "
        "made",
        default="inline",
        affects="rounding",
    )
    address: str = setting(
        "of a Ray cluster that is there (host:port); empty: one on this machine alone, for this run",
        default="",
        affects="nothing",
    )
    threads: int = setting(
        "CPU threads of every worker; 0: as many as the training process has", default=0, ge=0, affects="rounding"
    )
    timeout: float = setting(
        "a worker that has not answered for so long, on a batch or while it starts, is treated as dead", unit="seconds",
        default=1800.0, gt=0, affects="nothing")  # fmt: skip
