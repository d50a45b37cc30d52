//! Plots as SVG: bars for cases beside each other, lines for what grows with something.

use std::fmt::Write as _;

use super::page::escaped;

/// Told apart by people who do not tell red from green (Okabe and Ito's palette, without its yellow).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];
const WIDTH: f64 = 760.0;
/// Of a character of the 12 px font, at most.
const CHARACTER: f64 = 6.9;

/// How values become lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// From the power of ten below the smallest value; what is not above zero is left out.
    Log,
}

/// One case: its raw samples as dots, a bar up to their median, and what arithmetic allows as a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bar {
    pub(crate) label: String,
    /// Bars of one kind have one colour; kinds are listed below the plot in order of appearance.
    pub(crate) kind: String,
    pub(crate) samples: Vec<f64>,
    pub(crate) bound: Option<f64>,
}

/// Bars below each other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bars {
    /// What the values are, with unit.
    pub(crate) axis: String,
    pub(crate) scale: Scale,
    pub(crate) bars: Vec<Bar>,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Series over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lines {
    pub(crate) x_axis: String,
    pub(crate) y_axis: String,
    pub(crate) x_scale: Scale,
    pub(crate) y_scale: Scale,
    pub(crate) series: Vec<Series>,
}

/// An interval around the points of a series, drawn below its line in its colour.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Band {
    /// The place of the series.
    pub(crate) series: usize,
    /// Where, and from what to what; in ascending order. What has no place on the axes is cut off at the highest value that has.
    pub(crate) points: Vec<(f64, f64, f64)>,
}

impl Bars {
    pub(crate) fn to_svg(&self) -> String {
        const ROW: f64 = 24.0;
        let labels = self.bars.iter().map(|bar| bar.label.chars().count()).max();
        let left = (labels.unwrap_or(0) as f64 * CHARACTER + 12.0).min(WIDTH / 2.0);
        let values = self
            .bars
            .iter()
            .flat_map(|bar| bar.samples.iter().chain(&bar.bound));
        let axis = Axis::new(self.scale, values.copied(), left, WIDTH - 70.0);
        let bottom = self.bars.len() as f64 * ROW + 8.0;
        let mut kinds: Vec<&str> = Vec::new();
        let mut svg = String::new();
        for (at, label) in axis.ticks() {
            line(&mut svg, (at, 4.0), (at, bottom), "#e3e7eb");
            text(&mut svg, (at, bottom + 16.0), "middle", &label);
        }
        for (row, bar) in self.bars.iter().enumerate() {
            let kind = index_of(&mut kinds, &bar.kind);
            let colour = COLOURS[kind % COLOURS.len()];
            let y = row as f64 * ROW + 8.0;
            text(&mut svg, (left - 8.0, y + 12.0), "end", &bar.label);
            if let Some(median) = super::median(bar.samples.iter().copied()) {
                let width = (axis.place(median) - left).max(1.0);
                let _ = write!(
                    svg,
                    "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{colour}\" \
                     fill-opacity=\"0.55\"/>"
                );
                let most = bar.samples.iter().copied().fold(median, f64::max);
                text(
                    &mut svg,
                    (axis.place(most) + 8.0, y + 12.0),
                    "start",
                    &short(median),
                );
            } else {
                text(&mut svg, (left + 4.0, y + 12.0), "start", "not measured");
            }
            for &sample in &bar.samples {
                dot(&mut svg, (axis.place(sample), y + 8.0), 2.2, colour);
            }
            if let Some(bound) = bar.bound {
                let at = axis.place(bound);
                line(&mut svg, (at, y - 3.0), (at, y + 19.0), "#000000");
            }
        }
        text(&mut svg, (left, bottom + 36.0), "start", &self.axis);
        let height = legend(&mut svg, left, bottom + 56.0, &kinds);
        document(&svg, height)
    }
}

impl Lines {
    pub(crate) fn to_svg(&self) -> String {
        self.to_svg_with(&[])
    }

