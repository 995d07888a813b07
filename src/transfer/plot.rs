//! Nodes over time as a picture, with what no plan can beat: those that are free, or that have an image. Pure.

use std::fmt::Write as _;

use super::plan::bounds::Input;

/// The picture, and the part of it in which curves are, in its own units.
const SIZE: (f64, f64) = (960.0, 480.0);
const LEFT: f64 = 60.0;
const RIGHT: f64 = 700.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 430.0;
/// Lines of the legend are so far apart.
const LINE: f64 = 22.0;
/// At most so many marks on an axis.
const MARKS: f64 = 8.0;
/// That can be told apart by whoever sees less of them, too.
const COLORS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// One run, or plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// When nodes were free, or had the image, in seconds, in any order.
    pub free: Vec<f64>,
}

/// A line of the picture.
struct Line {
    name: String,
    style: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    fn new(name: &str, style: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), style: style.into(), points }
    }

    /// Runs in colours of their own, each named by this.
    fn of_runs(curves: &[Curve], end: f64, name: impl Fn(&Curve) -> String) -> impl Iterator<Item = Self> {
        curves.iter().zip(COLORS.iter().cycle()).map(move |(curve, color)| {
            let style = format!("stroke=\"{color}\" stroke-width=\"2\"");
            Self { name: name(curve), style, points: steps(curve.free.clone(), end) }
        })
    }
}

/// Where the picture ends.
fn end(curves: &[Curve], least: f64) -> f64 {
    let ends = curves.iter().flat_map(|curve| &curve.free).copied().chain([least]);
    ends.fold(0.0, f64::max).max(1e-3) * 1.02
}

/// Runs over the same nodes, and the bounds for these.
pub fn svg(title: &str, input: &Input, curves: &[Curve]) -> String {
    let (nodes, all) = (input.sizes.len(), input.all());
    let end = end(curves, all);
    let bound: Vec<f64> = (1..=nodes).map(|count| input.free(count)).collect();
    let mut lines = vec![
        Line::new("no plan frees more", "stroke=\"#888888\" stroke-dasharray=\"6 4\"", steps(bound, end)),
        Line::new(
            &format!("no plan ends before {all:.2} s"),
            "stroke=\"#888888\" stroke-dasharray=\"2 3\"",
            vec![(all, 0.0), (all, nodes as f64)],
        ),
    ];
    let sum = |curve: &Curve| curve.free.iter().fold(0.0, |sum, free| sum + free);
    lines.extend(Line::of_runs(curves, end, |curve| format!("{}: {:.1} node-seconds", curve.name, sum(curve))));
    let least = format!("no plan with equal sizes: {:.1}", input.node_seconds());
    picture(title, "nodes free", (end, nodes), &lines, &least)
}

/// Runs by which so many nodes got an image that no node can have before `bound` seconds.
pub fn spread(title: &str, nodes: usize, bound: f64, curves: &[Curve]) -> String {
    let end = end(curves, bound);
    let least = Line::new(
        &format!("no node has it before {bound:.2} s"),
        "stroke=\"#888888\" stroke-dasharray=\"2 3\"",
        vec![(bound, 0.0), (bound, nodes as f64)],
    );
    let last = |curve: &Curve| curve.free.iter().copied().fold(0.0, f64::max);
    let runs = Line::of_runs(curves, end, |curve| format!("{}: {:.1} s", curve.name, last(curve)));
    let lines: Vec<Line> = std::iter::once(least).chain(runs).collect();
    picture(title, "nodes with the image", (end, nodes), &lines, "")
}

fn picture(title: &str, what: &str, (end, nodes): (f64, usize), lines: &[Line], note: &str) -> String {
    let place = |(second, count): (f64, f64)| {
        let x = LEFT + (RIGHT - LEFT) * second / end;
        let y = BOTTOM - (BOTTOM - TOP) * count / nodes.max(1) as f64;
        format!("{x:.1},{y:.1}")
    };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        escaped(title)
    );
    axes(&mut text, what, end, nodes);
    let mut y = TOP + 10.0;
    for Line { name, style, points } in lines {
        let points: Vec<String> = points.iter().copied().map(place).collect();
        let x = RIGHT + 20.0;
        let _ = write!(
            text,
            "<polyline fill=\"none\" {style} points=\"{}\"/>\n\
             <line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" {style}/>\n<text x=\"{}\" y=\"{}\">{}</text>\n",
            points.join(" "),
            x + 24.0,
            x + 32.0,
            y + 4.0,
            escaped(name)
        );
        y += LINE;
    }
    let _ = write!(text, "<text x=\"{}\" y=\"{}\">{note}</text>\n</svg>\n", RIGHT + 52.0, y + 4.0);
    text
}

