//! The one-way dependency rule of `ARCHITECTURE.md`, enforced: a module of `src` uses only modules below it.
//!
//! The sources are read as tokens, so comments and texts do not count and every form of path does: `use crate::a::b`,
//! `use crate::{a, b::c}`, `crate::a::b` in an expression, `super::super::a`, `ocistern::a` in the binary.
#![allow(clippy::unwrap_used, reason = "a test program: a source that cannot be read is a failure")]

use std::fmt;
use std::path::{Path, PathBuf};

/// Module, and those that it may use.
const RULES: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("bundle", &["oci"]),
    ("clock", &[]),
    ("metrics", &[]),
    ("party", &[]),
    ("telemetry", &[]),
    ("troubles", &["clock"]),
    ("sys", &[]),
    ("sendfile", &["sys"]),
    ("config", &["oci"]),
    ("store", &["oci", "bundle", "config", "clock", "metrics", "sys"]),
    ("upstream", &["oci", "config", "clock", "metrics", "party", "telemetry", "troubles"]),
    (
        "cache",
        &["oci", "bundle", "config", "clock", "metrics", "party", "telemetry", "sys", "sendfile", "store", "upstream"],
    ),
    (
        "http",
        &[
            "oci",
            "bundle",
            "config",
            "clock",
            "metrics",
            "party",
            "telemetry",
            "troubles",
            "sendfile",
            "store",
            "upstream",
            "cache",
        ],
    ),
    (
        "server",
        &["oci", "config", "clock", "metrics", "party", "troubles", "sendfile", "store", "upstream", "cache", "http"],
    ),
    (
        "cli",
        &[
            "oci",
            "bundle",
            "config",
            "clock",
            "metrics",
            "telemetry",
            "sys",
            "store",
            "upstream",
            "cache",
            "http",
            "server",
        ],
    ),
    ("main", &["oci", "config", "clock", "metrics", "store", "upstream", "cache", "http", "server", "cli"]),
];

const RULE: &str = "dependencies point one way: main → cli → server → http → cache → {store, upstream} → oci; config uses \
                    oci only and may be used above it; clock, metrics, party, telemetry and sys use nothing, sendfile uses sys, troubles uses clock; they may be used above it, too";

/// Where the file system is asked by calls that block, and why no async worker waits for them there.
const BLOCKING: &[(&str, &str)] = &[
    ("bundle/reader.rs", "`import` is a program of its own, whose main thread reads between two steps of its runtime"),
    ("bundle/volumes.rs", "the same, and `export`"),
    ("bundle/writer.rs", "`export` is a program of its own, whose main thread writes between two steps of its runtime"),
    (
        "cli/clients/folder.rs",
        "`setup` is a program of its own, without a runtime; `doctor` reads on the blocking pool",
    ),
    ("cli/doctor/reading.rs", "on the blocking pool"),
    ("cli/doctor/root.rs", "on the blocking pool"),
    ("cli/export.rs", "a list that is read before the runtime is there"),
    ("cli/list.rs", "a command reads its lists before its runtime is there"),
    ("cli/man.rs", "`man` is a program of its own, without a runtime"),
    ("cli/named.rs", "`config check` is a program of its own, without a runtime; `doctor` is on the blocking pool"),
    ("cli/serve.rs", "at the start, of /proc"),
    ("config/layer.rs", "before the runtime is there, and at SIGHUP on the blocking pool"),
    ("http/htpasswd.rs", "on the blocking pool, with the hashes"),
    ("server/admin_socket.rs", "on the blocking pool, once at the start"),
    ("server/listener.rs", "a few calls at the start and at the end, for sockets that have a name"),
    ("server/root.rs", "on the blocking pool"),
    ("server/tls/files.rs", "on the blocking pool"),
    ("store/lock.rs", "on the blocking pool, at the start"),
    ("store/real_fs.rs", "the store's one way to its files: on the blocking pool"),
    ("store/sled_index.rs", "on the thread of the index"),
];

/// A path that the rules do not allow.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: PathBuf,
    line: usize,
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Other(char),
}

#[test]
fn dependencies_point_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were found");
    let mut violations = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(&root).unwrap();
        violations.extend(check(relative, &text));
    }
    let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "{}\n{RULE}", list.join("\n"));
}

