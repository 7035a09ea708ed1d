"""``python -m benchmarks.pictures RUN``: the contact sheets of the documentation, from a finished run.

Ground truth, base and aligned of the same held-out prompts; base and aligned share their noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from astrolabe.rollout.group import generate, video_noise
from astrolabe.runs import RunFolder, open_run
from astrolabe.shapes.captions import caption, split
from astrolabe.shapes.sheets import contact_sheet
from astrolabe.shapes.world import render

OUT = Path("docs/images")
SCENES = split("test")[::5][:8]
SEED = 4001  # in no evaluation


def main(run: Path) -> None:
    """Write the three sheets."""
    cfg, generator, policies = open_run(RunFolder(run))
    prompts = [caption(scene, 0) for scene in SCENES]
    frames = cfg.rollout.frames
    text, noise = generator.encode_text(prompts), list(range(len(prompts)))
    videos = {"ground_truth": render(SCENES, 1 + 4 * (frames - 1), torch.Generator().manual_seed(SEED))}
    for name, slot in (("base", None), ("aligned", "learner")):
        with policies.using(slot):
            videos[name] = generate(generator, text, frames, video_noise(SEED, noise))[1]
    OUT.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        contact_sheet(video, prompts, 8).save(OUT / f"{name}.png", optimize=True)
        print(OUT / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
