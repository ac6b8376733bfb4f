// The chart of real bars: candles, moving averages, volume, the window, and when its forward returns are known.

const GAP = { top: 34, right: 58, bottom: 22, between: 10 };

/** Numbers between which an axis is easy to read. */
export function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw) ?? raw;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  return { found, digits: Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0))) };
}

export function short(value) {
  if (value === null) return "n/a";
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toPrecision(3)} ${letter}`;
  }
  return value.toPrecision(3);
}

export class Chart {
  constructor(canvas, hovered) {
    this.canvas = canvas;
    this.hovered = hovered;
    this.bars = null;
    this.parts = null;
    this.at = -1;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.hover(-1));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Show bars; `parts` is what each bar of the window does to the score, if that is known. */
  show(bars, parts = null) {
    this.bars = bars;
    this.parts = parts;
    this.at = -1;
    this.draw();
    this.hovered(-1);
  }

  point(event) {
    if (!this.bars?.time.length) return;
    const x = event.offsetX / this.step;
    this.hover(x >= 0 && x < this.bars.time.length ? Math.floor(x) : -1);
  }

  hover(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
    this.hovered(at);
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    this.paint(g, width, height);
  }

  paint(g, width, height) {
    const style = getComputedStyle(this.canvas);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    g.fillStyle = color("paper");
    g.fillRect(0, 0, width, height);
    g.font = `11px ${style.fontFamily}`;
    g.textBaseline = "middle";
    const { bars } = this;
    if (!bars?.time.length) {
      g.fillStyle = color("soft");
      g.fillText(bars ? "" : "No bars: open the explorer with --panel to see them.", 8, height / 2);
      return;
    }
    const right = width - GAP.right;
    this.step = right / bars.time.length;
    const inner = height - GAP.top - GAP.bottom;
    const under = this.parts ? 0.2 : 0;
    const heights = { price: inner * (0.8 - under) - GAP.between, volume: inner * 0.2 - (under ? GAP.between : 0) };
    const place = {
      price: [GAP.top, GAP.top + heights.price],
      volume: [GAP.top + heights.price + GAP.between, GAP.top + heights.price + GAP.between + heights.volume],
      parts: [height - GAP.bottom - inner * under, height - GAP.bottom],
    };
    this.window(g, color, place, height);
    this.prices(g, color, place.price, right);
    this.volumes(g, color, place.volume, right);
    if (this.parts) this.attribution(g, color, place.parts, right);
    this.times(g, color, height, right);
    if (this.at >= 0) {
      g.strokeStyle = color("soft");
      line(g, this.x(this.at), GAP.top, this.x(this.at), height - GAP.bottom);
    }
  }

  /** Middle of a bar, pixels. */
  x(i) {
    return (i + 0.5) * this.step;
  }

  window(g, color, place, height) {
    const { first, last, exits } = this.bars;
    const [a, b] = [first * this.step, (last + 1) * this.step];
    g.fillStyle = color("band");
    g.fillRect(a, GAP.top - 6, b - a, height - GAP.bottom - GAP.top + 6);
    g.fillStyle = color("accent");
    g.fillRect(a, GAP.top - 8, b - a, 2);
    g.textAlign = "center";
    let free = b;
    for (const [horizon, at] of Object.entries(exits)) {
      if (at === null) continue;
      const x = this.x(at);
      g.strokeStyle = color("accent");
      g.setLineDash([2, 3]);
      line(g, x, GAP.top - 8, x, place.volume[1]);
      g.setLineDash([]);
      const text = `+${horizon}`;
      const half = g.measureText(text).width / 2 + 2;
      if (x - half >= free) {
        g.fillStyle = color("accent");
        g.fillText(text, x, GAP.top - 16);
        free = x + half;
      }
    }
    g.textAlign = "left";
  }

  prices(g, color, [top, bottom], right) {
    const { bars, step } = this;
    const every = [...bars.high, ...bars.low, ...Object.values(bars.averages).flat()].filter((v) => v !== null);
    if (!every.length) return;
    let [low, high] = [every.reduce((a, b) => Math.min(a, b)), every.reduce((a, b) => Math.max(a, b))];
    if (low === high) [low, high] = [low * 0.99, high * 1.01];
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
    const { found, digits } = ticks(low, high, Math.max(3, Math.round((bottom - top) / 55)));
    g.textAlign = "left";
    for (const value of found) {
      g.strokeStyle = color("line");
      line(g, 0, y(value), right, y(value));
      g.fillStyle = color("soft");
      g.fillText(value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }), right + 6, y(value));
    }
    const body = Math.max(1, Math.floor(step * 0.62));
    for (let i = 0; i < bars.time.length; i++) {
      const [o, h, l, c] = [bars.open[i], bars.high[i], bars.low[i], bars.close[i]];
      if (h === null || l === null) continue;
      g.strokeStyle = g.fillStyle = color(i > bars.last ? "later" : "ink");
      line(g, this.x(i), y(h), this.x(i), y(l));
      if (o === null || c === null || step < 3) continue;
      const left = Math.round(this.x(i) - body / 2);
      const [upper, size] = [Math.round(y(Math.max(o, c))), Math.max(1, Math.round(Math.abs(y(o) - y(c))))];
      if (c > o && body > 2 && size > 2) {
        // A rise is hollow.
        g.clearRect(left, upper, body, size);
        g.fillStyle = color(i >= bars.first && i <= bars.last ? "band" : "paper");
        g.fillRect(left, upper, body, size);
        g.strokeRect(left + 0.5, upper + 0.5, body - 1, size - 1);
      } else {
        g.fillRect(left, upper, body, size);
      }
    }
    g.lineWidth = 1.5;
    Object.values(bars.averages).forEach((values, k) => {
      g.strokeStyle = color(k % 2 ? "average-2" : "average");
      g.beginPath();
      let pen = false;
      values.forEach((value, i) => {
        if (value === null) {
          pen = false;
          return;
        }
        g[pen ? "lineTo" : "moveTo"](this.x(i), y(value));
        pen = true;
      });
      g.stroke();
    });
    g.lineWidth = 1;
  }

  volumes(g, color, [top, bottom], right) {
    const { bars, step } = this;
    const high = bars.volume.reduce((a, b) => Math.max(a, b ?? 0), 0);
    if (!high) return;
    const body = Math.max(1, Math.floor(step * 0.62));
    bars.volume.forEach((value, i) => {
      if (value === null) return;
      const size = (value / high) * (bottom - top);
      g.fillStyle = color(i >= bars.first && i <= bars.last ? "soft" : "later");
      g.fillRect(Math.round(this.x(i) - body / 2), bottom - size, body, size);
    });
    g.fillStyle = color("soft");
    g.fillText(short(high), right + 6, top + 5);
  }

  attribution(g, color, [top, bottom], right) {
    const { bars, step, parts } = this;
    const high = parts.reduce((a, b) => Math.max(a, Math.abs(b ?? 0)), 0) || 1;
    const middle = (top + bottom) / 2;
    const body = Math.max(1, Math.floor(step * 0.62));
    g.strokeStyle = color("line");
    line(g, 0, middle, right, middle);
    parts.forEach((value, k) => {
      if (value === null) return;
      const size = (Math.abs(value) / high) * (bottom - top - 4) / 2;
      g.fillStyle = color(value < 0 ? "against" : "for");
      g.fillRect(Math.round(this.x(bars.last - parts.length + 1 + k) - body / 2), value < 0 ? middle : middle - size, body, size);
    });
    g.fillStyle = color("soft");
    g.fillText(`±${high.toPrecision(2)}`, right + 6, middle);
    const first = (bars.last - parts.length + 1) * step;
    const text = "what each bar adds to the score";
    const wide = g.measureText(text).width;
    g.fillText(text, first > wide + 10 ? first - wide - 10 : Math.min((bars.last + 1) * step + 10, right - wide), top + 6);
  }

  times(g, color, height, right) {
    const { time } = this.bars;
    g.fillStyle = color("soft");
    g.textAlign = "center";
    const room = g.measureText(time[0]).width + 36;
    const count = Math.max(1, Math.floor(right / room));
    for (let k = 0; k < count; k++) {
      const i = Math.floor(((k + 0.5) * time.length) / count);
      g.fillText(time[i], this.x(i), height - GAP.bottom / 2 + 2);
      g.strokeStyle = color("soft");
      line(g, this.x(i), height - GAP.bottom, this.x(i), height - GAP.bottom + 3);
    }
    g.strokeStyle = color("line");
    line(g, 0, height - GAP.bottom, right, height - GAP.bottom);
    g.textAlign = "left";
  }
}

function line(g, x1, y1, x2, y2) {
  // Half a pixel, so that a line of one pixel fills one.
  const [a, b] = x1 === x2 ? [Math.round(x1) - 0.5, y1] : [x1, Math.round(y1) - 0.5];
  g.beginPath();
  g.moveTo(a, b);
  g.lineTo(x1 === x2 ? a : x2, y1 === y2 ? b : y2);
  g.stroke();
}
