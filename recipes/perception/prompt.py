"""Questions about pictures: those that Perception-R1 published (arXiv 2504.07954, table 8), and a short form of them.

In ids a picture is <|vision_start|>, one <|image_pad|> a token that the tower makes of it, <|vision_end|>; so nothing
cuts a prompt: one that is too long is left out when the data is loaded.
"""

from __future__ import annotations

from data.media.images import Record
from recipes.perception.config import PromptConfig
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import Prompt
from stepstack.models.vision.processor import Processor
from stepstack.records import Problem

QUESTIONS = {
    "grounding": "Output the bounding box of the {} in the image.",
    "counting": "Output all the bounding boxes of the {}",
    "ocr": "OCR this image.",
    "detection": "Please output bbox coordinates and names of {}.",
}
SHORT_QUESTIONS = {"grounding": "{}", "counting": "all {}", "ocr": "read", "detection": "boxes"}
THINKING = (
    " First output the thinking process in <think> </think> tags and then output the final answer in <answer> "
    "</answer> tags."
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
START, END, PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"


def question(record: Record, cfg: PromptConfig) -> str:
    """The words beside the pictures."""
    text = (QUESTIONS if cfg.style == "qwen" else SHORT_QUESTIONS)[record.task].format(record.question)
    return text + (THINKING if cfg.thinking and cfg.style == "qwen" else " think" if cfg.thinking else "")


def request_of(record: Record, cfg: PromptConfig) -> Pictured:
    """How a record is put to the model."""
    return Pictured(record.pictures, question(record, cfg))


def encode(problem: Problem, request: Pictured, processor: Processor, cfg: PromptConfig) -> Prompt:
    """Token ids with as many image tokens as each picture has. Names of special tokens in a question are plain text."""
    known = [problem.meta["record"].size] if "record" in problem.meta else []  # a picture that need not be read
    sizes = [*known, *(picture.image().size for picture in request.pictures[len(known) :])]
    tokenizer = processor.tokenizer
    images = "".join(f"{START}{PAD * processor.patcher.tokens(size)}{END}" for size in sizes)
    chat = cfg.style == "qwen"
    before = tokenizer((SYSTEM if chat else "") + images, add_special_tokens=False)["input_ids"]
    question_ids = tokenizer(request.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    after = tokenizer(REPLY if chat else ":", add_special_tokens=False)["input_ids"]
    return Prompt(problem, (*before, *question_ids, *after), request.pictures)
