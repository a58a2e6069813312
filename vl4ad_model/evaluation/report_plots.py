"""The figures of a report, made with plotly from the JSON documents of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

HEIGHT = 380
COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2")
_ORDINARY = "#64748b"

Documents = Sequence[tuple[str, Mapping[str, Any]]]


def figures(documents: Documents) -> list[tuple[Any, bool]]:
    """(figure, whether it takes the whole width) for every figure there is data for."""
    found = [(precision_recall(documents), False), (roc(documents), False)]
    found += [(histogram(name, document, color), False) for (name, document), color in zip(documents, COLORS * 9, strict=False)]
    if any(document.get("per_threshold") for _, document in documents):
        found.append((component_f1(documents), False))
    frames = per_frame(documents)
    if frames is not None:
        found.append((frames, len([figure for figure, _ in found if figure is not None]) % 2 == 0))
    if any("IoU" in document for _, document in documents):
        found.append((class_iou(documents), True))
    return [(figure, wide) for figure, wide in found if figure is not None]


def _new(title: str, x: str, y: str, **layout: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0.02, "font": {"size": 15}},
        margin={"l": 60, "r": 20, "t": 50, "b": 55},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": "#1e293b"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "right", "x": 1.0},
        hovermode="closest",
        **layout,
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def _line(figure: Any, name: str, color: str, x: Sequence[Any], y: Sequence[Any], **options: Any) -> None:
    figure.add_scatter(
        x=list(x), y=list(y), name=name, mode=options.pop("mode", "lines"), line={"color": color, "width": 2.5}, **options
    )


def _defined(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values)


def precision_recall(documents: Documents) -> Any | None:
    if not any(_defined(document["curves"]["recall"]) for _, document in documents):
        return None
    figure = _new("Precision over recall", "recall", "precision", xaxis_range=[0, 1.01], yaxis_range=[0, 1.02])
    for (name, document), color in zip(documents, COLORS * 9, strict=False):
        curve = document["curves"]
        _line(
            figure, name, color, curve["recall"], curve["precision"], customdata=curve["threshold"],
            hovertemplate="recall %{x:.3f}<br>precision %{y:.3f}<br>threshold %{customdata:.4f}<extra>" + name + "</extra>",
            showlegend=len(documents) > 1,
        )  # fmt: skip
        best = _best(curve)
        if best is not None:
            _point(figure, color, curve["recall"][best], curve["precision"][best], "best F1" if len(documents) == 1 else "")
    return figure


def _best(curve: Mapping[str, Sequence[Any]]) -> int | None:
    values = [-1.0 if value is None else value for value in curve["F1"]]
    return values.index(max(values)) if values and max(values) > 0 else None


def _point(figure: Any, color: str, x: float, y: float, text: str) -> None:
    figure.add_scatter(
        x=[x], y=[y], mode="markers+text" if text else "markers", text=[text], textposition="top right",
        showlegend=False, hoverinfo="skip",
        marker={"size": 10, "color": color, "line": {"color": "white", "width": 2}},
    )  # fmt: skip


def roc(documents: Documents) -> Any | None:
    curves = [document["curves"] for _, document in documents]
    if not any(_defined(curve["recall"]) and _defined(curve["false_positive_rate"]) for curve in curves):
        return None
    figure = _new("ROC", "false-positive rate", "true-positive rate", xaxis_range=[-0.01, 1.01], yaxis_range=[0, 1.02])
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#cbd5e1", "dash": "dot"}, showlegend=False, hoverinfo="skip"
    )
    for (name, document), color in zip(documents, COLORS * 9, strict=False):
        curve = document["curves"]
        _line(
            figure, name, color, curve["false_positive_rate"], curve["recall"], customdata=curve["threshold"],
            hovertemplate="FPR %{x:.4f}<br>TPR %{y:.3f}<br>threshold %{customdata:.4f}<extra>" + name + "</extra>",
            showlegend=len(documents) > 1,
        )  # fmt: skip
        if document.get("FPR95") is not None:
            _point(figure, color, document["FPR95"], 0.95, "FPR95" if len(documents) == 1 else "")
    return figure


def histogram(name: str, document: Mapping[str, Any], color: str) -> Any | None:
    edges = document["histogram"]["edges"]
    if not edges:
        return None
    import plotly.graph_objects as go

    figure = _new(f"Scores, {name}", "score", "share of pixels (log)", barmode="overlay", bargap=0)
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    for kind, shade in (("ordinary", _ORDINARY), ("anomaly", color)):
        counts = document["histogram"][kind]
        total = sum(counts)
        if total:
            shares = [count / total for count in counts]
            figure.add_trace(
                go.Bar(
                    x=middles, y=shares, name=kind, marker={"color": shade, "line": {"width": 0}}, opacity=0.65,
                    width=edges[1] - edges[0], hovertemplate="score %{x:.3f}<br>%{y:.3%}<extra>" + kind + "</extra>",
                )
            )  # fmt: skip
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    threshold = document.get("component_threshold", document.get("best_f1_threshold"))
    if threshold is not None:
        figure.add_vline(x=threshold, line={"color": "#0f172a", "dash": "dash", "width": 1.5}, annotation_text="threshold")
    return figure


def component_f1(documents: Documents) -> Any:
    figure = _new("Components: F1 over the required overlap", "overlap τ", "F1", yaxis_range=[-0.02, 1.02])
    for (name, document), color in zip(documents, COLORS * 9, strict=False):
        rows = document.get("per_threshold")
        if not rows:
            continue
        details = [[row["TP"], row["FN"], row["FP"]] for row in rows.values()]
        _line(
            figure, name, color, [float(overlap) for overlap in rows], [row["F1"] for row in rows.values()],
            mode="lines+markers", customdata=details, showlegend=len(documents) > 1,
            hovertemplate="τ %{x:.2f}: F1 %{y:.3f}<br>%{customdata[0]} found, %{customdata[1]} missed, "
            "%{customdata[2]} false<extra>" + name + "</extra>",
        )  # fmt: skip
    return figure


def per_frame(documents: Documents) -> Any | None:
    """One run: frames in order of their AuPRC. Two or more: each frame's AuPRC against the first run's."""
    first_name, first = documents[0]
    rows = [row for row in first["per_frame"] if row["AuPRC"] is not None]
    if not rows:
        return None
    if len(documents) == 1:
        rows.sort(key=lambda row: row["AuPRC"])
        figure = _new("Every frame with anomalies, worst to best", "frame", "AuPRC of the frame", yaxis_range=[-0.02, 1.02])
        _line(
            figure, first_name, COLORS[0], list(range(1, len(rows) + 1)), [row["AuPRC"] for row in rows], mode="markers",
            customdata=[row["frame"] for row in rows], hovertemplate="%{customdata}: %{y:.3f}<extra></extra>", showlegend=False,
        )  # fmt: skip
        return figure
    figure = _new(
        f"Every frame: AuPRC against {first_name}",
        f"AuPRC, {first_name}",
        "AuPRC",
        xaxis_range=[-0.02, 1.02],
        yaxis_range=[-0.02, 1.02],
    )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#cbd5e1", "dash": "dot"}, showlegend=False, hoverinfo="skip"
    )
    base = {row["frame"]: row["AuPRC"] for row in rows}
    for (name, document), color in zip(documents[1:], COLORS[1:] * 9, strict=False):
        shared = [row for row in document["per_frame"] if row["AuPRC"] is not None and row["frame"] in base]
        _line(
            figure, name, color, [base[row["frame"]] for row in shared], [row["AuPRC"] for row in shared], mode="markers",
            customdata=[row["frame"] for row in shared],
            hovertemplate="%{customdata}<br>%{x:.3f} → %{y:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    return figure


def class_iou(documents: Documents) -> Any:
    figure = _new("IoU of the known classes", "", "IoU", barmode="group", yaxis_range=[0, 1])
    for (name, document), color in zip(documents, COLORS * 9, strict=False):
        values = {key: value for key, value in document.get("IoU", {}).items() if value is not None}
        figure.add_bar(
            x=list(values), y=list(values.values()), name=name, marker={"color": color}, showlegend=len(documents) > 1,
            hovertemplate="%{x}: %{y:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(tickangle=-35)
    return figure
