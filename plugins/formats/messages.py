"""Conversations; what the assistant says is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.fields import checked_text, kind_of, value_of
from mtlcore.data.guessing import Columns, quoted
from mtlcore.data.tokens import encode_start, eos_id
from mtlcore.errors import UserError, did_you_mean

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")


class Messages(Format):
    """Learn the assistant's turns of conversations: lists of {role, content}.

    train_on: all assistant turns, or the last one only. Messages after the last assistant turn
    are left out: nothing in them is learned.

    Which tokens belong to a turn is found by rendering the conversation up to it and through it
    with the tokenizer's chat template; a row whose shorter rendering is not the beginning of the
    longer one has no exact mask and is a bad row. An answer ends at the eos that the template puts
    after it; if it puts none, one is added to the last answer.
    """

    name = "messages"
    columns: Mapping[str, str] = {"messages": "a list of {role, content}"}

    def __init__(self, *, train_on: Literal["last", "all"] = "all") -> None:
        self.train_on = train_on

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """A column of lists of {role, content}."""
        for column, values in Columns(rows).values.items():
            if all(_looks_like_messages(value) for value in values):
                return FormatGuess(
                    1.0,
                    f"{quoted(column)} holds lists of role and content",
                    columns={} if column in cls.columns else {"messages": column},
                    metrics=("rouge_l",),
                )
        return None

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one conversation."""
        require_template(tokenizer, task)
        messages = checked_messages(value_of(row, "messages"))
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise RowError("no message has the role 'assistant': there is nothing to learn")
        messages = messages[: turns[-1] + 1]
        learned = turns if self.train_on == "all" else turns[-1:]
        for turn in learned:
            content = messages[turn].get("content")
            if not (content and content.strip()) and (
                turn == turns[-1] or not messages[turn].get("tool_calls")
            ):
                raise RowError(f"message {turn} of the assistant is empty: nothing to learn")
        return self._example(messages, learned, row, task, index, tokenizer)

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of a conversation that the assistant goes on; its own last word goes."""
        require_template(tokenizer, task)
        messages = checked_messages(value_of(row, "messages"))
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages:
            raise RowError("no message stands before the answer: there is nothing to go on from")
        prompt = render(tokenizer, messages, answer_follows=True)
        ids = tuple(encode_start(tokenizer, prompt))
        return Example(task, index, prompt, "", ids, (IGNORED,) * len(ids), len(ids), fields=row)

    def _example(
        self,
        messages: Sequence[Message],
        learned: Sequence[int],
        row: dict[str, Any],
        task: str,
        index: int,
        tokenizer: Any,
    ) -> Example:
        whole = render(tokenizer, messages)
        ids = encode_start(tokenizer, whole)
        labels = [IGNORED] * len(ids)
        eos = eos_id(tokenizer)
        prompt, start = "", 0
        for turn in learned:
            prompt = render(tokenizer, messages[:turn], answer_follows=True)
            start = prefix_length(tokenizer, prompt, whole, ids, turn)
            end = len(ids)
            if turn != len(messages) - 1:
                through = render(tokenizer, messages[: turn + 1])
                end = prefix_length(tokenizer, through, whole, ids, turn)
            answer = ids[start:end]
            if eos in answer:  # what the template puts after the eos is not the assistant's
                end = start + len(answer) - answer[::-1].index(eos)
            labels[start:end] = ids[start:end]
            if turn == learned[-1]:
                ids, labels = ids[:end], labels[:end]
                if eos not in answer:
                    ids, labels = [*ids, eos], [*labels, eos]
        target = messages[-1]["content"]
        labels[0] = IGNORED
        return Example(task, index, prompt, target, tuple(ids), tuple(labels), start, fields=row)


def _looks_like_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value
    )


def require_template(tokenizer: Any, task: str) -> None:
    """UserError if the tokenizer cannot write conversations."""
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template",
            where=f"tasks.{task}.format",
            fix="choose an instruct model, or format: prompt_completion",
        )


def checked_messages(value: object) -> list[Message]:
    """The messages of a row; RowError unless they are a list of {role, content}."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind_of(value)
        raise RowError(f"column 'messages' must be a list of {{role, content}}, found {found}")
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise RowError(f"message {number} must be an object, found {kind_of(message)}")
        role = message.get("role")
        if role not in ROLES:
            fix = did_you_mean(str(role), ROLES)
            raise RowError(f"message {number} has the role {role!r}; {fix}")
        content = message.get("content")
        if isinstance(content, str):
            checked_text(content, f"message {number}")
        elif content is not None or not message.get("tool_calls"):
            found = kind_of(content)
            raise RowError(f"content of message {number} must be a text, found {found}")
    return value


def render(tokenizer: Any, messages: Sequence[Message], *, answer_follows: bool = False) -> str:
    """The text of a conversation; RowError with the template's own words if it refuses."""
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer_follows
        )
    except (TemplateError, TypeError, LookupError) as error:
        raise RowError(f"the chat template refuses the conversation: {error}") from None
    return text


def prefix_length(tokenizer: Any, prefix: str, whole: str, ids: Sequence[int], turn: int) -> int:
    """Tokens of a rendered prefix; RowError unless they begin the tokens of the whole."""
    tokens = encode_start(tokenizer, prefix)
    if whole.startswith(prefix) and tokens == list(ids[: len(tokens)]) and len(tokens) < len(ids):
        return len(tokens)
    what = "tokens" if whole.startswith(prefix) else "text"
    raise RowError(
        f"the chat template is not prefix-stable: the {what} of the conversation up to message "
        f"{turn} change when later messages follow, so there is no exact mask; "
        "train_on: last needs fewer prefixes, or use a model with another template"
    )
