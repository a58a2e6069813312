"""One self-contained HTML page about one run or several side by side: opens anywhere, without a network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vl4ad_model.errors import EvaluationError, ImageError, MissingDependencyError
from vl4ad_model.evaluation import report_plots
from vl4ad_model.evaluation.naming_metrics import UNTYPED
from vl4ad_model.evaluation.pictures import FALSE_ALARM, FOUND, MISSED
from vl4ad_model.image_files import write_bytes

RESULTS, PAGE, PICTURES = "results.json", "report.html", "frames"
SHOWN_PAIRS = 8
WIDE_NAMES = 6
"""More prompts than these have their names written upwards."""

# (key in the document, what it is called, whether higher is better, what it means)
METRICS: tuple[tuple[str, str, bool | None, str], ...] = (
    ("AuPRC", "AuPRC", True, "area under precision over recall, pixels"),
    ("FPR95", "FPR95", False, "ordinary pixels called anomalous when 95 % of anomalous ones are found"),
    ("AuROC", "AuROC", True, "chance that an anomalous pixel scores above an ordinary one"),
    ("best_F1", "best F1", True, "highest F1 of any threshold, pixels"),
    ("best_f1_threshold", "its threshold", None, "the components are cut at this score unless a threshold was given"),
    ("sIoU_gt_mean", "mean sIoU", True, "how much of each object is covered, components"),
    ("PPV_mean", "mean PPV", True, "how much of each detection lies on an object, components"),
    ("F1_mean", "mean F1", True, "F1 of components, mean over 11 overlaps"),
    ("fishyscapes.AP", "Fishyscapes AP", True, "average precision over every single score"),
    ("fishyscapes.FPR95", "Fishyscapes FPR95", False, "FPR95 over every single score"),
    ("fishyscapes.AuROC", "Fishyscapes AuROC", True, "AuROC over every single score"),
    ("mIoU", "mIoU", True, "mean intersection over union of the known classes that occur or are predicted"),
)
TILES = ("AuPRC", "FPR95", "AuROC", "sIoU_gt_mean", "PPV_mean", "F1_mean", "mIoU")


class ReportedRun(NamedTuple):
    """A run as reports see it.

    Attributes:
        name: short, unique in the report.
        document: the JSON document of the run.
        pictures: where its frames' strips lie; None = there are none.
    """

    name: str
    document: Mapping[str, Any]
    pictures: Path | None


def value_of(document: Mapping[str, Any], key: str) -> float | None:
    """A metric by its dotted key, None where it is undefined or was not wanted."""
    for part in key.split("."):
        document = (document or {}).get(part)  # type: ignore[assignment]
    return document  # type: ignore[return-value]


def load_run(path: Path, name: str | None = None) -> ReportedRun:
    """Read a finished run: the folder of a report, or its JSON file.

    Raises:
        EvaluationError: no result is there, or it is of another kind.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    try:
        document = json.loads(file.read_text())
    except FileNotFoundError:
        raise EvaluationError(f"no result at {file}: was the evaluation interrupted?") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{file} cannot be read as a result ({str(error).splitlines()[0]})") from None
    if not isinstance(document, dict) or "format" not in document or "curves" not in document:
        raise EvaluationError(f"{file} is no result of `vl4ad evaluate`")
    pictures = file.parent / PICTURES
    return ReportedRun(name or run_name(document), document, pictures if pictures.is_dir() else None)


def run_name(document: Mapping[str, Any]) -> str:
    """What to call a run: its model and its hazards."""
    model = document["configuration"].get("model")
    if not model:
        return "saved scores"
    hazards = [hazard.split("|")[0] for hazard in model["hazards"]]
    if not hazards:
        return f"{Path(model['model']).name}, no hazards"
    shown = ", ".join(hazards[:3]) + (f" and {len(hazards) - 3} more" if len(hazards) > 3 else "")
    return f"{Path(model['model']).name} + {shown}"


