//! Who asks: from the `Authorization` field, the listener and the upstream's configuration to the right by which a
//! request acts.
//!
//! A credential belongs to the upstream of the Host, else to the listener's default; for all others its bearer is
//! anonymous unless `relay_credentials` says otherwise. Tokens are ocistern's own and hold what is lent to upstream.

use std::time::Duration;

use http::StatusCode;

use super::Visit;
use super::access::{is_own_account, loopback_trust};
use super::asked::Asked;
use super::challenge::TokenError;
use super::credential::{Account, Presented};
use super::htpasswd::{HtpasswdError, Line};
use super::need::Need;
use super::respond::Failure;
use super::route::Route;
use super::seal::{Credential, Inner, Kind, Unopened};
use crate::cache::Want;
use crate::config::{Credentials, PushBy, Upstream};
use crate::oci::{Action, ErrorCode, Resource, Scope, UpstreamName};
use crate::upstream::{Lent, Right};

/// When a caller whose credential upstream could not confirm may try to write again.
const CONFIRM_AGAIN: Duration = Duration::from_secs(5);

/// When a caller may try again whose credential could not be looked up in the htpasswd file: most hashes that others wait for
/// are done by then.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Of a name and password that are not even looked at.
pub(super) const MANY_IN_QUESTION: &str = "as many names and passwords as are looked up at once for one address";

/// Who asks for something of an upstream.
#[derive(Debug)]
pub(super) struct Caller {
    /// By whose right this request acts.
    pub(super) right: Right,
    /// To whom uploads belong that it makes: a user, or the subject of a token that upstream gave.
    pub(super) owner: Option<String>,
    /// What its credential is for.
    pub(super) allowed: Allowed,
    /// Upstream could not be asked whether its credential is right: it writes nothing.
    pub(super) unconfirmed: bool,
    /// Let in by htpasswd or a client certificate.
    pub(super) trusted: bool,
    /// What it showed.
    pub(super) showed: Showed,
}

/// What a credential is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Whatever upstream allows: no token was shown.
    All,
    /// What the token was asked for.
    Only(Vec<Scope>),
}

/// What kind of credential a request shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Showed {
    /// None.
    Nothing,
    /// A name and password.
    Basic,
    /// The name of a user of the listener's htpasswd file, and not the password. It goes nowhere, and is refused
    /// everywhere, in the words that a stranger is refused in: else names could be tried out. Two things still differ, by
    /// intent. Where a stranger is let in for another reason (from this machine, by a certificate), this is refused: only
    /// who needs no password there can see that. And where upstream takes clients' credentials, a stranger's is upstream's
    /// to judge: what upstream accepts, or its silence, tells that the name is not one of the file; to show it this one too
    /// would hand a user's password to somebody else. A name opens nothing, and every guess costs a hash in both cases.
    Mistyped,
    /// A token of ocistern's.
    Token,
}

/// What a credential makes of its bearer at one upstream.
#[derive(Debug)]
pub(super) struct Standing {
    /// What upstream may be shown.
    pub(super) credential: Option<Credential>,
    /// The user of the listener's htpasswd file that it is.
    pub(super) user: Option<Member>,
    pub(super) allowed: Allowed,
    pub(super) showed: Showed,
}

/// A user of a listener's htpasswd file.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    /// By which it was let in.
    pub(super) line: Line,
}

/// Who asks for the resource of `route`, and whether it may: to the extent that ocistern decides it.
pub(super) async fn identify(asked: &Asked<'_>, route: &Route) -> Result<Caller, Failure> {
    let upstream = asked.upstream(&route.upstream)?;
    let need = Need::of(asked, route);
    let standing = match Presented::of(&asked.parts.headers) {
        Ok(Presented::Nothing) => Standing::nobody(),
        Ok(Presented::Basic(account)) => Standing::of_account(asked, upstream, &account).await?,
        Ok(Presented::Bearer(token)) => Standing::of_token(asked, upstream, token.expose(), &need).await?,
        Err(malformed) => return Err(need.challenge(asked, upstream, None, malformed.to_string())),
    };
    if !need.is_met_by(&standing.allowed) {
        let message = format!("the token was not issued for this; ask for one with the scope {}", need.scope());
        return Err(need.challenge(asked, upstream, Some(TokenError::Scope), message));
    }
    let lent = standing.credential.as_ref().map(|credential| credential.lend(&asked.app.seal));
    let mut caller = Caller {
        right: Right::Anonymous,
        owner: standing.user.map(|user| format!("user:{}", user.name)),
        allowed: standing.allowed,
        unconfirmed: standing.credential.as_ref().is_some_and(|credential| credential.unconfirmed),
        trusted: false,
        showed: standing.showed,
    };
    caller.trusted = caller.owner.is_some() || (asked.is_certified() && caller.showed != Showed::Mistyped);
    caller.owner = caller.owner.or(standing.credential.and_then(|credential| credential.owner));
    caller.right = if need.writes {
        caller.writing(asked, upstream, &need, lent)?
    } else {
        caller.reading(asked, upstream, &need, lent)?
    };
    Ok(caller)
}

