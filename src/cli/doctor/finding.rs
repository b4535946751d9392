//! What a check has found, and what to do about it.

use std::fmt::Write as _;

use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What it belongs to.
    pub(super) group: Group,
    /// What was looked at: a file, a key, an upstream, an address.
    pub(super) about: String,
    /// How it is.
    pub(super) level: Level,
    /// What was found, in one line.
    pub(super) found: String,
    /// What to do, in one line; none: nothing.
    pub(super) advice: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Note,
    /// Something works less well than it could, or will stop to.
    Warning,
    /// Something does not work.
    Error,
}

/// What is looked at, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    /// The configuration and the files that it names.
    Configuration,
    /// The store's directory and the machine below it.
    Root,
    /// The registries.
    Upstreams,
    /// Where clients connect.
    Listeners,
    /// Configurations of clients on this machine.
    Clients,
}

/// All findings.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Findings that are errors.
    pub(super) errors: usize,
    /// Findings that are warnings.
    pub(super) warnings: usize,
    /// In the order of the groups.
    pub(super) findings: Vec<Finding>,
}

// === impl Finding ===

impl Finding {
    pub(super) fn ok(group: Group, about: impl Into<String>, found: impl Into<String>) -> Self {
        Self { group, about: one_line(about), level: Level::Ok, found: one_line(found), advice: None }
    }

    /// Anything that is not ok says what to do.
    pub(super) fn new(
        level: Level,
        group: Group,
        about: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { group, about: one_line(about), level, found: one_line(found), advice: Some(one_line(advice)) }
    }
}

/// What others say may have more lines than fit a report, and characters that turn a terminal.
fn one_line(text: impl Into<String>) -> String {
    let text: String = text.into();
    text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

// === impl Level, Group ===

impl Level {
    /// The word of the report.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Group {
    /// The heading of the report.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Root => "root",
            Self::Upstreams => "upstreams",
            Self::Listeners => "listeners",
            Self::Clients => "clients on this machine",
        }
    }
}

// === impl Report ===

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.group);
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self { errors: count(Level::Error), warnings: count(Level::Warning), findings }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut group = None;
        for finding in &self.findings {
            if group != Some(finding.group) {
                let gap = if group.is_none() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{}", finding.group.as_str());
                group = Some(finding.group);
            }
            let _ = writeln!(text, "  {:<8} {}: {}", finding.level.as_str(), finding.about, finding.found);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "  {:<8} → {advice}", "");
            }
        }
        let s = |number| if number == 1 { "" } else { "s" };
        let (errors, warnings) = (self.errors, self.warnings);
        let _ = writeln!(text, "\n{errors} error{}, {warnings} warning{}", s(errors), s(warnings));
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        // Cannot fail: texts, numbers and enums.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_in_the_order_of_its_groups_with_advice_below() {
        let report = Report::new(vec![
            Finding::new(Level::Error, Group::Upstreams, "up", "dead\r\n\u{1b}[31mred", "wake it"),
            Finding::ok(Group::Configuration, "a.toml", "no mistake"),
            Finding::new(Level::Warning, Group::Upstreams, "other", "slow", "wait"),
        ]);
        assert_eq!(
            report.text(),
            "configuration\n  ok       a.toml: no mistake\n\nupstreams\n  error    up: dead; [31mred\n           → wake it\n  \
             warning  other: slow\n           → wait\n\n1 error, 1 warning\n"
        );
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["errors"], &json["warnings"]), (&1.into(), &1.into()));
        assert_eq!(json["findings"][0]["advice"], serde_json::Value::Null);
        assert_eq!(
            (&json["findings"][1]["group"], &json["findings"][1]["level"]),
            (&"upstreams".into(), &"error".into())
        );
    }
}
