"""A model that is not there is one error that names it, whichever library was asked for which part of it."""

import pytest
from diffusers import AutoencoderKLWan
from transformers import AutoModel

from recipes.steplaw.config import Corpus
from recipes.steplaw.data import documents
from recipes.stepvideo.config import PublishedEncoders
from recipes.stepvideo.model import encoder_of
from stepstack.config import ConfigError
from stepstack.harness.model import folder_of
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.pretrained import load_processor
from stepstack.models.whole import load_whole

READERS = {
    "weights of transformers": lambda path: load_whole(AutoModel, path),
    "weights of diffusers": lambda path: load_whole(AutoencoderKLWan, path),
    "model": lambda path: pretrained.load(Pretrained(path=path)),
    "skeleton": lambda path: pretrained.skeleton(Pretrained(path=path)),
    "tokenizer": lambda path: pretrained.load_tokenizer(Pretrained(path=path)),
    "generation config": lambda path: pretrained.load_generation(Pretrained(path=path)),
    "size": lambda path: Pretrained(path=path).params,
    "processor": lambda path: load_processor(PretrainedVl(path=path)),
    "text encoders": lambda path: encoder_of(PublishedEncoders(language=path, clip=path)),
    "tokenizer of a corpus": lambda path: next(
        documents(Corpus(folder="x", dataset="json", tokenizer=path, vocab=9), seed=0)
    ),
}


@pytest.mark.parametrize("path", ["nobody/no-model", "~/model", "/no/such/folder", "{folder}/gone"])
@pytest.mark.parametrize("part", READERS)
def test_a_model_that_is_not_there_is_named_with_what_to_give(tmp_path, part, path):
    """The tests run without the hub."""
    path = path.format(folder=tmp_path)
    with pytest.raises(ConfigError) as caught:
        READERS[part](path)
    said = str(caught.value)
    assert said.startswith(f"{path} cannot be read as a model (")
    assert "give the whole path of a folder" in said
    assert "\n" not in said


def test_a_name_on_a_hub_that_cannot_be_reached_is_named_where_it_is_evaluated():
    with pytest.raises(ConfigError, match=r"^nobody/no-model cannot be read as a model \(.*\): give the whole path"):
        folder_of("nobody/no-model")