    /// With bands around some of its series.
    pub(crate) fn to_svg_with(&self, bands: &[Band]) -> String {
        const HEIGHT: f64 = 320.0;
        const LEFT: f64 = 64.0;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let ends = || bands.iter().flat_map(|band| &band.points);
        let values = points().map(|p| p.1).chain(ends().flat_map(|p| [p.1, p.2]));
        let x = Axis::new(self.x_scale, points().map(|p| p.0), LEFT, WIDTH - 20.0);
        let y = Axis::new(self.y_scale, values, HEIGHT, 28.0);
        let mut svg = String::new();
        for (at, label) in x.ticks() {
            line(&mut svg, (at, 28.0), (at, HEIGHT), "#e3e7eb");
            text(&mut svg, (at, HEIGHT + 16.0), "middle", &label);
        }
        for (at, label) in y.ticks() {
            line(&mut svg, (LEFT, at), (WIDTH - 20.0, at), "#e3e7eb");
            text(&mut svg, (LEFT - 6.0, at + 4.0), "end", &label);
        }
        text(&mut svg, (4.0, 14.0), "start", &self.y_axis);
        text(&mut svg, (WIDTH - 20.0, HEIGHT + 36.0), "end", &self.x_axis);
        for band in bands {
            let place = |at: f64, value: f64| {
                let value = if y.shows(value) { value } else { y.high };
                format!("{:.1},{:.1}", x.place(at), y.place(value))
            };
            let low = band.points.iter().map(|p| place(p.0, p.1));
            let high = band.points.iter().rev().map(|p| place(p.0, p.2));
            let outline: Vec<String> = low.chain(high).collect();
            let colour = COLOURS[band.series % COLOURS.len()];
            let _ = write!(
                svg,
                "<polygon points=\"{}\" fill=\"{colour}\" fill-opacity=\"0.18\"/>",
                outline.join(" ")
            );
        }
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let drawn = series
                .points
                .iter()
                .filter(|&&(a, b)| x.shows(a) && y.shows(b));
            let places: Vec<(f64, f64)> = drawn.map(|&(a, b)| (x.place(a), y.place(b))).collect();
            let path: Vec<String> = places
                .iter()
                .map(|(a, b)| format!("{a:.1},{b:.1}"))
                .collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>",
                path.join(" ")
            );
            for place in places {
                dot(&mut svg, place, 3.0, colour);
            }
        }
        let names: Vec<&str> = self
            .series
            .iter()
            .map(|series| series.name.as_str())
            .collect();
        let height = legend(&mut svg, LEFT, HEIGHT + 56.0, &names);
        document(&svg, height)
    }
}

/// Values on a line between two places.
#[derive(Debug, Clone, Copy)]
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Axis {
        let shown =
            values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let (least, most) = shown.fold((f64::MAX, 0.0_f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let most = if most > 0.0 { most } else { 1.0 };
        let (low, high) = match scale {
            Scale::Linear => (0.0, most * 1.05),
            Scale::Log => (
                10_f64.powf(least.min(most).log10().floor()),
                10_f64.powf((most * 1.05).log10().ceil()),
            ),
        };
        Axis {
            scale,
            low,
            high,
            from,
            to,
        }
    }

    fn shows(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.high,
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = match self.scale {
            Scale::Linear => {
                // The step of 1, 2 or 5 times a power of ten that gives at most seven ticks.
                let power = 10_f64.powf((self.high / 6.0).log10().floor());
                let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
                let fits = steps.into_iter().find(|step| self.high / step <= 6.0);
                let step = fits.unwrap_or(10.0 * power);
                (0..=6)
                    .map(|count| f64::from(count) * step)
                    .filter(|v| *v <= self.high)
                    .collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10().round() as i32;
                let stride = decades / 8 + 1;
                (0..=decades)
                    .filter(|d| d % stride == 0)
                    .map(|d| self.low * 10_f64.powi(d))
                    .collect()
            }
        };
        values
            .into_iter()
            .map(|value| (self.place(value), short(value)))
            .collect()
    }
}

/// Three significant digits, with the SI prefix of large values.
pub(super) fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let prefixes = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (unit, prefix) = prefixes
        .into_iter()
        .find(|(unit, _)| value.abs() >= *unit)
        .unwrap_or((1.0, ""));
    let scaled = value / unit;
    let decimals = 2 - scaled.abs().log10().floor() as i32;
    let text = format!("{scaled:.*}", usize::try_from(decimals).unwrap_or(0));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{prefix}")
}

