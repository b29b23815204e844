"""The engine that decodes and scores clips for training runs and `sf-eval`."""

import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation.decoding import ClipEvaluator
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.evaluation import make_clip
from tests.toys.networks import small_model


@pytest.fixture(scope="module")
def evaluator() -> ClipEvaluator:
    """Creates an evaluator of a decoder that looks one block ahead at each of two network evaluations."""
    config = DecodeConfig(steps=2, guidance=0.0, chunk=2, first_chunk=1)
    decoder = StreamingDecoder(small_model(Layout(2, 24, (0,), (1,))), GriffinLim(MelConfig(), 2), config)
    return ClipEvaluator(decoder, ClipScorer())


def test_the_gap_shrinks_with_the_look_ahead_to_zero_at_that_of_all_evaluations(evaluator: ClipEvaluator) -> None:
    with torch.inference_mode():
        clips = evaluator.prepare([make_clip("a", 1.5), make_clip("b", 1.1, seed=1)])
        gaps = evaluator.gaps_by_lookahead(clips, evaluator.offline(clips))
    assert list(gaps) == [1, 2]
    assert gaps[2] < 1e-4 * gaps[1]


def test_decoded_clips_are_scored_against_their_recordings(evaluator: ClipEvaluator) -> None:
    with torch.inference_mode():
        clips = evaluator.prepare([make_clip("a"), make_clip("b", seed=1)])
        copies, offline, streamed = (
            evaluator.vocode([clip.mel for clip in clips]),
            evaluator.offline(clips),
            evaluator.stream(clips),
        )
        for clip, copy, whole, stream in zip(clips, copies, offline, streamed, strict=True):
            assert evaluator.score(clip, copy).values["mel_l1"] == 0
            scores = evaluator.score(clip, stream, whole).collect()
            assert scores["mel_l1"] == pytest.approx(float((stream.mel - clip.mel).abs().mean()))
            assert scores["gap"] == pytest.approx(float((stream.mel - whole.mel).abs().mean()), rel=1e-5)
            assert set(scores) == {*evaluator.scorer.names, "gap"}


def test_edges_are_where_chunks_of_a_stream_begin(evaluator: ClipEvaluator) -> None:
    (clip,) = evaluator.prepare([make_clip("a", 2.0)])  # 200 frames: 9 blocks, the last one partial
    assert evaluator.edges(clip).tolist() == [24 * block for block in (1, 3, 5, 7)]
    offline = ClipEvaluator(evaluator.decoder, evaluator.scorer, DecodeConfig(mode="offline"))
    assert offline.edges(clip).tolist() == []
