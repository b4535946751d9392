//! What an expression of `PromQL` looks at: selectors with their matchers, and the labels by which it groups.
//!
//! No parser: whether an expression is one, Prometheus says (tests/e2e/checks/prometheus.sh).

/// A metric, and what its labels have to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) metric: String,
    pub(super) matchers: Vec<Matcher>,
}

/// What one label has to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matcher {
    pub(super) label: String,
    pub(super) value: String,
}

/// What an expression looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uses {
    pub(super) selectors: Vec<Selector>,
    /// In `by`, `without`, `on`, `ignoring`, `group_left`, `group_right`, and as what `label_values` is asked for.
    pub(super) grouping: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

// === impl Uses ===

impl Uses {
    pub(super) fn of(expr: &str) -> Self {
        let mut uses = Self::default();
        let mut tokens = tokens(expr);
        if tokens.first() == Some(&Token::Word("label_values".to_owned())) {
            // Of Grafana: its last word is a label, and no metric.
            let label = tokens.iter().rposition(|token| matches!(token, Token::Word(_))).unwrap();
            uses.grouping.extend(words(&tokens[label..]));
            tokens.truncate(label);
        }
        let mut rest = tokens.as_slice();
        while let Some((token, behind)) = rest.split_first() {
            rest = behind;
            let Token::Word(word) = token else { continue };
            let opens = |sign| behind.first() == Some(&Token::Sign(sign));
            // What stands between the signs, and what follows them.
            let list = |end| behind.split_at(behind.iter().position(|token| *token == Token::Sign(end)).unwrap());
            match word.as_str() {
                "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" if opens('(') => {
                    let (labels, behind) = list(')');
                    uses.grouping.extend(words(labels));
                    rest = behind;
                }
                "and" | "or" | "unless" | "bool" | "offset" => {}
                // A function, or an aggregation that says by what before it says of what.
                _ if opens('(') => {}
                _ if matches!(behind.first(), Some(Token::Word(next)) if next == "by" || next == "without") => {}
                _ if opens('{') => {
                    let (inside, behind) = list('}');
                    uses.selectors.push(Selector { metric: word.clone(), matchers: matchers(inside) });
                    rest = behind;
                }
                _ => uses.selectors.push(Selector { metric: word.clone(), matchers: Vec::new() }),
            }
        }
        uses
    }
}

fn words(tokens: &[Token]) -> impl Iterator<Item = String> {
    tokens.iter().filter_map(|token| if let Token::Word(word) = token { Some(word.clone()) } else { None })
}

/// Each is a word, a sign or two, and a text.
fn matchers(tokens: &[Token]) -> Vec<Matcher> {
    let texts = tokens.iter().filter_map(|token| if let Token::Text(text) = token { Some(text.clone()) } else { None });
    let matchers: Vec<_> = words(tokens).zip(texts).map(|(label, value)| Matcher { label, value }).collect();
    assert_eq!(matchers.len(), words(tokens).count(), "each label has a value: {tokens:?}");
    matchers
}

/// Without ranges, numbers and spaces.
fn tokens(expr: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expr;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let (token, length) = match first {
            '[' => (None, rest.find(']').expect("a range ends") + 1),
            '"' => {
                let text: String = rest[1..].chars().take_while(|c| *c != '"').collect();
                let length = text.len() + 2;
                (Some(Token::Text(text)), length)
            }
            '0'..='9' => (None, rest.find(|c: char| !is_word(c) && c != '.').unwrap_or(rest.len())),
            first if is_word(first) => {
                let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                (Some(Token::Word(rest[..length].to_owned())), length)
            }
            first if first.is_whitespace() => (None, first.len_utf8()),
            sign => (Some(Token::Sign(sign)), sign.len_utf8()),
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    tokens
}

#[test]
fn what_expressions_look_at() {
    let uses = |metrics: &[(&str, &[(&str, &str)])], grouping: &[&str]| Uses {
        selectors: metrics
            .iter()
            .map(|(metric, matchers)| Selector {
                metric: (*metric).to_owned(),
                matchers: matchers
                    .iter()
                    .map(|(label, value)| Matcher { label: (*label).to_owned(), value: (*value).to_owned() })
                    .collect(),
            })
            .collect(),
        grouping: grouping.iter().map(|label| (*label).to_owned()).collect(),
    };
    for (expr, expected) in [
        ("up", uses(&[("up", &[])], &[])),
        (
            r#"sum by (a, b) (rate(x_total{a=~"c|d", e!="}f("}[5m])) / 1.5e3 > 0"#,
            uses(&[("x_total", &[("a", "c|d"), ("e", "}f(")])], &["a", "b"]),
        ),
        (
            "time() - i:x:rate5m * on (job) group_right () y{} and z offset 5m",
            uses(&[("i:x:rate5m", &[]), ("y", &[]), ("z", &[])], &["job"]),
        ),
        (r#"label_values(x{job="$job"}, instance)"#, uses(&[("x", &[("job", "$job")])], &["instance"])),
    ] {
        assert_eq!(Uses::of(expr), expected, "{expr}");
    }
}
