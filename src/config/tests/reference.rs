//! The reference of the configuration, `docs/configuration.md`: made of the structs that a file is read into, of what the
//! documented example says of each key, of the defaults, and of what a reload takes over. A test compares it with the file,
//! and writes the file anew where `UPDATE_DOCS` is set.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use toml::{Table, Value};

use super::super::reload::AT_THE_START;
use super::super::{Config, keys};

/// Read, not compiled in: the image is built without it.
static EXAMPLE: LazyLock<String> = LazyLock::new(|| std::fs::read_to_string(file("config/ocistern.toml")).unwrap());
const PATH: &str = "docs/configuration.md";
const HEAD: &str = "\
# Configuration

Every key, by table. This page is made from the program and from [config/ocistern.toml](../config/ocistern.toml), which is a whole file
to begin with. Without any file ocistern runs with the defaults.

*Live*: taken over by a running daemon on SIGHUP (`systemctl reload ocistern`). *Restart*: for the next start.
";

/// What the example says of some keys, and how it writes them.
#[derive(Debug, Default)]
struct Block {
    table: &'static str,
    prose: Vec<&'static str>,
    written: Vec<&'static str>,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

// === impl Block ===

impl Block {
    fn tells_of(&self, key: &str) -> bool {
        self.written.iter().any(|line| line.split([' ', '=']).next() == Some(key))
    }

