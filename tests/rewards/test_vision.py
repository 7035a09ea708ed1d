"""Reward models on Qwen2-VL and CLIP: strict about their files, exact about what they read, one score a video."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from astrolabe.rewards.base import check_batch
from astrolabe.rewards.chat import AFTER, BEFORE, Chat
from astrolabe.rewards.clip import (
    Aesthetic,
    AestheticLayers,
    Clip,
    ClipReward,
    assemble_aesthetic,
    assemble_clip,
    from_open_clip,
    image_features,
    pickscore,
    shown,
    text_features,
)
from astrolabe.rewards.hpsv3 import HPSv3, assemble_hpsv3, head, load_hpsv3
from astrolabe.rewards.qwen import QwenSizes, batches
from astrolabe.rewards.videoalign import MEAN, STD, VideoAlign, VideoAlignReward, load_videoalign
from astrolabe.runtime.errors import UserError
from astrolabe.runtime.tensorfile import FLAT, open_tensors
from astrolabe.types import Video
from tests.rewards import tiny

PROMPTS = ["a cat", "a red fox that runs over snow"]


def videos(count: int = 2, frames: int = 5, height: int = 40, width: int = 60, seed: int = 0) -> Video:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> HPSv3:
    path = tiny.write_hpsv3(tmp_path_factory.mktemp("hps") / "HPSv3.safetensors")
    return load_hpsv3(path, tiny.tokenizer())


@pytest.fixture(scope="module")
def align(tmp_path_factory: pytest.TempPathFactory) -> VideoAlign:
    path = tiny.write_videoalign(tmp_path_factory.mktemp("align") / "model.pth")
    return load_videoalign(path, tiny.tokenizer(), 16.0)


def rewards(align: VideoAlign) -> list[VideoAlignReward]:
    return [VideoAlignReward("VQ", align), VideoAlignReward("MQ", align), VideoAlignReward("TA", align)]


@pytest.mark.parametrize("head_dim", [2, 4, 6, 12, 20, 24, 40, 128])
def test_heads_of_any_size_are_opened_and_score_as_the_network_that_was_saved(head_dim: int, tmp_path: Path) -> None:
    heads, path = 2, tmp_path / "model.safetensors"
    made = tiny.scorer(len(tiny.tokenizer()) + 1, head(heads * head_dim), 0, head_dim, heads).eval()
    save_file(tiny.official(made), path)
    chat = Chat("hpsv3", tiny.tokenizer(), "image", tiny.marks_of("hpsv3"))
    file = open_tensors(path)
    opened = assemble_hpsv3(file, file.containers[FLAT], chat.tokens, QwenSizes(head_dim))
    expected = HPSv3(made, chat)(videos(1), PROMPTS[:1])
    torch.testing.assert_close(HPSv3(opened, chat)(videos(1), PROMPTS[:1]), expected)
    with pytest.raises(UserError, match="no whole heads of 94"):
        assemble_hpsv3(file, file.containers[FLAT], chat.tokens, QwenSizes(94))


def test_heads_that_nothing_could_turn_are_refused() -> None:
    for head_dim in (-2, 0, 7):
        with pytest.raises(UserError, match=f"heads of {head_dim} numbers"):
            QwenSizes(head_dim)


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [("hpsv3", 2733, "975a95bb63e18e35b43c8547ae8f97f5e90544d534ee586207557dcef9cda6ca"),
     ("videoalign", 4140, "bb84e2dab57524b13852b200bf8701afd917dc169e0dd0dabe173028701bbca2")],
)  # fmt: skip
def test_prompts_are_asked_in_the_words_of_the_checkpoints(name: str, count: int, digest: str) -> None:
    kind: Literal["image", "video"] = "image" if name == "hpsv3" else "video"
    chat = Chat(name, tiny.tokenizer(), kind, tiny.marks_of(name))
    text = BEFORE + f"<|{kind}_pad|>" + AFTER.replace("{text}", chat.ask("a cat"))
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()) == (count, digest)
    assert chat.tokenizer.encode(text, add_special_tokens=False) == chat.row("a cat", 1)


def test_a_prompt_may_hold_braces_but_not_the_reward_models_own_tokens() -> None:
    chat = Chat("hpsv3", tiny.tokenizer(), "image", tiny.marks_of("hpsv3"))
    row = chat.row("{text_prompt} {0} <|im_start|>", 3)
    assert row.count(chat.marks[0]) == 1 and row.count(chat.place) == 3
    for token in ("<|Reward|>", "<|image_pad|>", "<|vision_end|>"):
        with pytest.raises(UserError, match=r"hpsv3: the prompt 'a cat .* contains special tokens"):
            chat.row(f"a cat {token}", 3)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    path, more = tiny.write_hpsv3(tmp_path / "a.safetensors"), tiny.tokenizer()
    more.add_tokens(["zebra"])
    with pytest.raises(UserError, match="embeds 264 tokens, and the tokenizer knows 265"):
        load_hpsv3(path, more)


def changed(tensors: dict[str, Tensor], name: str, how: str) -> dict[str, Tensor]:
    """A checkpoint with one tensor dropped, renamed or reshaped."""
    rest = {key: value for key, value in tensors.items() if key != name}
    if how == "renamed":
        rest[f"{name}x"] = tensors[name]
    if how == "reshaped":
        value = tensors[name]
        rest[name] = torch.cat([value, value[:1]]) if value.ndim else value[None]
    return rest


@pytest.mark.parametrize("how", ["dropped", "renamed", "reshaped"])
def test_no_tensor_of_hpsv3_may_be_missing_unknown_or_misshapen(how: str, tmp_path: Path) -> None:
    tensors = load_file(tiny.write_hpsv3(tmp_path / "a.safetensors"))
    for name in tensors:
        save_file(changed(tensors, name, how), tmp_path / "b.safetensors")
        with pytest.raises(UserError):
            load_hpsv3(tmp_path / "b.safetensors", tiny.tokenizer())


@pytest.mark.parametrize("how", ["dropped", "renamed", "reshaped"])
def test_no_tensor_of_videoalign_may_be_missing_unknown_or_misshapen(how: str, tmp_path: Path) -> None:
    tensors = torch.load(tiny.write_videoalign(tmp_path / "a.pth"), weights_only=True)
    for name in tensors:
        torch.save(changed(tensors, name, how), tmp_path / "b.pth")
        with pytest.raises(UserError):
            load_videoalign(tmp_path / "b.pth", tiny.tokenizer(), 16.0)


def test_an_embedding_that_is_not_tied_is_another_model(tmp_path: Path) -> None:
    tensors = torch.load(tiny.write_videoalign(tmp_path / "a.pth"), weights_only=True)
    tensors["base_model.model.lm_head.weight"][0, 0] += 1
    torch.save(tensors, tmp_path / "b.pth")
    with pytest.raises(UserError, match="lm_head differs"):
        load_videoalign(tmp_path / "b.pth", tiny.tokenizer(), 16.0)


def test_hpsv3_scores_a_video_by_the_best_of_its_frames(hps: HPSv3) -> None:
    video = videos(frames=7)
    values, doubts = hps.judge(video, PROMPTS)
    single = [hps.judge(video[:, frame : frame + 1], PROMPTS) for frame in range(7)]
    means, stds = (torch.stack([one[part] for one in single], 1) for part in (0, 1))
    best = means.topk(2, 1)
    torch.testing.assert_close(values, best.values.mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(doubts, stds.gather(1, best.indices).mean(1), atol=1e-4, rtol=1e-4)
    assert means.std() > 1e-3 and not torch.equal(values, hps(video, PROMPTS[::-1]))
    sparse = HPSv3(hps.scorer, hps.chat, every=3, best_share=1.0)
    torch.testing.assert_close(sparse(video, PROMPTS), means[:, ::3].mean(1), atol=1e-4, rtol=0)


def test_hpsv3_tells_the_logarithm_of_its_standard_deviation(hps: HPSv3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hps.scorer, "logits", lambda marks, ids, *rest: torch.tensor([[[3.0, 0.5]]] * len(ids)))
    values, doubts = hps.judge(videos(frames=7), PROMPTS)
    assert values.tolist() == [3.0, 3.0] and doubts.tolist() == pytest.approx([math.exp(0.5)] * 2)


def test_how_many_go_through_together_changes_nothing(hps: HPSv3, align: VideoAlign) -> None:
    video, few = videos(3), HPSv3(hps.scorer, hps.chat, token_budget=1)
    prompts = [*PROMPTS, "x" * 4000]
    torch.testing.assert_close(few(video, prompts), hps(video, prompts), atol=1e-4, rtol=0)
    alone = torch.cat([hps(video[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(hps(video, prompts), alone, atol=1e-4, rtol=0)
    alone = torch.cat([VideoAlignReward("TA", align)(video[i : i + 1].clone(), prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(VideoAlignReward("TA", align)(video, prompts), alone, atol=1e-4, rtol=0)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_keep_the_order_and_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert [number for some in found for number in some] == list(range(len(lengths)))
    for some in found:
        assert len(some) == 1 or max(lengths[i] for i in some) * len(some) <= budget


def test_one_videoalign_answers_all_its_dimensions_with_two_forwards(
    align: VideoAlign, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    plain = align.scorer.hidden

    def counted(*args: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return plain(*args)

    monkeypatch.setattr(align.scorer, "hidden", counted)
    video = videos(frames=9)
    scores = [reward(video, PROMPTS) for reward in rewards(align)]
    assert count == 2 and len({tuple(score.tolist()) for score in scores}) == 3  # colours, and grey for motion
    video.mul_(0.5)
    assert not torch.equal(rewards(align)[0](video, PROMPTS), scores[0])
    assert count == 3


def test_motion_is_judged_in_grey_and_everything_in_the_authors_units(align: VideoAlign) -> None:
    video = videos(frames=9)
    plain = align.scores("x", video, PROMPTS, False)
    motion = rewards(align)[1](video, PROMPTS)
    assert not torch.allclose(motion, plain[:, 1])
    brightness = (video * 255).round().mul(torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(2, keepdim=True)
    in_grey = (brightness.floor() / 255).expand_as(video).contiguous()
    torch.testing.assert_close(motion, align.scores("x", in_grey, PROMPTS, False)[:, 1], atol=1e-3, rtol=0)
    assert MEAN == (3.6757, 1.1646, 2.8105) and STD == (2.2476, 1.3811, 2.5121)


@pytest.mark.parametrize(
    ("video", "prompts", "said"),
    [
        (videos() * 255, PROMPTS, "pixels from .* came; expected 0 to 1"),
        (videos().where(videos() > 0.5, torch.nan), PROMPTS, "pixels from nan"),
        (videos(), ["a cat", "  "], "prompt 2 of 2 is empty"),
        (videos(), ["a cat"], "2 videos came with 1 prompts"),
        (videos(height=1, width=250), PROMPTS, "longer than 200 times"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    video: Tensor, prompts: list[str], said: str, hps: HPSv3, align: VideoAlign
) -> None:
    for reward in (hps, rewards(align)[0]):
        with pytest.raises(UserError, match=said):
            reward(video, prompts)


@pytest.mark.parametrize("shape", [(2, 5, 2, 8, 8), (2, 5, 4, 8, 8), (5, 3, 8, 8), (2, 5, 8, 8, 3)])
def test_what_is_no_video_is_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"mine: videos came as .*; expected \[batch, frames, 3, height, width\]"):
        check_batch("mine", torch.rand(shape), PROMPTS)


def test_one_frame_has_no_motion_to_judge(hps: HPSv3, align: VideoAlign) -> None:
    assert hps(videos(frames=1), PROMPTS).isfinite().all()
    with pytest.raises(UserError, match="videoalign_mq: videos of 1 frames came; it looks at 2"):
        rewards(align)[1](videos(frames=1), PROMPTS)


@pytest.mark.parametrize("height", [33, 64])
def test_odd_sizes_are_judged(height: int, hps: HPSv3, align: VideoAlign) -> None:
    video = videos(1, 3, height, 47)
    assert hps(video, PROMPTS[:1]).isfinite().all() and rewards(align)[0](video, PROMPTS[:1]).isfinite().all()


def ending(text: list[str], **options: Any) -> Any:
    """Tokens of prompts, each with an end, as CLIP's tokenizer makes them."""
    tokens = tiny.tokenizer()
    tokens.pad_token = "<|endoftext|>"
    return tokens([f"{one}<|endoftext|>" for one in text], padding=True, return_tensors="pt")


