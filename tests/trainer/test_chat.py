"""Turns to token ids and back: the chat format, its tokenizer and the parser of tool calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import ToolCall, Turn
from trainer.chat import Chat, parse_assistant

CALL = Turn(role="assistant", tool_calls=[ToolCall("calculator", {"expression": "48/2"})])
DEMONSTRATION = [
    Turn(role="user", content="What is 48 divided by 2?"),
    CALL,
    Turn(role="tool", content="24"),
    Turn(role="assistant", content="#### 24"),
]


@pytest.fixture(scope="module")
def chat():
    return Chat.learn([DEMONSTRATION] * 4, vocab_size=400)


def text_of(chat, ids):
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


def test_a_conversation_reads_like_qwen_and_hermes(chat):
    ids, _ = chat.encode_demonstration(DEMONSTRATION)

    assert text_of(chat, ids) == (
        "<|im_start|>user\nWhat is 48 divided by 2?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "48/2"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n24\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n#### 24<|im_end|>"
    )


def test_the_mask_of_a_demonstration_is_one_on_the_assistant_turns_and_their_end(chat):
    ids, mask = chat.encode_demonstration(DEMONSTRATION)

    written = [i for i, m in zip(ids, mask, strict=True) if m]

    assert text_of(chat, written) == (
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "48/2"}}\n</tool_call><|im_end|>'
        "#### 24<|im_end|>"
    )


def test_a_demonstration_is_cut_where_a_rollout_is(chat):
    opening = chat.encode_opening(DEMONSTRATION[:1])
    following = chat.encode_following(DEMONSTRATION[2:3])

    ids, mask = chat.encode_demonstration(DEMONSTRATION)

    end_of_call = ids.index(chat.end_id, len(opening)) + 1
    assert ids[: len(opening)] == opening
    assert ids[end_of_call : end_of_call + len(following)] == following
    assert mask[end_of_call - 1 : end_of_call + 1] == [1, 0]


def test_digits_are_single_tokens(chat):
    ids = chat.tokenizer.encode("4824").ids

    assert [text_of(chat, [i]) for i in ids] == ["4", "8", "2", "4"]


@given(text=st.text())
def test_any_text_survives_the_tokenizer(text):
    chat = Chat.learn([DEMONSTRATION], vocab_size=300)

    assert text_of(chat, chat.tokenizer.encode(text).ids) == text


def test_a_tokenizer_read_back_from_its_json_gives_the_same_ids(chat):
    again = Chat.from_json(chat.to_json())

    assert again.encode_demonstration(DEMONSTRATION) == chat.encode_demonstration(DEMONSTRATION)


def test_a_sampled_call_is_parsed_into_name_and_arguments(chat):
    ids, mask = chat.encode_demonstration(DEMONSTRATION[:2])

    turn = chat.decode_turn([i for i, m in zip(ids, mask, strict=True) if m])

    assert turn.content == ""
    assert [(c.name, c.arguments, c.error) for c in turn.tool_calls] == [
        ("calculator", {"expression": "48/2"}, None)
    ]


def test_text_beside_two_calls_is_kept_as_content():
    call = '<tool_call>{"name": "a", "arguments": {}}</tool_call>'

    turn = parse_assistant(f"First {call} then {call}")

    assert turn.content == "First  then"
    assert [c.id for c in turn.tool_calls] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<tool_call>{not json</tool_call>", "error: the call is not JSON"),
        ('<tool_call>{"name": "calculator", "argum', "error: the call is not JSON"),
        ("<tool_call>" + "[" * 100_000, "error: the call is not JSON"),
        ("<tool_call>[1]</tool_call>", "error: the call has no name"),
        ('<tool_call>{"name": 3}</tool_call>', "error: the call has no name"),
        ('<tool_call>{"name": "calculator"}</tool_call>', "error: the call has no arguments"),
        (
            '<tool_call>{"name": "calculator", "arguments": "1+1"}</tool_call>',
            "error: the call has no arguments",
        ),
    ],
)
def test_a_malformed_call_becomes_a_call_with_an_error(text, error):
    (call,) = parse_assistant(text).tool_calls

    assert call.error == error


@given(text=st.text() | st.text(alphabet='<>/tool_call{}":,0 \n'))
def test_whatever_is_sampled_parses_to_an_assistant_turn(text):
    assert parse_assistant(text).role == "assistant"