    /// The prose as Markdown: what is indented stays as it is.
    fn text(&self) -> String {
        let (mut text, mut is_list) = (Vec::new(), false);
        for line in self.prose.iter().copied() {
            if line.starts_with("  ") != is_list {
                is_list = !is_list;
                text.extend(if is_list { ["", "```text"] } else { ["```", ""] });
            }
            text.push(line);
        }
        text.extend(is_list.then_some("```"));
        let plain = |line: &&str| !line.starts_with("  ");
        text.iter()
            .map(|line| if plain(line) { line.replace('*', "\\*") } else { (*line).to_owned() })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The table that a header of the example begins.
fn table_of(header: &str) -> Option<&'static str> {
    Some(match header {
        "[admin]" => "admin",
        "[store]" => "store",
        "[limits]" => "limits",
        "[log]" => "log",
        "[[listener]]" => "listener",
        "[[pin]]" => "pin",
        _ if header.starts_with("[[upstream.") => "upstream.\"NAME\".rule",
        _ if header.starts_with("[upstream.") => "upstream.\"NAME\"",
        _ => return None,
    })
}

fn blocks() -> Vec<Block> {
    let (mut all, mut block, mut table) = (Vec::new(), Block::default(), "");
    for line in EXAMPLE.lines().chain([""]) {
        let bare = line.trim_start_matches('#').trim_start();
        if line.starts_with("# ===") {
            // What stands there is about the example as a file.
            table = "the file";
        }
        if let Some(begun) = table_of(bare) {
            // What stands above a header is about the whole table.
            table = begun;
            let prose = std::mem::take(&mut block.prose);
            all.push(std::mem::replace(&mut block, Block { table, prose, written: Vec::new() }));
            all.push(std::mem::replace(&mut block, Block { table, ..Block::default() }));
            continue;
        }
        let is_key = bare.split_once(" = ").is_some_and(|(key, _)| is_name(key)) && !line.starts_with("#   ");
        let is_over = line.is_empty() || line.starts_with("# ---") || line.starts_with("# ===");
        if is_over || (!is_key && !block.written.is_empty()) {
            all.push(std::mem::replace(&mut block, Block { table, ..Block::default() }));
        }
        if is_key {
            block.written.push(bare);
        } else if !is_over {
            block.prose.push(line.strip_prefix("# ").unwrap_or(bare));
        }
    }
    // Of the paragraphs at the very top the first is about the example as a file.
    let first = &mut all[0].prose;
    first.drain(..=first.iter().position(|line| line.is_empty()).expect("a paragraph"));
    all.retain(|block| !block.prose.is_empty() || !block.written.is_empty());
    all
}

fn is_name(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// The value of a key where nobody has set it.
fn default_of(table: &str, key: &str) -> Option<String> {
    let config = Config::from_toml("[upstream.\"r.example\"]").expect("a configuration");
    let shown: Table = config.show().parse().expect("TOML");
    let of = |name: &str| shown.get(name).and_then(Value::as_table).cloned();
    let upstream = || of("upstream").and_then(|all| all.get("r.example").and_then(Value::as_table).cloned());
    let table = match table {
        "" => Some(shown.clone()),
        "listener" => shown.get("listener").and_then(Value::as_array)?.first().and_then(Value::as_table).cloned(),
        "upstream.\"NAME\"" => upstream(),
        "store.scrub" => of("store").and_then(|store| store.get("scrub").and_then(Value::as_table).cloned()),
        "upstream.\"NAME\".credentials" => {
            upstream().and_then(|upstream| upstream.get("credentials").and_then(Value::as_table).cloned())
        }
        name => of(name),
    };
    let value = table?.get(key)?.clone();
    // What is shown there is what was asked about.
    let about_itself =
        matches!(key, "root" | "builtin_upstreams" | "url" | "library") || value.is_table() || value.is_array();
    (!about_itself).then(|| value.to_string())
}

fn page() -> String {
    let (blocks, mut page) = (blocks(), HEAD.to_owned());
    for (table, keys) in keys::all() {
        let title = match table {
            "" => "At the top".to_owned(),
            "listener" | "pin" | "upstream.\"NAME\".rule" => format!("`[[{table}]]`"),
            table if told_of_at(table).is_some() => format!("`{table} = {{ … }}`"),
            table => format!("`[{table}]`"),
        };
        let _ = write!(page, "\n## {title}\n");
        if let Some(whole) = told_of_at(table) {
            let _ = write!(page, "\nTold of at {}. Its keys:\n\n", link(whole, whole));
            for key in keys {
                let _ = write!(page, "- `{key}` · {}", liveness(&path_of(table, key)));
                if let Some(default) = default_of(table, key) {
                    let _ = write!(page, " · default `{default}`");
                }
                page.push('\n');
            }
            continue;
        }
        for block in blocks.iter().filter(|block| block.table == table && block.written.is_empty()) {
            let _ = write!(page, "\n{}\n", block.text());
        }
        for key in keys {
            let path = path_of(table, key);
            if is_a_table(&path) {
                continue;
            }
            let _ = write!(page, "\n### `{path}`\n\n{}", liveness(&path));
            if let Some(default) = default_of(table, key) {
                let _ = write!(page, " · default `{default}`");
            }
            if matches!(table, "" | "admin" | "store" | "limits" | "log") {
                let name = if table.is_empty() { key.to_uppercase() } else { format!("{table}__{key}").to_uppercase() };
                let _ = write!(page, " · `OCISTERN_{name}`");
            }
            page.push('\n');
            let telling: Vec<&Block> =
                blocks.iter().filter(|block| block.table == table && block.tells_of(key)).collect();
            for block in &telling {
                // Of keys that are told of together, the first has the text.
                match keys.iter().find(|first| block.tells_of(first)) {
                    Some(first) if first != key => {
                        let _ = write!(page, "\nTold of at {}.\n", link(first, &path_of(table, first)));
                    }
                    _ => {
                        let prose = block.text();
                        let gap = if prose.is_empty() { "" } else { "\n" };
                        let _ = write!(page, "{gap}{prose}{gap}\n```toml\n{}\n```\n", block.written.join("\n"));
                    }
                }
            }
            assert!(!telling.is_empty(), "config/ocistern.toml does not tell of {path}");
        }
    }
    page
}

/// The key that a table in one line is written at, where all of it is told of.
fn told_of_at(table: &str) -> Option<&str> {
    matches!(table, "store.scrub" | "listener.tls" | "listener.tls.certificates" | "upstream.\"NAME\".credentials")
        .then(|| table.trim_end_matches(".certificates"))
}

fn path_of(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

fn liveness(path: &str) -> &'static str {
    if AT_THE_START.contains(&path) { "Restart" } else { "Live" }
}

/// A link to the chapter of a key, by the anchor that forges make of its heading.
fn link(text: &str, path: &str) -> String {
    let anchor: String = path.chars().filter(|c| c.is_alphanumeric() || matches!(c, '_' | '-')).collect();
    format!("[`{text}`](#{})", anchor.to_lowercase())
}

/// Whether the key stands for a table that has a chapter of its own, in several lines.
fn is_a_table(path: &str) -> bool {
    matches!(path, "listener" | "admin" | "store" | "pin" | "limits" | "log" | "upstream" | "upstream.\"NAME\".rule")
}

#[test]
fn the_reference_is_as_the_program_is() {
    let (page, path) = (page(), file(PATH));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == page, "{PATH} is not what it should be: UPDATE_DOCS=1 cargo test --lib config::tests::reference");
}

#[test]
fn every_key_is_told_of() {
    let page = page();
    for (table, keys) in keys::all() {
        for key in keys {
            let path = path_of(table, key);
            let told = if told_of_at(table).is_some() {
                let chapter = page.split(&format!("\n## `{table} = ")).nth(1).expect("a chapter");
                chapter.split("\n## ").next().is_some_and(|chapter| chapter.contains(&format!("\n- `{key}` · ")))
            } else {
                page.contains(&format!("\n### `{path}`\n"))
            };
            assert!(is_a_table(&path) || told, "{path}");
        }
    }
    for path in AT_THE_START {
        assert!(page.contains(&format!("\n### `{path}`\n\nRestart")), "{path}");
    }
    assert!(
        page.contains("### `store.durability`\n\nRestart · default `\"strict\"` · `OCISTERN_STORE__DURABILITY`"),
        "{page}"
    );
}

#[test]
fn what_it_shows_of_a_file_is_read() {
    let page = page();
    let mut shown = page.split("```toml\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    assert!(shown.clone().count() > 40, "{page}");
    assert_eq!(shown.find(|block| block.parse::<Table>().is_err()), None);
    // Each link leads to a heading.
    let headings: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("### ")).map(|line| link("", line)).collect();
    for rest in page.split("](#").skip(1) {
        let anchor = rest.split(')').next().unwrap();
        assert!(headings.contains(&format!("[``](#{anchor})")), "{anchor}");
    }
}