def test_clip_rewards_are_means_over_frames() -> None:
    model, video = tiny.clip_model(), videos(height=28, width=28)
    clip = Clip(model, ending, at_once=3)
    with torch.no_grad():
        tokens = ending(PROMPTS)
        texts = text_features(model, tokens.input_ids, tokens.attention_mask)
        pictures = torch.stack([image_features(model, shown((one * 255).round().byte(), 28, "crop")) for one in video])
    angle = torch.cosine_similarity(pictures, texts[:, None], dim=-1)
    reward = ClipReward("hpsv2", clip, lambda angle: angle)
    torch.testing.assert_close(reward(video, PROMPTS), angle.mean(1), atol=1e-5, rtol=0)
    scaled = ClipReward("pickscore", clip, lambda angle: pickscore(angle, model.logit_scale), every=2)
    factor = model.logit_scale.exp() / 26
    torch.testing.assert_close(scaled(video, PROMPTS), factor * angle[:, ::2].mean(1), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="hpsv2: pixels"):
        reward(video + 1, PROMPTS)


def test_the_aesthetic_predictor_has_nothing_between_its_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(AestheticLayers().state_dict(), tmp_path / "a.safetensors")
    file = open_tensors(tmp_path / "a.safetensors")
    layers = assemble_aesthetic(file, file.containers[FLAT])
    model, wider = tiny.clip_model(), nn.Linear(24, 768)
    model.visual_projection = nn.Sequential(model.visual_projection, wider)
    model.visual_projection.weight = wider.weight
    found = Aesthetic(Clip(model, ending), layers)(videos(), PROMPTS)
    state = load_file(tmp_path / "a.safetensors")
    pictures = Clip(model, ending).pictures("x", videos(), PROMPTS, 1)
    wanted = pictures / pictures.norm(dim=-1, keepdim=True)
    for number in "02467":
        wanted = wanted @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    torch.testing.assert_close(found, wanted[..., 0].mean(1), atol=1e-5, rtol=0)


