//! Metrics in Prometheus's text form (version 0.0.4): a writer that cannot write what is not valid, and a reader that refuses
//! what is not.
//!
//! Invariants: each family comes once, its samples together, under its `HELP` and `TYPE`; names and labels keep to the
//! grammar; a histogram's buckets grow and end with `+Inf`, which equals its count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What an answer with metrics says that it is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Labels of a sample, in the order in which they are written.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text of metrics as it is written.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// One family under way: its samples follow.
#[derive(Debug)]
pub struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// Something that only grows. Its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// Something that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    /// How values are spread.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "histogram", help)
    }

    /// A sum and a count.
    pub fn summary(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "summary", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out: &mut self.0, name }
    }

    /// What was written.
    pub fn into_text(self) -> String {
        self.0
    }

    /// Adds a text that another writer made. No family may be in both.
    pub fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }
}

impl Family<'_> {
    /// One sample.
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        self.line("", labels, None, value);
        self
    }

    /// A histogram's sample: how many values were at most each bound (not those of the smaller bounds again), those beyond
    /// the last bound, and the sum of all.
    pub fn buckets(&mut self, labels: Labels<'_>, bounds: &[f64], counts: &[u64], sum: f64) -> &mut Self {
        let mut all = 0;
        for (at, count) in counts.iter().enumerate() {
            all += count;
            let bound = bounds.get(at).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            self.line("_bucket", labels, Some(("le", &bound)), all as f64);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, all as f64);
        self
    }

    /// A summary's sample.
    pub fn total(&mut self, labels: Labels<'_>, sum: f64, count: u64) -> &mut Self {
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count as f64);
        self
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, more: Option<(&str, &str)>, value: f64) {
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        let mut open = false;
        for (name, value) in labels.iter().copied().chain(more).filter(|(_, v)| !v.is_empty()) {
            self.out.push(if open { ',' } else { '{' });
            open = true;
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{name}=\"{value}\"");
        }
        if open {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// Samples as they were read: by name and labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(BTreeMap<(String, BTreeMap<String, String>), f64>);

impl Samples {
    /// The sample with exactly these labels.
    pub fn get(&self, name: &str, labels: Labels<'_>) -> Option<f64> {
        let labels = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        self.0.get(&(name.to_owned(), labels)).copied()
    }

    /// The sum of all samples of a name that have these labels, whatever others they have.
    pub fn sum(&self, name: &str, labels: Labels<'_>) -> f64 {
        let fits = |have: &BTreeMap<String, String>| labels.iter().all(|(n, v)| have.get(*n).is_some_and(|h| h == v));
        self.0.iter().filter(|((n, have), _)| n == name && fits(have)).map(|(_, v)| v).sum()
    }

    /// The names of all samples.
    pub fn names(&self) -> BTreeSet<&str> {
        self.0.keys().map(|(name, _)| name.as_str()).collect()
    }
}

/// Reads a text of metrics, strictly.
///
/// # Errors
/// The first line that is not as it has to be, and why.
pub fn parse(text: &str) -> Result<Samples, String> {
    let mut reader = Reader::default();
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for (n, line) in text.lines().enumerate() {
        reader.line(line).map_err(|why| format!("line {}: {why}: {line}", n + 1))?;
    }
    reader.end_family()?;
    Ok(reader.samples)
}

#[derive(Default)]
struct Reader {
    samples: Samples,
    seen: BTreeSet<String>,
    /// Name and kind of the family under way.
    family: Option<(String, String)>,
    helped: Option<String>,
    /// Of the histogram under way, by its labels without `le`.
    buckets: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>>,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            self.end_family()?;
            let name = rest.split(' ').next().unwrap_or_default();
            if !is_name(name) || !self.seen.insert(name.to_owned()) {
                return Err(format!("{name} is no name, or comes a second time"));
            }
            self.helped = Some(name.to_owned());
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("a type without a name")?;
            if self.helped.take().as_deref() != Some(name) {
                return Err("a type without its help".into());
            }
            if !["counter", "gauge", "histogram", "summary"].contains(&kind) {
                return Err("an unknown type".into());
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err("counters end in _total, and nothing else does".into());
            }
            self.family = Some((name.to_owned(), kind.to_owned()));
            return Ok(());
        }
        self.sample(line)
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (family, kind) = self.family.clone().ok_or("a sample outside of a family")?;
        let end = line.find(['{', ' ']).ok_or("a sample without a value")?;
        let (name, rest) = line.split_at(end);
        let (mut labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest)?,
            None => (BTreeMap::new(), rest),
        };
        let value: f64 = rest.strip_prefix(' ').and_then(|v| v.parse().ok()).ok_or("a value that is no number")?;
        let suffix = name.strip_prefix(&*family).ok_or("a sample of another family")?;
        let fits = match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            "summary" => ["_sum", "_count"].contains(&suffix),
            _ => suffix.is_empty(),
        };
        if !fits {
            return Err(format!("no sample of a {kind}"));
        }
        if kind == "counter" && (value.is_nan() || value < 0.0) {
            return Err("a counter below nothing".into());
        }
        if self.samples.0.insert((name.to_owned(), labels.clone()), value).is_some() {
            return Err("a sample that was there already".into());
        }
        if suffix == "_bucket" {
            let le = labels.remove("le").ok_or("a bucket without a bound")?;
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().map_err(|_| "a bound that is no number")? };
            self.buckets.entry(labels).or_default().push((bound, value));
        } else if labels.contains_key("le") {
            return Err("a bound outside of a bucket".into());
        }
        Ok(())
    }

    fn end_family(&mut self) -> Result<(), String> {
        let Some((name, _)) = self.family.take() else { return Ok(()) };
        for (labels, buckets) in std::mem::take(&mut self.buckets) {
            if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
                return Err(format!("{name}: buckets that do not grow: {buckets:?}"));
            }
            let count = self.samples.0.get(&(format!("{name}_count"), labels.clone()));
            let last = buckets.last().filter(|(bound, _)| bound.is_infinite()).map(|(_, n)| n);
            if last.is_none() || last != count || !self.samples.0.contains_key(&(format!("{name}_sum"), labels)) {
                return Err(format!("{name}: no sum, or a count that is not the last bucket's"));
            }
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Reads what follows `{` up to `}`.
fn read_labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str), String> {
    let mut labels = BTreeMap::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name) {
            return Err(format!("{name} is no label's name"));
        }
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().ok_or("a label without an end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().map(|(_, c)| c) {
                    Some('n') => '\n',
                    Some(c @ ('"' | '\\')) => c,
                    _ => return Err("a label with an unknown escape".into()),
                }),
                (_, c) => value.push(c),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("the label {name} twice"));
        }
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.strip_prefix('}').map(|r| (labels, r)).ok_or_else(|| "labels without an end".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut out = Exposition::default();
        out.counter("a_total", "All.\nOf \\ it.").sample(&[("app", "x\"y\\z\nw"), ("none", "")], 3.0).sample(&[], 4.0);
        out.gauge("b", "Some.").sample(&[], 0.25);
        out.histogram("c_seconds", "How long.").buckets(&[("app", "x")], &[0.1, 1.0], &[2, 0, 1], 7.5);
        out.summary("d_seconds", "In all.").total(&[], 1.5, 2);
        let text = out.into_text();
        let read = parse(&text).unwrap();
        assert_eq!(read.get("a_total", &[("app", "x\"y\\z\nw")]), Some(3.0));
        assert_eq!((read.sum("a_total", &[]), read.get("b", &[])), (7.0, Some(0.25)));
        assert_eq!(read.get("c_seconds_bucket", &[("app", "x"), ("le", "1")]), Some(2.0));
        assert_eq!(read.get("c_seconds_bucket", &[("app", "x"), ("le", "+Inf")]), Some(3.0));
        assert_eq!((read.get("c_seconds_count", &[("app", "x")]), read.get("d_seconds_count", &[])), (Some(3.0), Some(2.0)));
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        let family = |kind: &str, rest: &str| format!("# HELP a_total x\n# TYPE a_total {kind}\n{rest}");
        assert!(parse(&family("counter", "a_total 1\n")).is_ok());
        for bad in [
            "a 1\n".to_owned(),
            "# TYPE a gauge\na 1\n".to_owned(),
            family("counter", "a_total 1"),
            family("counter", "a_total x\n"),
            family("counter", "a_total -1\n"),
            family("counter", "b_total 1\n"),
            family("counter", "a_total 1\na_total 2\n"),
            family("counter", "a_total{x=\"1\",x=\"2\"} 1\n"),
            family("counter", "a_total{x=\"1} 1\n"),
            family("counter", "a_total{1x=\"1\"} 1\n"),
            family("gauge", "a_total 1\n"),
            family("counter", "a_total 1\n") + "# HELP a_total x\n",
            "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_sum 1\nh_count 2\n".to_owned(),
            "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n".to_owned(),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
