"""Ratios as a picture: one bar a case and peer, on a logarithmic scale, as SVG without a library."""

import math
from html import escape

COLOURS = {"nginx": "#2a7f62", "distribution": "#c8553d", "distribution3": "#7a5c9e", "varnish": "#3b6fb6", "zot": "#b08900"}
ROW, BAR, LEFT, WIDTH = 16, 11, 330, 900


def ratios(path, rows, peers):
    """How many times as many requests a second ocistern answers: to the right of the line it is ahead."""
    bars = [(row["case"], peer, row["systems"][peer]["ratio"]) for row in rows for peer in peers if peer in row["systems"]]
    if not bars:
        return
    lowest, highest = min(0.5, *(bar[2] for bar in bars)), max(2, *(bar[2] for bar in bars))
    low, high = math.floor(math.log2(lowest)), math.ceil(math.log2(highest))

    def x(ratio):
        return LEFT + (math.log2(ratio) - low) / (high - low) * (WIDTH - LEFT - 60)

    parts, y, last = [], 46, None
    for case, peer, ratio in bars:
        if case != last:
            y += 6
            parts.append(f'<text x="{LEFT - 8}" y="{y + BAR - 1}" text-anchor="end">{escape(case)}</text>')
            last = case
        begin, end = sorted((x(1), x(ratio)))
        parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{max(end - begin, 1):.1f}" height="{BAR}" fill="{COLOURS.get(peer, "#777777")}"/>')
        parts.append(f'<text x="{max(end, x(1)) + 4:.1f}" y="{y + BAR - 1}">{ratio:.2f}</text>')
        y += ROW
    height = y + 14
    grid = [f'<line x1="{x(2**power):.1f}" x2="{x(2**power):.1f}" y1="40" y2="{height - 8}" stroke="{"#333333" if power == 0 else "#dddddd"}"/>'
            f'<text x="{x(2**power):.1f}" y="36" text-anchor="middle">{2**power:g}</text>' for power in range(low, high + 1)]
    legend, at = [], LEFT
    for peer in peers:
        legend.append(f'<rect x="{at}" y="8" width="10" height="10" fill="{COLOURS.get(peer, "#777777")}"/><text x="{at + 14}" y="17">÷ {escape(peer)}</text>')
        at += 110
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/><text x="8" y="17">requests a second of ocistern</text>'
        + "".join(legend + grid + parts) + "</svg>\n"
    )