/// One more at each of these times.
fn steps(mut times: Vec<f64>, end: f64) -> Vec<(f64, f64)> {
    times.sort_by(f64::total_cmp);
    let mut points = vec![(0.0, 0.0)];
    for (count, time) in times.iter().enumerate() {
        points.extend([(*time, count as f64), (*time, count as f64 + 1.0)]);
    }
    points.push((end, times.len() as f64));
    points
}

fn axes(text: &mut String, what: &str, end: f64, nodes: usize) {
    let _ = writeln!(
        text,
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"black\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds</text>\n\
         <text x=\"18\" y=\"{}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {})\">{what}</text>",
        f64::midpoint(LEFT, RIGHT),
        BOTTOM + 38.0,
        f64::midpoint(TOP, BOTTOM),
        f64::midpoint(TOP, BOTTOM)
    );
    for second in marks(end) {
        let x = LEFT + (RIGHT - LEFT) * second / end;
        let _ = writeln!(
            text,
            "<path d=\"M{x:.1} {BOTTOM}v5\" stroke=\"black\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 20.0,
            (second * 1000.0).round() / 1000.0
        );
    }
    for count in marks(nodes as f64).into_iter().filter(|count| count.fract() < 1e-9) {
        let y = BOTTOM - (BOTTOM - TOP) * count / nodes as f64;
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {y:.1}h-5\" stroke=\"black\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{count}</text>",
            LEFT - 9.0,
            y + 4.0
        );
    }
}

/// Round numbers up to this one.
fn marks(most: f64) -> Vec<f64> {
    if most <= 0.0 {
        return Vec::new();
    }
    let least = most / MARKS;
    let ten = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * ten).into_iter().find(|step| *step >= least).unwrap_or(most);
    let count = (most / step + 1e-9).floor();
    // few: the step is at least an eighth
    (0..=count as u32).map(|number| f64::from(number) * step).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(line: &str) -> Vec<(f64, f64)> {
        let (_, rest) = line.split_once("points=\"").unwrap();
        let pair = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        rest.split('"').next().unwrap().split(' ').map(pair).collect()
    }

    #[test]
    fn a_curve_steps_up_where_nodes_are_free() {
        let input = Input { sizes: vec![100; 4], node: 100.0, repository: 100.0, room: u64::MAX / 2 };
        let curve = Curve { name: "a < b".into(), free: vec![4.0, 1.0, 2.0, 1.0] };
        let text = svg("4 nodes", &input, &[curve]);
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!(lines.len(), 3, "{text}");
        let curve = points(lines[2]);
        // the origin, two points for each node, and the right end
        assert_eq!(curve.len(), 10);
        let second = |x: f64| (x - LEFT) / (RIGHT - LEFT) * 4.0 * 1.02;
        let count = |y: f64| (BOTTOM - y) / (BOTTOM - TOP) * 4.0;
        let found: Vec<(i64, i64)> =
            curve.iter().map(|(x, y)| (second(*x).round() as i64, count(*y).round() as i64)).collect();
        assert_eq!(found[..9], [(0, 0), (1, 0), (1, 1), (1, 1), (1, 2), (2, 2), (2, 3), (4, 3), (4, 4)]);
        // two are free no earlier than 2 / 3, but each has to send its own
        let bound = points(lines[0]);
        assert_eq!(second(bound[3].0).round() as i64, 1);
        assert!((second(points(lines[1])[0].0) - 4.0).abs() < 0.01);
        for part in ["a &lt; b: 8.0 node-seconds", "no plan ends before 4.00 s", "4 nodes", "seconds", "nodes free"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.ends_with("</svg>\n"));
    }

    #[test]
    fn who_has_the_image_is_drawn_with_what_nobody_beats() {
        let curve = Curve { name: "chain".into(), free: vec![2.0, 2.5] };
        let text = spread("an image", 2, 2.0, &[curve]);
        for part in ["chain: 2.5 s", "no node has it before 2.00 s", "nodes with the image", "an image"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!((lines.len(), points(lines[1]).len()), (2, 6));
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(marks(32.0), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
        assert_eq!(marks(0.5).len(), 6);
        assert!(marks(0.0).is_empty());
        let nobody = Input { sizes: Vec::new(), node: 1.0, repository: 1.0, room: 0 };
        assert!(svg("", &nobody, &[]).contains("</svg>"));
    }
}
