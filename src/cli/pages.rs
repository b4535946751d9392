//! What stands below the flags in `--help` and on manual pages: files, exit status, examples; written once for both.

use std::fmt::Write as _;

use clap::Command;

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

/// What is there of most commands.
const fn status(entries: &'static [(&'static str, &'static str)]) -> Section {
    Section { title: "EXIT STATUS", entries }
}

const fn examples(entries: &'static [(&'static str, &'static str)]) -> Section {
    Section { title: "EXAMPLES", entries }
}

const MISTAKE: (&str, &str) = ("64", "A mistake in the command line or the configuration.");
/// Of commands that ask the daemon, or a stopped daemon's store.
const DONE_OR_NOT: Section = status(&[
    ("0", "Done."),
    (
        "1",
        "Failed: there is no store there, somebody else has it, or the daemon cannot do it; or a name means nothing that is there. \
         What was asked for before that name is done.",
    ),
    MISTAKE,
]);

/// The sections of each page, by the name that it has: `ocistern`, `ocistern-serve`, ….
const PAGES: &[(&str, &[Section])] = &[
    (
        "ocistern",
        &[
            FILES,
            EXIT_STATUS,
            examples(&[
                ("ocistern serve", "Serves clients of this machine on port 5000."),
                ("ocistern setup --all --write", "Points the clients that are installed here at it."),
                ("ocistern status --watch", "Shows what it does and saves."),
                ("ocistern doctor", "Looks for what is wrong, and says what to do."),
            ]),
        ],
    ),
    (
        "ocistern-serve",
        &[
            FILES,
            Section {
                title: "SIGNALS",
                entries: &[
                    ("TERM, INT", "Ends it, when running answers have ended or limits.drain has passed."),
                    ("HUP", "Reads the configuration again; one with mistakes changes nothing."),
                ],
            },
            EXIT_STATUS,
            examples(&[
                ("ocistern serve --root /srv/ocistern --listen 0.0.0.0:5000", "For clients on other machines as well."),
                (
                    "ocistern serve --upstream team=https://registry.example",
                    "Also caches another registry, as HOST:PORT/team/NAME.",
                ),
                ("ocistern serve --sealed", "Serves what is in the store, and never asks a registry."),
            ]),
        ],
    ),
    (
        "ocistern-config-check",
        &[
            status(&[
                ("0", "`serve` would start with it; warnings are on standard output."),
                (
                    "64",
                    "It would not: each mistake has a line, with the file, the line in it, the key and what to write instead.",
                ),
            ]),
            examples(&[(
                "ocistern config check --config new.toml",
                "Looks at a file before it takes the place of the one in use.",
            )]),
        ],
    ),
    (
        "ocistern-config-show",
        &[
            status(&[("0", "Printed."), ("64", "The configuration has a mistake.")]),
            examples(&[(
                "ocistern config show",
                "What is in effect, flags of a running daemon apart, with every default.",
            )]),
        ],
    ),
    (
        "ocistern-warm",
        &[
            status(&[
                ("0", "All of all images is in the store."),
                (
                    "1",
                    "Some image is not all there: the table says which and why. What has come stays, and the same command goes on with \
                     the rest.",
                ),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern warm docker.io/library/alpine:3.20", "One image, for this machine's processor."),
                ("ocistern warm --file images.txt --pin", "All images of a list, which are never evicted then."),
                (
                    "ocistern warm --platform linux/amd64 --platform linux/arm64 ghcr.io/team/app:v1",
                    "Two platforms of an index.",
                ),
            ]),
        ],
    ),
    (
        "ocistern-ls",
        &[
            DONE_OR_NOT,
            examples(&[
                ("ocistern ls", "All images."),
                (
                    "ocistern ls 'docker.io/library/*:3.*'",
                    "Those of these names; quotes keep the shell from reading them.",
                ),
            ]),
        ],
    ),
    ("ocistern-du", &[DONE_OR_NOT, examples(&[("ocistern du --json", "For a script.")])]),
    (
        "ocistern-rm",
        &[
            DONE_OR_NOT,
            examples(&[
                ("ocistern rm ghcr.io/team/app:v1", "One tag; what no other image has goes with it."),
                ("ocistern rm --dry-run 'ghcr.io/team/**'", "Says what of all repositories of a team would go."),
            ]),
        ],
    ),
    (
        "ocistern-pin",
        &[
            DONE_OR_NOT,
            examples(&[
                ("ocistern pin docker.io/library/alpine:3.20", "What the tag means stays, whatever else has to go."),
                ("ocistern pin --file images.txt", "All images of a list, by their names with the upstream."),
                ("ocistern pin", "Lists all pins, those of the configuration too."),
            ]),
        ],
    ),
    (
        "ocistern-unpin",
        &[DONE_OR_NOT, examples(&[("ocistern unpin docker.io/library/alpine:3.20", "As `ocistern pin` lists it.")])],
    ),
    (
        "ocistern-verify",
        &[
            status(&[
                ("0", "All that was looked at is right."),
                (
                    "1",
                    "Something was wrong, and is set aside: it is fetched again when it is next asked for. Or it could not be looked at.",
                ),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern verify --rate 50MiB/s", "Hashes everything, while others read from the same disk."),
                ("ocistern verify --repair", "Also puts right what the index says."),
            ]),
        ],
    ),
    (
        "ocistern-gc",
        &[
            DONE_OR_NOT,
            examples(&[
                ("ocistern gc --dry-run", "Says what would go, and which images would be evicted next."),
                ("ocistern gc --dry-run --bytes 50GiB", "Which, if 50 GiB had to be had."),
            ]),
        ],
    ),
    (
        "ocistern-export",
        &[
            status(&[
                ("0", "Written; or nothing is stored here that the other side lacks, and so nothing was written."),
                (
                    "1",
                    "Failed, and no bundle was written: a name means nothing that is stored, a stored blob is damaged, or the place \
                     is full. A directory is gone on with by the same command.",
                ),
                MISTAKE,
            ]),
            examples(&[
                (
                    "ocistern export --to images.tar docker.io/library/alpine:3.20",
                    "One image, with every platform that is stored.",
                ),
                (
                    "ocistern export --to usb/images.tar.zst --zstd --volume-size 4GiB --all",
                    "Everything, in files that fit on a FAT volume.",
                ),
                ("ocistern export --to update.tar --missing-from have.txt", "What the other side does not have."),
                ("ocistern export --in-place", "Makes the root an OCI image layout that other programs read."),
            ]),
        ],
    ),
    (
        "ocistern-import",
        &[
            status(&[
                ("0", "All images are here. A tag about which upstream said something later here is left, and named."),
                (
                    "1",
                    "Failed: the bundle is damaged or not whole, the store is full, or some image could not be taken. No tag leads \
                     to an image that is not whole. The same command goes on where it ended.",
                ),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern import images.tar", "Each image is there under its upstream's name."),
                (
                    "ocistern import --dry-run /media/usb/images.tar.zst.*",
                    "Verifies all of it, and says what would be taken.",
                ),
                (
                    "ocistern import --as ghcr.io/team/app skopeo-layout/",
                    "A layout that another program made, under this name.",
                ),
            ]),
        ],
    ),
    (
        "ocistern-have",
        &[
            DONE_OR_NOT,
            examples(&[("ocistern have", "Into a file, for `ocistern export --missing-from FILE` on the other side.")]),
        ],
    ),
    (
        "ocistern-setup",
        &[
            status(&[
                ("0", "Shown, written or put back; also where nothing had to be."),
                ("1", "Of some client it failed: what it is and what to do stands on standard error."),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern setup docker", "Shows what would be written, and where."),
                (
                    "ocistern setup --all --write",
                    "Writes it for all clients that are installed, each file with a backup.",
                ),
                ("ocistern setup --all --undo", "Puts everything back."),
            ]),
        ],
    ),
    (
        "ocistern-missed",
        &[
            status(&[
                ("0", "Listed, which may be nothing."),
                ("1", "Failed: there is no store there, somebody else has it, or the daemon cannot do it."),
                MISTAKE,
            ]),
            examples(&[
                (
                    "ocistern missed",
                    "References, one a line, with details behind #: the list that other commands take.",
                ),
                ("ocistern missed --clear --json", "For a script that begins a new list each day."),
            ]),
        ],
    ),
    (
        "ocistern-coverage",
        &[
            status(&[
                ("0", "All of all images is in the store."),
                ("1", "Something is missing, or it failed."),
                MISTAKE,
            ]),
            examples(&[
                (
                    "ocistern coverage --file images.txt --platform linux/amd64",
                    "Before the way to the registries is closed.",
                ),
                ("ocistern coverage docker.io/library/alpine:3", "One image, for all its platforms."),
            ]),
        ],
    ),
    (
        "ocistern-setup-ca",
        &[
            status(&[
                ("0", "The certificate is there, and what to do with it is printed."),
                ("1", "No file could be written."),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern setup ca myregistry.azurecr.io", "For a registry whose name is to lead to ocistern."),
                ("ocistern setup ca", "Renews it, for the names that it has."),
            ]),
        ],
    ),
    (
        "ocistern-status",
        &[
            status(&[
                ("0", "A daemon serves."),
                ("1", "None does, or it is starting or stopping; what there is to say is printed all the same."),
                MISTAKE,
            ]),
            examples(&[
                ("ocistern status --watch", "Draws it anew each second."),
                ("ocistern status --json", "For a script, as /api/v1/status answers."),
            ]),
        ],
    ),
    (
        "ocistern-doctor",
        &[
            status(&[
                ("0", "Nothing is wrong; there may be warnings."),
                ("1", "Something is, in the configuration too: each error says what to do."),
                ("64", "A mistake in the command line."),
            ]),
            examples(&[("ocistern doctor --no-network", "Looks at this machine alone.")]),
        ],
    ),
    (
        "ocistern-health",
        &[
            status(&[("0", "The daemon serves."), ("1", "It does not."), MISTAKE]),
            examples(&[("ocistern health --timeout 2s", "In the health check of a container.")]),
        ],
    ),
    (
        "ocistern-completions",
        &[examples(&[("ocistern completions bash", "For the file of completions of this shell.")])],
    ),
    (
        "ocistern-man",
        &[examples(&[("ocistern man --directory share/man/man1", "All pages, as a package wants them.")])],
    ),
];