def open_clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's tensors as OpenCLIP keeps them."""
    found: dict[str, Tensor] = {"logit_scale": state["logit_scale"], "attn_mask": torch.zeros(3, 3)}
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for layer in range(2):
            own, new = f"{tower}.encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
            for end in ("weight", "bias"):
                joined = [state[f"{own}self_attn.{part}_proj.{end}"] for part in "qkv"]
                found[f"{new}attn.in_proj_{end}"] = torch.cat(joined)
                found[f"{new}attn.out_proj.{end}"] = state[f"{own}self_attn.out_proj.{end}"]
                for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                     ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                    found[f"{new}{theirs}.{end}"] = state[f"{own}{ours}.{end}"]
    for end in ("weight", "bias"):
        found[f"visual.ln_pre.{end}"] = state[f"vision_model.pre_layrnorm.{end}"]
        found[f"visual.ln_post.{end}"] = state[f"vision_model.post_layernorm.{end}"]
        found[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
    seen, read = "vision_model.embeddings.", "text_model.embeddings."
    found["visual.class_embedding"] = state[f"{seen}class_embedding"]
    found["visual.positional_embedding"] = state[f"{seen}position_embedding.weight"]
    found["visual.conv1.weight"] = state[f"{seen}patch_embedding.weight"]
    found["positional_embedding"] = state[f"{read}position_embedding.weight"]
    found["token_embedding.weight"] = state[f"{read}token_embedding.weight"]
    found["visual.proj"], found["text_projection"] = (
        state[f"{side}_projection.weight"].T for side in ("visual", "text")
    )
    return {name: value.contiguous() for name, value in found.items()}


@pytest.mark.parametrize("how", [None, "dropped", "renamed", "reshaped"])
def test_a_checkpoint_of_openclip_is_the_same_network(how: str | None, tmp_path: Path) -> None:
    model = tiny.clip_model(3)
    tensors = open_clip_state(model.state_dict())
    names = [name for name in tensors if name != "attn_mask"]
    for name in names if how else names[:1]:
        torch.save({"state_dict": changed(tensors, name, how) if how else tensors}, tmp_path / "a.pt")
        file = open_tensors(tmp_path / "a.pt")
        entries = from_open_clip(file.containers["state_dict"])
        if how:
            with pytest.raises(UserError):
                assemble_clip(file, entries, tiny.clip_config())
            continue
        found = assemble_clip(file, entries, tiny.clip_config())
        for key, value in model.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key


def test_hpsv2_sees_the_whole_frame_and_clip_its_middle() -> None:
    frame = torch.full((1, 3, 10, 30), 255, dtype=torch.uint8)
    frame[..., :10] = 0
    whole, middle = shown(frame, 30, "pad"), shown(frame, 10, "crop")
    assert whole.shape[-2:] == (30, 30) and middle.shape[-2:] == (10, 10)
    black, white = whole.amin((0, 2, 3)), whole.amax((0, 2, 3))
    assert torch.equal(whole[0, :, 0, 0], black) and torch.equal(whole[0, :, 15, 25], white)
    assert torch.equal(whole[0, :, 15, 5], black) and bool((middle[0, :, :, 1:] == white.view(3, 1, 1)).all())
