//! Accounts of the scripted registry: who may do what, and the tokens that say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::registry::{error, jwt_of};
use super::wire::{Reply, Request};

/// Who may do what, and what was given out.
#[derive(Debug, Default)]
pub struct Accounts {
    /// By name.
    pub passwords: BTreeMap<String, String>,
    /// Repositories that everybody may pull.
    pub public: BTreeSet<String>,
    /// Repository, user, actions.
    pub rights: BTreeMap<String, BTreeMap<String, String>>,
    /// Tokens of the directory that are exchanged: whose they are.
    pub directory: BTreeMap<String, String>,
    /// Whether a refresh token is given to who wants one.
    pub gives_refresh: bool,
    /// What those are told who have a token and may not: this status instead of a 401 with what is missing.
    pub refused_with: Option<u16>,
    /// Access tokens are JWTs that live so many seconds; none: opaque ones that say 300.
    pub jwt: Option<i64>,
    tokens: HashMap<String, Issued>,
    refreshing: HashMap<String, String>,
    serial: u64,
}

#[derive(Debug)]
struct Issued {
    user: Option<String>,
    /// Repository and actions that were asked for and are allowed.
    scopes: BTreeMap<String, BTreeSet<String>>,
}

// === impl Accounts ===

impl Accounts {
    /// Adds an account.
    pub fn user(&mut self, name: &str, password: &str) {
        self.passwords.insert(name.to_owned(), password.to_owned());
    }

    /// Lets a user do that in a repository (`pull`, or `pull,push,delete`).
    pub fn allow(&mut self, user: &str, repo: &str, actions: &str) {
        self.rights.entry(repo.to_owned()).or_default().insert(user.to_owned(), actions.to_owned());
    }

    /// Makes every token that was given out invalid.
    pub fn revoke(&mut self) {
        self.tokens.clear();
    }

    fn may(&self, user: Option<&str>, repo: &str, action: &str) -> bool {
        if action == "pull" && self.public.contains(repo) {
            return true;
        }
        let rights = user.and_then(|user| self.rights.get(repo)?.get(user));
        rights.is_some_and(|actions| actions.split(',').any(|allowed| allowed == action))
    }

    /// What a request for `action` in `repo` is refused with, after the realm and service; none: it is not.
    pub fn refusal(&self, request: &Request, repo: Option<&str>, action: &str) -> Option<String> {
        let scope = repo.map_or_else(String::new, |repo| {
            let asked = if action == "push" { "pull,push" } else { action };
            // As distribution has it, a mount needs to pull where it mounts from.
            let from = request.query.split('&').find_map(|pair| pair.strip_prefix("from="));
            let from = from.map_or_else(String::new, |from| format!(" repository:{from}:pull"));
            format!(",scope=\"repository:{repo}:{asked}{from}\"")
        });
        let Some(token) = request.header("authorization").and_then(|text| text.strip_prefix("Bearer ")) else {
            return Some(scope);
        };
        let Some(issued) = self.tokens.get(token) else { return Some(format!("{scope},error=\"invalid_token\"")) };
        let enough = repo.is_none_or(|repo| {
            // Rights that were withdrawn end at once, as the strictest registries have it.
            issued.scopes.get(repo).is_some_and(|actions| actions.contains(action))
                && self.may(issued.user.as_deref(), repo, action)
        });
        (!enough).then(|| format!("{scope},error=\"insufficient_scope\""))
    }

    /// The token endpoint.
    pub fn answer(&mut self, request: &Request, field: &str, port: &str) -> Reply {
        let user = match self.who(request) {
            Ok(user) => user,
            Err(reply) => return *reply,
        };
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let from = if request.body.is_empty() { request.query.clone() } else { form };
        let mut scopes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, value) in pairs(&from) {
            for scope in value.split(' ').filter(|_| name == "scope") {
                let parts: Vec<&str> = scope.split(':').collect();
                if let ["repository", repo, actions] = *parts.as_slice() {
                    let allowed = actions.split(',').filter(|action| self.may(user.as_deref(), repo, action));
                    scopes.entry(repo.to_owned()).or_default().extend(allowed.map(ToOwned::to_owned));
                }
            }
        }
        self.serial += 1;
        let token = match self.jwt {
            Some(life) => jwt_of(life, self.serial, user.as_deref().unwrap_or("nobody")),
            None => format!("CANARY-TOKEN-{port}-{}", self.serial),
        };
        let wants_refresh = pairs(&from).any(|(name, value)| {
            (name, &*value) == ("offline_token", "true") || (name, &*value) == ("access_type", "offline")
        });
        let refresh = match &user {
            Some(user) if wants_refresh && self.gives_refresh => {
                let refresh = format!("CANARY-REFRESH-{port}-{}", self.serial);
                self.refreshing.insert(refresh.clone(), user.clone());
                format!(",\"refresh_token\":\"{refresh}\"")
            }
            _ => String::new(),
        };
        self.tokens.insert(token.clone(), Issued { user, scopes });
        let life = if self.jwt.is_some() { "" } else { ",\"expires_in\":300" };
        Reply::new(200, "application/json", format!("{{\"{field}\":\"{token}\"{life}{refresh}}}"))
    }

    /// `/oauth2/exchange`.
    pub fn exchange(&mut self, request: &Request) -> Reply {
        let shown = request.parameter("access_token").unwrap_or_default();
        let Some(user) = self.directory.get(&shown).cloned() else { return error(401, "UNAUTHORIZED") };
        self.serial += 1;
        let refresh = jwt_of(11_700, self.serial, &user);
        self.refreshing.insert(refresh.clone(), user);
        Reply::new(200, "application/json", format!("{{\"refresh_token\":\"{refresh}\"}}"))
    }

    fn who(&self, request: &Request) -> Result<Option<String>, Box<Reply>> {
        let refused = || Err(Box::new(error(401, "UNAUTHORIZED")));
        if let Some(token) = request.parameter("refresh_token").filter(|_| request.method == "POST") {
            return self.refreshing.get(&token).map_or_else(refused, |user| Ok(Some(user.clone())));
        }
        let basic = request.header("authorization").and_then(|text| text.strip_prefix("Basic "));
        let account = match basic {
            Some(basic) => {
                let text =
                    STANDARD.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
                text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
            }
            None => request.parameter("username").zip(request.parameter("password")),
        };
        match account {
            None => Ok(None),
            // As Azure takes a refresh token behind the null user.
            Some((name, password)) if name.starts_with("00000000-") => {
                self.refreshing.get(&password).map_or_else(refused, |user| Ok(Some(user.clone())))
            }
            Some((name, password)) if self.passwords.get(&name) == Some(&password) => Ok(Some(name)),
            Some(_) => refused(),
        }
    }
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.replace('+', " ");
        Some((name, percent_encoding::percent_decode_str(&value).decode_utf8_lossy().into_owned()))
    })
}
