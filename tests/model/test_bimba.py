"""Steps [3] to [5]: pooling, newlines, splicing, the whole forward, and generation with a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_checkpoint import IMAGE_SIZE, NUM_FRAMES, tiny_model

from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.config import BimbaConfig
from bimba.model.queries import pool_queries
from bimba.model.splice import add_newlines, num_video_tokens, splice
from bimba.model.vision import patch_features
from bimba.types import BimbaError


@pytest.fixture(scope="module")
def parts():
    return tiny_model()


def with_compressor(model: BimbaForConditionalGeneration, *, zero: bool) -> BimbaForConditionalGeneration:
    config = BimbaConfig.from_dict({**model.config.to_dict(), "compressor": {"name": "mamba", "d_state": 4}})
    torch.manual_seed(1)
    refined = BimbaForConditionalGeneration(config).eval()
    refined.load_state_dict(model.state_dict(), strict=False)
    if not zero:
        torch.nn.init.normal_(refined.compressor.layers[0].mixer.out_proj.weight, std=0.5)
    return refined


def video(num_frames: int = NUM_FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def prompt(processor, num_frames: int = NUM_FRAMES, question: str = "What?") -> torch.Tensor:
    text = f"<|im_start|>{processor.video_token * processor.num_video_tokens(num_frames)}{question}"
    return processor.tokenizer(text, return_tensors="pt")["input_ids"]


# -- queries -----------------------------------------------------------------------------------------------------


def test_pooling_an_even_grid_is_the_mean_of_two_by_two():
    tokens = torch.randn(2, 3, 4, 6, 5)
    expected = tokens.unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean((3, 5))
    torch.testing.assert_close(pool_queries(tokens), expected)


def test_pooling_an_odd_grid_rounds_up():
    assert pool_queries(torch.randn(1, 2, 27, 27, 3)).shape == (1, 2, 14, 14, 3)


def test_frames_that_fill_no_group_enter_no_query():
    tokens = torch.randn(1, 7, 4, 4, 3)
    pooled = pool_queries(tokens, (2, 2))
    assert pooled.shape == (1, 3, 2, 2, 3)
    torch.testing.assert_close(pooled, pool_queries(tokens[:, :6], (2, 2)))
    torch.testing.assert_close(pooled[:, 0], pool_queries(tokens[:, :2]).mean(1))


def test_fewer_frames_than_a_group_is_an_error():
    with pytest.raises(BimbaError, match="3 frames.*averages 4"):
        pool_queries(torch.randn(1, 3, 4, 4, 3), (4, 2))


# -- newlines and splicing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["grid", "frame", "one_token", "no_token"])
def test_newlines(position):
    tokens, newline = torch.arange(12.0).view(2, 2, 3, 1), torch.tensor([-1.0])
    line = add_newlines(tokens, newline, position).squeeze(1).tolist()
    assert (
        line
        == {
            "grid": [0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1],
            "frame": [0, 1, 2, 3, 4, 5, -1, 6, 7, 8, 9, 10, 11, -1],
            "one_token": [*range(12), -1],
            "no_token": [*range(12)],
        }[position]
    )
    assert len(line) == num_video_tokens(2, 2, 3, position)


def test_splice_keeps_order_and_text():
    embeddings = torch.zeros(2, 4, 1)
    places = torch.tensor([[False, True, True, False], [True, False, False, False]])
    spliced = splice(embeddings, places, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])])
    assert spliced.squeeze(-1).tolist() == [[0, 1, 2, 0], [3, 0, 0, 0]]


def test_splice_names_both_counts():
    with pytest.raises(BimbaError, match=r"2 video placeholder tokens.*1 video\(s\) make 3"):
        splice(torch.zeros(1, 4, 1), torch.tensor([[True, True, False, False]]), [torch.zeros(3, 1)])


# -- the whole model ---------------------------------------------------------------------------------------------


def test_a_fresh_compressor_changes_nothing(parts):
    model, processor = parts
    ids = prompt(processor)
    with torch.no_grad():
        before = model(input_ids=ids, pixel_values_videos=[video()]).logits
        after = with_compressor(model, zero=True)(input_ids=ids, pixel_values_videos=[video()]).logits
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_trained_compressor_changes_the_video_tokens(parts):
    model = with_compressor(parts[0], zero=False)
    with torch.no_grad():
        assert not torch.allclose(model.encode_video(video()), parts[0].encode_video(video()))


def test_videos_do_not_see_each_other(parts):
    model = with_compressor(parts[0], zero=False)
    videos = [video(4, 0), video(6, 1), video(4, 2)]
    with torch.no_grad():
        together = model.encode_videos(videos)
        for one, tokens in zip(videos, together):
            torch.testing.assert_close(model.encode_video(one), tokens, rtol=1e-5, atol=1e-5)


def test_every_trained_part_gets_a_gradient(parts):
    model = with_compressor(parts[0], zero=False).train()
    ids = prompt(parts[1])
    model(input_ids=ids, labels=ids, pixel_values_videos=[video()]).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and "post_layernorm" not in n]
    assert not without


def test_wrong_pixel_size(parts):
    with pytest.raises(BimbaError, match=r"\(4, 3, 16, 16\).*\(T, 3, 32, 32\)"):
        parts[0].encode_video(torch.zeros(4, 3, 16, 16))


def test_a_prompt_without_its_video(parts):
    with pytest.raises(BimbaError, match=r"0 video\(s\)"):
        parts[0](input_ids=prompt(parts[1]))


def test_greedy_generation_equals_repeated_forwards(parts):
    model, processor = parts
    ids = prompt(processor)
    expected = ids
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=expected, pixel_values_videos=[video()]).logits[:, -1]
            logits[:, processor.video_token_id] = -torch.inf
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    generated = model.generate(
        input_ids=ids,
        pixel_values_videos=[video()],
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=[processor.video_token_id],
    )
    assert torch.equal(generated, expected)


def test_left_padded_batch_generates_what_each_does_alone(parts):
    model, processor = parts
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = [processor.video_token_id]
    ids = [prompt(processor, question=q)[0] for q in ("Who?", "And what happened then?")]
    alone = [model.generate(input_ids=i[None], pixel_values_videos=[video()], **options)[0, -4:] for i in ids]
    width = max(map(len, ids))
    padded = torch.stack([torch.nn.functional.pad(i, (width - len(i), 0)) for i in ids])
    mask = torch.stack([torch.arange(width) >= width - len(i) for i in ids]).long()
    together = model.generate(input_ids=padded, attention_mask=mask, pixel_values_videos=[video(), video()], **options)
    assert torch.equal(together[:, -4:], torch.stack(alone))


def test_beams_see_their_own_videos(parts):
    model, processor = parts
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = [processor.video_token_id]
    ids, videos = prompt(processor), [video(seed=1), video(seed=2)]
    alone = [model.generate(input_ids=ids, pixel_values_videos=[one], **options) for one in videos]
    together = model.generate(input_ids=ids.repeat(2, 1), pixel_values_videos=videos, **options)
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_prompts_of_a_batch_may_have_different_numbers_of_videos(parts, num_beams):
    """3 and 1, too: an even share of two each would be somebody else's video."""
    model, processor = parts
    options = {"max_new_tokens": 4, "num_beams": num_beams, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = [processor.video_token_id]
    one = processor.video_token * processor.num_video_tokens(NUM_FRAMES)
    for counts in ((2, 1), (3, 1)):
        videos = [video(seed=seed) for seed in range(sum(counts))]
        texts = [f"<|im_start|>{one * count}{'What?' + 'x' * ((4 - count) * len('What?'))}" for count in counts]
        ids = [processor.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        alone = [
            model.generate(input_ids=own, pixel_values_videos=of_it, **options)[0, own.shape[1] :]
            for own, of_it in zip(ids, (videos[: counts[0]], videos[counts[0] :]))
        ]
        width = max(own.shape[1] for own in ids)
        pads = [width - own.shape[1] for own in ids]
        padded = torch.cat([torch.nn.functional.pad(own, (pad, 0)) for own, pad in zip(ids, pads)])
        mask = torch.stack([torch.arange(width) >= pad for pad in pads]).long()
        together = model.generate(input_ids=padded, attention_mask=mask, pixel_values_videos=videos, **options)
        assert torch.equal(together[:, width:], torch.stack(alone)), counts


def test_beams_of_videos_that_do_not_fill_the_placeholders(parts):
    ids = prompt(parts[1]).repeat(2, 1)
    with pytest.raises(
        BimbaError, match=r"\[24, 24\] video placeholder tokens, but the 3 video\(s\) make \[24, 24, 24\]"
    ):
        parts[0].generate(input_ids=ids, pixel_values_videos=[video()] * 3, num_beams=2, max_new_tokens=2)


# -- images ------------------------------------------------------------------------------------------------------

IMAGE_TOKEN = 2  # any id will do; these tests' tokenizer has none of its own
SIZES = [(70, 40), (20, 30)]  # (width, height)


@pytest.fixture(scope="module")
def seeing(parts):
    model = with_compressor(parts[0], zero=False)
    model.config.image_token_id = IMAGE_TOKEN
    return model


def tiles(model, size, seed: int = 0) -> torch.Tensor:
    rows, columns = model.config.anyres.tile_grid(size)
    return torch.randn(1 + rows * columns, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def image_prompt(model, size) -> list[int]:
    return [IMAGE_TOKEN] * model.config.anyres.num_tokens(size)


def test_images_pass_no_compressor(parts, seeing):
    image = tiles(seeing, SIZES[0])
    with torch.no_grad():
        encoded = seeing.encode_image(image, SIZES[0])
        torch.testing.assert_close(encoded, parts[0].encode_image(image, SIZES[0]), rtol=0, atol=0)
        whole = parts[0].projector(patch_features(parts[0].vision_tower, image[:1])).flatten(0, 2)
    assert encoded.shape == (len(image_prompt(seeing, SIZES[0])), 32)
    torch.testing.assert_close(encoded[: len(whole)], whole)


def test_videos_and_images_in_any_order(parts, seeing):
    model, processor = seeing, parts[1]
    images = [tiles(model, size, seed) for seed, size in enumerate(SIZES)]
    film = [processor.video_token_id] * processor.num_video_tokens(NUM_FRAMES)
    first, second = (image_prompt(model, size) for size in SIZES)
    ids = torch.tensor([[5, *first, 6, *film, *second, 7]])
    with torch.no_grad():
        pieces = [model.encode_image(images[0], SIZES[0]), model.encode_video(video())]
        pieces.append(model.encode_image(images[1], SIZES[1]))
        text = dict(zip((5, 6, 7), model.get_input_embeddings()(torch.tensor([5, 6, 7]))[:, None]))
        embeddings = torch.cat([text[5], pieces[0], text[6], pieces[1], pieces[2], text[7]])[None]
        media = {"pixel_values_videos": [video()], "pixel_values_images": images}
        for sizes in (SIZES, torch.tensor(SIZES)):
            logits = model(input_ids=ids, image_sizes=sizes, **media).logits
            torch.testing.assert_close(logits, model(inputs_embeds=embeddings).logits, rtol=1e-5, atol=1e-5)


def test_placeholders_need_no_row_in_the_embedding(parts):
    model, processor = tiny_model()
    ids = prompt(processor)
    expected = model(input_ids=ids, pixel_values_videos=[video()]).logits
    model.config.video_token_id = 10_000
    outside = ids.masked_fill(ids == processor.video_token_id, 10_000)
    torch.testing.assert_close(model(input_ids=outside, pixel_values_videos=[video()]).logits, expected)


def test_generation_keeps_the_image(parts, seeing):
    size, options = SIZES[0], {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = [parts[1].video_token_id, IMAGE_TOKEN]
    image = {"pixel_values_images": [tiles(seeing, size)], "image_sizes": [size]}
    ids = expected = torch.tensor([[5, *image_prompt(seeing, size), 6]])
    for _ in range(4):
        expected = seeing.generate(input_ids=expected, **image, max_new_tokens=1, **options)
    assert torch.equal(seeing.generate(input_ids=ids, **image, max_new_tokens=4, **options), expected)


def test_beams_see_their_own_images(parts, seeing):
    size, options = SIZES[1], {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    options |= {"pad_token_id": 0, "suppress_tokens": [parts[1].video_token_id, IMAGE_TOKEN]}
    ids, images = torch.tensor([[5, *image_prompt(seeing, size), 6]]), [tiles(seeing, size, seed) for seed in (1, 2)]
    alone = [seeing.generate(input_ids=ids, pixel_values_images=[i], image_sizes=[size], **options) for i in images]
    together = seeing.generate(ids.repeat(2, 1), pixel_values_images=images, image_sizes=[size, size], **options)
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[0], alone[1])


def test_a_prompt_without_its_image(seeing):
    with pytest.raises(BimbaError, match=r"1 image placeholder tokens, but its 0 image\(s\).*image sizes"):
        seeing(input_ids=torch.tensor([[IMAGE_TOKEN]]))


@pytest.mark.parametrize(("sizes", "count"), [(None, 0), (SIZES, 2)])
def test_every_image_needs_its_size(seeing, sizes, count):
    with pytest.raises(BimbaError, match=f"1 images and {count} image_sizes"):
        seeing.encode_images([tiles(seeing, SIZES[0])], sizes)


def test_unknown_newline_position():
    with pytest.raises(BimbaError, match="'rows'.*grid"):
        BimbaConfig(newline_position="rows")


def test_a_repetition_penalty_is_for_what_the_model_writes_and_needs_no_row_for_placeholders():
    model, processor = tiny_model()
    model.resize_token_embeddings(processor.video_token_id)  # as the original's adapters are cut
    video = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    ids = processor("<|im_start|>x<video>What?", [np.zeros((4, 8, 8, 3), np.uint8)])["input_ids"]
    assert int(ids.max()) >= model.get_input_embeddings().num_embeddings
    options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 1.5, "eos_token_id": -1}
    written = model.generate(input_ids=ids, pixel_values_videos=[video], **options)[:, ids.shape[1] :]
    is_video = ids == processor.video_token_id
    embeddings = model.get_input_embeddings()(ids.masked_fill(is_video, 0))
    embeddings[is_video] = model.encode_video(video)
    assert torch.equal(written, model.generate(inputs_embeds=embeddings, **options))
