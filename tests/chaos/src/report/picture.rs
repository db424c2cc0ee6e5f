//! The picture: faults above, jobs' attempts below, on one axis of time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::check::Timeline;
use crate::history::{Answer, Phase, Record, What};

const WIDTH: f64 = 1_500.0;
const LEFT: f64 = 150.0;
const ROW: f64 = 15.0;
const TOP: f64 = 40.0;
/// More would not fit on a screen; the history has them all.
const JOBS_MAX: usize = 90;
/// Seconds between two times of the axis: the first that leaves its words room.
const STEPS_S: [u64; 7] = [10, 30, 60, 120, 300, 600, 1_800];
const WORD: f64 = 50.0;

struct Axis {
    from: u64,
    to: u64,
}

impl Axis {
    fn x(&self, at: u64) -> f64 {
        let share = at.saturating_sub(self.from) as f64 / (self.to - self.from).max(1) as f64;
        LEFT + share.min(1.0) * (WIDTH - LEFT - 10.0)
    }
}

struct Bar {
    from: u64,
    to: u64,
    color: &'static str,
    text: String,
}

/// Lane by lane: a name, bars, and ticks.
struct Lane {
    name: String,
    bars: Vec<Bar>,
    ticks: Vec<(u64, &'static str, String)>,
}

pub(super) fn picture(records: &[Record], timeline: &Timeline, seed: u64) -> String {
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return String::new() };
    let axis = Axis { from: first.at, to: last.at };
    let mut lanes = fault_lanes(records, axis.to);
    lanes.push(trouble_lane(records, timeline));
    let jobs = job_lanes(timeline, axis.to);
    let count = jobs.len();
    lanes.extend(evenly(jobs, JOBS_MAX));
    let title = format!(
        "seed {seed}: faults above, attempts of {} jobs of {count} below (green: succeeded, white ticks: sealed checkpoints)",
        count.min(JOBS_MAX)
    );
    draw(&axis, &lanes, records, &title)
}

fn fault_lanes(records: &[Record], end: u64) -> Vec<Lane> {
    let mut begun: BTreeMap<u32, (u64, &str, String)> = BTreeMap::new();
    let mut lanes: BTreeMap<&str, Vec<Bar>> = BTreeMap::new();
    for record in records {
        let What::Fault { id, nemesis, phase, targets, note, effective } = &record.what else { continue };
        match phase {
            Phase::Begin => {
                begun.insert(*id, (record.at, nemesis, format!("{}: {note}", targets.join(" "))));
            }
            Phase::End => {
                let (from, _, text) = begun.remove(id).unwrap_or((record.at, nemesis, String::new()));
                let color = if *effective { "#c0392b" } else { "#e5b8b2" };
                let bar = Bar { from, to: record.at, color, text: format!("{text}; {note}") };
                lanes.entry(nemesis).or_default().push(bar);
            }
            Phase::Skipped => {
                begun.remove(id);
            }
        }
    }
    for (from, nemesis, text) in begun.into_values() {
        lanes.entry(nemesis).or_default().push(Bar { from, to: end, color: "#e5b8b2", text });
    }
    let lane = |(name, bars): (&str, Vec<Bar>)| Lane { name: name.to_owned(), bars, ticks: Vec::new() };
    lanes.into_iter().map(lane).collect()
}

/// What clients and the cluster noticed: calls without an answer, new leaders, lost nodes.
fn trouble_lane(records: &[Record], timeline: &Timeline) -> Lane {
    let mut ticks = Vec::new();
    for record in records {
        if let What::Return { answer: Answer::Unknown { reason }, .. } = &record.what {
            ticks.push((record.at, "#d9a441", reason.clone()));
        }
    }
    for (index, event) in timeline.events() {
        let color = match event.kind.as_str() {
            "leader_changed" => "#2c3e90",
            "node_lost" => "#000000",
            _ => continue,
        };
        ticks.extend(timeline.seen_at.get(&index).map(|at| (*at, color, event.text.clone())));
    }
    Lane { name: "unknown, leaders, lost".to_owned(), bars: Vec::new(), ticks }
}

fn job_lanes(timeline: &Timeline, end: u64) -> Vec<Lane> {
    let mut lanes: BTreeMap<u64, Lane> = BTreeMap::new();
    let mut open: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let number = |job: &str| job.trim_start_matches('j').parse::<u64>().unwrap_or(0);
    for (index, event) in timeline.events() {
        let Some(at) = timeline.seen_at.get(&index).copied() else { continue };
        let job = number(&event.job);
        match event.kind.as_str() {
            "attempt_started" => {
                open.insert(&event.attempt, (at, job));
            }
            "attempt_ended" => {
                let Some((from, job)) = open.remove(event.attempt.as_str()) else { continue };
                let color = if event.text.contains("Succeeded") { "#3a8f4d" } else { "#d98a2b" };
                let bar = Bar { from, to: at, color, text: event.text.clone() };
                lane(&mut lanes, job).bars.push(bar);
            }
            "checkpoint_sealed" if lanes.contains_key(&job) || open.values().any(|(_, of)| *of == job) => {
                lane(&mut lanes, job).ticks.push((at, "#ffffff", event.text.clone()));
            }
            _ => {}
        }
    }
    for (attempt, (from, job)) in open {
        let bar = Bar { from, to: end, color: "#9b9b9b", text: format!("{attempt} is open") };
        lane(&mut lanes, job).bars.push(bar);
    }
    lanes.into_values().collect()
}