// === impl Caller ===

impl Caller {
    /// What a HEAD is answered from. The cache alone may answer where nobody can push, and who holds a token that was
    /// issued for pull alone; anybody else may be about to push, and would leave out what upstream does not have.
    pub(super) fn head(&self, upstream: &Upstream) -> Want {
        match &self.allowed {
            _ if upstream.push == PushBy::Off => Want::Description,
            Allowed::All => Want::Confirmed,
            Allowed::Only(scopes) if scopes.iter().all(Scope::only_reads) => Want::Description,
            Allowed::Only(_) => Want::Required,
        }
    }

    /// Whose right a pull uses.
    fn reading(
        &self,
        asked: &Asked<'_>,
        upstream: &Upstream,
        need: &Need<'_>,
        lent: Option<Lent>,
    ) -> Result<Right, Failure> {
        match upstream.credentials {
            Credentials::Anonymous => Ok(Right::Anonymous),
            Credentials::Auto => Ok(lent.map_or(Right::Anonymous, Right::Client)),
            Credentials::Client => lent.map(Right::Client).ok_or_else(|| self.unknown(asked, upstream, need)),
            Credentials::Static { .. }
            | Credentials::DockerConfig { .. }
            | Credentials::Helper { .. }
            | Credentials::Azure { .. }
            | Credentials::Ecr { .. } => self.shared(asked, upstream, need),
        }
    }

    /// Whose right a push or delete uses.
    fn writing(
        &self,
        asked: &Asked<'_>,
        upstream: &Upstream,
        need: &Need<'_>,
        lent: Option<Lent>,
    ) -> Result<Right, Failure> {
        match upstream.push {
            PushBy::Off => {
                let message = format!(
                    "ocistern is configured not to write to {0} (push = \"off\"); set push = \"client\" or \"shared\" in \
                     [upstream.\"{0}\"]",
                    upstream.name
                );
                Err(Failure::method(message))
            }
            PushBy::Client if self.unconfirmed => {
                let message = format!(
                    "upstream {} could not be asked whether this credential is right, so nothing is written with it; \
                     get another token and try again",
                    upstream.name
                );
                let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, message);
                Err(failure.with_retry_after(Some(CONFIRM_AGAIN)))
            }
            PushBy::Client => match lent {
                Some(lent) => Ok(Right::Client(lent)),
                None if self.showed == Showed::Mistyped && asked.place().belongs_to(upstream) => {
                    Err(self.unknown(asked, upstream, need))
                }
                None if matches!(upstream.credentials, Credentials::Client) => Err(self.unknown(asked, upstream, need)),
                // Upstream may let everybody write; where it does not, its refusal becomes a challenge.
                None => Ok(Right::Anonymous),
            },
            // What a name at the other end of a loopback connection is worth suffices to read, never to write.
            PushBy::Shared if self.trusted && is_own_account(upstream) => Ok(Right::Shared),
            PushBy::Shared => Err(self.not_trusted(
                asked,
                upstream,
                need,
                &format!(
                    "ocistern pushes to {} by an account of its own, for callers that it knows only",
                    upstream.name
                ),
            )),
        }
    }

    /// What upstream gave to ocistern's own account is not for everybody who can connect.
    fn shared(&self, asked: &Asked<'_>, upstream: &Upstream, need: &Need<'_>) -> Result<Right, Failure> {
        let trust = loopback_trust(&asked.peer, &asked.listener.config, asked.host, &asked.parts.headers);
        let is_own = trust.is_ok() && self.showed != Showed::Mistyped;
        if self.trusted || is_own {
            return Ok(Right::Shared);
        }
        let reason = trust.map_or_else(|reason| reason.to_string(), |()| "this is none of their passwords".to_owned());
        let message = format!(
            "ocistern pulls {} by an account of its own, whose content is for clients on its machine and for callers \
             that it knows: {reason}",
            upstream.name
        );
        Err(self.not_trusted(asked, upstream, need, &message))
    }

    fn not_trusted(&self, asked: &Asked<'_>, upstream: &Upstream, need: &Need<'_>, message: &str) -> Failure {
        if asked.listener.htpasswd.is_some() {
            let message = format!("{message}; log in with a name and password of the listener's htpasswd file");
            return need.challenge(asked, upstream, self.token_error(), message);
        }
        let message = format!("{message}; use a listener with htpasswd or tls.client_ca");
        Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message)
    }

    /// Upstream wants to know who asks.
    fn unknown(&self, asked: &Asked<'_>, upstream: &Upstream, need: &Need<'_>) -> Failure {
        let message = format!("upstream {} is for callers with a credential of their own; log in", upstream.name);
        need.challenge(asked, upstream, self.token_error(), message + &about_relay(asked, upstream))
    }

    /// What a challenge says about the token that was not enough.
    fn token_error(&self) -> Option<TokenError> {
        (self.showed == Showed::Token).then_some(TokenError::Scope)
    }

    /// The 401 that follows from upstream's own refusal; none where a credential of the caller's would change nothing.
    pub(super) fn challenged(&self, visit: &Visit<'_>, error: Option<TokenError>, message: String) -> Option<Failure> {
        let upstream = visit.asked.upstream(&visit.route.upstream).ok()?;
        let need = Need::of(&visit.asked, visit.route);
        let counts = if need.writes {
            upstream.push == PushBy::Client
        } else {
            matches!(upstream.credentials, Credentials::Auto | Credentials::Client)
        };
        let error = error.filter(|_| self.showed == Showed::Token).or_else(|| self.token_error());
        let message = message + &about_relay(&visit.asked, upstream);
        counts.then(|| need.challenge(&visit.asked, upstream, error, message))
    }
}

