"""From names to rewards: what a suite of settings needs is opened once, however many of its rewards share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPConfig

from astrolabe.models.hub import beside, find_file
from astrolabe.rewards import clip, hpsv3, videoalign
from astrolabe.rewards.base import Reward
from astrolabe.rewards.custom import check_readable, load_custom, spec_file
from astrolabe.rewards.pixels import ANY_VIDEO, seamlessness
from astrolabe.rewards.server import ServerReward
from astrolabe.rewards.settings import VIDEO_MODELS, RewardModelSettings, RewardSettings
from astrolabe.rewards.shapes import OracleReward, Oracles, RandomReward
from astrolabe.rewards.visiting import Networked, lock
from astrolabe.runtime.device import check_device
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tensorfile import open_tensors
from astrolabe.runtime.wrapped import tensors_of

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ReleasedReward:
    """One released reward model: where it lies, and whose tokenizer it takes (and for some, whose CLIP)."""

    repository: str
    file: str
    base: str
    gigabytes: float  # of its weights in bfloat16, and of the CLIP beneath
    licence: str
    config: str = ""  # a file beside the weights that tells their sizes


CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
VIDEO_REWARD = ReleasedReward(
    "KwaiVGI/VideoReward", "checkpoint-11352/model.pth", "Qwen/Qwen2-VL-2B-Instruct", 4.4, "see its repository"
)
RELEASED_REWARDS = {
    "hpsv3": ReleasedReward("MizzenAI/HPSv3", "HPSv3.safetensors", "Qwen/Qwen2-VL-7B-Instruct", 16.6, "MIT"),
    **dict.fromkeys(VIDEO_MODELS, VIDEO_REWARD),
    "clipscore": ReleasedReward(CLIP_L, "model.safetensors", CLIP_L, 0.9, "MIT", "config.json"),
    "pickscore": ReleasedReward("yuvalkirstain/PickScore_v1", "model.safetensors", CLIP_H, 2.0, "MIT", "config.json"),
    "hpsv2": ReleasedReward("xswu/HPSv2", "HPS_v2.1_compressed.pt", CLIP_H, 2.0, "Apache-2.0"),
    "aesthetic": ReleasedReward(
        "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", CLIP_L, 0.9, "Apache-2.0", "config.json"
    ),
}


@dataclass(frozen=True)
class RewardFiles:
    """Where the files of a reward model are looked for; every method raises UserError when one is not to be had."""

    name: str
    settings: RewardModelSettings
    download: bool = True

    @property
    def released(self) -> ReleasedReward:
        """The table's entry."""
        return RELEASED_REWARDS[self.name]

    def weights(self) -> Path:
        """The checkpoint."""
        return self._find(self.settings.weights, self.released.repository, self.released.file, shards=True)

    def beside(self) -> Path:
        """The configuration beside the checkpoint, or of the base."""
        if self.name == "aesthetic":
            return self._find(self.settings.base, self.released.base, self.released.config)
        return self._find(beside(self.settings.weights), self.released.repository, self.released.config)

    def base_weights(self) -> Path:
        """The CLIP beneath the aesthetic predictor."""
        return self._find(self.settings.base, self.released.base, "model.safetensors")

    def tokenizer(self) -> Path:
        """The folder of the tokenizer's files."""
        first, *others = (self._find(self.settings.base, self.released.base, name) for name in TOKENIZER)
        return first.parent if all(other.parent == first.parent for other in others) else first

    def _find(self, source: str, repository: str, file: str, shards: bool = False) -> Path:
        try:
            return find_file(source, repository, file, self.download, shards)
        except UserError as error:
            hint = str(error).split("; name its folder")[0]
            raise UserError(
                f"reward {self.name}: {hint}; its files are named by model.weights and model.base of the reward"
            ) from None