/// At most so many, from the first to the last.
fn evenly<T>(all: Vec<T>, most: usize) -> impl Iterator<Item = T> {
    let count = all.len();
    let is_chosen = move |at: usize| count <= most || at * most / count != (at + 1) * most / count;
    all.into_iter().enumerate().filter(move |(at, _)| is_chosen(*at)).map(|(_, one)| one)
}

fn lane(lanes: &mut BTreeMap<u64, Lane>, job: u64) -> &mut Lane {
    let empty = || Lane { name: format!("j{job}"), bars: Vec::new(), ticks: Vec::new() };
    lanes.entry(job).or_insert_with(empty)
}

fn draw(axis: &Axis, lanes: &[Lane], records: &[Record], title: &str) -> String {
    let height = TOP + ROW * lanes.len() as f64 + 20.0;
    let mut svg = String::new();
    // Writing into a String cannot fail.
    let _ = frame(&mut svg, axis, records, height, title);
    for (row, lane) in lanes.iter().enumerate() {
        let _ = draw_lane(&mut svg, axis, TOP + ROW * row as f64, lane);
    }
    svg.push_str("</svg>\n");
    svg
}

fn frame(svg: &mut String, axis: &Axis, records: &[Record], height: f64, title: &str) -> std::fmt::Result {
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"10\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"5\" y=\"14\">{title}</text>"
    )?;
    let seconds = (axis.to - axis.from) / 1_000_000_000;
    let has_room = |step: &&u64| (seconds / **step) as f64 * WORD <= WIDTH - LEFT;
    let step = STEPS_S.iter().find(has_room).unwrap_or(&STEPS_S[STEPS_S.len() - 1]);
    for second in (0..seconds).step_by(*step as usize) {
        let x = axis.x(axis.from + second * 1_000_000_000);
        writeln!(svg, "<path d=\"M{x:.1} {TOP}V{height}\" stroke=\"#eeeeee\"/>")?;
        writeln!(svg, "<text x=\"{x:.1}\" y=\"36\" fill=\"#888888\">{second} s</text>")?;
    }
    // Phases may be shorter than their names: those that follow at once are one label.
    let mut labels: Vec<(f64, String)> = Vec::new();
    for record in records {
        let What::Phase { name } = &record.what else { continue };
        let x = axis.x(record.at);
        writeln!(svg, "<path d=\"M{x:.1} 18V{height}\" stroke=\"#888888\" stroke-dasharray=\"3\"/>")?;
        match labels.last_mut() {
            Some((before, label)) if x - *before < WORD => *label = format!("{label}, {name}"),
            _ => labels.push((x, name.clone())),
        }
    }
    for (x, label) in labels {
        // The last ones lie at the right edge.
        let (x, anchor) = if x > WIDTH * 0.9 { (x - 2.0, "end") } else { (x + 2.0, "start") };
        let label = escape(&label);
        writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"26\" text-anchor=\"{anchor}\" fill=\"#444444\">{label}</text>"
        )?;
    }
    Ok(())
}

fn draw_lane(svg: &mut String, axis: &Axis, y: f64, lane: &Lane) -> std::fmt::Result {
    writeln!(svg, "<text x=\"5\" y=\"{:.1}\">{}</text>", y + 11.0, escape(&lane.name))?;
    for Bar { from, to, color, text } in &lane.bars {
        let (x, width) = (axis.x(*from), (axis.x(*to) - axis.x(*from)).max(1.5));
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"><title>{}</title></rect>",
            y + 2.0,
            ROW - 4.0,
            escape(text)
        )?;
    }
    for (at, color, text) in &lane.ticks {
        let x = axis.x(*at);
        writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}v{}\" stroke=\"{color}\"><title>{}</title></path>",
            y + 2.0,
            ROW - 4.0,
            escape(text)
        )?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_and_a_name_with_signs_are_drawn() {
        let fault = |at, phase| {
            let (nemesis, note) = ("kill-leader".to_owned(), "a<b".to_owned());
            let targets = vec!["c1".to_owned()];
            Record {
                at,
                what: What::Fault { id: 1, nemesis, phase, targets, note, effective: phase == Phase::End },
            }
        };
        let svg = picture(&[fault(1_000, Phase::Begin), fault(9_000, Phase::End)], &Timeline::default(), 7);
        assert!(svg.contains("kill-leader") && svg.contains("a&lt;b") && svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2, "the ground and one bar");
    }

    #[test]
    fn of_many_jobs_some_are_drawn_from_the_first_to_the_last() {
        assert_eq!(evenly(vec![1, 2, 3], 5).collect::<Vec<_>>(), [1, 2, 3]);
        let some: Vec<u32> = evenly((0..1_000).collect(), 10).collect();
        assert_eq!((some.len(), some.first().copied(), some.last().copied()), (10, Some(99), Some(999)));
    }
}
