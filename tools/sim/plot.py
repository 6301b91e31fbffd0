#!/usr/bin/env python3
"""Plots and tables of the simulator's JSON files, as SVG and Markdown, with Python alone.

Usage: plot.py OUT_DIR FILE.json ...
"""
import json
import pathlib
import sys
from xml.sax.saxutils import escape

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
           "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#666666"]


def means_by_load(data):
    loads = sorted({row["load"] for row in data["means"]})
    return {load: [row for row in data["means"] if row["load"] == load] for load in loads}


def svg(width, height, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
            f'<rect width="{width}" height="{height}" fill="white"/>' + "".join(parts) + "</svg>\n")


def text(x, y, what, anchor="start", size=12):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(str(what))}</text>'


def bars(title, rows, value, unit):
    """Horizontal bars, one per row; `value` maps a row to a number."""
    left, width, line = 200, 760, 20
    height = 46 + line * len(rows)
    most = max((value(r) for r in rows), default=1) or 1
    parts = [text(10, 20, title, size=14)]
    for i, row in enumerate(rows):
        y = 36 + line * i
        v = value(row)
        long = (width - left - 90) * v / most
        colour = "#4269d0" if row["variant"].startswith("agent") else "#9498a0"
        if "oracle" in row["variant"] or "/inf" in row["variant"]:
            colour = "#6cc5b0"
        parts.append(text(left - 8, y + 13, row["variant"], "end"))
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{max(long, 1):.1f}" height="{line - 5}" fill="{colour}"/>')
        parts.append(text(left + long + 6, y + 13, f"{v:.3g} {unit}"))
    return svg(width, height, parts)


def lines(title, series, x_name, y_name):
    """series: {name: [(x, y), ..]}; the y axis is linear from 0."""
    width, height, left, right, top, bottom = 760, 380, 60, 190, 34, 44
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high, most = min(xs), max(xs), max(ys) or 1
    span = (high - low) or 1

    def at(x, y):
        return (left + (width - left - right) * (x - low) / span,
                height - bottom - (height - top - bottom) * y / most)
    parts = [text(10, 20, title, size=14)]
    for k in range(6):
        y = most * k / 5
        _, py = at(low, y)
        parts.append(f'<line x1="{left}" y1="{py:.1f}" x2="{width - right}" y2="{py:.1f}" stroke="#dddddd"/>')
        parts.append(text(left - 6, py + 4, f"{y:.3g}", "end"))
    for x in sorted(set(xs)):
        px, py = at(x, 0)
        parts.append(text(px, py + 16, f"{x:g}", "middle"))
    parts.append(text((left + width - right) / 2, height - 8, x_name, "middle"))
    parts.append(text(left, top - 4, y_name))
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        stroke = 3 if name == "agent" else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>')
        y = top + 16 * i
        parts.append(f'<rect x="{width - right + 14}" y="{y}" width="12" height="10" fill="{colour}"/>')
        parts.append(text(width - right + 32, y + 9, name))
    return svg(width, height, parts)


def plot_experiment(name, data, out):
    loads = means_by_load(data)
    if len(loads) > 1:
        for key, title, get in (("mean", "mean serving time", lambda r: r["all"]["serving_s"]["mean"]),
                                ("p99", "p99 serving time", lambda r: r["all"]["serving_s"]["p99"])):
            series = {}
            for load, rows in loads.items():
                for row in rows:
                    series.setdefault(row["variant"], []).append((load, get(row)))
            (out / f"{name}_{key}.svg").write_text(lines(f"{name}: {title}", series, "load", "seconds"))
        return
    rows = sorted(data["means"], key=lambda r: r["all"]["serving_s"]["mean"])
    (out / f"{name}.svg").write_text(bars(f"{name}: mean serving time", rows, lambda r: r["all"]["serving_s"]["mean"], "s"))


def cell(v, digits=3):
    if v is None:
        return ""
    return f"{v:.{digits}g}" if abs(v) < 1000 else f"{v:.0f}"


def table(data):
    head = ["load", "policy", "serving mean", "p50", "p95", "p99", "JCT mean", "p99", "slowdown p99", "max", "jobs/h",
            "tokens/s", "TTFT ok", "TPOT ok", "hit", "bound", "Jain", "least share", "gap call", "gap program"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in data["means"]:
        a = r["all"]
        s = a["serving_s"]
        row = [f'{r["load"]:g}' if r["load"] else "", f'`{r["variant"]}`' + (" (cut short)" if r["gave_up"] else ""),
               cell(s["mean"]), cell(s["p50"]), cell(s["p95"]), cell(s["p99"]), cell(a["jct_s"]["mean"], 4),
               cell(a["jct_s"]["p99"], 4), cell(a["serving_slowdown"]["p99"]), cell(a["serving_slowdown"]["max"]),
               cell(r["jobs_per_h"], 4), cell(r["output_tokens_per_s"], 4), cell(r["ttft_attained"]),
               cell(r["tpot_attained"]), cell(r["hit_rate"]), cell(r["hit_rate_bound"]), cell(r["jain"]),
               cell(r["least_share"]), cell(r.get("gap_call_fifo"), 2), cell(r.get("gap_program_fifo"), 2)]
        out.append("| " + " | ".join(row) + " |")
    return "\n".join(out) + "\n"


def write_tables(out, names):
    parts = []
    for name in names:
        data = json.loads((out / f"{name}.json").read_text())
        w, s = data["workload"], data["settings"]
        parts.append(f"## {name}\n\n{w['programs']} programs, {w['calls']} calls; {data['calibration']['name']}; "
                     f"{s['decode_workers']} + {s['prefill_workers']} workers, batch {s['max_batch']}, KV {s['kv_gib']:g} GiB, "
                     f"host {s['host_gib']:g} GiB, {s['arrivals']}, {s['seeds']} seeds, "
                     f"saturation {data['saturation_sessions_per_s']:.4g} sessions/s; commit {data['commit']}\n\n{table(data)}")
    (out / "tables.md").write_text("\n".join(parts))


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for file in sys.argv[2:]:
        path = pathlib.Path(file)
        plot_experiment(path.stem, json.loads(path.read_text()), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
