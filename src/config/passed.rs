//! Files that systemd passes to the service (`LoadCredential=NAME:FILE`), written `credential:NAME` where a key names a
//! file that is read.

use std::path::{Path, PathBuf};

use super::file::Scalar;

/// What stands before the name.
const SCHEME: &str = "credential:";
/// Where systemd puts what it passes to the service of this name: for commands that are not started by systemd, and are
/// asked what the service would find.
const OF_SERVICE: &str = "/run/credentials/ocistern.service";
/// Longest name that systemd takes.
const LONGEST: usize = 255;

/// Where the passed files are: in `$CREDENTIALS_DIRECTORY`, as systemd says.
pub(super) fn directory(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    env("CREDENTIALS_DIRECTORY").map_or_else(|| OF_SERVICE.into(), PathBuf::from)
}

/// Whether a file is one of those that systemd passes, which are there only while the service runs.
pub fn is_passed_file(file: &Path, env: impl Fn(&str) -> Option<String>) -> bool {
    file.parent() == Some(&*directory(&env))
}

/// Whether this stands for a file that systemd passes.
pub(super) fn is_passed(text: &str) -> bool {
    text.starts_with(SCHEME)
}

/// Puts the path of the passed file in the place of `credential:NAME`. What is no name stays as it is, and is no path.
pub(super) fn resolve(slot: &mut Option<Scalar>, directory: &Path) {
    if let Some(Scalar::Text(text)) = slot
        && let Some(name) = text.strip_prefix(SCHEME)
        && is_name(name)
        && let Some(joined) = directory.join(name).to_str()
    {
        joined.clone_into(text);
    }
}

/// As systemd has it: the name of a file, of printable ASCII, without a colon.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| (b' '..=b'~').contains(&b) && !matches!(b, b'/' | b':');
    !name.is_empty() && name.len() <= LONGEST && !matches!(name, "." | "..") && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> String {
        let mut slot = Some(Scalar::Text(text.to_owned()));
        resolve(&mut slot, Path::new("/run/c"));
        match slot {
            Some(Scalar::Text(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_becomes_a_path_in_the_directory_and_nothing_else_does() {
        assert_eq!(resolved("credential:hub.password"), "/run/c/hub.password");
        let longest = "x".repeat(LONGEST);
        assert_eq!(resolved(&format!("credential:{longest}")), format!("/run/c/{longest}"));
        for text in ["/etc/credential:hub", "credentials:hub", "hub", ""] {
            assert_eq!(resolved(text), text);
        }
        for name in ["", ".", "..", "../hub", "a/b", "a:b", "a\nb", "ä", &"x".repeat(LONGEST + 1)] {
            let text = format!("credential:{name}");
            assert_eq!(resolved(&text), text, "no name");
        }
    }

    #[test]
    fn the_directory_is_the_one_that_systemd_names_else_that_of_the_service() {
        assert_eq!(directory(&|_| None), Path::new("/run/credentials/ocistern.service"));
        let env =
            |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| "/run/user/7/credentials/o.service".to_owned());
        assert_eq!(directory(&env), Path::new("/run/user/7/credentials/o.service"));
    }
}
