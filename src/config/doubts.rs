//! What a configuration may say and hardly means: what it is, where it stands, and what to write instead.

use std::fmt;

use super::file::File;
use super::layer::{OTHER_VARIABLES, variable};
use super::place::KeyPath;
use super::{Address, Config, Listener, PushBy, builtin};

/// A shorter name of a registry is like too many others: `icr.io` is as good a one as `gcr.io`.
const SHORTEST_MISSPELT: usize = 7;

/// Something that is allowed and hardly meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// File and line, as `FILE:LINE`; none: it is not from the file.
    pub place: Option<String>,
    /// The key, or the variable of the environment.
    pub key: String,
    /// What it does.
    pub found: String,
    /// What to do.
    pub advice: String,
}

// === impl Config ===

impl Config {
    /// All of them. `variables`: the names of all that there are in the environment.
    pub fn doubts(&self, variables: impl IntoIterator<Item = String>) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        self.useless_pushes(&mut doubts);
        self.useless_passwords(&mut doubts);
        self.misspelt_upstreams(&mut doubts);
        doubts.extend(variables.into_iter().filter_map(|name| of_variable(&name)));
        doubts
    }

    fn doubt(&self, key: &KeyPath, found: String, advice: String) -> Doubt {
        Doubt { place: self.place_of(key), key: key.to_string(), found, advice }
    }

    fn useless_pushes(&self, doubts: &mut Vec<Doubt>) {
        let knows_callers = |listener: &Listener| {
            listener.htpasswd.is_some() || listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
        };
        if self.listeners.iter().any(knows_callers) {
            return;
        }
        for (name, _) in self.upstreams.iter().filter(|(_, upstream)| upstream.push == PushBy::Shared) {
            let found = "\"shared\" is for users of a listener's htpasswd file and clients with a certificate, and no listener \
                         has htpasswd or tls.client_ca: nobody can push";
            let advice = "give a listener one of them, or say push = \"client\"";
            let key = KeyPath::dotted("upstream").key(name.as_str()).key("push");
            doubts.push(self.doubt(&key, found.to_owned(), advice.to_owned()));
        }
    }

    fn useless_passwords(&self, doubts: &mut Vec<Doubt>) {
        for (index, listener) in self.listeners.iter().enumerate() {
            let is_public = matches!(listener.address, Address::Tcp(address) if !address.ip().is_loopback());
            if is_public && listener.htpasswd.is_some() && listener.tls.is_none() && !listener.allow_plain_credentials {
                let found = "no password is taken over plain HTTP from another machine";
                let advice = "set tls, or allow_plain_credentials = true where the network is closed";
                let key = self.key_of_listener(index).key("htpasswd");
                doubts.push(self.doubt(&key, found.to_owned(), advice.to_owned()));
            }
        }
    }

    /// Tables that were probably to change a built-in upstream. One with a URL says itself where it is.
    fn misspelt_upstreams(&self, doubts: &mut Vec<Doubt>) {
        for upstream in self.upstreams.values() {
            let name = upstream.name.as_str();
            if builtin::names().any(|known| known == name) || upstream.url != builtin::url(name) {
                continue;
            }
            let is_like =
                |known: &&str| known.len() >= SHORTEST_MISSPELT && strsim::damerau_levenshtein(known, name) == 1;
            if let Some(meant) = builtin::names().find(is_like) {
                let found = format!("is a registry of its own, asked at {}", upstream.url);
                let advice = format!("write [upstream.\"{meant}\"] if that was meant, or give it its url");
                doubts.push(self.doubt(&KeyPath::dotted("upstream").key(name), found, advice));
            }
        }
    }
}

/// A variable that looks as if it set a key, and sets none. Those with a single `_` may be somebody else's, as Kubernetes sets
/// some for every service.
fn of_variable(name: &str) -> Option<Doubt> {
    let mut file = File::default();
    let known: Vec<String> = file.scalars().iter().map(|(key, _)| variable(key)).collect();
    let known = || known.iter().map(String::as_str).chain(OTHER_VARIABLES);
    if !name.starts_with("OCISTERN_") || !name.contains("__") || known().any(|known| known == name) {
        return None;
    }
    let is_key = |known: &&str| known.contains("__");
    let nearest = known().filter(is_key).min_by_key(|known| strsim::damerau_levenshtein(name, known));
    let nearest = nearest.filter(|known| strsim::damerau_levenshtein(name, known) <= 3);
    let advice = match nearest {
        Some(meant) => format!("write {meant} if that was meant"),
        None => "keys of [admin], [store], [limits] and [log] can be set so, such as OCISTERN_STORE__CAPACITY; other keys stand \
                 in the file"
            .to_owned(),
    };
    Some(Doubt { place: None, key: name.to_owned(), found: "sets no key".to_owned(), advice })
}

// === impl Doubt ===

/// On one line.
impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}; {}", self.key, self.found, self.advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str, variables: &[&str]) -> Vec<String> {
        let config = Config::from_toml(text).unwrap();
        config.doubts(variables.iter().map(|&name| name.to_owned())).into_iter().map(|doubt| doubt.key).collect()
    }

    #[test]
    fn nothing_is_doubted_of_what_is_usual() {
        let none: [&str; 0] = [];
        assert_eq!(keys("", &["OCISTERN_STORE__CAPACITY", "OCISTERN_STORE__SCRUB", "OCISTERN_PORT", "A__B"]), none);
        assert_eq!(keys("[upstream.\"docker.io\"]\n[upstream.\"icr.io\"]\n[upstream.\"lscr.io\"]", &[]), none);
        assert_eq!(keys("[upstream.\"dokcer.io\"]\nurl = \"https://dokcer.io/v\"", &[]), none);
    }

    #[test]
    fn a_name_like_a_built_in_one_is_doubted() {
        let config = Config::from_toml("[upstream.\"a.example\"]\n[upstream.\"dokcer.io\"]").unwrap();
        let doubts = config.doubts([]);
        assert_eq!(
            doubts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["line 2: upstream.\"dokcer.io\": is a registry of its own, asked at https://dokcer.io; \
              write [upstream.\"docker.io\"] if that was meant, or give it its url"]
        );
    }

    #[test]
    fn a_variable_that_sets_nothing_is_doubted() {
        let config = Config::from_toml("").unwrap();
        let told = |name: &str| config.doubts([name.to_owned()])[0].to_string();
        assert_eq!(
            told("OCISTERN_STORE__CAPCITY"),
            "OCISTERN_STORE__CAPCITY: sets no key; write OCISTERN_STORE__CAPACITY if that was meant"
        );
        assert!(told("OCISTERN_UPSTREAM__URL").contains("stand in the file"));
    }

    #[test]
    fn what_lets_nobody_in_is_doubted() {
        let text = "[[listener]]\naddress = \"0.0.0.0:5000\"\nhtpasswd = \"users\"\n[upstream.\"a.example\"]\n\
                    credentials = { from = \"docker-config\" }\npush = \"shared\"\n";
        assert_eq!(keys(text, &[]), ["listener[0].htpasswd"]);
        assert_eq!(keys(&text.replace("htpasswd = \"users\"\n", ""), &[]), ["upstream.\"a.example\".push"]);
    }
}
