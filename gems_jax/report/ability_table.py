"""What is left of a model's general ability: a table of every run, and texts as it goes on with them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gems_jax.evaluation.fact_summary import fact_lines
from gems_jax.report.results import ResultRow

_HEADS = ("KL to the base model, nats", "next token right, before", "after", "kept where it was sure", "facts kept")


def ability_table(rows: Sequence[ResultRow]) -> str:
    """Distance from the base model, accuracy and choices on general text, and facts kept, of every run that has them.

    Args:
      rows: methods, top to bottom; see `gems_jax.evaluation.drift.general_drift` for what is shown.

    Returns:
      HTML text, empty where no run has been measured.

    Example:
      >>> table = ability_table([ResultRow("mine", "run", {"general": {"kl": 0.0123, "kl_ci": [0.011, 0.014]}})])
      >>> "<td><b>0.012</b> [0.011, 0.014]</td>" in table, ability_table([ResultRow("BM25", "baseline", {})])
      (True, '')
    """
    body = ""
    for row in rows:
        general = row.values.get("general") or {}
        if "kl" in general:
            cells = [
                _cell(general, "kl", "{:.3f}"),
                *(
                    _cell(general, name, "{:.1%}")
                    for name in ("base_accuracy", "accuracy", "sure_agreement", "facts_kept")
                ),
            ]
            classes = ' class="ours"' if row.kind == "run" else ""
            body += f"<tr{classes}><td>{escape(row.name)}</td>{''.join(cells)}</tr>"
    if not body:
        return ""
    heads = "".join(f"<th>{head}</th>" for head in ("Run", *_HEADS))
    return (
        '<div class="card scroll"><h3>General ability</h3>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>{_of_facts(rows)}"
    )


def _of_facts(rows: Sequence[ResultRow]) -> str:
    """How many facts were asked, of the run itself, or why there is no share of them."""
    own = next((row.values.get("general") or {} for row in rows if row.kind == "run"), {})
    return "".join(f'<p class="footnote">{escape(line[0].upper() + line[1:])}.</p>' for line in fact_lines(own))


def _cell(general: Mapping[str, Any], name: str, form: str) -> str:
    if name not in general:
        return '<td class="none">–</td>'
    ends = general.get(f"{name}_ci")
    interval = "" if ends is None else f" [{', '.join(form.format(end) for end in ends)}]"
    return f"<td><b>{form.format(general[name])}</b>{interval}</td>"


def continuation_cards(found: Mapping[str, Any]) -> str:
    """General text as the base model and the tuned one go on with it.

    Args:
      found: of `gems_jax.evaluation.continuations.continuations`; empty where nothing was continued.

    Returns:
      HTML text.

    Example:
      >>> one = {"prompt": "Water is", "base": "wet", "tuned": "<item_1>"}
      >>> cards = continuation_cards({"agreement": 0.0, "unchanged": 0.0, "item_tokens": 1.0, "texts": [one]})
      >>> "&lt;item_1&gt;" in cards, "100.0%" in cards, continuation_cards({})
      (True, True, '')
    """
    if not found:
        return ""
    lead = (
        f"Both models go on with general text by the likeliest of all tokens. The tuned one writes "
        f"{found['agreement']:.1%} of the base model's tokens at the same place; {found['unchanged']:.1%} of the "
        f"continuations are the same to the end; {found['item_tokens']:.1%} of its tokens are items."
    )
    cards = "".join(_texts(one) for one in found["texts"])
    return f'<p class="lead">{lead}</p><div class="grid">{cards}</div>'


def _texts(one: Mapping[str, str]) -> str:
    parts = [("Text", one["prompt"]), ("Before tuning", one["base"]), ("After", one["tuned"])]
    body = "".join(f'<p class="label">{head}</p><p class="text">{escape(text) or "…"}</p>' for head, text in parts)
    return f'<article class="card example">{body}</article>'
