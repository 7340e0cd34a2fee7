"""Recordings, their tokens, and the rows that a model learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.drawn import sentences
from data.drawn.sentences import SPEEDS, Line, Sentences, Speaker
from data.drawn.splits import SPLITS, Split
from data.media import audio
from data.sets import mel_decoder, speech
from data.sets.speech import RATE, Take
from recipes.stepaudio.config import Config
from stepstack.batching.rows import Row
from stepstack.config import ROOT, ConfigError
from stepstack.models.lm import tiny
from stepstack.models.speech.decoder import CentroidDecoder, ContextDecoder
from stepstack.models.speech.judges import Dnsmos
from stepstack.models.speech.packages import DNSMOS
from stepstack.models.speech.tokenizer import OfflineTokenizer
from stepstack.models.speech.tokens import TokenLayout
from stepstack.models.speech.voice import open_voice
from stepstack.models.speech.whisper import WhisperEncoder, WhisperRecognizer
from stepstack.report import jsonl
from stepstack.scoring.speech import error_rates, word_errors

BOT, EOT = "<|BOT|>", "<|EOT|>"
CODEBOOK_RECORDINGS = 600  # recordings of which the codebooks are made
CODEC, TABLES, VOICES = "codec.json", "decoder.safetensors", "voices.json"
TABLE_RECORDINGS = 1500  # recordings that the decoder's tables are fitted to
DNSMOS_UTTERANCES = 12  # rated, since one costs almost a CPU second
LEVEL = 0.5  # peak of a recording


def split_lines(cfg: Config, split: Split) -> list[Line]:
    """Lines that are recorded: of train those of the teacher, without the engine's."""
    found = sentences.lines(cfg.drawn, split)
    return found[: cfg.drawn.train] if split == "train" else found


def engine_lines(cfg: Config) -> list[Line]:
    """Lines that the teacher is asked to speak, none of which it has learned."""
    return sentences.lines(cfg.drawn, "train")[cfg.drawn.train :]


class Recorder:
    """Recordings of drawn lines by the voices of their speakers."""

    def __init__(self, cfg: Sentences):
        """ConfigError where the package of a voice is missing."""
        self.cfg = cfg
        opened = {name: open_voice(name) for name in dict.fromkeys(speaker.voice for speaker in cfg.speakers)}
        self.voices = {speaker.name: opened[speaker.voice] for speaker in cfg.speakers}

    def record(self, line: Line) -> Tensor:
        """Recording of a line at 16 kHz. A speaker's factor is one on pitch and formants: the voice speaks faster by it
        and is played slower. ConfigError for a line that is none of the config's."""
        sentences.check_line(line, self.cfg)
        voice, factor = self.voices[line.speaker], self.cfg.speaker(line.speaker).factor
        wave = voice.say(line.text, SPEEDS[line.tag] / factor)
        wave = audio.resample(wave, round(voice.rate * factor), RATE)
        return torch.from_numpy(audio.normalize(audio.trim(wave, RATE, below=35.0), LEVEL))

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Voice, factor, and what made the voice, by speaker."""
        return {
            speaker.name: {"voice": speaker.voice, "factor": speaker.factor, "made_by": self.voices[speaker.name].name}
            for speaker in self.cfg.speakers
        }


def check_voices(cfg: Config) -> None:
    """ConfigError where the recordings in the config's folder are by other speakers or voices than the config's, or
    nothing says by which."""
    file = ROOT / cfg.tokens / VOICES
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: it says which voices were recorded: record them (make data)")
    found = jsonl.read_json(file)
    recorded = [Speaker(name=name, voice=each["voice"], factor=each["factor"]) for name, each in found.items()]
    if set(recorded) != set(cfg.drawn.speakers):
        raise ConfigError(
            f"{file}: the recordings are by {voices_text(recorded)}, data.speakers asks for "
            f"{voices_text(cfg.drawn.speakers)}: name another folder in tokens and record them (make data), or give "
            "the speakers of these"
        )


def voices_text(speakers: Iterable[Speaker]) -> str:
    """Speakers with the voice and factor of each, as one phrase."""
    return ", ".join(f"{speaker.name} ({speaker.voice} x {speaker.factor:g})" for speaker in speakers)


def prepare(cfg: Config) -> str:
    """``make data``: recordings of every split by the speakers' voices, codebooks, and files of tokens.

    ConfigError where the folder has recordings by other voices, and before the first recording where a package is
    missing.
    """
    folder = ROOT / cfg.tokens
    if (folder / VOICES).is_file():
        check_voices(cfg)
    recorder, encoder = Recorder(cfg.drawn), WhisperEncoder()
    record = recorder.record
    jsonl.write_json_atomic(folder / VOICES, recorder.provenance)
    first = split_lines(cfg, "train")[:CODEBOOK_RECORDINGS]
    tokenizer = speech.train_tokenizer((record(line) for line in first), encoder, cfg.codebooks, cfg.seed)
    tokenizer.save(folder)
    for split in SPLITS:
        takes = [speech.tokenize(line, record(line), tokenizer) for line in split_lines(cfg, split)]
        speech.save_takes(folder / f"{split}.safetensors", takes, tokenizer.digest)
    learned = recordings(cfg, "train")[:TABLE_RECORDINGS]
    pairs = ((record(take.line), take.codes) for take in learned)
    tables = mel_decoder.fit_context_tables(pairs, tokenizer.semantic, cfg.codebooks[0])
    mel_decoder.save_context_tables(folder / TABLES, tables, tokenizer.digest)
    figures = measure_codec(cfg)
    said = f"recorded by {voices_text(cfg.drawn.speakers)}, codebooks {tokenizer.digest}"
    return f"{folder}: {said}, resynthesis {figures['decoder']}, original {figures['original']}"


def measure_codec(cfg: Config) -> dict[str, Any]:
    """Word error rate (and DNSMOS, where it is installed) of the watched recordings and of what the decoder makes of
    their tokens, written to codec.json beside them: a model is judged beside its codec."""
    takes, recorder = recordings(cfg, "select"), Recorder(cfg.drawn)
    floor, decoder, recognizer = CentroidDecoder(load_tokenizer(cfg).semantic), load_decoder(cfg), WhisperRecognizer()
    waves = {
        "original": [recorder.record(take.line) for take in takes],
        "centroids": [floor.decode(take.codes) for take in takes],
        "decoder": [decoder.decode(take.codes) for take in takes],
    }
    figures: dict[str, Any] = {"recogniser": recognizer.name, "normaliser": "spoken-en"}
    for name, sounds in waves.items():
        heard = recognizer.transcribe(sounds)
        pairs = zip(takes, heard, strict=True)
        rates = error_rates([word_errors(take.line.text, text, "spoken-en") for take, text in pairs])
        figures[name] = {"wer": rates.mean, "error": rates.error, "utterances": rates.utterances}
        if DNSMOS.installed:
            judge = Dnsmos()
            scores = [judge.rate(wave)["overall"] for wave in sounds[:DNSMOS_UTTERANCES]]
            figures[name] |= {"dnsmos": sum(scores) / len(scores), "dnsmos_utterances": len(scores)}
    jsonl.write_json_atomic(ROOT / cfg.tokens / CODEC, figures)
    return figures


def check_codec(cfg: Config) -> None:
    """Refuse to train on tokens that cannot be understood: ConfigError where the decoder's word error rate is over
    ``codec_gate``."""
    file = ROOT / cfg.tokens / CODEC
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: measure the codec first (make data)")
    found = jsonl.read_json(file, "decoder")["decoder"]["wer"]
    if found > cfg.codec_gate:
        raise ConfigError(
            f"{file}: {found:.1%} of the words are wrong in the tokens' own sound, over codec_gate="
            f"{cfg.codec_gate:.0%}: no model can be better: make larger codebooks, or raise the gate"
        )


def load_tokenizer(cfg: Config) -> OfflineTokenizer:
    """Codebooks of the config's folder, for decoding alone."""
    return OfflineTokenizer.load(ROOT / cfg.tokens)