def unique_run_names(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Runs of one name get numbers."""
    counts: dict[str, int] = {}
    renamed = []
    for run in runs:
        counts[run.name] = counts.get(run.name, 0) + 1
        renamed.append(run if counts[run.name] == 1 else run._replace(name=f"{run.name} ({counts[run.name]})"))
    return renamed


def write_report(folder: Path, runs: Sequence[ReportedRun]) -> Path:
    """Write report.html.

    Args:
        folder: made if need be.
        runs: one, or several to compare.

    Returns:
        the page's path.

    Raises:
        EvaluationError: it cannot be written.
        MissingDependencyError: plotly is not installed.
    """
    page = render(unique_run_names(runs))
    try:
        write_bytes(Path(folder) / PAGE, page.encode())
    except ImageError as error:
        raise EvaluationError(str(error)) from None
    return Path(folder) / PAGE


def render(runs: Sequence[ReportedRun]) -> str:
    """The page as text."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise MissingDependencyError("plotly", "evaluation", "a report") from None
    style = (Path(__file__).parent / "report.css").read_text()
    title = "Anomaly evaluation" if len(runs) == 1 else f"Anomaly evaluation: {len(runs)} runs side by side"
    sections = [
        _header(title, runs),
        *[_warning(run, len(runs) > 1) for run in runs],
        _tiles(runs[0]) if len(runs) == 1 else _comparison(runs),
        _names(runs),
        _plots(runs),
        _frames(runs[0]) if len(runs) == 1 else _frame_pairs(runs),
        _failures(runs),
        _configuration(runs),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{style}</style>\n<script>{get_plotlyjs()}</script></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _header(title: str, runs: Sequence[ReportedRun]) -> str:
    document = runs[0].document
    frames = document["frames"]
    configuration = document["configuration"]
    facts = [
        f"{frames['evaluated']} frames",
        f"{frames['with_anomaly']} with anomalies",
        f"{_share(document['pixels'])} of the pixels anomalous",
        f"{configuration.get('track', '?')} track",
    ]
    live = document.get("live")
    if live and len(runs) == 1:
        latency = live["latency_ms"]
        facts.append(f"live: {live['answered']} of {live['sent']} images answered at {live['throughput_hz']:.1f} Hz")
        facts.append("latency " + ", ".join(f"{name} {value:.0f} ms" for name, value in latency.items()))
    names = "" if len(runs) > 1 else f'<p class="run">{html.escape(runs[0].name)}</p>'
    return f"<header><h1>{html.escape(title)}</h1>{names}<p>{html.escape(' · '.join(facts))}</p></header>"


def _share(pixels: Mapping[str, int]) -> str:
    total = pixels["anomaly"] + pixels["ordinary"]
    return f"{pixels['anomaly'] / total:.2%}" if total else "no share"


def _warning(run: ReportedRun, several: bool) -> str:
    texts = [run.document["configuration"]["notice"]] if "notice" in run.document["configuration"] else []
    frames, pixels = run.document["frames"], run.document["pixels"]
    if not run.document["complete"]:
        texts.append(
            f"{frames['failed']} of {frames['failed'] + frames['evaluated']} frames were skipped: this result is incomplete."
        )
    if not pixels["anomaly"]:
        texts.append("No pixel is labelled an anomaly: several numbers are undefined.")
    if run.document["stored_scores"].get("float16"):
        texts.append("Scores were stored as float16 and are evaluated as stored.")
    who = f"{run.name}: " if several else ""
    return "".join(f'<p class="warning">{html.escape(who + text)}</p>' for text in texts)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _tiles(run: ReportedRun) -> str:
    rows = {key: (name, better, meaning) for key, name, better, meaning in METRICS}
    tiles = []
    for key in TILES:
        if key in run.document:
            name, better, meaning = rows[key]
            direction = "higher is better" if better else "lower is better"
            tiles.append(
                f'<div class="tile" title="{html.escape(meaning)}"><span>{name}</span><b>{_number(run.document[key])}</b>'
                f"<small>{direction}</small></div>"
            )
    return f'<section class="tiles">{"".join(tiles)}</section>' + _comparison([run])


def _comparison(runs: Sequence[ReportedRun]) -> str:
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    rows = []
    for key, name, better, meaning in METRICS:
        values = [value_of(run.document, key) for run in runs]
        if not any(key.split(".")[0] in run.document for run in runs):
            continue
        defined = [value for value in values if value is not None]
        shown = {_number(value) for value in defined}
        best = None if better is None or len(shown) < 2 else _number((max if better else min)(defined))
        cells = []
        for index, value in enumerate(values):
            delta = ""
            if index and value is not None and values[0] is not None and better is not None:
                change = value - values[0]
                tone = "same" if abs(change) < 5e-5 else "good" if (change > 0) == better else "bad"
                delta = f' <small class="{tone}">{change:+.4f}</small>'
            mark = ' class="best"' if best is not None and value is not None and _number(value) == best else ""
            cells.append(f"<td{mark}>{_number(value)}{delta}</td>")
        arrow = {True: "↑", False: "↓", None: ""}[better]
        rows.append(f"<tr><th>{name} <i>{arrow}</i></th>{''.join(cells)}<td class='meaning'>{html.escape(meaning)}</td></tr>")
    counts = "".join(f"<td>{run.document['frames']['evaluated']}</td>" for run in runs)
    rows.append(f"<tr><th>frames</th>{counts}<td class='meaning'>evaluated</td></tr>")
    note = "" if len(runs) == 1 else '<p class="note">Small numbers: difference from the first run. Bold: the best.</p>'
    return (
        f'<section><h2>Summary</h2><div class="scroll"><table><thead><tr><th></th>{head}<th class="meaning">meaning</th>'
        "</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}</section>"
    )


def _names(runs: Sequence[ReportedRun]) -> str:
    """Which names hazards were given, one table per run; nothing where no run has hazards in words."""
    tables = [(run.name, _name_table(run.document["naming"])) for run in runs if run.document.get("naming")]
    if not tables:
        return ""
    parts = "".join((f"<h3>{html.escape(name)}</h3>" if len(runs) > 1 else "") + table for name, table in tables)
    chips = [("own", "the right name"), ("other", "another hazard's name"), ("none", "no hazard's name: a known class or void")]
    if any(UNTYPED in run.document.get("naming", {}).get("types", {}) for run in runs):
        chips.append(("untyped", "a name, and the labels do not say which is right"))
    legend = "".join(f'<span><i class="{kind}"></i>{meaning}</span>' for kind, meaning in chips)
    return (
        '<section><h2>Names</h2><p class="legend">Columns: prompts. Upper rows: how far each name can be trusted. Lower rows: what '
        "the labels call a hazard, and the percentage of its pixels that were given each name.</p>"
        f'<p class="legend">Shaded: {legend}</p>{parts}</section>'
    )


_NAME_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("IoU", "IoU", lambda value: f"{value:.2f}"),
    ("pixels_predicted", "pixels given the name", lambda value: _short(value)),
    ("on_own_types", "of these on that hazard, %", lambda value: f"{value:.0%}"[:-1]),
    ("on_anomaly", "of these on any anomaly, %", lambda value: f"{value:.0%}"[:-1]),
    ("on_ordinary", "of these on ordinary ground, %", lambda value: f"{value:.1%}"[:-1]),
)


def _name_table(naming: Mapping[str, Any]) -> str:
    hazards, types = naming["hazards"], naming["types"]
    heads = "".join(
        f'<th title="{html.escape(entry["prompt"])}"><span>{html.escape(name)}</span></th>' for name, entry in hazards.items()
    )
    rows = []
    for key, title, show in _NAME_ROWS:
        values = [entry[key] for entry in hazards.values()]
        if any(value is not None for value in values):
            cells = "".join(f"<td>{'–' if value is None else show(value)}</td>" for value in values)
            rows.append(f'<tr class="sum"><th>{title}</th><td></td><td></td>{cells}</tr>')
    for type_name, entry in types.items():
        wrong = "untyped" if type_name == UNTYPED else "other"
        cells = "".join(
            _share_cell(share, "own" if type_name in hazards[name]["types"] else wrong) for name, share in entry["named"].items()
        )
        name = html.escape(type_name)
        head = f'<th title="{name}">{name}</th><td>{_short(entry["pixels"])}</td>'
        rows.append(f"<tr>{head}{_share_cell(entry['unnamed'], 'none')}{cells}</tr>")
    many = ' class="many"' if len(hazards) > WIDE_NAMES else ""
    return (
        f'<div class="scroll names"><table{many}><thead><tr><th></th><th><span>pixels</span></th><th><span>no name</span></th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _share_cell(share: float, kind: str) -> str:
    """A percentage, shaded; nothing where nothing is, unless there should be something."""
    shown = ("0" if kind == "own" else "") if share == 0 else "&lt;1" if share < 0.005 else f"{share:.0%}"[:-1]
    return f'<td class="{kind}" style="--share:{share:.2f}">{shown}</td>'


def _short(count: int) -> str:
    """A count in four characters."""
    for size, sign in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 9.95 * size else 0}f}{sign}"
    return str(count)


