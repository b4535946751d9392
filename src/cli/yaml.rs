//! YAML as a tree to read from, each node with its line; aliases (`*name`) and merges (`<<`) stand for what they name.
//!
//! Texts that would be large or deep when all aliases are written out ("billion laughs") are small here: an alias is the same
//! node again, and who looks at all of them counts them ([`Looks`]).

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// So many lists and mappings may be in each other; what people write has a dozen.
const DEPTH: usize = 100;
/// Most nodes that are looked at in a file. Two MiB of text have fewer, unless aliases multiply them.
const LOOKS: usize = 1 << 20;

/// A value, and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    /// What it is.
    pub(super) value: Value,
    /// From 1.
    pub(super) line: usize,
    /// Levels below it.
    height: usize,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A text, a number or a truth value, as it is written.
    Scalar(String),
    /// A sequence.
    List(Vec<Rc<Node>>),
    /// A mapping, in the order of the text.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
}

/// Why a text is no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct BadYaml {
    /// Where, from 1.
    pub(super) line: usize,
    /// What is wrong there.
    pub(super) why: String,
}

/// How many nodes may still be looked at.
#[derive(Debug)]
pub(super) struct Looks(usize);

/// A text on its way to a tree.
struct Reading<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// What has a name (`&name`) and is whole.
    anchors: HashMap<usize, Rc<Node>>,
}

/// The documents of a text.
///
/// # Errors
/// It is no YAML, or deeper than anything that people write.
pub(super) fn documents(text: &str) -> Result<Vec<Rc<Node>>, BadYaml> {
    let mut reading = Reading { parser: Parser::new_from_str(text), anchors: HashMap::new() };
    let mut documents = Vec::new();
    while let Some((event, line)) = reading.next()? {
        match event {
            // Names hold in their own document.
            Event::DocumentStart(_) => reading.anchors.clear(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            event => documents.push(reading.node(event, line, 0)?),
        }
    }
    Ok(documents)
}

// === impl Reading ===

impl<'a> Reading<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, usize)>, BadYaml> {
        let Some(event) = self.parser.next_event() else { return Ok(None) };
        let (event, span) = event.map_err(|error| BadYaml {
            line: error.marker().line(),
            why: format!("this is no YAML: {}", error.info()),
        })?;
        Ok(Some((event, span.start.line())))
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Rc<Node>, BadYaml> {
        let bad = |why: &str| BadYaml { line, why: why.to_owned() };
        let too_deep = || bad("this is deeper than any such file");
        if depth > DEPTH {
            return Err(too_deep());
        }
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let node =
                    self.anchors.get(&anchor).ok_or_else(|| bad("this alias (*name) stands for what it is in"))?;
                return if depth + node.height > DEPTH { Err(too_deep()) } else { Ok(Rc::clone(node)) };
            }
            Event::Scalar(text, style, anchor, _) => {
                let is_null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                (anchor, if is_null { Value::Null } else { Value::Scalar(text.into_owned()) })
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.inner(line)? {
                        (Event::SequenceEnd, _) => break (anchor, Value::List(items)),
                        (event, line) => items.push(self.node(event, line, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, _) => {
                let mut entries = Vec::new();
                loop {
                    let key = match self.inner(line)? {
                        (Event::MappingEnd, _) => break (anchor, Value::Map(entries)),
                        (event, line) => self.node(event, line, depth + 1)?,
                    };
                    let (event, line) = self.inner(line)?;
                    entries.push((key, self.node(event, line, depth + 1)?));
                }
            }
            _ => return Err(bad("this is no YAML: it ends too early")),
        };
        let below = match &value {
            Value::Null | Value::Scalar(_) => None,
            Value::List(items) => items.iter().map(|item| item.height).max(),
            Value::Map(entries) => entries.iter().map(|(key, value)| key.height.max(value.height)).max(),
        };
        let node = Rc::new(Node { value, line, height: below.map_or(0, |below| below + 1) });
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        Ok(node)
    }

    /// What comes next in something that began in `line`.
    fn inner(&mut self, line: usize) -> Result<(Event<'a>, usize), BadYaml> {
        self.next()?.ok_or_else(|| BadYaml { line, why: "this is no YAML: it ends too early".to_owned() })
    }
}

// === impl Node ===

impl Node {
    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Scalar(text) = &self.value { Some(text) } else { None }
    }

    /// The items of a list; none of anything else.
    pub(super) fn items(&self) -> &[Rc<Self>] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    /// The entries of a mapping that have a text as key, of several with one key the first, those that are merged into it
    /// (`<<`, a mapping or a list of them) last; none of anything else.
    pub(super) fn entries(&self, looks: &mut Looks) -> Result<Vec<(&str, &Self)>, BadYaml> {
        let mut entries: Vec<(&str, &Self)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut mappings = vec![self];
        // Those that are merged are put behind, so what comes first has the say.
        let mut at = 0;
        while let Some(&mapping) = mappings.get(at) {
            at += 1;
            let Value::Map(own) = &mapping.value else { continue };
            for (key, value) in own {
                looks.one(value)?;
                match key.text() {
                    Some("<<") if matches!(value.value, Value::List(_)) => {
                        for item in value.items() {
                            looks.one(item)?;
                            mappings.push(item);
                        }
                    }
                    Some("<<") => mappings.push(value),
                    Some(key) if seen.insert(key) => entries.push((key, value)),
                    _ => {}
                }
            }
        }
        Ok(entries)
    }
}

