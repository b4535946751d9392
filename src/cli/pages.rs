//! What stands below the flags in `--help` and on manual pages: files, exit status, examples; written once for both.

use std::fmt::Write as _;

/// A section of a page.
#[derive(Debug)]
pub(super) struct Section {
    title: &'static str,
    /// What it is about, and what there is to say.
    entries: &'static [(&'static str, &'static str)],
}

const FILES: Section = Section {
    title: "FILES",
    entries: &[
        (
            "$OCISTERN_CONFIG, $XDG_CONFIG_HOME/ocistern/config.toml, /etc/ocistern/config.toml",
            "The configuration: the first of these that there is. It need not exist.",
        ),
        (
            "$XDG_CACHE_HOME/ocistern, /var/cache/ocistern",
            "The store, of a user and of the system's service, unless the configuration says otherwise.",
        ),
        ("ROOT/ocistern.sock", "The admin socket, by which the other commands reach the daemon."),
        ("/usr/share/doc/ocistern/", "All of the documentation, where ocistern was installed as a package."),
    ],
};

const EXIT_STATUS: Section = Section {
    title: "EXIT STATUS",
    entries: &[
        ("0", "Done. Of doctor: no error; of health and status: the daemon serves; of verify: nothing is wrong."),
        ("1", "Failed at run time, or something was found."),
        ("64", "A mistake in the command line or the configuration: starting again does not help."),
    ],
};

/// Of the program itself.
pub(super) const TOP: &[Section] = &[
    FILES,
    EXIT_STATUS,
    Section {
        title: "EXAMPLES",
        entries: &[
            ("ocistern serve", "Serves clients of this machine on port 5000."),
            ("ocistern setup --all --write", "Points the clients that are installed here at it."),
            ("ocistern status --watch", "Shows what it does and saves."),
            ("ocistern doctor", "Looks for what is wrong, and says what to do."),
        ],
    },
];

/// Of `serve`.
pub(super) const SERVE: &[Section] = &[
    FILES,
    Section {
        title: "SIGNALS",
        entries: &[
            ("TERM, INT", "Ends it, when running answers have ended or limits.drain has passed."),
            ("HUP", "Reads the configuration again; one with mistakes changes nothing."),
        ],
    },
    EXIT_STATUS,
    Section {
        title: "EXAMPLES",
        entries: &[
            ("ocistern serve --root /srv/ocistern --listen 0.0.0.0:5000", "For clients on other machines as well."),
            (
                "ocistern serve --upstream team=https://registry.example",
                "Also caches another registry, as HOST:PORT/team/NAME.",
            ),
            ("ocistern serve --sealed", "Serves what is in the store, and never asks a registry."),
        ],
    },
];

/// Sections of the page of this name, as `ocistern-serve`.
pub(super) fn of_page(name: &str) -> &'static [Section] {
    match name {
        "ocistern" => TOP,
        "ocistern-serve" => SERVE,
        _ => &[],
    }
}

/// As it stands in `--help`.
pub(super) fn help(sections: &[Section]) -> String {
    let mut text = String::new();
    for Section { title, entries } in sections {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{title}:");
        for (what, said) in *entries {
            let _ = writeln!(text, "  {what}\n          {said}");
        }
    }
    text.trim_end().to_owned()
}

/// As it stands on a manual page.
pub(super) fn manual(sections: &[Section]) -> String {
    let mut text = String::new();
    for Section { title, entries } in sections {
        let _ = writeln!(text, ".SH \"{title}\"");
        for (what, said) in *entries {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{}", literal(what), literal(said));
        }
    }
    text
}

/// A text in which nothing means anything to roff.
fn literal(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_manual_say_the_same() {
        for sections in [TOP, SERVE] {
            let (help, manual) = (help(sections), manual(sections).replace("\\-", "-"));
            for title in ["FILES", "EXIT STATUS", "EXAMPLES"] {
                assert!(
                    help.contains(&format!("{title}:\n")) && manual.contains(&format!(".SH \"{title}\"\n")),
                    "{help}"
                );
            }
            for (what, said) in sections.iter().flat_map(|section| section.entries) {
                assert!(help.contains(what) && manual.contains(&format!("\\fB{what}\\fR\n{said}\n")), "{manual}");
            }
        }
        assert!(of_page("ocistern-ls").is_empty());
        assert_eq!(literal(".x -\\"), "\\&.x \\-\\e");
    }
}
