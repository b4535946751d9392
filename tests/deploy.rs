//! What `deploy/` and `docs/metrics.md` say of metrics, compared with what the program really exposes: names, labels, and
//! those values of labels that are fixed. An alert on a metric that does not exist never fires, and nobody notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod common;
#[path = "deploy/promql.rs"]
mod promql;

use std::collections::{BTreeMap, BTreeSet};

use common::content::image;
use common::upstream::Cut;
use common::{Daemon, Upstream, acts, eventually};
use ocistern::metrics::{Cause, Kind, Outcome, Source};
use promql::Uses;
use serde_json::Value;

const DASHBOARD: &str = include_str!("../deploy/grafana/ocistern.json");
const RULES: &str = include_str!("../deploy/prometheus/ocistern.rules.yml");
const RULE_TESTS: &str = include_str!("../deploy/prometheus/ocistern_test.yml");
const DOCS: &str = include_str!("../docs/metrics.md");
/// What Prometheus itself adds.
const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];

/// What is exposed: each name of a series, with the labels it was seen with.
struct Exposed {
    families: BTreeSet<String>,
    series: BTreeMap<String, BTreeSet<String>>,
}

/// A rule of the file.
#[derive(Debug, Default)]
struct Rule {
    /// `alert` or `record`.
    sort: String,
    name: String,
    expr: String,
    text: String,
}

// === impl Exposed ===

impl Exposed {
    fn parse(text: &str) -> Self {
        let (mut families, mut series) = (BTreeSet::new(), BTreeMap::<_, BTreeSet<_>>::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                families.insert(rest.split(' ').next().unwrap().to_owned());
            } else if !line.starts_with('#') {
                let uses = Uses::of(line.rsplit_once(' ').unwrap().0);
                let selector = uses.selectors.first().unwrap_or_else(|| panic!("{line}"));
                let labels = selector.matchers.iter().map(|matcher| matcher.label.clone());
                series.entry(selector.metric.clone()).or_default().extend(labels);
            }
        }
        Self { families, series }
    }

    /// What is wrong with an expression.
    fn faults(&self, expr: &str, recorded: &BTreeSet<&str>) -> Vec<String> {
        let uses = Uses::of(expr);
        let mut faults = Vec::new();
        let mut known: BTreeSet<&str> = OF_PROMETHEUS.into();
        if uses.selectors.is_empty() {
            faults.push("it looks at no metric".to_owned());
        }
        for selector in &uses.selectors {
            let name = selector.metric.as_str();
            if name == "up" || recorded.contains(name) {
                // Of Prometheus, or of a rule whose own expression is looked at.
                continue;
            }
            let Some(labels) = self.series.get(name) else {
                faults.push(format!("there is no metric {name}"));
                continue;
            };
            known.extend(labels.iter().map(String::as_str));
            for matcher in &selector.matchers {
                let label = matcher.label.as_str();
                if !labels.contains(label) && !OF_PROMETHEUS.contains(&label) {
                    faults.push(format!("{name} has no label {label}"));
                }
                if let Some(values) = values_of(label) {
                    let unknown = matcher.value.split('|').filter(|value| !values.contains(value));
                    faults.extend(unknown.map(|value| format!("{label} is never {value}")));
                }
            }
        }
        let grouping = uses.grouping.iter().filter(|label| !known.contains(label.as_str()));
        faults.extend(grouping.map(|label| format!("nothing in it has the label {label}")));
        faults
    }
}

/// The values of labels that are enums.
fn values_of(label: &str) -> Option<Vec<&'static str>> {
    match label {
        "kind" => Some(Kind::ALL.map(Kind::as_str).into()),
        "result" => Some(Outcome::ALL.map(Outcome::as_str).into()),
        "source" => Some(Source::ALL.map(Source::as_str).into()),
        "cause" => Some(Cause::ALL.map(Cause::as_str).into()),
        _ => None,
    }
}

/// A repository of which upstream is not asked.
const CLOSED: &str = "[[upstream.up.rule]]\nrepository = \"closed\"\ntags = \"sealed\"";

/// The metrics of a daemon that has seen a little of everything.
async fn exposition() -> String {
    let (upstream, image) = (Upstream::start().await, image(1));
    upstream.image("app", "1", &image);
    let layer = common::content::sha256(&image.layers[0]);
    // The first rule that acts wins.
    upstream.script("GET", &format!("*/blobs/{layer}"), 0..1, acts::cut_at(10, Cut::Fin));
    upstream.script("*", "*", .., acts::header("ratelimit-remaining", "76;w=21600"));
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&Daemon::configure(directory.path(), &upstream, CLOSED)).await;
    daemon.client.get("/v2/closed/manifests/1").await.assert_fails(404);
    for _ in 0..2 {
        daemon.client.get("/v2/app/manifests/1").await.assert_is(&image.manifest);
        daemon.client.get(format!("/v2/app/blobs/{layer}")).await.assert_is(&image.layers[0]);
    }
    daemon.client.get("/v2/app/tags/list").await;
    daemon.client.get("/v2/app/manifests/none").await.assert_fails(404);
    daemon.client.get("/v2/").await.assert_fails(401);
    eventually("the fills have ended", || async { daemon.metric("ocistern_fills_in_progress", &[]).await == 0 }).await;
    daemon.metrics().await
}