def _plots(runs: Sequence[ReportedRun]) -> str:
    documents = [(run.name, run.document) for run in runs]
    figures = report_plots.figures(documents)
    parts = [f'<div class="plot{" wide" if wide else ""}">{_figure(figure)}</div>' for figure, wide in figures]
    hint = '<p class="note">Drag to zoom, double-click to go back, click a name in a legend to hide it.</p>'
    return f'<section><h2>Curves</h2><div class="plots">{"".join(parts)}</div>{hint}</section>{_RESIZE}'


# A plot that is drawn before the page has its layout keeps the wrong width.
_RESIZE = """<script>addEventListener("load", () => {
for (const plot of document.querySelectorAll(".js-plotly-plot"))
    new ResizeObserver(() => Plotly.Plots.resize(plot)).observe(plot.parentNode);
});</script>"""


def _figure(figure: Any) -> str:
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        default_width="100%",
        default_height=report_plots.HEIGHT,
        config={"displayModeBar": False, "responsive": True},
    )


def _legend() -> str:
    chips = [("found", FOUND), ("false alarm", FALSE_ALARM), ("missed", MISSED)]
    spans = "".join(f'<span><i style="background:rgb{color}"></i>{name}</span>' for name, color in chips)
    return f'<p class="legend">image · label (anomalies white or orange) · anomaly (low dark, high bright) · overlay: {spans}</p>'


