"""Replays of golden reward models and of what they are shown; see ``tests.golden.replay``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from astrolabe.rewards import clip, frames, hpsv3, videoalign
from astrolabe.rewards.qwen import QwenScorer, QwenSizes
from astrolabe.runtime.tensorfile import FLAT, Container, TensorFile, open_tensors

Errors = list[tuple[float, float]]  # each with its tolerance
TOLERANCE, EXACT = 1e-4, 0.0


def off(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> tuple[float, float]:
    """Largest absolute error; infinite for another shape."""
    same = found.shape == wanted.shape
    return (float((found.double() - wanted.double()).abs().max()) if same else float("inf")), tolerance


def checkpoint(path: str, prefix: str = "weights.") -> tuple[TensorFile, Container]:
    """A golden file as a checkpoint: its index, and its weights under their original names."""
    file = open_tensors(path)
    entries = {k.removeprefix(prefix): v for k, v in file.containers[FLAT].items() if k.startswith(prefix)}
    return file, entries


def qwen_sizes(meta: dict[str, Any]) -> QwenSizes:
    """What the tensors do not tell."""
    sizes = meta["config"]
    return QwenSizes(sizes["hidden_size"] // sizes["num_attention_heads"], sizes["vision"]["num_heads"])


def qwen_tokens(meta: dict[str, Any]) -> dict[str, int]:
    """The tokens that stand for pixels."""
    return {name: meta["token_ids"][name] for name in ("image", "video", "vision_start", "vision_end")}


def in_between(scorer: QwenScorer, tensors: dict[str, Tensor], kind: str, marks: list[int]) -> Errors:
    """Errors of the vision tower, of the last hidden state, and of that at the marks."""
    patches = tensors["pixel_values" if kind == "image" else "pixel_values_videos"]
    grid = tensors[f"{kind}_grid_thw"]
    seen = torch.cat(list(scorer.model.get_image_features(patches, grid).pooler_output))
    ids = tensors["input_ids"]
    hidden = scorer.hidden(ids, tensors["attention_mask"], patches, grid)
    at = hidden[torch.isin(ids, torch.tensor(marks))].view(len(ids), len(marks), -1)
    name = "inter.hidden_at_reward" if kind == "image" else "inter.hidden_at_special"
    return [off(seen, tensors["inter.visual_embeds"]), off(hidden, tensors["inter.last_hidden"]),
            off(at.squeeze(1), tensors[name])]  # fmt: skip


@torch.no_grad()
def replay_hpsv3(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Scores, hidden states, and the mean over the best frames."""
    scorer = hpsv3.assemble_hpsv3(*checkpoint(path), qwen_tokens(meta), qwen_sizes(meta))
    marks = [meta["token_ids"]["reward"]]
    asked = (tensors[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw"))
    logits = scorer.logits(marks, *asked).squeeze(1)
    errors = [off(logits, tensors["out.logits"]), off(logits[:, 0], tensors["out.mu"]),
              off(logits[:, 1], tensors["out.log_sigma"]),
              off(logits[:, 1].exp() / tensors["out.sigma"], torch.ones(len(logits)))]  # fmt: skip
    for name in (name.removesuffix(".frame_mu") for name in tensors if name.endswith(".frame_mu")):
        scores = tensors[f"{name}.frame_mu"]
        best = scores.gather(1, hpsv3.best_frames(scores, 0.3)).mean(1)
        errors += [off(best, tensors[f"{name}.top30"], 1e-5), off(scores.mean(1), tensors[f"{name}.mean"], 1e-5)]
    return errors + in_between(scorer, tensors, "image", marks)


@torch.no_grad()
def replay_videoalign(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Scores from the released layout and from the merged one, and of a head with three rows."""
    marks = [meta["token_ids"][name] for name in ("vq", "mq", "ta")]
    asked = [tensors[name] for name in ("input_ids", "attention_mask", "pixel_values_videos", "video_grid_thw")]
    errors: Errors = []
    for prefix in ("weights.", "merged."):
        file, entries = checkpoint(path, prefix)
        if not entries:
            continue
        scale = meta["lora"]["scaling"]
        scorer = videoalign.assemble_videoalign(file, entries, qwen_tokens(meta), qwen_sizes(meta), scale)
        raw = videoalign.of_three(scorer.logits(marks, *asked))
        score = videoalign.normalised(raw)
        errors += [
            off(raw, tensors["out.logits"]),
            off(score, tensors["out.normalised"]),
            off(score.sum(1), tensors["out.overall_sum"]),
            off(score.mean(1), tensors["out.overall_mean"]),
        ]
        errors += in_between(scorer, tensors, "video", marks)
        if "dim3.rm_head.weight" in tensors:
            three = tensors["dim3.rm_head.weight"]
            scorer.rm_head = torch.nn.Linear(three.shape[1], three.shape[0], bias=False)
            scorer.rm_head.weight.data = three
            errors.append(off(videoalign.of_three(scorer.logits(marks, *asked)), tensors["dim3.out.logits"]))
    return errors  # fmt: skip


def patches_off(small: Tensor, prefix: str, tensors: dict[str, Tensor]) -> Errors:
    """Errors of the patches of resized frames: the rows that were kept, and mean and spread of all."""
    rows, _ = frames.to_patches(small)
    return [off(rows[tensors[f"{prefix}.rows"]], tensors[f"{prefix}.pixel_values_rows"], 1e-5),
            off(rows.mean(1), tensors[f"{prefix}.pixel_values_row_mean"], 1e-5),
            off(rows.std(1), tensors[f"{prefix}.pixel_values_row_std"], 1e-5)]  # fmt: skip


def replay_image(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Sizes, resized pictures and patches of HPSv3."""
    errors: Errors = []
    for name in (f"img{case['i']}" for case in meta["cases"]):
        picture = tensors[f"{name}.input_u8"].permute(2, 0, 1)[None]
        size = frames.smart_size(picture.shape[2], picture.shape[3], meta["min_pixels"], meta["max_pixels"])
        small = frames.pillow_bicubic(picture, size)
        errors += [
            off(small[0].permute(1, 2, 0), tensors[f"{name}.resized_u8"], EXACT),
            off(torch.tensor([frames.to_patches(small)[1]]), tensors[f"{name}.image_grid_thw"], EXACT),
        ]
        errors += patches_off(small, name, tensors)
    return errors  # fmt: skip


def clip_off(seen: Tensor, prefix: str, tensors: dict[str, Tensor], size: tuple[int, int]) -> Errors:
    """Errors of a video's chosen frames, resized and cut. Of a thousand pixels one may be a level off."""
    small = frames.torch_bicubic(seen, size)
    away = (small[tensors[f"{prefix}.kept"]].int() - tensors[f"{prefix}.resized_u8"].int()).abs()
    few = float((away > 0).double().mean()) <= 1e-3
    patches = patches_off(small, prefix, tensors)
    if few and bool(away.any()):
        patches = [(error, 0.02) for error, _ in patches]
    return [(float(away.max()), 1.0 if few else EXACT),
            off(small.float().mean((2, 3)), tensors[f"{prefix}.resized_mean"], 1e-3),
            off(torch.tensor([frames.to_patches(small)[1]]), tensors[f"{prefix}.video_grid_thw"], EXACT),
            *patches]  # fmt: skip


def replay_video(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Chosen frames, sizes, resized frames and patches of VideoAlign."""
    errors: Errors = []
    for case in meta["cases"]:
        name = f"vid{case['i']}"
        video = tensors[f"{name}.frames_u8"].permute(0, 3, 1, 2)
        chosen = frames.at_rate(len(video), case["fps"], meta["fps"])
        size = frames.smart_size(video.shape[2], video.shape[3], meta["min_pixels"], meta["max_pixels"])
        errors += [off(chosen, tensors[f"{name}.frame_indices"], EXACT), *clip_off(video[chosen], name, tensors, size)]
    return errors


def replay_video_fixed(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """The same with a fixed number of frames and a fixed size, in colour and in grey."""
    video, errors = tensors["frames_u8"], []
    chosen = frames.evenly(len(video), meta["nframes"])
    for prefix in (prefix for prefix in ("rgb", "gray") if f"{prefix}.rows" in tensors):
        seen = (frames.grey(video) if prefix == "gray" else video)[chosen]
        height, width = meta["resized_hw"]
        errors += [off(chosen, tensors[f"{prefix}.frame_indices"], EXACT)]
        errors += clip_off(seen, prefix, tensors, (height, width))
        if prefix == "gray":
            errors.append(off(seen[:, 0], tensors["gray.full_res_u8"], EXACT))
    return errors


@torch.no_grad()
def replay_clip(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Embeddings, and the scores made of them."""
    sizes = meta["config"]

    def side(name: str, **more: Any) -> dict[str, Any]:
        own = sizes[name]
        return {"hidden_size": own["hidden_size"], "intermediate_size": own["intermediate_size"],
                "num_hidden_layers": own["layers"], "num_attention_heads": own["heads"],
                "hidden_act": sizes["hidden_act"], "projection_dim": sizes["projection_dim"]} | more  # fmt: skip

    words, sees = sizes["text"], sizes["vision"]
    text = side("text", vocab_size=words["vocab"], max_position_embeddings=words["max_position"],
                eos_token_id=words["eos"], bos_token_id=0, pad_token_id=1)  # fmt: skip
    vision = side("vision", image_size=sees["image_size"], patch_size=sees["patch_size"])
    config = CLIPConfig(projection_dim=sizes["projection_dim"], text_config=text, vision_config=vision)
    model = clip.assemble_clip(*checkpoint(path), config)
    pictures = clip.image_features(model, tensors["pixel_values"])
    texts = clip.text_features(model, tensors["input_ids"], tensors["attention_mask"])
    angle = clip.cosine(pictures, texts)
    return [off(pictures, tensors["out.image_features"]), off(texts, tensors["out.text_features"]),
            off(angle, tensors["out.cosine"]),
            off(clip.pickscore(angle, model.logit_scale), tensors["out.pickscore"])]  # fmt: skip


def replay_aesthetic(path: str, meta: dict[str, Any], tensors: dict[str, Tensor]) -> Errors:
    """Scores of embeddings."""
    layers = clip.assemble_aesthetic(*checkpoint(path))
    return [off(clip.aesthetic(layers, tensors["image_features"]), tensors["out.aesthetic"])]


REPLAYS = {
    "hpsv3": replay_hpsv3, "videoalign": replay_videoalign, "preprocess_image": replay_image,
    "preprocess_video": replay_video, "preprocess_video_astrolabe": replay_video_fixed, "clip_scores": replay_clip,
    "aesthetic": replay_aesthetic,
}  # fmt: skip
