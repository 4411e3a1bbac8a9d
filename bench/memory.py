"""The memory over a training step as an SVG picture, out of a page that aerogel wrote:

    python3 bench/memory.py runs/NAME/report.html > memory.svg
    aerogel plan RECIPE --html page.html && python3 bench/memory.py page.html > memory.svg
"""
import re
import sys

W, H, LEFT, TOP, BOTTOM, LEGEND = 720, 300, 56, 18, 40, 46
text = open(sys.argv[1]).read()
# The page has a light and a dark palette; the light one comes first.
palette = dict(reversed(re.findall(r"(--[a-z-]+): *(#[0-9a-f]{3,6})", text)))
plot = text[text.index('<div class="plot tall timeline"'):]
plot = plot[plot.index("<svg"):plot.index("<figcaption")]
inner = plot[plot.index(">") + 1:plot.index("</svg>")]
width, height = W - LEFT - 10, H - TOP - BOTTOM


def path(match):
    kind, data = match.groups()
    name = {"activations-in-flight": "in-flight", "holes": "idle", "grid": "hair", "arena": "ink",
            "peak": "ink", "border": "soft"}.get(kind, kind)
    color = palette[f"--{name}"]
    if kind not in ("grid", "arena", "peak", "border"):
        return f'<path fill="{color}" d="{data}"/>'
    dash = ' stroke-dasharray="4 3"' if kind == "peak" else ""
    return f'<path fill="none" stroke="{color}" vector-effect="non-scaling-stroke"{dash} d="{data}"/>'


def label(x, y, anchor, words, size=12):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H + LEGEND}" font-family="sans-serif" font-size="12">',
       f'<rect width="{W}" height="{H + LEGEND}" fill="white"/>',
       f'<svg x="{LEFT}" y="{TOP}" width="{width}" height="{height}" viewBox="0 0 1000 1000" preserveAspectRatio="none">',
       *re.sub(r'<path class="([a-z-]+)" d="([^"]*)"/>', path, inner).split("\n"), "</svg>"]
for bottom, words in re.findall(r'class="yt[^"]*" style="bottom:([\d.]+)%">([^<]*)', plot):
    out.append(label(LEFT - 6, TOP + height * (1 - float(bottom) / 100) + 4, "end", words))
for left, words in re.findall(r'class="xt[^"]*" style="left:([\d.]+)%">([^<]*)', plot):
    out.append(label(LEFT + width * float(left) / 100, H - BOTTOM + 16, "middle", words))
for left, wide, words in re.findall(r'class="stretch" style="left:([\d.]+)%;width:([\d.]+)%"><b>([^<]*)', plot):
    out.append(label(LEFT + width * (float(left) + float(wide) / 2) / 100, H - BOTTOM + 31, "middle", words))
note = re.search(r'class="note peak-note[^>]*>([^<]*)', plot)
out.append(label(LEFT + width, TOP - 5, "end", note.group(1) if note else ""))
kinds = re.findall(r'swatch ([a-z-]+)"></i>([^<]*)<b>([^<]*)', plot)
kinds = [(kind, words) for kind, *words in kinds if kind not in ("holes", "arena", "data")]
for i, (kind, words) in enumerate(kinds):
    x, y = LEFT + (i % 4) * (width / 4), H + 12 + 18 * (i // 4)
    color = palette["--" + {"activations-in-flight": "in-flight"}.get(kind, kind)]
    out.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{color}"/>')
    out.append(label(x + 15, y, "start", "".join(words), 11))
out.append("</svg>")
print("\n".join(line for line in out if line))
