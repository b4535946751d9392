//! What a run prints: its seed, a line for each violated invariant with how to repeat it, and its figures as JSON.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// The report of one run. It fails if anything was violated.
pub struct Report {
    subject: &'static str,
    seed: u64,
    began: Instant,
    figures: BTreeMap<&'static str, u64>,
    violations: u64,
    /// How many tenths were said.
    tenths: u64,
    /// The arguments that repeat the run.
    again: String,
}

impl Report {
    pub fn new(subject: &'static str, seed: u64, again: &str) -> Self {
        println!("torture {subject}: seed {seed}");
        let again = format!("cargo test --test torture -- {again} --seed {seed}");
        Self { subject, seed, began: Instant::now(), figures: BTreeMap::new(), violations: 0, tenths: 0, again }
    }

    /// An invariant was violated in that case.
    pub fn violation(&mut self, case: &str, what: &str) {
        self.violations += 1;
        println!("VIOLATED {case}: {what} (again: {})", self.again);
    }

    /// The same for each of them.
    pub fn violations(&mut self, case: &str, what: impl IntoIterator<Item = String>) {
        for what in what {
            self.violation(case, &what);
        }
    }

    /// Adds to a figure.
    pub fn count(&mut self, figure: &'static str, more: u64) {
        *self.figures.entry(figure).or_default() += more;
    }

    /// What a figure is by now.
    pub fn figure(&self, figure: &str) -> u64 {
        self.figures.get(figure).copied().unwrap_or_default()
    }

    /// Raises a figure to this.
    pub fn most(&mut self, figure: &'static str, value: u64) {
        let known = self.figures.entry(figure).or_default();
        *known = value.max(*known);
    }

    /// What was to be shown was not there to show it: a figure that must not be 0, if there was enough of the run.
    pub fn must_have(&mut self, figure: &'static str, enough: bool) {
        if enough && self.figures.get(figure).is_none_or(|value| *value == 0) {
            self.violation("all of it", &format!("{figure} is 0: the load shows nothing of it"));
        }
    }

    /// Says where the run is, at each tenth.
    pub fn progress(&mut self, done: u64, of: u64) {
        let tenths = done * 10 / of.max(1);
        if tenths > self.tenths {
            self.tenths = tenths;
            println!("  {done} of {of}, {} s, {} violations", self.began.elapsed().as_secs(), self.violations);
        }
    }

    /// Prints the figures; whether nothing was violated.
    pub fn end(mut self) -> bool {
        self.count("violations", 0);
        self.figures.insert("violations", self.violations);
        self.figures.insert("seconds", self.began.elapsed().as_secs());
        let mut figures = serde_json::json!({"subject": self.subject, "seed": self.seed});
        for (name, value) in self.figures {
            figures[name] = value.into();
        }
        println!("{figures}");
        self.violations == 0
    }
}
