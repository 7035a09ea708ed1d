"""``python -m benchmarks.pictures RUN``: the contact sheets of the documentation, from a finished run.

Ground truth, base and aligned of the same held-out prompts; base and aligned share their noise. And one stream of the
base whose prompt changes: left alone, softly, by a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image

from astrolabe.models.base import Generator
from astrolabe.rollout.live import start
from astrolabe.rollout.videos import generate, video_noise
from astrolabe.runs.folder import RunFolder
from astrolabe.runs.opening import open_run
from astrolabe.runtime.arguments import Parser, run_program
from astrolabe.shapes.captions import caption, split
from astrolabe.shapes.sheets import contact_sheet
from astrolabe.shapes.world import render

OUT = Path("docs/images")
SCENES = split("test")[::5][:8]
SEED = 4001  # in no evaluation


def main(argv: Sequence[str] | None = None) -> None:
    """Write the sheets."""
    parser = Parser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run of the embedded model")
    cfg, generator, policies = open_run(RunFolder(parser.read(argv).run))
    prompts = [caption(scene, 0) for scene in SCENES]
    frames = cfg.window.frames
    text, noise = generator.encode_text(prompts), list(range(len(prompts)))
    videos = {"ground_truth": render(SCENES, 1 + 4 * (frames - 1), torch.Generator().manual_seed(SEED))}
    for name, slot in (("base", None), ("aligned", "learner")):
        with policies.using(slot):
            videos[name] = generate(generator, text, frames, video_noise(SEED, noise))[1]
    OUT.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
        contact_sheet(video, prompts, 8).save(OUT / f"{name}.png", optimize=True)
        print(OUT / f"{name}.png")
    with policies.using(None):
        script(generator).save(OUT / "script.png", optimize=True)
    print(OUT / "script.png")


def script(generator: Generator) -> Image:
    """Three streams that begin alike; at half time the first goes on, the second is switched, the third is cut."""
    first, then = "a red circle moving left", "a blue square moving up"
    shown = []
    for enter in ("goes on", "switch", "cut"):
        videos = start(generator, [first], seed=7)
        chunks = [videos.step().video for _ in range(3)]
        if enter != "goes on":
            (videos.switch if enter == "switch" else videos.cut)(generator.encode_text([then]))
        chunks += [videos.step().video for _ in range(3)]
        whole = torch.cat([chunk for chunk in chunks if chunk is not None], 1)
        shown.append(whole[:, torch.linspace(0, whole.shape[1] - 1, 12).round().long()])
    return contact_sheet(torch.cat(shown), [f"{first}\n(goes on)", f"| {then}\n(switch)", f"|| {then}\n(cut)"], 12)


if __name__ == "__main__":
    run_program(main)