// === impl Looks ===

impl Looks {
    /// At one more.
    pub(super) fn one(&mut self, node: &Node) -> Result<(), BadYaml> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| BadYaml {
            line: node.line,
            why: format!("more than {LOOKS} values, written out: its aliases (*name) multiply them"),
        })?;
        Ok(())
    }
}

impl Default for Looks {
    fn default() -> Self {
        Self(LOOKS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Rc<Node> {
        documents(text).unwrap().into_iter().next().unwrap()
    }

    fn entries(node: &Node) -> Vec<(String, String)> {
        let entries = node.entries(&mut Looks::default()).unwrap();
        entries.into_iter().map(|(key, value)| (key.to_owned(), value.text().unwrap_or("-").to_owned())).collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn documents_have_their_lines() {
        let found = documents("# none\n---\na: 1\n---\n- x\n-\n- 'null'\n").unwrap();
        assert_eq!(found.iter().map(|node| node.line).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(entries(&found[0]), pairs(&[("a", "1")]));
        let items: Vec<_> = found[1].items().iter().map(|item| (item.text(), item.line)).collect();
        assert_eq!((items[0], items[1].0, items[2]), ((Some("x"), 5), None, (Some("null"), 7)));
        assert!(documents("").unwrap().is_empty());
        assert_eq!(entries(&one("{\"a\": {\"b\": [1]}, \"c\": \"d\"}")), pairs(&[("a", "-"), ("c", "d")]), "JSON");
    }

    #[test]
    fn aliases_and_merges_stand_for_what_they_name() {
        let text = "base: &base {image: a, tag: 1}\nother: &other {tag: 2, more: 3}\nx:\n  <<: [*base, *other]\n  image: b\ny: *base\n";
        let root = one(text);
        let of = |name: &str| {
            let entries = root.entries(&mut Looks::default()).unwrap();
            entries.into_iter().find(|(key, _)| *key == name).unwrap().1
        };
        assert_eq!(entries(of("x")), pairs(&[("image", "b"), ("tag", "1"), ("more", "3")]));
        assert_eq!(entries(of("y")), pairs(&[("image", "a"), ("tag", "1")]));
        assert_eq!(entries(&one("a: 1\na: 2\n")), pairs(&[("a", "1")]));
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        for (text, line, words) in [
            ("a: 1\nb: [1, 2\n", 0, "no YAML"),
            ("a: 1\nb: *none\n", 2, "no YAML"),
            ("x: 1\na: &a\n  b: *a\n", 3, "stands for what it is in"),
        ] {
            let error = documents(text).unwrap_err();
            assert!(error.why.contains(words) && (line == 0 || error.line == line), "{text:?}: {error:?}");
        }
        let deep = format!("{}{}", "[".repeat(DEPTH + 2), "]".repeat(DEPTH + 2));
        assert!(documents(&deep).unwrap_err().why.contains("deeper"));
        // The same depth by aliases.
        let deeper: Vec<String> = (1..DEPTH + 5).map(|level| format!("- &a{level} [*a{}]", level - 1)).collect();
        let deeper = deeper.join("\n");
        assert!(documents(&format!("- &a0 [x]\n{deeper}")).unwrap_err().why.contains("deeper"));
    }

    fn look(node: &Node, looks: &mut Looks) -> Result<(), BadYaml> {
        node.entries(looks)?.into_iter().try_for_each(|(_, value)| look(value, looks))
    }

    #[test]
    fn a_billion_laughs_are_small_and_not_counted_to_the_end() {
        let laugh = |level: usize| {
            let ten: Vec<_> = (0..10).map(|k| format!("k{k}: *a{}", level - 1)).collect();
            format!("- &a{level} {{{}}}", ten.join(", "))
        };
        let laughs: Vec<String> = (1..40).map(laugh).collect();
        let found = documents(&format!("- &a0 {{x: y}}\n{}", laughs.join("\n"))).unwrap();
        let last = found[0].items().last().unwrap();
        assert!(look(last, &mut Looks::default()).unwrap_err().why.contains("multiply"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z&*<:{}\\[\\]\\- \n'\"|>#!?,]{0,60}") {
            for node in documents(&text).into_iter().flatten() {
                let _ = node.entries(&mut Looks::default());
            }
        }
    }
}
