//! Metrics as text: Prometheus' format 0.0.4 and OpenMetrics 1.0.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::cells::{DURATION_BOUNDS, Exemplar, Histogram, RequestHistograms, SIZE_BOUNDS};
use super::durations::{self, DurationFamily};
use super::requests::{Key, Outcome};
use super::streams::{self, StreamCells};
use super::{Families, Family, Samples, procfs};
use crate::inventory::{self, Kind, MetricDef, REQUEST_LABELS, STREAM_LABELS};

/// Which text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0, which can carry exemplars.
    OpenMetrics,
}

impl Format {
    /// What the scraper prefers by its `Accept` header (RFC 9110, section 12.5.1); Prometheus' format when it does
    /// not ask for OpenMetrics at least as much.
    #[must_use]
    pub fn negotiate(accept: Option<&str>) -> Self {
        let (mut open, mut text) = (0.0, 0.0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut quality = 1.0_f32;
            let mut version = None;
            for (key, value) in parts.filter_map(|p| p.split_once('=')) {
                match key.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim()),
                    _ => {}
                }
            }
            match media.as_str() {
                "application/openmetrics-text" if matches!(version, None | Some("1.0.0" | "0.0.1")) => {
                    open = quality.max(open);
                }
                "text/plain" | "text/*" | "*/*" => text = quality.max(text),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The `Content-Type` of the text.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

pub(super) fn render(families: &Families, told: &Samples, format: Format) -> String {
    let mut text = Text { out: String::with_capacity(16 * 1024), format };
    text.requests(families);
    text.streams(families);
    let process = procfs::read();
    for def in inventory::ALL {
        if let Some(family) = families.scalars.get(def.name) {
            text.scalars(family);
        } else if let Some(family) = families.durations.get(def.name) {
            text.durations(family);
        } else if told.by(def).next().is_some() {
            text.header(def);
            for (values, number) in told.by(def) {
                text.scalar(def, &pairs(def.labels, values.iter().map(AsRef::as_ref)), *number);
            }
        } else if let Some((_, value)) = process.iter().find(|(d, _)| d.name == def.name) {
            text.header(def);
            text.sample(def.name, "", value);
        }
    }
    if format == Format::OpenMetrics {
        text.out.push_str("# EOF\n");
    }
    text.out
}

struct Text {
    out: String,
    format: Format,
}

impl Text {
    fn header(&mut self, def: &MetricDef) {
        let open = self.format == Format::OpenMetrics;
        // OpenMetrics names a counter's family without the suffix that its samples carry.
        let family = if open { def.name.trim_end_matches("_total") } else { def.name };
        let kind = match def.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Time => "gauge",
            Kind::Histogram => "histogram",
        };
        let mut put = |what: &str, value: &str| {
            writeln!(self.out, "# {what} {family} {value}").expect("a String takes everything");
        };
        put("HELP", def.help);
        put("TYPE", kind);
        if open && !def.unit.is_empty() {
            put("UNIT", def.unit);
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        self.start(name, labels, value);
        self.out.push('\n');
    }

    fn start(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        self.out.push_str(name);
        if !labels.is_empty() {
            write!(self.out, "{{{labels}}}").expect("a String takes everything");
        }
        write!(self.out, " {value}").expect("a String takes everything");
    }

    fn scalars(&mut self, family: &Family) {
        self.header(family.def);
        for (values, cells) in &family.series {
            let labels = pairs(family.def.labels, values.iter().map(AsRef::as_ref));
            let sum = cells.iter().fold(0_u64, |sum, cell| sum.wrapping_add(cell.get()));
            self.scalar(family.def, &labels, sum);
        }
    }

    fn scalar(&mut self, def: &MetricDef, labels: &str, number: u64) {
        match def.kind {
            Kind::Gauge => self.sample(def.name, labels, number.cast_signed()),
            Kind::Time => self.sample(def.name, labels, Duration::from_micros(number).as_secs_f64()),
            Kind::Counter | Kind::Histogram => self.sample(def.name, labels, number),
        }
    }

    fn durations(&mut self, family: &DurationFamily) {
        self.header(family.def);
        for (values, histogram) in &family.series {
            let labels = pairs(family.def.labels, values.iter().map(AsRef::as_ref));
            let summed = Summed::of(std::iter::once(&**histogram));
            self.histogram(family.def, &labels, &summed, durations::BOUNDS, 1_000_000.0, &[]);
        }
    }

    fn requests(&mut self, families: &Families) {
        let table = &families.requests;
        if table.counts.is_empty() {
            return;
        }
        self.header(&inventory::REQUESTS);
        let counts: BTreeMap<String, u64> =
            table.counts.iter().map(|(key, counted)| (request_labels(key), counted.sum())).collect();
        for (labels, sum) in &counts {
            self.sample(inventory::REQUESTS.name, labels, sum);
        }
        let sets: BTreeMap<String, Vec<&Arc<RequestHistograms>>> = table
            .histograms
            .iter()
            .map(|(key, cells)| (request_labels(key), cells.values().collect()))
            .collect();
        self.header(&inventory::REQUEST_DURATION);
        for (labels, set) in &sets {
            let summed = Summed::of(set.iter().map(|h| &h.duration));
            let exemplars = newest_exemplars(set);
            self.histogram(
                &inventory::REQUEST_DURATION,
                labels,
                &summed,
                DURATION_BOUNDS,
                1000.0,
                &exemplars,
            );
        }
        self.header(&inventory::REQUEST_BYTES);
        for (labels, set) in &sets {
            let summed = Summed::of(set.iter().map(|h| &h.request_bytes));
            self.histogram(&inventory::REQUEST_BYTES, labels, &summed, SIZE_BOUNDS, 1.0, &[]);
        }
        self.header(&inventory::RESPONSE_BYTES);
        for (labels, set) in &sets {
            let summed = Summed::of(set.iter().map(|h| &h.response_bytes));
            self.histogram(&inventory::RESPONSE_BYTES, labels, &summed, SIZE_BOUNDS, 1.0, &[]);
        }
    }

    fn streams(&mut self, families: &Families) {
        type Number = fn(&StreamCells) -> &super::cells::Cell;
        let numbers: [(&MetricDef, Number); 4] = [
            (&inventory::TCP_OPENED, |cells| &cells.opened),
            (&inventory::TCP_CLOSED, |cells| &cells.closed),
            (&inventory::TCP_RECEIVED_BYTES, |cells| &cells.received),
            (&inventory::TCP_SENT_BYTES, |cells| &cells.sent),
        ];
        for (def, number) in numbers {
            let sums: BTreeMap<String, u64> = families
                .streams
                .0
                .iter()
                .map(|(key, counted)| {
                    (stream_labels(key), counted.cells.values().map(|c| number(c).get()).sum())
                })
                // A flag belongs to ends alone.
                .filter(|(_, sum)| *sum > 0)
                .collect();
            if sums.is_empty() {
                continue;
            }
            self.header(def);
            for (labels, sum) in &sums {
                self.sample(def.name, labels, sum);
            }
        }
    }

    /// `scale` turns the sum's unit into the metric's.
    fn histogram(
        &mut self,
        def: &MetricDef,
        labels: &str,
        summed: &Summed,
        bounds: &[f64],
        scale: f64,
        exemplars: &[Option<Exemplar>],
    ) {
        let mut total = 0;
        for (index, count) in summed.buckets.iter().enumerate() {
            total += count;
            let bound = match (bounds.get(index), self.format) {
                (None, _) => "+Inf".to_owned(),
                (Some(bound), Format::Prometheus) => bound.to_string(),
                (Some(bound), Format::OpenMetrics) => format!("{bound:?}"),
            };
            let comma = if labels.is_empty() { "" } else { "," };
            self.start(&format!("{}_bucket", def.name), &format!("{labels}{comma}le=\"{bound}\""), total);
            if let (Format::OpenMetrics, Some(Some(exemplar))) = (self.format, exemplars.get(index)) {
                let Exemplar { trace_id, duration, at } = exemplar;
                let (value, at) = (duration.as_secs_f64() * 1000.0, at.as_secs_f64());
                write!(self.out, " # {{trace_id=\"{trace_id}\"}} {value} {at:.3}")
                    .expect("a String takes everything");
            }
            self.out.push('\n');
        }
        #[expect(clippy::cast_precision_loss, reason = "a metric is a double")]
        let sum = summed.sum as f64 / scale;
        self.sample(&format!("{}_sum", def.name), labels, sum);
        self.sample(&format!("{}_count", def.name), labels, total);
    }
}

struct Summed {
    buckets: Vec<u64>,
    sum: u64,
}

impl Summed {
    fn of<'a, const N: usize>(parts: impl Iterator<Item = &'a Histogram<N>>) -> Self {
        let mut summed = Self { buckets: vec![0; N], sum: 0 };
        for part in parts {
            for (sum, cell) in summed.buckets.iter_mut().zip(&part.buckets) {
                *sum += cell.get();
            }
            summed.sum += part.sum.get();
        }
        summed
    }
}

fn newest_exemplars(set: &[&Arc<RequestHistograms>]) -> Vec<Option<Exemplar>> {
    let mut newest = vec![None::<Exemplar>; DURATION_BOUNDS.len() + 1];
    for part in set {
        for (best, candidate) in newest.iter_mut().zip(*part.exemplars.lock()) {
            if candidate.map(|c| c.at) > best.map(|b| b.at) {
                *best = candidate;
            }
        }
    }
    newest
}

fn request_labels((labels, outcome): &Key) -> String {
    let Outcome { code, flag, grpc } = *outcome;
    let code = if flag == "other" { "other".to_owned() } else { code.to_string() };
    let flag = if flag.is_empty() { "-" } else { flag };
    let grpc = grpc.map(|g| g.to_string()).unwrap_or_default();
    let values = labels.values().into_iter().chain([code.as_str(), flag, grpc.as_str()]);
    pairs(REQUEST_LABELS, values)
}

fn stream_labels((labels, flag): &streams::Key) -> String {
    let flag = if flag.is_empty() { "-" } else { flag };
    pairs(STREAM_LABELS, labels.values().into_iter().chain([flag]))
}

/// `name="value",…` with the three characters escaped that both formats escape in label values.
fn pairs<'a>(names: &[&str], values: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for (name, value) in names.iter().zip(values) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}
