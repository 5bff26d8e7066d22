//! A small line chart as SVG.

use std::fmt::Write;

/// Lines over two axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// One line for each of what is compared, in order of importance.
    pub lines: Vec<Line>,
    /// Spans of the x axis in which something happened, with what it was.
    pub marks: Vec<Mark>,
}

/// One axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it counts, with its unit.
    pub label: &'static str,
    /// Where numbers lie on it.
    pub scale: Scale,
}

/// Where numbers lie on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero on, equal differences are equal distances.
    Linear,
    /// Equal ratios are equal distances; what is zero or less is left out.
    Logarithmic,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Whose.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Mark {
    /// When it began.
    pub from: f64,
    /// When it was over; may be when it began.
    pub until: f64,
    /// What it was.
    pub name: String,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 48.0;

/// Told apart by those who see no red or green (Okabe and Ito).
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"];

impl Chart {
    /// The picture.
    pub fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let x = Range::of(self.x.scale, points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let y = Range::of(self.y.scale, points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = Svg::default();
        svg.text(LEFT, 18.0, "start", 14, &self.title);
        self.draw_marks(&mut svg, &x);
        self.draw_axes(&mut svg, &x, &y);
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            svg.polyline(line.points.iter().filter_map(|point| Some((x.place(point.0)?, y.place(point.1)?))), colour);
            let left = LEFT + index as f64 * (WIDTH - LEFT - RIGHT) / self.lines.len() as f64;
            svg.line((left, 36.0), (left + 18.0, 36.0), colour, 3.0);
            svg.text(left + 24.0, 40.0, "start", 12, &line.name);
        }
        svg.finish()
    }

    fn draw_axes(&self, svg: &mut Svg, x: &Range, y: &Range) {
        for (place, label) in x.ticks() {
            svg.line((place, TOP), (place, HEIGHT - BOTTOM), "#ddd", 1.0);
            svg.text(place, HEIGHT - BOTTOM + 16.0, "middle", 11, &label);
        }
        for (place, label) in y.ticks() {
            svg.line((LEFT, place), (WIDTH - RIGHT, place), "#ddd", 1.0);
            svg.text(LEFT - 6.0, place + 4.0, "end", 11, &label);
        }
        svg.text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "middle", 12, self.x.label);
        svg.upright_text(16.0, (TOP + HEIGHT - BOTTOM) / 2.0, self.y.label);
    }

    fn draw_marks(&self, svg: &mut Svg, x: &Range) {
        for mark in &self.marks {
            let (Some(from), Some(until)) = (x.place(mark.from), x.place(mark.until)) else { continue };
            svg.rectangle((from, TOP), ((until - from).max(2.0), HEIGHT - BOTTOM - TOP), "#f0e442");
            svg.text(from + 4.0, TOP + 12.0, "start", 11, &mark.name);
        }
    }
}

/// A part of the number line, laid on a part of the picture.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Range {
    fn of(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values = values.filter(|value| scale == Scale::Linear || *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = match scale {
            Scale::Linear => (0.0, if high > 0.0 { high } else { 1.0 }),
            Scale::Logarithmic if low.is_finite() => {
                (decade(low).floor(), decade(high).ceil().max(decade(low).floor() + 1.0))
            }
            Scale::Logarithmic => (0.0, 1.0),
        };
        Self { scale, low, high, from, to }
    }

    fn place(&self, value: f64) -> Option<f64> {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic if value > 0.0 => decade(value),
            Scale::Logarithmic => return None,
        };
        Some(self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from))
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = match self.scale {
            Scale::Linear => {
                let step = nice_step(self.high / 5.0);
                (0..=(self.high / step) as u32).map(|index| f64::from(index) * step).collect()
            }
            Scale::Logarithmic => (self.low as i32..=self.high as i32).map(|decade| 10f64.powi(decade)).collect(),
        };
        let labelled = values.into_iter().filter_map(|value| Some((self.place(value)?, label(value))));
        labelled.collect()
    }
}

fn decade(value: f64) -> f64 {
    value.log10()
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(decade(least).floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

/// Without the noise of binary fractions.
fn label(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

#[derive(Default)]
struct Svg {
    body: String,
}

// Writing to a string cannot fail.
impl Svg {
    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        );
    }

    fn rectangle(&mut self, at: (f64, f64), size: (f64, f64), colour: &str) {
        let ((x, y), (width, height)) = (at, size);
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}" opacity="0.4"/>"#
        );
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}">{text}</text>"#
        );
    }

    fn upright_text(&mut self, x: f64, y: f64, text: &str) {
        let text = escape(text);
        let turn = format!("rotate(-90 {x} {y:.1})");
        let _ = writeln!(
            self.body,
            r#"<text x="{x}" y="{y:.1}" text-anchor="middle" font-size="12" transform="{turn}">{text}</text>"#
        );
    }

    fn polyline(&mut self, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
        let mut places = String::new();
        for (x, y) in points {
            let _ = write!(places, "{x:.1},{y:.1} ");
        }
        let places = places.trim_end();
        let _ =
            writeln!(self.body, r#"<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#);
    }

    fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_where_the_scale_puts_them() {
        let linear = Range::of(Scale::Linear, [0.0, 50.0, 100.0].into_iter(), 0.0, 200.0);
        assert_eq!(linear.place(50.0), Some(100.0));
        let logarithmic = Range::of(Scale::Logarithmic, [0.0, 1.0, 100.0].into_iter(), 0.0, 200.0);
        assert_eq!(logarithmic.place(10.0), Some(100.0));
        assert_eq!(logarithmic.place(0.0), None);
    }

    #[test]
    fn ticks_are_round_numbers() {
        let labels = |range: Range| range.ticks().into_iter().map(|tick| tick.1).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(Range::of(Scale::Linear, [270.0].into_iter(), 0.0, 1.0)), "0 100 200");
        assert_eq!(labels(Range::of(Scale::Linear, [0.7].into_iter(), 0.0, 1.0)), "0 0.2 0.4 0.6");
        assert_eq!(labels(Range::of(Scale::Logarithmic, [52.0, 420.0].into_iter(), 0.0, 1.0)), "10 100 1000");
    }

    #[test]
    fn a_chart_without_points_is_a_picture_too() {
        let axis = |scale| Axis { label: "a < b", scale };
        let line = Line { name: "nothing".to_owned(), points: Vec::new() };
        let chart = Chart {
            title: String::new(),
            x: axis(Scale::Linear),
            y: axis(Scale::Logarithmic),
            lines: vec![line],
            marks: Vec::new(),
        };
        let svg = chart.to_svg();
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
