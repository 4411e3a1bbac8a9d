//! One chart: shapes in SVG that stretch with the page, labels in HTML that do not.

use super::series::{Point, Range, tick_digits, tick_step, ticks};
use super::text::{count, escape};
use std::fmt::Write;

/// Shapes have coordinates from 0 to this, in both directions.
const SIDE: f64 = 1000.0;

/// A chart that is being drawn.
pub(super) struct Plot {
    x: Range,
    y: Range,
    shapes: String,
    labels: String,
    read_outs: String,
    style: String,
}

impl Plot {
    /// Axes without anything.
    pub fn new(x: Range, y: Range) -> Plot {
        let (shapes, labels, read_outs) = (String::new(), String::new(), String::new());
        Plot { x, y, shapes, labels, read_outs, style: String::new() }
    }

    /// A height of its own, instead of that of its class.
    pub fn height_rem(&mut self, rem: f64) {
        self.style = format!(" style=\"height:{rem:.2}rem\"");
    }

    fn across(&self, x: f64) -> f64 {
        self.x.part(x).clamp(-1.0, 2.0) * SIDE
    }

    fn down(&self, y: f64) -> f64 {
        (1.0 - self.y.part(y).clamp(-1.0, 2.0)) * SIDE
    }

    /// A line through points, with gaps where they are not finite.
    pub fn line(&mut self, points: &[Point], class: &str) {
        let mut path = String::new();
        let mut before = false;
        for (i, &(x, y)) in points.iter().enumerate() {
            if y.is_finite() {
                let sign = if before { 'L' } else { 'M' };
                let _ = write!(path, "{sign}{:.1} {:.1}", self.across(x), self.down(y));
                let alone = points.get(i + 1).is_none_or(|p| !p.1.is_finite());
                if alone && !before {
                    path.push_str("h.01");
                }
            }
            before = y.is_finite();
        }
        self.path(&path, class);
    }

    /// Round points: lines without length keep their round ends when the chart is stretched.
    pub fn dots(&mut self, points: &[Point], class: &str) {
        let mut path = String::new();
        for &(x, y) in points.iter().filter(|p| p.1.is_finite()) {
            let _ = write!(path, "M{:.1} {:.1}h.01", self.across(x), self.down(y));
        }
        self.path(&path, class);
    }

    /// What is under a staircase that begins a tread at each point and ends at `end`.
    pub fn stairs(&mut self, points: &[Point], end: f64, class: &str) {
        let Some(first) = points.first() else { return };
        let bottom = self.down(self.y.lo);
        let mut path = format!("M{:.1} {bottom:.1}", self.across(first.0));
        let mut level = None;
        for &(x, y) in points {
            // Treads of one height are one tread.
            if level != Some(y) {
                let _ = write!(path, "H{:.1}V{:.1}", self.across(x), self.down(y));
            }
            level = Some(y);
        }
        let _ = write!(path, "H{:.1}V{bottom:.1}Z", self.across(end));
        self.path(&path, class);
    }

    /// Boxes, each from left to right and from bottom to top, as one shape.
    pub fn boxes(&mut self, boxes: &[[f64; 4]], class: &str) {
        let mut path = String::new();
        for &[left, right, bottom, top] in boxes {
            let (left, right) = (self.across(left), self.across(right));
            let (bottom, top) = (self.down(bottom), self.down(top));
            let _ = write!(path, "M{left:.1} {bottom:.1}V{top:.1}H{right:.1}V{bottom:.1}Z");
        }
        self.path(&path, class);
    }

    /// Text in the middle of a box.
    pub fn inside(&mut self, left: f64, right: f64, y: f64, text: &str, class: &str) {
        let x = self.x.part((left + right) / 2.0) * 100.0;
        let bottom = self.y.part(y) * 100.0;
        let text = escape(text);
        let _ = writeln!(
            self.labels,
            "<span class=\"cell {class}\" style=\"left:{x:.2}%;bottom:{bottom:.2}%\">{text}</span>"
        );
    }

    /// A line from side to side.
    pub fn horizontal(&mut self, y: f64, class: &str) {
        let path = format!("M0 {:.1}H{SIDE}", self.down(y));
        self.path(&path, class);
    }

