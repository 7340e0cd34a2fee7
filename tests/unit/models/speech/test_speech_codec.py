"""Mels against transformers', Griffin-Lim, k-means, the tokenizers' rates and digests, the decoders."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from data.errors import DataError
from data.sets import mel_decoder
from stepstack.config import ConfigError
from stepstack.diffusion import speech as flow_speech
from stepstack.models.speech import mel
from stepstack.models.speech.codebook import Codebook, train_codebook
from stepstack.models.speech.decoder import CentroidDecoder, ContextDecoder, MelFlow, MelFlowShape, NetDecoder
from stepstack.models.speech.mel import MelSpec
from stepstack.models.speech.tokenizer import FRAMES, OfflineTokenizer, PublishedTokenizer, semantic_features
from stepstack.models.speech.tokens import TokenLayout

RATE = 16000


def voice(seconds: float, seed: int = 0) -> torch.Tensor:
    """A buzz with a pitch that wanders, and noise: a spectrum with structure."""
    rng = np.random.default_rng(seed)
    count = round(seconds * RATE)
    pitch = 120 + 40 * np.sin(np.arange(count) / RATE * 5 + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    wave = sum(np.sin(k * phase) / k for k in range(1, 20)) * 0.1 + 0.01 * rng.standard_normal(count)
    return torch.from_numpy(wave.astype(np.float32))


@pytest.mark.parametrize(
    "spec", [MelSpec(), MelSpec(fft=400, window=400, mels=40), MelSpec(fft=400, window=400, mels=128)]
)
def test_filterbank_is_transformers(spec):
    expected = mel_filter_bank(spec.fft // 2 + 1, spec.mels, spec.low, spec.high, spec.rate, "slaney", "slaney")
    np.testing.assert_allclose(mel.filterbank(spec).numpy(), expected.T, atol=1e-6)


def test_log_mel_is_transformers():
    spec, wave = MelSpec(), voice(1.0)
    filters = mel_filter_bank(spec.fft // 2 + 1, spec.mels, spec.low, spec.high, spec.rate, "slaney", "slaney")
    window = window_function(spec.window, "hann")
    expected = spectrogram(
        wave.numpy(),
        window,
        spec.window,
        spec.hop,
        spec.fft,
        power=1.0,
        mel_filters=filters,
        mel_floor=mel.FLOOR,
        log_mel="log",
    )
    found = mel.log_mel(wave, spec)
    assert found.shape == (100, 80)
    np.testing.assert_allclose(found.numpy(), expected.T[:100], atol=2e-3)


@pytest.mark.parametrize("bands", [80, 128])
def test_whisper_mel_is_transformers(bands):
    wave = torch.nn.functional.pad(voice(3.0), (0, 27 * RATE))
    expected = WhisperFeatureExtractor(feature_size=bands)(wave.numpy(), sampling_rate=RATE).input_features[0]
    np.testing.assert_allclose(mel.whisper_mel(wave, bands).numpy(), expected, atol=1e-3)


def test_griffin_lim_keeps_the_mel():
    spec, wave = MelSpec(), voice(1.0)
    wanted = mel.log_mel(wave, spec)
    back = mel.griffin_lim(wanted, spec)
    assert len(back) == RATE
    error = (mel.log_mel(back, spec) - wanted)[5:-5].abs().mean()
    silence = (wanted - mel.FLOOR).abs().mean()
    assert error < 0.35 < silence
    assert torch.equal(back, mel.griffin_lim(wanted, spec))
    with pytest.raises(ValueError, match="too few"):
        mel.log_mel(wave[:500], spec)


# -- codebooks and tokenizers ---------------------------------------------------------------------------------------


def test_k_means_finds_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 4, generator=generator)
    data = centres.repeat_interleave(50, 0) + 0.1 * torch.randn(400, 4, generator=generator)
    book = train_codebook(data, 8)
    codes = book.encode(data)
    assert all(len(set(codes[k : k + 50])) == 1 for k in range(0, 400, 50))
    assert len(set(codes)) == 8
    torch.testing.assert_close(book.decode(codes), data, atol=0.6, rtol=0)
    assert train_codebook(data, 8).digest == book.digest != train_codebook(data, 7).digest
    with pytest.raises(ValueError, match="too few for 500"):
        train_codebook(data, 500)
    with pytest.raises(ValueError, match="code 8"):
        book.decode([8])


def test_equal_features_leave_no_centroid_empty_handed():
    book = train_codebook(torch.ones(20, 3), 4)
    assert set(book.encode(torch.ones(5, 3))) == {book.encode(torch.ones(1, 3))[0]}


def encoder(wave_T: torch.Tensor) -> torch.Tensor:
    """Stand-in of Whisper's: three numbers each 20 ms."""
    frames = wave_T[: len(wave_T) // 320 * 320].unflatten(0, (-1, 320))
    return torch.stack([frames.std(1), frames.abs().max(1).values, frames.diff(dim=1).std(1)], 1)


@pytest.fixture(scope="module")
def tokenizer() -> OfflineTokenizer:
    waves = [voice(1.0, seed) for seed in range(4)]
    hidden = torch.cat([encoder(wave)[:48].unflatten(0, (16, 3)).mean(1) for wave in waves])
    semantic = torch.cat([semantic_features(wave) for wave in waves])
    return OfflineTokenizer(train_codebook(hidden, 16), train_codebook(semantic, 32), encoder)


def test_offline_tokenizer(tokenizer, tmp_path):
    layout = TokenLayout(100, *tokenizer.sizes)
    for samples in (1920, 1921, 16000, 16959, 30001):
        linguistic, semantic = tokenizer.encode(voice(2.0)[:samples])
        assert (len(linguistic), len(semantic)) == (samples // 960, samples // 640)
        assert len(layout.interleave(linguistic, semantic)) == samples // 1920 * 5
    tokenizer.save(tmp_path)
    back = OfflineTokenizer.load(tmp_path, encoder)
    assert back.digest == tokenizer.digest
    assert back.encode(voice(1.0)) == tokenizer.encode(voice(1.0))
    with pytest.raises(ValueError, match="one group"):
        tokenizer.encode(voice(0.1))
    with pytest.raises(ConfigError, match="only decodes"):
        OfflineTokenizer.load(tmp_path).encode(voice(1.0))
    with pytest.raises(ConfigError, match="does not exist"):
        Codebook.load(tmp_path / "none.safetensors")


class Session:
    """Stand-in of the published ONNX: a code each 40 ms, which depends on the features."""

    def get_inputs(self):
        return [type("Input", (), {"name": name})() for name in ("feats", "feats_length")]

    def run(self, _, feed):
        assert feed["feats"].shape[1:] == (128, int(feed["feats_length"][0]))
        return [np.clip(100 * (2 + feed["feats"][:, :, ::4].mean(1)), 0, 4095).astype(np.int64)]


def test_published_tokenizer(tmp_path):
    """The protocol with stand-ins of both nets; the published files cannot be had offline."""
    np.save(tmp_path / "linguistic_tokenizer.npy", np.eye(3, dtype=np.float32)[[0, 1, 2] * 3])
    published = PublishedTokenizer(tmp_path, lambda wave: torch.eye(3)[torch.arange(len(wave) // 960) % 3], Session())
    linguistic, semantic = published.encode(voice(31.0))
    assert (len(linguistic), len(semantic)) == (516, 775)
    assert linguistic[:4] == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match=r"lacks speech_tokenizer_v1.onnx"):
        PublishedTokenizer(tmp_path, encoder)


# -- decoders -------------------------------------------------------------------------------------------------------


def test_centroid_decoder(tokenizer):
    wave = voice(1.2)
    codes = tokenizer.encode(wave)
    for smooth in (False, True):
        back = CentroidDecoder(tokenizer.semantic, smooth=smooth).decode(codes)
        assert len(back) == len(codes[1]) * 640
        error = (mel.log_mel(back, FRAMES) - mel.log_mel(wave, FRAMES)[: len(codes[1]) * 4]).abs().mean()
        assert error < 1.0


def test_context_tables_correct_the_centroids(tokenizer, tmp_path):
    """Fitted to two clips they are nearer to the mel of both than the centroids alone; their file gives them back."""
    waves = [voice(1.2), voice(2.4, seed=3)]
    pairs = [(wave, tokenizer.encode(wave)) for wave in waves]
    tables = mel_decoder.fit_context_tables(pairs, tokenizer.semantic, len(tokenizer.linguistic))
    for wave, codes in pairs:
        wanted, plain = semantic_features(wave), tokenizer.semantic.decode(codes[1])
        assert (plain + tables.correction(codes) - wanted).square().mean() < 0.8 * (plain - wanted).square().mean()
    file = tmp_path / "tables.safetensors"
    mel_decoder.save_context_tables(file, tables, tokenizer.digest)
    back = mel_decoder.load_context_tables(file, tokenizer.digest)
    assert torch.equal(back.weights_VO, tables.weights_VO)
    assert len(ContextDecoder(tokenizer.semantic, back).decode(pairs[0][1])) == 640 * len(pairs[0][1][1])
    with pytest.raises(DataError, match="reads codes of"):
        mel_decoder.load_context_tables(file, "other")
    with pytest.raises(DataError, match="does not exist"):
        mel_decoder.load_mel_flow(tmp_path / "none", "x")


def test_training_a_mel_flow_and_its_file(tokenizer, tmp_path):
    wave = voice(1.2)
    shape = MelFlowShape(*tokenizer.sizes, width=16, blocks=1)
    recordings = [(wave, tokenizer.encode(wave))]
    nets = [mel_decoder.train_mel_flow(recordings, tokenizer.semantic, shape, steps=3, batch=2) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    mel_decoder.save_mel_flow(tmp_path / "net.safetensors", nets[0], tokenizer.digest)
    assert mel_decoder.load_mel_flow(tmp_path / "net.safetensors", tokenizer.digest).shape == shape
    short = [(wave[:6000], tokenizer.encode(wave[:6000]))]
    with pytest.raises(DataError, match="8 groups"):
        mel_decoder.train_mel_flow(short, tokenizer.semantic, shape)


def test_mel_flow_learns_and_is_guided(tokenizer):
    """A few updates on one clip: ten steps then give its mel, nearer than the untrained net's."""
    wave = voice(1.2)
    codes, wanted = tokenizer.encode(wave), mel.log_mel(wave, FRAMES)[None]
    torch.manual_seed(0)
    net = MelFlow(MelFlowShape(*tokenizer.sizes, width=48, blocks=2))
    net.mean_C.copy_(wanted.mean((0, 1)))
    net.deviation_C.copy_(wanted.std((0, 1)))
    untrained = (flow_speech.sample_mel(net, codes, tokenizer.semantic) - wanted[0]).abs().mean()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        loss = flow_speech.mel_flow_loss(net, wanted.repeat(4, 1, 1), [codes] * 4, tokenizer.semantic, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = flow_speech.sample_mel(net, codes, tokenizer.semantic)
    assert (found - wanted[0]).abs().mean() < 0.75 * untrained
    plain = flow_speech.SamplerConfig(steps=10, guidance=1.0, shift=1.0)
    assert not torch.equal(found, flow_speech.sample_mel(net, codes, tokenizer.semantic, plain))
    decoded = NetDecoder(lambda codes: flow_speech.sample_mel(net, codes, tokenizer.semantic)).decode(codes)
    assert len(decoded) == len(codes[1]) * 640
    with pytest.raises(ValueError, match="no whole groups"):
        flow_speech.sample_mel(net, (codes[0][:-1], codes[1]), tokenizer.semantic)
