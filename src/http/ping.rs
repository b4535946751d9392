//! `/v2/`: does a registry answer here, and does it take this credential?
//!
//! docker, podman, crane and az take realm and service from here alone, so it challenges as soon as any upstream that
//! can be meant may want a credential.

use http::{Method, Response, StatusCode};
use tokio::time::Instant;

use super::access::is_own_account;
use super::asked::Asked;
use super::body::Body;
use super::caller::{Standing, about_relay, not_in_the_file, takes_credentials};
use super::challenge::TokenError;
use super::credential::{Account, Presented};
use super::explain::explain;
use super::respond::{Failure, json};
use super::route::{Form, Ping};
use super::seal::Kind as Pass;
use crate::cache::ANSWER_WITHIN;
use crate::config::Upstream;
use crate::metrics::Kind;
use crate::upstream::Right;

/// What a caller reads who has shown nothing.
const LOG_IN: &str = "authentication required: get a token of the realm, without credentials for what is public";

/// Answers a request for `/v2/`.
pub(super) async fn answer(asked: &Asked<'_>, ping: &Ping) -> Result<Response<Body>, Failure> {
    if !matches!(asked.parts.method, Method::GET | Method::HEAD) {
        return Err(Failure::method("/v2/ can be read only"));
    }
    let challenge = |error, message: String| asked.place().challenge(ping.upstream.as_ref(), None, error, message);
    if wants_credentials(asked, ping)? {
        match Presented::of(&asked.parts.headers) {
            Ok(Presented::Nothing) => return Err(challenge(None, LOG_IN.to_owned())),
            Ok(Presented::Basic(account)) => {
                if let Some(refused) = refusal(asked, ping, &account).await? {
                    return Err(challenge(None, refused));
                }
            }
            Ok(Presented::Bearer(token)) => {
                let pass = asked.app.seal.open(token.expose(), Pass::Access, asked.app.clock.now());
                let pass =
                    pass.map_err(|unopened| challenge(Some(TokenError::Invalid), format!("{unopened}; log in again")))?;
                asked.refuse_plain_pass(&pass)?;
            }
            Err(malformed) => return Err(challenge(None, malformed.to_string())),
        }
    }
    Ok(json(StatusCode::OK, "{}"))
}

/// Whether any upstream that this request can mean may want to know who asks. Without a host in the address these are
/// all of them.
fn wants_credentials(asked: &Asked<'_>, ping: &Ping) -> Result<bool, Failure> {
    let wants = |upstream: &Upstream| {
        takes_credentials(upstream) || is_own_account(upstream) && asked.listener.htpasswd.is_some()
    };
    match (&ping.upstream, ping.form) {
        (_, Form::Default) | (None, _) => Ok(asked.app.config.upstreams.values().any(|upstream| wants(upstream))),
        (Some(name), _) => asked.upstream(name).map(|upstream| wants(upstream)),
    }
}

/// Why a name and password are not taken; none: they are.
async fn refusal(asked: &Asked<'_>, ping: &Ping, account: &Account) -> Result<Option<String>, Failure> {
    let Some(name) = &ping.upstream else {
        return Ok(Some("no upstream is meant here that a name and password could be for".to_owned()));
    };
    let upstream = asked.upstream(name)?;
    let deadline = Instant::now() + ANSWER_WITHIN;
    let standing = Standing::of_account(asked, upstream, account).await?;
    if standing.user.is_some() {
        return Ok(None);
    }
    let Some(credential) = standing.credential else {
        return Ok(Some(not_in_the_file(asked, upstream).unwrap_or_else(|| {
            format!("this name and password are not taken for {name}{}", about_relay(asked, upstream))
        })));
    };
    let registry = asked.registry(name)?;
    let right = Right::Client(credential.lend(&asked.app.seal));
    match registry.accepts(&right, deadline).await {
        Ok(true) => Ok(None),
        Ok(false) => Ok(Some(
            not_in_the_file(asked, upstream)
                .unwrap_or_else(|| format!("upstream {name} refuses this name and password")),
        )),
        Err(error) => Err(explain(error.into(), Kind::Other)),
    }
}
