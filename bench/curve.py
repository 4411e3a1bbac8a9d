"""The loss curve of a run as an SVG picture: python3 bench/curve.py runs/NAME/metrics.jsonl > curve.svg

Training loss (thin: each step; thick: mean of the last 20) and held-out loss (dots), bits a token.
"""
import json
import sys

W, H, LEFT, BOTTOM = 720, 300, 46, 34
events = [json.loads(line) for line in open(sys.argv[1])]
train = [(e["step"], e["loss_bits"]) for e in events if e["event"] == "step"]
held = [(e["step"], e["bits_per_token"]) for e in events if e["event"] == "eval"]
mean = [(s, sum(b for _, b in train[max(0, i - 19):i + 1]) / min(20, i + 1)) for i, (s, _) in enumerate(train)]
last = train[-1][0]
low, high = min(b for _, b in train + held), max(b for _, b in train + held)


def at(step, bits):
    x = LEFT + (W - LEFT - 10) * step / last
    y = 10 + (H - BOTTOM - 10) * (high - bits) / (high - low)
    return f"{x:.1f},{y:.1f}"


def line(points, color, width):
    points = points[:: max(1, len(points) // 700)]
    path = " ".join(at(*p) for p in points)
    return f'<polyline fill="none" stroke="{color}" stroke-width="{width}" points="{path}"/>'


out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" font-family="sans-serif" font-size="12">',
       f'<rect width="{W}" height="{H}" fill="white"/>']
for i in range(5):
    bits = low + (high - low) * i / 4
    y = at(0, bits).split(",")[1]
    out.append(f'<line x1="{LEFT}" x2="{W - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>')
    out.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{bits:.2f}</text>')
for i in range(5):
    step = last * i // 4
    x = at(step, low).split(",")[0]
    out.append(f'<text x="{x}" y="{H - 16}" text-anchor="middle">{step}</text>')
out.append(f'<text x="{W / 2}" y="{H - 2}" text-anchor="middle">step; bits a token</text>')
out.append(line(train, "#b8cbe0", 1))
out.append(line(mean, "#1f5a99", 2))
for point in held:
    x, y = at(*point).split(",")
    out.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#c4501b"/>')
out.append("</svg>")
print("\n".join(out))
