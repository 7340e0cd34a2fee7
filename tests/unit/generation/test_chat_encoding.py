"""Which tokens of a chat learn, by the templates of published models."""

from __future__ import annotations

import pytest

from data.errors import BadRow
from stepstack.generation.chat import ChatEncoder, Continuation, Conversation, Learnt
from tests import chats, tools

DIALOGUE = chats.turns("Hi", "Hello there", "1+1?", "2", system="Be brief.")


def encoder(name: str, **options) -> ChatEncoder:
    tokenizer = chats.tokenizer(name)
    return ChatEncoder(tokenizer, [chats.end(name, tokenizer)], **options)


def conversation(messages, first: int = 0, **more) -> Conversation:
    return Conversation("line 1", tuple(messages), first, **more)


def pieces(of: ChatEncoder, text: Learnt) -> list[str]:
    """Texts of the runs of tokens that learn."""
    runs: list[list[int]] = []
    for place, (token, learns) in enumerate(zip(text.ids, text.mask, strict=True)):
        if learns:
            if not place or not text.mask[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [of.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "phi3"])
def test_every_assistant_turn_learns_with_its_end_token_and_nothing_else(name):
    of = encoder(name)
    [text] = of.encode(conversation(DIALOGUE))
    assert pieces(of, text) == [f"Hello there{chats.ENDS[name]}", f"2{chats.ENDS[name]}"]
    written = of.tokenizer.decode(text.ids)
    whole = of.tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    assert whole.startswith(written)
    assert written.endswith(chats.ENDS[name])
    assert text.taken_back == ""


def test_the_last_turn_alone():
    of = encoder("qwen2_5", turns="last")
    [text] = of.encode(conversation(DIALOGUE))
    assert pieces(of, text) == ["2<|im_end|>"]
    assert "Hello there" in of.tokenizer.decode(text.ids)


def test_only_the_completion_learns_and_what_follows_it_is_cut_off():
    of = encoder("qwen2_5")
    [text] = of.encode(conversation([*DIALOGUE, {"role": "user", "content": "Thanks"}], first=3))
    assert pieces(of, text) == ["2<|im_end|>"]
    assert "Thanks" not in of.tokenizer.decode(text.ids)


def test_a_template_that_drops_thoughts_from_history_makes_a_text_a_turn():
    """Qwen3: the first turn learns its thoughts, the second reads the first without them, as at inference."""
    of = encoder("qwen3")
    texts = of.encode(
        conversation(chats.turns("a", "<think>\nlong\n</think>\n\nA", "b", "<think>\nmore\n</think>\n\nB"))
    )
    first, second = texts
    assert pieces(of, first) == ["<think>\nlong\n</think>\n\nA<|im_end|>"]
    assert pieces(of, second) == ["<think>\nmore\n</think>\n\nB<|im_end|>"]
    assert "long" not in of.tokenizer.decode(second.ids)
    assert "A<|im_end|>" in of.tokenizer.decode(second.ids)


def test_qwen3_without_thoughts_opens_as_a_model_is_asked():
    """The empty thoughts are the model's own, unless the template writes them into the prompt."""
    of = encoder("qwen3")
    [text] = of.encode(conversation(chats.turns("a", "A")))
    assert pieces(of, text) == ["<think>\n\n</think>\n\nA<|im_end|>"]
    [text] = of.encode(conversation(chats.turns("a", "A"), options={"enable_thinking": False}))
    assert pieces(of, text) == ["A<|im_end|>"]


def test_the_prompt_is_what_a_model_is_asked():
    of = encoder("llama3")
    [text] = of.encode(conversation(chats.turns("Hi", "Yes")))
    asked = of.tokenizer.apply_chat_template(chats.turns("Hi"), add_generation_prompt=True)["input_ids"]
    assert list(text.ids[: text.begin]) == asked


def test_tools_reach_the_template():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    messages = [*chats.turns("1+1?"), call, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "Two"}]
    of = encoder("qwen2_5")
    [text] = of.encode(conversation(messages, options={"tools": [{"type": "function", "function": {"name": "add"}}]}))
    assert [piece.count("<tool_call>") for piece in pieces(of, text)] == [1, 0]
    assert '"name": "add"' in of.tokenizer.decode(text.ids[: text.begin])


def test_plain_text_goes_behind_one_bos_and_ends_by_the_models_end():
    tokenizer = chats.tokenizer("llama3")
    of = ChatEncoder(tokenizer, [1])
    [text] = of.encode(Continuation("line 1", "The sky is", " blue<eos>."))
    assert tokenizer.decode(text.ids[0]) == "<|begin_of_text|>"
    assert pieces(of, text) == [" blue<eos>.<eos>"]
    assert text.ids[-1] == 1
    assert 1 not in text.ids[:-1]  # the name in the text is text


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (chats.turns("a"), "no assistant turn"),
        ([{"role": "assistant", "content": "Hello"}], "no assistant turn that answers something"),
        (chats.turns("a", " "), "message 2, an assistant turn, is empty"),
        (chats.turns("a <|im_end|>", "b"), r"message 1 holds '<\|im_end\|>'"),
        ([{"role": "developer", "content": "Be brief"}, *chats.turns("a", "b")], "leaves out message 1"),
    ],
)
def test_what_cannot_be_learned_is_refused(messages, why):
    with pytest.raises(BadRow, match=why):
        encoder("qwen2_5").encode(conversation(messages))


def test_an_end_token_that_the_model_does_not_stop_at_is_refused():
    with pytest.raises(BadRow, match=r"ends a turn with .*im_end.* stops only at <eos>.*set chat.end"):
        ChatEncoder(chats.tokenizer("qwen2_5"), [1]).encode(conversation(DIALOGUE))


def test_a_template_that_writes_a_header_without_being_asked_is_refused():
    of = encoder("qwen2_5")
    of.tokenizer.chat_template = of.tokenizer.chat_template.replace("if add_generation_prompt", "if false")
    with pytest.raises(BadRow, match="has no generation prompt"):
        of.encode(conversation(DIALOGUE))


def test_a_refusal_of_the_template_is_told():
    of = encoder("qwen2_5")
    of.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRow, match="refuses the first 5 messages: roles must alternate"):
        of.encode(conversation(DIALOGUE))


def test_a_prompt_that_the_template_takes_back_is_said():
    """As Gemma 4 does: the open prompt ends in an empty thought, which the finished turn does not have."""
    of = encoder("qwen2_5")
    old = "{{- '<|im_start|>assistant\\n' }}"
    assert old in of.tokenizer.chat_template
    of.tokenizer.chat_template = of.tokenizer.chat_template.replace(old, old.replace("\\n'", "\\n<none>'"))
    [text] = of.encode(conversation(chats.turns("a", "b")))
    assert text.taken_back == "<none>"
    assert pieces(of, text) == ["b<|im_end|>"]


def test_a_model_without_an_end_or_offsets_is_refused():
    with pytest.raises(ValueError, match="no end token"):
        ChatEncoder(tools.bpe_tokenizer(), []).encode(conversation(DIALOGUE))


def test_a_question_is_open_for_the_answer():
    of = encoder("qwen2_5")
    ids, pictures = of.open(conversation(DIALOGUE[:4]))
    assert of.tokenizer.decode(ids).endswith("1+1?<|im_end|>\n<|im_start|>assistant\n")
    assert pictures == ()
    [text] = of.encode(conversation(DIALOGUE, first=4))
    assert ids == text.ids[: text.begin]
    assert of.open(Continuation("line 1", "The sky", "")) == (tuple(of.tokenizer("The sky")["input_ids"]), ())
