"""Texts and conversations as tokens, for training, evaluation, generation and the server alike.

A prompt is answered, so no end token stands behind it, even where the tokenizer closes every text with one. A passage
is read whole, with all that the tokenizer puts around it. No template is put around a plain text, in which special
tokens may be spelled out, as a template would; a conversation goes through the tokenizer's chat template, which writes
the beginning token itself, and all other special tokens too: what stands in a message is text, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyvera.errors import PromptError
from polyvera.model.message import Conversation, Message, Tools
from polyvera.model.special_tokens import SEAM, SpecialTokens, special_tokens
from polyvera.model.tool_formats import format_of, told

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclass(frozen=True, slots=True)
class Template:
    """What a chat template is given beside the messages.

    answer_next: whether the assistant's turn is opened. tools: functions that the model may call, as OpenAI describes
    them. is_open: whether the last message is left open, to be gone on with. more: values that the template knows by
    their names, such as enable_thinking.
    """

    answer_next: bool = True
    tools: Tools = ()
    is_open: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | tuple[Message, ...] | Conversation
PASSAGE = ("input_ids", "token_type_ids")  # what of a tokenizer's answer a model is given
PLAIN, TEMPLATE = "plain", "chat"  # the forms of a prompt: a text as it is, or a turn of the chat template


def prompt_form_text(tokenizer: Tokenizer, prompt_form: str) -> str:
    """How prompts are put to the model, in one line, with a word where the other form is the likelier one."""
    if prompt_form == TEMPLATE:
        return "prompts go through the chat template"
    if not tokenizer.chat_template:
        return "prompts are plain text"
    return "prompts are plain text, though the model has a chat template: chat=true is likelier to suit it"


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The tokens that a model is given before it answers. Raises PromptError as chat_text()."""
    if not isinstance(prompt, str):
        return template_ids(tokenizer, chat_text(tokenizer, prompt, answer_next=True))
    whole, bare = _ids(tokenizer, prompt, special=True), bare_ids(tokenizer, prompt)
    added = _num_ends(tokenizer, whole) - _num_ends(tokenizer, bare)
    return whole[: max(1, len(whole) - added)]


def chat_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], *, answer_next: bool = True, given: Template | None = None
) -> list[int]:
    """The tokens of a conversation. answer_next: whether the assistant's turn is opened. Raises as chat_text()."""
    return template_ids(tokenizer, templated(tokenizer, messages, given or Template(answer_next)))


def template_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of what chat_text() gave, or of a part of it."""
    return special_tokens(tokenizer).ids(text) if SEAM in text else bare_ids(tokenizer, text)


def chat_text(tokenizer: Tokenizer, asked: Sequence[Message] | Conversation, *, answer_next: bool) -> str:
    """A conversation as one text by the chat template, its tools and calls as the template's family writes them.

    answer_next: whether the assistant's turn is opened. Raises as templated().
    """
    whole = asked if isinstance(asked, Conversation) else Conversation(tuple(asked))
    messages, tools = told(format_of(tokenizer.chat_template), whole.messages, whole.tools)
    return templated(tokenizer, messages, Template(answer_next, tools))


def templated(tokenizer: Tokenizer, messages: Sequence[Message], given: Template) -> str:
    """A conversation as one text by the chat template, with a seam in what its messages spell of special tokens.

    Raises PromptError where the tokenizer has no template, the template refuses the messages, or a message spells a
    token that the tokenizer cannot write as text.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, so messages cannot be turned into text: "
            "give a plain prompt, or use a model that is tuned for chat"
        )
    special = special_tokens(tokenizer)
    turns = [_turn(special, message) for message in messages]
    more: dict[str, Any] = _cut(special, given.more, is_answer=False)
    if given.tools:
        more["tools"] = _cut(special, given.tools, is_answer=False)
    if given.is_open:
        more["continue_final_message"] = True
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=given.answer_next, **more)
        )
    except Exception as error:  # templates raise what they like
        raise PromptError(f"the chat template refuses the messages: {error}") from error


def _turn(special: SpecialTokens, message: Message) -> dict[str, Any]:
    whole = {"role": message.role, "content": message.content, **dict(message.fields)}
    found: dict[str, Any] = _cut(special, whole, is_answer=message.role == "assistant")
    return found


def _cut(special: SpecialTokens, value: Any, *, is_answer: bool) -> Any:
    """A value of JSON's with every text in it cut where it spells a special token."""
    if isinstance(value, str):
        return special.cut(value, is_answer=is_answer)
    if isinstance(value, Mapping):
        return {_cut(special, k, is_answer=is_answer): _cut(special, v, is_answer=is_answer) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(special, one, is_answer=is_answer) for one in value]
    return value


def bare_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text with nothing around it, such as an answer or a text that a template has made."""
    return _ids(tokenizer, text, special=False)


def target_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of an answer that a decoder writes, with all that the tokenizer puts around such a text, and its end.

    Raises PromptError for a tokenizer without an end token.
    """
    ids = list(tokenizer(text_target=text, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is None:
        raise PromptError(f"the tokenizer {tokenizer.name_or_path!r} has no end token, so no answer could ever end")
    return ids if tokenizer.eos_token_id in ids else [*ids, int(tokenizer.eos_token_id)]


def passage(tokenizer: Tokenizer, text: str, pair: str | None = None, max_length: int | None = None) -> dict[str, Any]:
    """What a model that reads a text whole, or two of them, is given: input_ids, and token_type_ids where it has them.

    max_length: the tokens to cut it to, those around it kept; None for no limit.
    """
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    row = tokenizer(text, pair, verbose=False, **cut)
    return {key: list(row[key]) for key in PASSAGE if key in row}


def words_passage(
    tokenizer: Tokenizer, words: Sequence[str], max_length: int | None = None
) -> tuple[dict[str, Any], list[int | None]]:
    """A text that is split into words, as passage() gives it, and the word of each token, None for those around it.

    Raises PromptError for a tokenizer that cannot say which word a token is of.
    """
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    if not tokenizer.is_fast:
        raise PromptError(f"the tokenizer {tokenizer.name_or_path!r} is a slow one, which does not tell words apart")
    row = tokenizer(list(words), is_split_into_words=True, verbose=False, **cut)
    return {key: list(row[key]) for key in PASSAGE if key in row}, row.word_ids()


def check_ids(tokenizer: Tokenizer, ids: Sequence[int], num_tokens: int) -> None:
    """Raises PromptError for a token that the model has no embedding for, since its tokenizer has more of them."""
    beyond = next((i for i in ids if not 0 <= i < num_tokens), None)
    if beyond is not None:
        raise PromptError(
            f"the token {tokenizer.convert_ids_to_tokens(beyond)!r} ({beyond}) has no embedding in the model, whose "
            f"tokens are from 0 to {num_tokens - 1}"
        )


def ids_text(tokenizer: Tokenizer, ids: Sequence[int], num_tokens: int) -> str:
    """Tokens as text. Raises PromptError for a number that is not one of num_tokens."""
    beyond = next((i for i in ids if not 0 <= i < num_tokens), None)
    if beyond is not None:
        raise PromptError(f"tokens: {beyond} is not a token; they are from 0 to {num_tokens - 1}")
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _ids(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _num_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many tokens that close a text stand at its end."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    return next((i for i, token in enumerate(reversed(ids)) if token not in ends), len(ids))