    /// A line from top to bottom.
    pub fn vertical(&mut self, x: f64, class: &str) {
        let path = format!("M{:.1} 0V{SIDE}", self.across(x));
        self.path(&path, class);
    }

    fn path(&mut self, path: &str, class: &str) {
        if !path.is_empty() {
            let _ = writeln!(self.shapes, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// Text beside a place of the chart; on its left side in the right half.
    pub fn note(&mut self, x: f64, y: f64, text: &str, class: &str) {
        let (left, bottom) = (self.x.part(x) * 100.0, self.y.part(y) * 100.0);
        let side = if left > 50.0 { " before" } else { "" };
        let text = escape(text);
        let _ = writeln!(
            self.labels,
            "<span class=\"note {class}{side}\" style=\"left:{left:.2}%;bottom:{bottom:.2}%\">\
             {text}</span>"
        );
    }

    /// A named stretch of the x axis.
    pub fn stretch(&mut self, from: f64, to: f64, text: &str) {
        let (left, width) =
            (self.x.part(from) * 100.0, (self.x.part(to) - self.x.part(from)) * 100.0);
        let end = if left + width > 99.9 && width < 15.0 { " end" } else { "" };
        let text = escape(text);
        let _ = writeln!(
            self.labels,
            "<span class=\"stretch{end}\" style=\"left:{left:.2}%;width:{width:.2}%\">\
             <b>{text}</b></span>"
        );
    }

    /// A labelled line of the grid at a height.
    pub fn y_tick(&mut self, y: f64, text: &str) {
        self.horizontal(y, "grid");
        self.y_name(y, text);
    }

    /// The name of what lies at a height.
    pub fn y_name(&mut self, y: f64, text: &str) {
        let bottom = self.y.part(y) * 100.0;
        let _ = writeln!(
            self.labels,
            "<span class=\"yt\" style=\"bottom:{bottom:.2}%\">{}</span>",
            escape(text)
        );
    }

    /// Labels of the y axis, in units of `unit`.
    pub fn y_ticks(&mut self, most: usize, unit: f64) {
        let scaled = Range { lo: self.y.lo / unit, hi: self.y.hi / unit };
        let digits = tick_digits(tick_step(scaled, most));
        for v in ticks(scaled, most) {
            self.y_tick(v * unit, &format!("{v:.digits$}").replace('-', "−"));
        }
    }

    /// Labels of an x axis of whole numbers; without text where another chart below has it.
    pub fn x_ticks(&mut self, with_text: bool) {
        let whole = |v: &f64| v.fract().abs() < 1e-6 && *v >= 0.0;
        for (i, v) in ticks(self.x, 7).into_iter().filter(whole).enumerate() {
            let text = if with_text { count(v as u64) } else { String::new() };
            self.x_tick(v, &text, i % 2 == 1);
        }
    }

    /// A label of the x axis; narrow screens leave out the odd ones.
    pub fn x_tick(&mut self, x: f64, text: &str, odd: bool) {
        let left = self.x.part(x) * 100.0;
        let odd = if odd { " odd" } else { "" };
        let _ = writeln!(
            self.labels,
            "<span class=\"xt{odd}\" style=\"left:{left:.2}%\">{text}</span>"
        );
    }

    /// What the pointer reads at a place.
    pub fn read_out(&mut self, x: f64, text: &str) {
        if !self.read_outs.is_empty() {
            self.read_outs.push('\n');
        }
        let line = text.replace('\n', " ");
        let _ = write!(self.read_outs, "{:.1} {}", self.x.part(x) * SIDE, escape(&line));
    }

    /// The chart. `about` says what it shows to those who do not see it.
    pub fn html(&self, class: &str, about: &str) -> String {
        let read = if self.read_outs.is_empty() {
            String::new()
        } else {
            format!(" data-read=\"{}\"", self.read_outs)
        };
        format!(
            "<div class=\"plot {class}\"{}{read}>\n<svg viewBox=\"0 0 {SIDE} {SIDE}\" \
             preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n{}</div>\n",
            self.style,
            escape(about),
            self.shapes,
            self.labels
        )
    }
}