/// A lint cannot say this: it would speak of tests too, whose files nobody waits for.
#[test]
fn the_file_system_blocks_only_where_it_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut blocking = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        if !(relative.ends_with("tests.rs") || relative.contains("tests/")) && blocks(without_tests(&text)) {
            blocking.push(relative);
        }
    }
    blocking.sort_unstable();
    let known: Vec<&str> = BLOCKING.iter().map(|(file, _)| *file).collect();
    assert_eq!(blocking, known, "use tokio::fs or the blocking pool, and say here why it is right");
}

#[test]
fn blocking_calls_are_found() {
    for text in [
        "use std::fs; fn f() { fs::read(x) }",
        "std::fs::read_to_string(path)",
        "File::open(path)",
        "fs::File::create(path)",
        "std::fs::DirBuilder::new().create(x)",
        "std::fs::OpenOptions::new()",
    ] {
        assert!(blocks(text), "{text}");
    }
    for text in [
        "tokio::fs::read(path)",
        "tokio::fs::File::open(path)",
        "rustix::fs::sendfile(a, b)",
        "fn f(file: &std::fs::File, m: fs::Metadata)",
        "use std::os::unix::fs::MetadataExt;",
        "// std::fs::read(x)",
        "std::fs::Permissions::from_mode(0o600)",
    ] {
        assert!(!blocks(text), "{text}");
    }
}

