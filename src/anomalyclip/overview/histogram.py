"""The histogram of a run's scores, as a drawing in the page."""

from collections.abc import Iterator

from anomalyclip.overview.summary import BINS, Summary

_WIDTH, _HEIGHT = 460, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 6, 22, 20


def histogram(summary: Summary) -> str:
    """Return the scores of all images as bars from 0 to 1, normal and anomalous ones apart, with the threshold."""
    highest = max(a + n for a, n in zip(summary.anomalous_scores, summary.normal_scores, strict=True)) or 1
    judged = summary.threshold is not None
    says = f"Histogram of {summary.scored:,} scores from 0 to 1"
    if judged:
        says += f"; {summary.anomalous:,} are at or above the threshold {summary.threshold:.4f}"
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{says}">'
        f"{''.join(_axis())}{''.join(_bars(summary, highest, judged))}{''.join(_threshold(summary))}</svg>"
    )


def _x(score: float) -> float:
    return _LEFT + score * (_WIDTH - _LEFT - _RIGHT)


def _axis() -> Iterator[str]:
    floor = _HEIGHT - _BOTTOM
    yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor + 0.5}" y2="{floor + 0.5}"/>'
    for score, text, anchor in ((0, "0", "start"), (0.5, "image score", "middle"), (1, "1", "end")):
        yield f'<text x="{_x(score):.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{text}</text>'


def _bars(summary: Summary, highest: int, judged: bool) -> Iterator[str]:
    room, width = _HEIGHT - _TOP - _BOTTOM, _x(1 / BINS) - _x(0)
    for index, (normal, anomalous) in enumerate(
        zip(summary.normal_scores, summary.anomalous_scores, strict=True)
    ):
        bottom = float(_HEIGHT - _BOTTOM)
        low, high = index / BINS, (index + 1) / BINS
        for kind, count in (("n" if judged else "p", normal), ("a", anomalous)):
            if not count:
                continue
            height = max(1.0, room * count / highest)
            bottom -= height
            yield (
                f'<rect class="{kind}" x="{_x(low) + 0.5:.1f}" y="{bottom:.1f}" width="{width - 1:.1f}" '
                f'height="{height:.1f}"><title>{count:,} from {low:.2f} to {high:.2f}</title></rect>'
            )


def _threshold(summary: Summary) -> Iterator[str]:
    if summary.threshold is None:
        return
    x = _x(summary.threshold)
    anchor = "start" if summary.threshold < 0.2 else "end" if summary.threshold > 0.8 else "middle"
    yield f'<line class="at" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{_HEIGHT - _BOTTOM}"/>'
    yield f'<text class="at" x="{x:.1f}" y="12" text-anchor="{anchor}">threshold {summary.threshold:.4f}</text>'