def _picture(run: ReportedRun, file: str, alt: str) -> str:
    path = None if run.pictures is None else run.pictures / Path(file).name
    if path is None or not path.is_file():
        return '<p class="note">no picture was kept</p>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img loading="lazy" alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _frames(run: ReportedRun) -> str:
    pictures = run.document.get("pictures") or []
    if not pictures:
        return ""
    rows = {row["frame"]: row for row in run.document["per_frame"]}
    parts = []
    titles = {"worst": "Worst frames", "best": "Best frames", "false alarms": "Ordinary frames with most false alarms"}
    for why, title in titles.items():
        chosen = [entry for entry in pictures if entry["why"] == why]
        if chosen:
            shown = "".join(_one_frame(run, entry, rows[entry["frame"]]) for entry in chosen)
            parts.append(f"<h3>{title}</h3>{shown}")
    if not parts:
        shown = "".join(_one_frame(run, entry, rows[entry["frame"]]) for entry in pictures)
        parts.append(shown)
    return f"<section><h2>Frames</h2>{_legend()}{''.join(parts)}</section>"


def _caption(row: Mapping[str, Any]) -> str:
    facts = []
    if row["AuPRC"] is not None:
        facts.append(f"AuPRC {row['AuPRC']:.3f}")
    if row["recall"] is not None:
        facts.append(f"{row['recall']:.0%} of anomalous pixels found")
    if row["false_positive_rate"] is not None:
        facts.append(f"{row['false_positive_rate']:.2%} false alarms")
    return " · ".join(facts)


def _one_frame(run: ReportedRun, entry: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    name = str(entry["frame"])
    picture = _picture(run, entry["file"], f"{name}: image, label, anomaly, overlay")
    return f"<figure>{picture}<figcaption><b>{html.escape(name)}</b> {_caption(row)}</figcaption></figure>"


def _frame_pairs(runs: Sequence[ReportedRun]) -> str:
    """Frames of which every run kept a picture, those that differ most first."""
    kept = [{entry["frame"]: entry for entry in run.document.get("pictures") or []} for run in runs]
    rows = [{row["frame"]: row for row in run.document["per_frame"]} for run in runs]
    common = [frame for frame in kept[0] if all(frame in other for other in kept[1:])]

    def spread(frame: str) -> float:
        values = [row[frame]["AuPRC"] for row in rows if row[frame]["AuPRC"] is not None]
        rates = [row[frame]["false_positive_rate"] or 0.0 for row in rows]
        return max(values) - min(values) if values else max(rates) - min(rates)

    common = sorted(common, key=spread, reverse=True)[:SHOWN_PAIRS]
    if not common:
        return ""
    parts = []
    for frame in common:
        strips = "".join(
            f"{_picture(run, kept[index][frame]['file'], f'{frame}, {run.name}')}"
            f"<figcaption><b>{html.escape(run.name)}</b> {_caption(rows[index][frame])}</figcaption>"
            for index, run in enumerate(runs)
        )
        parts.append(f"<h3>{html.escape(frame)}</h3><figure>{strips}</figure>")
    return f"<section><h2>The same frames, run by run</h2>{_legend()}{''.join(parts)}</section>"


def _failures(runs: Sequence[ReportedRun]) -> str:
    rows = [
        f"<tr><td>{html.escape(run.name)}</td><td>{html.escape(failure['name'])}</td><td>{html.escape(failure['reason'])}</td></tr>"
        for run in runs
        for failure in run.document["frames"]["failures"]
    ]
    if not rows:
        return ""
    return f'<section><h2>Skipped frames</h2><div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div></section>'


def _configuration(runs: Sequence[ReportedRun]) -> str:
    parts = [
        f"<h3>{html.escape(run.name)}</h3><pre>{html.escape(json.dumps(run.document['configuration'], indent=2))}</pre>"
        for run in runs
    ]
    blocks = "".join(f"<div>{part}</div>" for part in parts)
    return f'<section><h2>Exact configuration</h2><div class="configurations">{blocks}</div></section>'