/// Sections of the page of this name, as `ocistern-serve`.
pub(super) fn of_page(name: &str) -> &'static [Section] {
    PAGES.iter().find(|(page, _)| *page == name).map_or(&[], |&(_, sections)| sections)
}

/// Puts below the flags of each command what its page has.
pub(super) fn below_flags(command: Command, name: &str) -> Command {
    let sections = of_page(name);
    let command = if sections.is_empty() { command } else { command.after_help(help(sections)) };
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, below| {
        let page = format!("{name}-{below}");
        command.mut_subcommand(below, |command| below_flags(command, &page))
    })
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
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    #[test]
    fn help_and_manual_say_the_same() {
        for (_, sections) in PAGES {
            let (help, manual) = (help(sections), manual(sections).replace("\\-", "-"));
            for Section { title, entries } in *sections {
                assert!(
                    help.contains(&format!("{title}:\n")) && manual.contains(&format!(".SH \"{title}\"\n")),
                    "{help}"
                );
                for (what, said) in *entries {
                    assert!(help.contains(what) && manual.contains(&format!("\\fB{what}\\fR\n{said}\n")), "{manual}");
                }
            }
        }
        assert_eq!(literal(".x -\\"), "\\&.x \\-\\e");
    }

    #[test]
    fn every_example_is_a_command_line() {
        let mut tried = 0;
        for (page, sections) in PAGES {
            let examples = sections.iter().find(|section| section.title == "EXAMPLES").unwrap().entries;
            for (line, _) in examples {
                let words: Vec<String> = line.split(' ').map(|word| word.replace('\'', "")).collect();
                assert!(words.join("-").starts_with(page), "{page}: {line}");
                if let Err(error) = Cli::command().try_get_matches_from(words) {
                    panic!("{line}: {error}");
                }
                tried += 1;
            }
        }
        assert!(tried >= PAGES.len());
    }

    #[test]
    fn every_command_has_sections() {
        fn names(command: &Command, name: &str, found: &mut Vec<String>) {
            // `config` alone does nothing.
            if name != "ocistern-config" {
                found.push(name.to_owned());
            }
            for below in command.get_subcommands() {
                names(below, &format!("{name}-{}", below.get_name()), found);
            }
        }
        let mut found = Vec::new();
        let mut written: Vec<String> = PAGES.iter().map(|(name, _)| (*name).to_owned()).collect();
        names(&Cli::command(), "ocistern", &mut found);
        found.sort();
        written.sort();
        assert_eq!(found, written);
        let mut command = below_flags(Cli::command(), "ocistern");
        let check = command.find_subcommand_mut("config").unwrap().find_subcommand_mut("check").unwrap();
        assert!(check.render_help().to_string().contains("EXAMPLES:\n  ocistern config check"));
    }
}