fn index_of<'a>(seen: &mut Vec<&'a str>, name: &'a str) -> usize {
    seen.iter()
        .position(|&other| other == name)
        .unwrap_or_else(|| {
            seen.push(name);
            seen.len() - 1
        })
}

/// Draws what each colour means; returns the height of the image.
fn legend(svg: &mut String, left: f64, top: f64, names: &[&str]) -> f64 {
    let (mut x, mut y) = (left, top);
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let width = name.chars().count() as f64 * CHARACTER + 34.0;
        if x > left && x + width > WIDTH {
            (x, y) = (left, y + 18.0);
        }
        dot(svg, (x + 5.0, y - 4.0), 5.0, colour);
        text(svg, (x + 15.0, y), "start", name);
        x += width;
    }
    y + 10.0
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = write!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn dot(svg: &mut String, at: (f64, f64), radius: f64, colour: &str) {
    let _ = write!(
        svg,
        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{colour}\"/>",
        at.0, at.1
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
        at.0,
        at.1,
        escaped(words)
    );
}

fn document(content: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" \
         fill=\"#1b1f24\">{content}</svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, words) in [
            (0.0, "0"),
            (0.012345, "0.0123"),
            (1.0, "1"),
            (4.004, "4"),
            (12.34, "12.3"),
            (1500.0, "1.5k"),
            (104_857_600.0, "105M"),
        ] {
            assert_eq!(short(value), words);
        }
    }

    #[test]
    fn axes_put_the_largest_value_inside() {
        for scale in [Scale::Linear, Scale::Log] {
            let axis = Axis::new(scale, [0.02, 7.0].into_iter(), 100.0, 700.0);
            assert!(axis.place(7.0) <= 700.0 && axis.place(7.0) > axis.place(0.02));
            assert!(axis.place(0.02) >= 100.0);
            let ticks = axis.ticks();
            assert!((2..=9).contains(&ticks.len()), "{ticks:?}");
        }
    }

    #[test]
    fn bars_show_each_sample_the_median_and_the_bound() {
        let bar = |label: &str, samples: &[f64], bound| Bar {
            label: label.into(),
            kind: "one <kind>".into(),
            samples: samples.to_vec(),
            bound,
        };
        let svg = Bars {
            axis: "seconds".into(),
            scale: Scale::Linear,
            bars: vec![bar("a", &[1.0, 2.0, 3.0], Some(0.5)), bar("b", &[], None)],
        }
        .to_svg();
        assert_eq!(svg.matches("<rect").count(), 1);
        // Three samples and one entry of the legend.
        assert_eq!(svg.matches("<circle").count(), 4);
        assert_eq!(svg.matches("stroke=\"#000000\"").count(), 1);
        assert!(svg.contains("one &lt;kind&gt;") && svg.contains("not measured"));
    }

    #[test]
    fn a_band_without_an_upper_end_reaches_the_top_of_the_plot() {
        let lines = Lines {
            x_axis: "part".into(),
            y_axis: "rounds".into(),
            x_scale: Scale::Linear,
            y_scale: Scale::Log,
            series: vec![Series {
                name: "measured".into(),
                points: vec![(0.5, 10.0), (1.0, 2.0)],
            }],
        };
        let band = Band {
            series: 0,
            points: vec![(0.5, 5.0, f64::INFINITY), (1.0, 1.0, 4.0)],
        };
        let svg = lines.to_svg_with(&[band]);
        assert_eq!(svg.matches("<polygon").count(), 1);
        // The top is at 28.
        assert!(svg.contains(",28.0\" fill="), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_logarithmic_line_leaves_out_what_has_no_logarithm() {
        let svg = Lines {
            x_axis: "peers".into(),
            y_axis: "bytes".into(),
            x_scale: Scale::Log,
            y_scale: Scale::Log,
            series: vec![Series {
                name: "reduce".into(),
                points: vec![(2.0, 10.0), (4.0, 0.0), (8.0, 30.0)],
            }],
        }
        .to_svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