// === impl Visit ===

impl Visit<'_> {
    /// Whether upstream's challenge to a question about what its caller may see is the client's to answer: clients show
    /// what they have when they are challenged, and would take what everybody may see for all that there is.
    pub(super) fn leaves_challenges(&self) -> bool {
        let upstream = self.asked.upstream(&self.route.upstream);
        let is_auto = upstream.is_ok_and(|upstream| matches!(upstream.credentials, Credentials::Auto));
        is_auto && self.caller.showed == Showed::Nothing
    }
}

// === impl Standing ===

impl Standing {
    /// Of who shows nothing.
    pub(super) const fn nobody() -> Self {
        Self { credential: None, user: None, allowed: Allowed::All, showed: Showed::Nothing }
    }

    /// Of a name and password.
    pub(super) async fn of_account(asked: &Asked<'_>, upstream: &Upstream, account: &Account) -> Result<Self, Failure> {
        asked.refuse_plain()?;
        let mut standing = Self { showed: Showed::Basic, ..Self::nobody() };
        if is_own_account(upstream)
            && let Some(file) = &asked.listener.htpasswd
        {
            let shown = (account.username.as_str(), account.password.expose());
            let right = file.check(&asked.app.seal, shown, asked.party()).await;
            if let Some(line) = right.map_err(undecided)? {
                // It is not upstream's: it goes no further.
                standing.user = Some(Member { name: account.username.clone(), line });
                return Ok(standing);
            }
            // Nor does one that was mistyped, or has been changed since.
            if file.knows(&account.username) {
                standing.showed = Showed::Mistyped;
                return Ok(standing);
            }
        }
        // Elsewhere its bearer is anonymous.
        if !takes_credentials(upstream) || !asked.place().belongs_to(upstream) {
            return Ok(standing);
        }
        let credential = account.credential(&asked.app.seal, upstream, asked.app.clock.now());
        standing.credential = credential.map_err(|unopened| invalid(asked, upstream, None, unopened))?;
        Ok(standing)
    }