@dataclass
class Opening:
    """Makes rewards for videos of ``fps`` frames a second that were made ``chunk_frames`` latent frames at a time;
    ``seed`` is that of the random control. Without ``download`` this machine alone is asked for files. ``resting``:
    models are opened in the host's memory, from where ``rewards.visiting`` brings them to their device."""

    seed: int = 0
    fps: float = 16.0
    chunk_frames: int = 3
    download: bool = True
    resting: bool = False
    _shared: dict[Any, Any] = field(default_factory=dict)

    def reward(self, settings: RewardSettings) -> Reward:
        """One reward; UserError for whatever is missing or does not fit."""
        reward = self._open(settings)
        if self.resting and isinstance(reward, Networked):
            lock(reward.networks)
        return reward

    def _open(self, settings: RewardSettings) -> Reward:
        name, model = settings.name, settings.reward_model
        if settings.own:
            return load_custom(name, settings.args)
        if settings.server is not None:
            return ServerReward(settings.server)
        if name == "random":
            return RandomReward(self.seed)
        if name in ANY_VIDEO:
            return ANY_VIDEO[name]
        if name == "pixel_seamlessness":
            return seamlessness(name, self.chunk_frames)
        files = RewardFiles(name, model, self.download) if name in RELEASED_REWARDS else None
        if files is None:
            oracles = self._once("oracles", Oracles)
            measure, sign = ("flicker", -1.0) if name == "steadiness" else (name, 1.0)
            return OracleReward(name, measure, oracles, sign)
        check_device(model.place, f"reward {name}: model.device")
        if name == "hpsv3":
            return hpsv3.load_hpsv3(
                files.weights(), tokenizer_of(files), self.place(model), model.computes_in,
                every=model.every, best_share=model.best_share, token_budget=model.token_budget,
            )  # fmt: skip
        if name in VIDEO_MODELS:
            judge = self._once(("videoalign", model), lambda: self._videoalign(files, model))
            return videoalign.VideoAlignReward(DIMENSION[name], judge)
        return self._picture(name, files, model)

    def rewards(self, wanted: Sequence[RewardSettings]) -> list[Reward]:
        """Several. The user's own are opened first: what is wrong with one shows before gigabytes are read."""
        places = sorted(range(len(wanted)), key=lambda number: not wanted[number].own)
        made = {number: self.reward(wanted[number]) for number in places}
        return [made[number] for number in range(len(wanted))]

    def place(self, model: RewardModelSettings) -> str:
        """Where a model is opened."""
        return "cpu" if self.resting else model.place

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _videoalign(self, files: RewardFiles, model: RewardModelSettings) -> videoalign.VideoAlign:
        return videoalign.load_videoalign(
            files.weights(), tokenizer_of(files), self.fps, self.place(model), model.computes_in,
            token_budget=model.token_budget,
        )  # fmt: skip

    def _picture(self, name: str, files: RewardFiles, model: RewardModelSettings) -> Reward:
        file = open_tensors(files.weights())
        if name == "aesthetic":
            layers = clip.assemble_aesthetic(file, tensors_of(file), self.place(model))
            under = open_tensors(files.base_weights())
            seen = clip.assemble_clip(
                under, tensors_of(under), clip.read_config(files.beside()), self.place(model), model.computes_in
            )
            return clip.Aesthetic(clip.Clip(seen, tokenizer_of(files)), layers, model.every)
        config = CLIPConfig(**clip.VIT_H) if name == "hpsv2" else clip.read_config(files.beside())
        entries = clip.from_open_clip(tensors_of(file)) if name == "hpsv2" else tensors_of(file)
        seen = clip.assemble_clip(file, entries, config, self.place(model), model.computes_in)
        whole = clip.Clip(seen, tokenizer_of(files), "pad" if name == "hpsv2" else "crop")
        scores = {
            "hpsv2": lambda angle: angle,
            "pickscore": lambda angle: clip.pickscore(angle, seen.logit_scale),
            "clipscore": clip.clipscore,
        }
        return clip.ClipReward(name, whole, scores[name], model.every)


DIMENSION = dict(zip(VIDEO_MODELS, videoalign.DIMENSIONS, strict=True))


def tokenizer_of(files: RewardFiles) -> Any:
    """The base model's tokenizer; it runs no code of its own."""
    folder = files.tokenizer()
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever transformers says of files that it cannot read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward {files.name}: {folder}: no tokenizer ({reason})") from None


def look_at(settings: RewardSettings) -> str:
    """What can be said of a reward before it is opened; UserError for files that are missing or do not fit.

    Nothing is downloaded, no weight is read, and no code of the user's is run.
    """
    if settings.own:
        path = spec_file(settings.name)
        if path is not None:
            check_readable(settings.name, path)
        return "your own; `astrolabe rewards check` tries it"
    if settings.server is not None:
        ServerReward(settings.server)  # reads the rubric and the key; nothing is sent
        return f"asks {settings.server.model} at {settings.server.url}"
    if settings.name not in RELEASED_REWARDS:
        return "built in"
    check_device(settings.reward_model.place, f"reward {settings.name}: model.device")
    empty = replace(settings, model=replace(settings.reward_model, device="meta"))
    Opening(download=False).reward(empty)
    return f"{RewardFiles(settings.name, settings.reward_model, False).weights()}, every tensor where it should be"
