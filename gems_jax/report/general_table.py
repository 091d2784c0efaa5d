"""The table of what tuning has changed on general text: losses, perplexities and choices of every run."""

from collections.abc import Sequence
from html import escape

from gems_jax.report.results import ResultRow

_VOCABULARIES = (("_full", "with item tokens"), ("", "base model's"))
_HEADS = ("loss before", "after", "perplexity before", "after", "top-1 kept")


def general_table(rows: Sequence[ResultRow]) -> str:
    """Losses and perplexities before and after tuning, over the base model's vocabulary and over all tokens.

    Args:
      rows: methods, top to bottom; those without a loss on general text are left out.

    Returns:
      HTML text, empty where no run has been measured.

    Example:
      >>> run = ResultRow("mine", "run", {"general": {"base_loss": 1.0, "loss": 1.5, "perplexity": 4.4817}})
      >>> "<td><b>1.500</b></td>" in general_table([run]), "<td><b>4.48</b></td>" in general_table([run])
      (True, True)
      >>> general_table([ResultRow("BM25", "baseline", {})])
      ''
    """
    body = ""
    for row in rows:
        measured = [one for one in _VOCABULARIES if row.value("general", "loss" + one[0]) is not None]
        for number, (suffix, vocabulary) in enumerate(measured):
            cells = "".join(_cells(row, suffix))
            name = "" if number else escape(row.name)
            classes = ' class="ours"' if row.kind == "run" else ""
            body += f"<tr{classes}><td>{name}</td><td>{escape(vocabulary)}</td>{cells}</tr>"
    if not body:
        return ""
    heads = "".join(f"<th>{head}</th>" for head in ("Run", "vocabulary", *_HEADS))
    return (
        '<div class="card scroll"><h3>Loss and perplexity on general text</h3>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(row: ResultRow, suffix: str) -> list[str]:
    # The model before tuning had no items: its own vocabulary was all there was.
    losses = [row.value("general", name) for name in ("base_loss", f"loss{suffix}")]
    perplexities = [row.value("general", name) for name in ("base_perplexity", f"perplexity{suffix}")]
    kept = row.value("general", "top1_agreement" + suffix)
    texts = ["–" if loss is None else f"{loss:.3f}" for loss in losses]
    texts += ["–" if value is None else _short(value) for value in perplexities]
    texts.append("–" if kept is None else f"{kept:.1%}")
    return [f"<td><b>{text}</b></td>" if text != "–" else f'<td class="none">{text}</td>' for text in texts]


def _short(perplexity: float) -> str:
    return f"{perplexity:,.2f}" if perplexity < 1e6 else f"{perplexity:.1e}"