/// The rules, read by how the file is laid out; `promtool check rules` says whether it is YAML (tests/e2e/checks/prometheus.sh).
fn rules() -> Vec<Rule> {
    let mut rules = Vec::<Rule>::new();
    let mut lines = RULES.lines().peekable();
    while let Some(line) = lines.next() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some((sort, name)) = content.strip_prefix("- ").and_then(|rest| rest.split_once(": "))
            && matches!(sort, "alert" | "record")
        {
            rules.push(Rule { sort: sort.to_owned(), name: name.to_owned(), ..Rule::default() });
        }
        let Some(rule) = rules.last_mut() else { continue };
        if let Some(expr) = content.strip_prefix("expr: ") {
            expr.clone_into(&mut rule.expr);
            while expr == "|"
                && let Some(more) = lines.next_if(|line| line.len() - line.trim_start().len() > indent)
            {
                rule.expr = format!("{} {}", rule.expr.trim_start_matches('|'), more.trim());
            }
        }
        rule.text.extend([content, "\n"]);
    }
    rules
}

/// Every panel, those in rows too.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap().iter();
    all.flat_map(|panel| std::iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten())).collect()
}

/// All expressions of the dashboard, with where they stand.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let of_panels = panels(dashboard).into_iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    });
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let annotations = annotations.filter_map(|one| Some((one["name"].to_string(), one["expr"].as_str()?.to_owned())));
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter_map(|one| Some((one["name"].to_string(), one["definition"].as_str()?.to_owned())));
    of_panels.chain(annotations).chain(variables).collect()
}

#[tokio::test]
async fn dashboard_rules_and_reference_speak_of_metrics_that_there_are() {
    let exposed = Exposed::parse(&exposition().await);
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let rules = rules();
    let recorded: BTreeSet<&str> = rules.iter().filter(|rule| rule.sort == "record").map(|rule| &*rule.name).collect();
    assert!(rules.len() >= 18 && recorded.len() >= 5, "they were found: {rules:?}");

    let mut expressions = expressions(&dashboard);
    assert!(expressions.len() > 40, "they were found");
    expressions.extend(rules.iter().map(|rule| (rule.name.clone(), rule.expr.clone())));
    let mut faults = Vec::new();
    for (place, expr) in &expressions {
        faults.extend(exposed.faults(expr, &recorded).into_iter().map(|fault| format!("{place}: {fault}: {expr}")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let all = expressions.iter().map(|(_, expr)| expr.as_str()).collect::<String>();
    let ours: Vec<&String> = exposed.families.iter().filter(|family| family.starts_with("ocistern_")).collect();
    assert!(ours.len() > 25, "{ours:?}");
    for family in &ours {
        assert!(all.contains(family.as_str()), "{family} is on no panel and in no rule");
        assert!(DOCS.contains(&format!("| `{family}` |")), "docs/metrics.md has no row for {family}");
    }
    for word in DOCS.split('`').filter(|word| word.starts_with("ocistern_") && !word.contains([' ', '{', '*', '['])) {
        assert!(exposed.families.contains(word), "docs/metrics.md names {word}, which does not exist");
    }
    for label in ["kind", "result", "source", "cause"] {
        for value in values_of(label).unwrap() {
            assert!(
                DOCS.contains(&format!("| `{label}` | `{value}` |")),
                "docs/metrics.md does not explain {label} {value}"
            );
        }
    }
}

#[test]
fn every_example_of_the_reference_is_of_known_labels() {
    // Names are looked at above; here that examples were found at all and that each can be read.
    let blocks: Vec<&str> = DOCS.split("```promql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let examples: Vec<&str> = blocks.iter().flat_map(|block| block.split("\n\n")).collect();
    assert!(examples.len() >= 6, "{examples:?}");
    for example in examples {
        let code: String = example.lines().filter(|line| !line.starts_with('#')).collect();
        let uses = Uses::of(&code);
        assert!(!uses.selectors.is_empty(), "{example}");
        for matcher in uses.selectors.iter().flat_map(|selector| &selector.matchers) {
            if let Some(values) = values_of(&matcher.label) {
                assert!(matcher.value.split('|').all(|value| values.contains(&value)), "{example}");
            }
        }
    }
}

#[test]
fn every_alert_says_what_to_do_and_is_tested() {
    for rule in rules().iter().filter(|rule| rule.sort == "alert") {
        let name = &rule.name;
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.text.contains(part), "{name} has no {part}");
        }
        assert!(DOCS.contains(&format!("| `{name}` |")), "docs/metrics.md does not have the alert {name}");
        let tests = RULE_TESTS.split("alertname: ").skip(1).filter(|test| test.starts_with(&format!("{name}\n")));
        let (quiet, fires): (Vec<&str>, Vec<&str>) = tests.partition(|test| test.contains("exp_alerts: []"));
        assert!(!fires.is_empty(), "no test sees {name} fire");
        assert!(!quiet.is_empty(), "no test sees {name} keep quiet");
    }
    let fields: Vec<&str> = RULES.lines().filter(|line| line.contains("$labels.")).collect();
    assert!(fields.len() > 10);
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance", "upstream"]);
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is another's, too");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && places.insert((x, y)), "{title} lies over another panel at {x}, {y}");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 4), "{title} is not explained");
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string() || panel["type"] != "timeseries",
            "{title} has no unit"
        );
        let targets = panel["targets"].as_array().unwrap();
        let mut refs: Vec<&str> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        refs.dedup();
        assert_eq!(refs.len(), targets.len(), "{title}: two queries have one name");
        for source in targets.iter().chain([panel]) {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{title} is bound to one Grafana");
        }
        for target in targets {
            let expr = target["expr"].as_str().unwrap();
            assert!(
                expr.contains("job=\"$job\", instance=~\"$instance\""),
                "{title} does not follow the variables: {expr}"
            );
        }
    }
}