def load_decoder(cfg: Config) -> ContextDecoder:
    """Decoder of the config's folder: its semantic codebook and the tables that correct it."""
    tokenizer = load_tokenizer(cfg)
    tables = mel_decoder.load_context_tables(ROOT / cfg.tokens / TABLES, tokenizer.digest)
    return ContextDecoder(tokenizer.semantic, tables)


def recordings(cfg: Config, split: Split) -> list[Take]:
    """Tokens of the recordings of a split, each with its line. ConfigError for recordings by other voices than the
    config's."""
    takes = speech.load_takes(ROOT / cfg.tokens / f"{split}.safetensors", load_tokenizer(cfg).digest)
    check_voices(cfg)
    return takes


# -- prompts and rows -----------------------------------------------------------------------------------------------


def text_tokenizer(cfg: Config) -> tiny.Qwen2Tokenizer:
    """Tokenizer of the tiny models: a token for each word of the grammar with its space, each tag and each speaker, and
    bytes for all else; then the audio tokens."""
    roles = ("system\n", "human\n", "assistant\n")
    tags = (tag for tag in SPEEDS if tag)
    pieces = [*roles, *(f" {word}" for word in sentences.words()), *tags, *cfg.drawn.names]
    tokenizer = tiny.tokenizer(pieces=pieces, special=(BOT, EOT))
    tokenizer.add_tokens([AddedToken(f"<audio_{n}>", normalized=False) for n in range(sum(cfg.codebooks))])
    return tokenizer


def layout_of(cfg: Config, tokenizer: PreTrainedTokenizerBase) -> TokenLayout:
    """Audio ids, which follow the text's."""
    return TokenLayout(len(tokenizer) - sum(cfg.codebooks), *cfg.codebooks)


def prompt_text(line: Line) -> str:
    """Turns of a line in the chat form of Step-Audio: the speaker as the system's, the tag before the text, and the
    assistant's turn begun. The tiny models' words are shorter than the published system prompt."""
    return f"{BOT}system\n{line.speaker}{EOT}{BOT}human\n{line.tag} {line.text}{EOT}{BOT}assistant\n"


def prompt_ids(line: Line, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return tuple(tokenizer(prompt_text(line), add_special_tokens=False).input_ids)


def rows(takes: Sequence[Take], tokenizer: PreTrainedTokenizerBase, layout: TokenLayout) -> list[Row]:
    """Training rows: the prompt, the audio tokens, and the end, which is always learned."""
    end: Any = tokenizer.convert_tokens_to_ids(EOT)
    return [
        Row(k, prompt_ids(take.line, tokenizer), (*layout.interleave(*take.codes), int(end)))
        for k, take in enumerate(takes)
    ]
