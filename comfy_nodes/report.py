"""Results in words, for Preview as Text and for people without the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bwm_pipelines import ExplanationOutput


def ranking_report(ranking: dict[str, Any]) -> str:
    """Rank, candidate, score and margin a line, then what to make of it; `ranking` as Verify Next Images gives it."""
    order, scores, margins = ranking["order"], ranking["scores"], ranking["margins"]
    lines = [f'"{ranking["action"]}", read by {ranking["model"]}', "", "rank  candidate   score  margin"]
    lines += [f"{rank:4}  {i:9}  {scores[i]:6.3f}  {margins[i]:+6.3f}" for rank, i in enumerate(order, start=1)]
    lines.append(f"   -  unchanged  {ranking['unchanged_score']:6.3f}")
    lines += [f"   -  {i:9}  left out: its score is not a finite number" for i in ranking["excluded"]]
    lines.append("")
    if not ranking["changed"]:
        lines.append('No candidate beats "nothing changed": the action probably happened in none of them.')
    else:
        count = sum(margin > 0 for margin in margins)
        lines.append(f'{count} of {len(scores)} candidates beat "nothing changed".')
    if len(order) > 1:
        lead = scores[order[0]] - scores[order[1]]
        lines.append(f"Candidate {order[0]} leads the runner-up by {lead:.3f} nats.")
    return "\n".join(lines)


def evidence_report(action: str, model: str, explained: ExplanationOutput) -> str:
    """Log-probability of each word and what the change contributes to it, a line each."""
    width = max(len("word"), *map(len, explained.words))
    lines = [f'"{action}", read by {model}', "", f"{'word':{width}}   log p  margin"]
    rows = zip(explained.words, explained.word_log_probs, explained.word_margins, strict=True)
    lines += [f"{word:{width}}  {log_p:z6.2f}  {margin:+z6.2f}" for word, log_p, margin in rows]
    margin = explained.score - explained.unchanged_score
    lines += [
        "",
        f'Score {explained.score:.3f}, margin over "nothing changed" {margin:+.3f} (means over the tokens, in nats).',
        "Log p near 0: the word was to be expected. Margin: how much the change in the image adds to it.",
    ]
    return "\n".join(lines)
