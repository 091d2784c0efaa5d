"""Prompts of instruct models: a template as what the user says, in the words that the tokenizer has for a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gems_jax.data.batching.layouts import LAYOUTS

if TYPE_CHECKING:
    from gems_jax.models.family import Layout

_SAID = "WHAT-THE-USER-SAYS"
# Of templates that ask for them: the answer comes at once, and a prompt does not depend on the day it is made.
_VARIABLES = {"enable_thinking": False, "date_string": "1 January 2025"}


def as_chat(template: str, tokenizer: Any, layout: Layout) -> str:
    """A prompt template inside a chat: what stands before the user's words, these, and what the answer follows.

    Args:
      template: see `gems_jax.data.batching.prompts.parse_template`.
      tokenizer: a Hugging Face tokenizer with a chat template.
      layout: of the model; tokens that it puts before every prompt are left out.

    Raises:
      ValueError: the tokenizer has no chat template, or one that does not take a single message of a user.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "items.template is chat, but the tokenizer has no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): give model.path an instruct model's folder, or set items.template to plain"
        )
    messages = [{"role": "user", "content": _SAID}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **_VARIABLES)
    except Exception as error:  # what a template raises is its own
        raise ValueError(
            f"items.template is chat, but the tokenizer's chat template fails on one message of a user: {error}"
        ) from error
    before, said, after = str(text).partition(_SAID)
    if not said or _SAID in after:
        raise ValueError(
            "items.template is chat, but the tokenizer's chat template does not repeat a user's message once as it is: "
            "set items.template to plain, and write the words around it into items.prompts"
        )
    first, _ = LAYOUTS[layout].around(tokenizer)
    before = before.removeprefix("".join(tokenizer.convert_ids_to_tokens(first)))
    return _literal(before) + template + _literal(after)


def _literal(text: str) -> str:
    """A text as a template has it.

    Example:
      >>> _literal("{user}")
      '{{user}}'
    """
    return text.replace("{", "{{").replace("}", "}}")