/// A source up to its own tests, which stand at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// Whether a function of `std::fs` is called, or a file is opened by it.
fn blocks(text: &str) -> bool {
    let tokens = tokens(text);
    let word = |index: Option<usize>| match index.and_then(|index| tokens.get(index)) {
        Some((_, Token::Word(word))) => word.as_str(),
        _ => "",
    };
    (0..tokens.len()).any(|index| {
        let path = tokens.get(index + 1).is_some_and(|(_, token)| *token == Token::Path);
        let call = tokens.get(index + 3).is_some_and(|(_, token)| *token == Token::Other('('));
        let (before, called) = (word(index.checked_sub(2)), word(Some(index + 2)));
        let first = word(index.checked_sub(4));
        match word(Some(index)) {
            "fs" => path && call && !matches!(before, "tokio" | "rustix"),
            "File" => path && matches!(called, "open" | "create" | "create_new") && first != "tokio",
            "DirBuilder" | "OpenOptions" => path && called == "new" && first != "tokio",
            _ => false,
        }
    })
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What a file, named relative to `src`, does that it may not.
fn check(file: &Path, text: &str) -> Vec<Violation> {
    let own: Vec<String> = module_path(file);
    let top = own.first().map_or("lib", String::as_str);
    let violation = |line, message| Violation { file: Path::new("src").join(file), line, message };
    if top == "lib" {
        // The crate's root: it only declares the others.
        return Vec::new();
    }
    let Some((_, allowed)) = RULES.iter().find(|(module, _)| *module == top) else {
        return vec![violation(
            1,
            format!("`{top}` is not in the table of tests/architecture.rs: say what it may use"),
        )];
    };
    let mut violations = Vec::new();
    for (line, module) in uses(&own, &tokens(text)) {
        if module == top || allowed.contains(&module.as_str()) {
            continue;
        }
        violations.push(violation(
            line,
            match module.as_str() {
                "*" => format!("`{top}` imports everything of the crate's root: name the modules"),
                module if RULES.iter().any(|(known, _)| *known == module) => format!("`{top}` must not use `{module}`"),
                module => format!("`{top}` uses `{module}`, which is not in the table of tests/architecture.rs"),
            },
        ));
    }
    violations
}

/// `http/pull.rs` is `["http", "pull"]`, `http/mod.rs` is `["http"]`, `lib.rs` is nothing.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

/// Every module below the crate's root that the tokens name, with its line.
fn uses(own: &[String], tokens: &[(usize, Token)]) -> Vec<(usize, String)> {
    let word = |index: usize| match tokens.get(index) {
        Some((_, Token::Word(word))) => word.as_str(),
        _ => "",
    };
    let is = |index: usize, token: &Token| tokens.get(index).is_some_and(|(_, other)| other == token);
    let in_main = own.first().is_some_and(|top| top == "main");
    let mut found = Vec::new();
    let mut module = own.to_vec();
    // Depths of braces at which modules inside the file began.
    let mut depth = 0_usize;
    let mut inner = Vec::new();
    for (index, (_, token)) in tokens.iter().enumerate() {
        match token {
            Token::Other('{') => {
                depth += 1;
                if index >= 2 && word(index - 2) == "mod" {
                    module.push(word(index - 1).to_owned());
                    inner.push(depth);
                }
            }
            Token::Other('}') => {
                if inner.last() == Some(&depth) {
                    inner.pop();
                    module.pop();
                }
                depth = depth.saturating_sub(1);
            }
            Token::Word(start) if is(index + 1, &Token::Path) && !(index > 0 && is(index - 1, &Token::Path)) => {
                let base = match start.as_str() {
                    "crate" => Vec::new(),
                    "ocistern" if in_main => Vec::new(),
                    "self" => module.clone(),
                    "super" => module.split_last().map_or_else(Vec::new, |(_, parents)| parents.to_vec()),
                    _ => continue,
                };
                follow(tokens, index + 2, base, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Follows a path, or a group of paths, from `base` on; returns the index behind it.
fn follow(tokens: &[(usize, Token)], start: usize, mut base: Vec<String>, found: &mut Vec<(usize, String)>) -> usize {
    let mut index = start;
    loop {
        let Some((line, token)) = tokens.get(index) else { return index };
        match token {
            Token::Word(word) if word == "super" => {
                base.pop();
            }
            Token::Word(word) if word == "self" && base.is_empty() => {}
            Token::Word(word) => {
                if base.is_empty() {
                    found.push((*line, word.clone()));
                }
                base.push(word.clone());
            }
            Token::Other('*') => {
                if base.is_empty() {
                    found.push((*line, "*".to_owned()));
                }
                return index + 1;
            }
            Token::Other('{') => {
                index += 1;
                while !matches!(tokens.get(index), None | Some((_, Token::Other('}')))) {
                    index = match &tokens[index].1 {
                        Token::Word(_) | Token::Other('{' | '*') => follow(tokens, index, base.clone(), found),
                        Token::Path | Token::Other(_) => index + 1,
                    };
                    // `as name` in a group is a name, not a path.
                    if matches!(tokens.get(index), Some((_, Token::Word(word))) if word == "as") {
                        index += 2;
                    }
                }
                return index + 1;
            }
            Token::Path | Token::Other(_) => return index,
        }
        index += 1;
        if !matches!(tokens.get(index), Some((_, Token::Path))) {
            return index;
        }
        index += 1;
    }
}

/// The words, `::` and other characters of a source, with their lines; without comments, texts and spaces.
fn tokens(text: &str) -> Vec<(usize, Token)> {
    let characters: Vec<char> = text.chars().collect();
    let at = |index: usize| characters.get(index).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut index = 0;
    while index < characters.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => {
                while index < characters.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => (depth, index) = (depth + 1, index + 2),
                        ('*', '/') => (depth, index) = (depth - 1, index + 2),
                        _ => index += 1,
                    }
                    if depth == 0 || index >= characters.len() {
                        break;
                    }
                }
            }
            '"' => index = quoted(&characters, index + 1),
            'r' if is_raw(&characters, index + 1) => index = raw(&characters, index + 1),
            'b' if at(index + 1) == '"' => index = quoted(&characters, index + 2),
            'b' if at(index + 1) == 'r' && is_raw(&characters, index + 2) => index = raw(&characters, index + 2),
            // A character, or else a lifetime, which is skipped with its name.
            '\'' if at(index + 1) == '\\' => {
                index += 3;
                while index < characters.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
            }
            '\'' if at(index + 2) == '\'' => index += 3,
            '\'' => {
                index += 1;
                while at(index).is_alphanumeric() || at(index) == '_' {
                    index += 1;
                }
            }
            ':' if at(index + 1) == ':' => {
                tokens.push((line, Token::Path));
                index += 2;
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at(index).is_alphanumeric() || at(index) == '_' {
                    index += 1;
                }
                tokens.push((line, Token::Word(characters[start..index].iter().collect())));
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, Token::Other(c)));
                }
                index += 1;
            }
        }
        line += characters[start..index.min(characters.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Behind the closing quote of a text whose contents begin at `index`.
fn quoted(characters: &[char], mut index: usize) -> usize {
    while let Some(&c) = characters.get(index) {
        match c {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    index
}

/// Whether `index` is behind the `r` of a raw text.
fn is_raw(characters: &[char], index: usize) -> bool {
    characters[index.min(characters.len())..].iter().find(|&&c| c != '#') == Some(&'"')
}

/// Behind a raw text whose hashes begin at `index`.
fn raw(characters: &[char], index: usize) -> usize {
    let hashes = characters[index..].iter().take_while(|&&c| c == '#').count();
    let mut index = index + hashes + 1;
    while index < characters.len() {
        let closing = characters[index + 1..].iter().take(hashes).filter(|&&c| c == '#').count();
        if characters[index] == '"' && closing == hashes {
            return index + 1 + hashes;
        }
        index += 1;
    }
    index
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

/// What `check` says about a text as the contents of a file.
fn said(file: &str, text: &str) -> Vec<String> {
    check(Path::new(file), text).iter().map(ToString::to_string).collect()
}

#[test]
fn violations_are_caught_in_every_form() {
    for (file, text, expected) in [
        ("oci/name.rs", "//! A\nuse crate::config::Config;", "src/oci/name.rs:2: `oci` must not use `config`"),
        ("store/mod.rs", "use crate::upstream;", "src/store/mod.rs:1: `store` must not use `upstream`"),
        (
            "store/mod.rs",
            "use crate::{\n  oci::{self, Digest},\n  http,\n};",
            "src/store/mod.rs:3: `store` must not use `http`",
        ),
        (
            "upstream/client.rs",
            "fn f() {\n let x = crate::store::Store::open();\n}",
            "src/upstream/client.rs:2: `upstream` must not use `store`",
        ),
        ("cache/fill.rs", "use super::super::server::Server;", "src/cache/fill.rs:1: `cache` must not use `server`"),
        ("cache/mod.rs", "use super::server::Server;", "src/cache/mod.rs:1: `cache` must not use `server`"),
        (
            "cache/mod.rs",
            "mod tests { use super::{super::cli, Cache}; }",
            "src/cache/mod.rs:1: `cache` must not use `cli`",
        ),
        ("cache/mod.rs", "mod a { mod b {} }\nuse super::cli;", "src/cache/mod.rs:2: `cache` must not use `cli`"),
        ("metrics.rs", "use crate::oci::Via;", "src/metrics.rs:1: `metrics` must not use `oci`"),
        ("http/pull.rs", "use crate::*;", "src/http/pull.rs:1: `http` imports everything of the crate's root"),
        ("http/pull.rs", "use crate::extra::X;", "src/http/pull.rs:1: `http` uses `extra`, which is not in the table"),
        ("config/mod.rs", "pub(in crate::http) struct X;", "src/config/mod.rs:1: `config` must not use `http`"),
        (
            "config/mod.rs",
            "fn f<'a>(x: &'a u8) { '\"'; crate::http::g(\"a\") }",
            "src/config/mod.rs:1: `config` must not use `http`",
        ),
        ("novel.rs", "", "src/novel.rs:1: `novel` is not in the table"),
    ] {
        let said = said(file, text);
        assert!(said.len() == 1 && said[0].starts_with(expected), "{text}\nsays {said:?}\nand not {expected}");
    }
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    for (file, text) in [
        (
            "http/pull.rs",
            "use crate::cache::{Cache, fill::Fill as server};\nuse super::{App, respond};\nuse crate::http::route;",
        ),
        ("http/pull.rs", "// use crate::server;\n/* crate::cli::x /* nested */ crate::cli */ fn f() {}"),
        (
            "http/pull.rs",
            "/// [`crate::server::Server`]\nconst A: &str = \"crate::server\"; const B: &str = r#\"a\" crate::cli::\"#;",
        ),
        ("cache/mod.rs", "#[cfg(test)]\nmod tests {\n use super::*;\n use super::super::oci;\n}"),
        ("cache/fill.rs", "use super::super::cache::Cache; use self::server::X; use std::server;"),
        ("main.rs", "use ocistern::cli;\nfn main() { ocistern::server::f(); }"),
        ("lib.rs", "pub mod server;"),
    ] {
        assert_eq!(said(file, text), Vec::<String>::new(), "{text}");
    }
}