    /// Of a token.
    async fn of_token(asked: &Asked<'_>, upstream: &Upstream, token: &str, need: &Need<'_>) -> Result<Self, Failure> {
        let pass = asked.app.seal.open(token, Kind::Access, asked.app.clock.now());
        let pass = pass.map_err(|unopened| invalid(asked, upstream, Some(need), unopened))?;
        asked.refuse_plain_pass(&pass)?;
        let mut standing = Self { showed: Showed::Token, allowed: Allowed::Only(Vec::new()), ..Self::nobody() };
        let Some(grant) = pass.grant(upstream).cloned() else { return Ok(standing) };
        standing.allowed = Allowed::Only(grant.scopes);
        match grant.inner {
            Inner::Anonymous => {}
            Inner::Lent(credential) => standing.credential = Some(credential),
            Inner::Local { file, user: name, line } => {
                // Another listener may have another file.
                let own = asked.listener.htpasswd.as_ref().filter(|own| own.path().as_os_str() == file.as_str());
                let line = Line(line);
                if let Some(own) = own
                    && own.has(&asked.app.seal, &name, line, asked.party()).await.map_err(undecided)?
                {
                    standing.user = Some(Member { name, line });
                }
            }
        }
        Ok(standing)
    }
}

/// It is not known whether the caller is let in.
fn undecided(error: HtpasswdError) -> Failure {
    let failure = match &error {
        HtpasswdError::Unusable { .. } => return Failure::internal(error),
        HtpasswdError::Late { .. } => Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "ocistern could not look up this credential in its htpasswd file in time: it is busy with those of others, or \
             the file's disk does not answer; try again",
        ),
        HtpasswdError::TooMany { .. } => Failure::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooManyRequests,
            format!("ocistern is busy with {MANY_IN_QUESTION}; try again"),
        ),
    };
    failure.with_retry_after(Some(LOOK_AGAIN)).with_source(error)
}

/// Whether a caller's own credential is of any use at an upstream.
pub(super) const fn takes_credentials(upstream: &Upstream) -> bool {
    matches!(upstream.credentials, Credentials::Auto | Credentials::Client) || matches!(upstream.push, PushBy::Client)
}

/// What is said of a name and password that are not in the listener's htpasswd file, whoever refused them in the end:
/// not whether the file has the name. None: there is no such file, or it is not for this upstream.
pub(super) fn not_in_the_file(asked: &Asked<'_>, upstream: &Upstream) -> Option<String> {
    if !is_own_account(upstream) || asked.listener.htpasswd.is_none() {
        return None;
    }
    let judged = if takes_credentials(upstream) && asked.place().belongs_to(upstream) {
        format!(", and upstream {} does not take them", upstream.name)
    } else {
        String::new()
    };
    Some(format!("the listener's htpasswd file has no such name and password{judged}"))
}

/// How credentials get to an upstream that gets none of those that are shown here; empty where it gets them.
pub(super) fn about_relay(asked: &Asked<'_>, upstream: &Upstream) -> String {
    let place = asked.place();
    if place.belongs_to(upstream) {
        return String::new();
    }
    format!(
        ". Credentials that clients show here belong to {}: relay_credentials = true in [upstream.\"{}\"] passes them \
         on",
        place.home().map_or("no upstream", UpstreamName::as_str),
        upstream.name
    )
}

fn invalid(asked: &Asked<'_>, upstream: &Upstream, need: Option<&Need<'_>>, unopened: Unopened) -> Failure {
    let message = format!("{unopened}; get another one");
    let scope = need.map(Need::scope);
    asked.place().challenge(Some(&upstream.name), scope.as_deref(), Some(TokenError::Invalid), message)
}

// === impl Allowed ===

impl Allowed {
    /// Whether it is for this action.
    pub(super) fn allows(&self, resource: &Resource, action: Action) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.iter().any(|scope| scope.resource == *resource && scope.actions.allow(action)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn who_is_not_looked_up_in_time_may_come_again() {
        let path = || "/users".into();
        for (error, status, code, again) in [
            (HtpasswdError::Late { path: path() }, 503, ErrorCode::Unavailable, true),
            (HtpasswdError::TooMany { path: path() }, 429, ErrorCode::TooManyRequests, true),
            (HtpasswdError::Unusable { path: path(), source: io::Error::other("x") }, 500, ErrorCode::Unknown, false),
        ] {
            let failure = undecided(error);
            let is = (failure.status.as_u16(), failure.code, failure.retry_after.is_some());
            assert_eq!(is, (status, code, again));
            assert!(!failure.message.contains("/users") && failure.source.is_some(), "the file is for the log");
        }
    }
}
