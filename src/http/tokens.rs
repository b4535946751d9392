//! The token endpoints: from a name and password, or a refresh token, to a token of ocistern's.
//!
//! distribution's specifications "Token Authentication" (GET) and "`OAuth2` Token Authentication" (POST), and
//! `/oauth2/exchange` of Azure Container Registry. Who shows nothing gets a token that says so, without upstream being
//! asked. Everything else is asked of the upstream that the credential belongs to; where that cannot be asked, the token
//! is "unconfirmed": good for a minute, for what is public or was allowed before.

use std::time::{Duration, SystemTime};

use http::header::{ALLOW, CACHE_CONTROL, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::asked::Asked;
use super::body::Body;
use super::caller::{Member, Standing, about_relay, not_in_the_file, takes_credentials};
use super::credential::{Account, Presented, inside, owner_of};
use super::explain::explain;
use super::form::Form;
use super::htpasswd::Line;
use super::inbound::Inbound;
use super::respond::{self, Failure};
use super::seal::{self, Credential, Grant, Hidden, Inner, Kind, Pass, Shown, Unopened, looks_sealed, seconds};
use super::token_route::{TokenEndpoint, TokenRoute};
use crate::cache::ANSWER_WITHIN;
use crate::config::Upstream;
use crate::metrics;
use crate::oci::{ErrorCode, Scope, UpstreamName};
use crate::upstream::{
    Class, ClientCredential, Fault, GrantMethod, GrantRequest, Granted, Secret, TokenFault, UpstreamError, is_secret,
};

/// Longest form.
const MAX_FORM: usize = 64 * 1024;
/// Time for the whole form to come.
const FORM_WITHIN: Duration = Duration::from_secs(20);
/// Upstreams that one token is for.
const MAX_UPSTREAMS: usize = 8;
/// Life of a token for what everybody may read, as Azure gives it.
const ANONYMOUS_LIFE: Duration = Duration::from_mins(20);
/// Life of a token that holds a name and password: of the listener's file, or of an upstream that gives no tokens.
const ACCOUNT_LIFE: Duration = Duration::from_mins(5);
/// Life of a token at least: some upstreams give tokens that have expired when they arrive, and clients would ask for
/// ever. Upstream still judges what is inside.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);
/// Life of a token that upstream could not confirm.
const UNCONFIRMED_LIFE: Duration = Duration::from_mins(1);

/// A request for a token.
struct TokenRequest {
    credential: Offered,
    scopes: Vec<Scope>,
    method: GrantMethod,
    /// A refresh token is wanted, too.
    offline: bool,
    client_id: Option<String>,
}

/// What is shown to get a token.
enum Offered {
    Nothing,
    Account(Account),
    /// A refresh token: ocistern's, or upstream's own from before ocistern stood in between.
    Refresh(Hidden),
}

/// What there is for one upstream.
struct Given {
    grant: Grant,
    life: Duration,
    /// Upstream's refresh token.
    refresh: Option<Credential>,
}

/// Answers a request to a token endpoint.
pub(super) async fn answer(asked: &Asked<'_>, route: &TokenRoute, body: Inbound) -> Result<Response<Body>, Failure> {
    match (route.what, &asked.parts.method) {
        (TokenEndpoint::Token, &Method::GET) => {
            let form = parsed(asked.parts.uri.query().unwrap_or_default())?;
            token(asked, route, TokenRequest::of_query(asked, &form)?).await
        }
        (TokenEndpoint::Token, &Method::POST) => {
            let form = read(body).await?;
            token(asked, route, TokenRequest::of_form(asked, &form)?).await
        }
        (TokenEndpoint::Exchange, &Method::POST) => exchange(asked, route, read(body).await?).await,
        (what, _) => {
            let allowed = if what == TokenEndpoint::Token { "GET, POST" } else { "POST" };
            let message = "a token endpoint has no such method";
            let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, message);
            Err(failure.with_header(ALLOW, HeaderValue::from_static(allowed)))
        }
    }
}

async fn read(body: Inbound) -> Result<Form, Failure> {
    let bad = |message: &str| Failure::bad_request(ErrorCode::Unsupported, message).closing();
    let collected = timeout(FORM_WITHIN, Limited::new(body, MAX_FORM).collect()).await;
    let collected = collected.map_err(|_| {
        let message = "the form of the token request did not come in time";
        Failure::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Unsupported, message).closing()
    })?;
    let bytes = collected.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("the form of a token request is larger than {MAX_FORM} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, message).closing()
        } else {
            bad("the form of the token request broke off")
        }
    })?;
    let text = String::from_utf8(bytes.to_bytes().to_vec()).map_err(|_| bad("the form is not text"))?;
    parsed(&text)
}

fn parsed(text: &str) -> Result<Form, Failure> {
    Form::parse(text).map_err(|error| {
        Failure::bad_request(ErrorCode::Unsupported, format!("the parameters of the token request: {error}"))
    })
}

// === impl TokenRequest ===

impl TokenRequest {
    fn of_query(asked: &Asked<'_>, form: &Form) -> Result<Self, Failure> {
        Ok(Self {
            credential: presented(asked)?,
            scopes: scopes(form)?,
            method: GrantMethod::Get,
            offline: form.get("offline_token").is_some_and(|value| value.eq_ignore_ascii_case("true")),
            client_id: form.get("client_id").map(ToOwned::to_owned),
        })
    }

    fn of_form(asked: &Asked<'_>, form: &Form) -> Result<Self, Failure> {
        let account = || match (form.get("username"), form.get("password")) {
            (None, None) => None,
            (name, password) => match Presented::account(name.unwrap_or_default(), password.unwrap_or_default()) {
                Presented::Basic(account) => Some(Offered::Account(account)),
                _ => None,
            },
        };
        let credential = match form.get("grant_type") {
            Some("refresh_token") => match form.get("refresh_token") {
                Some(token) => Offered::Refresh(Hidden::new(token)),
                None => Offered::Nothing,
            },
            Some("password") | None => match account() {
                Some(account) => account,
                None => presented(asked)?,
            },
            Some(_) => {
                let message = "this grant_type is not served; password and refresh_token are";
                return Err(Failure::bad_request(ErrorCode::Unsupported, message));
            }
        };
        Ok(Self {
            credential,
            scopes: scopes(form)?,
            method: GrantMethod::Post,
            offline: form.get("access_type") == Some("offline"),
            client_id: form.get("client_id").map(ToOwned::to_owned),
        })
    }
}

fn presented(asked: &Asked<'_>) -> Result<Offered, Failure> {
    match Presented::of(&asked.parts.headers) {
        Ok(Presented::Nothing) => Ok(Offered::Nothing),
        Ok(Presented::Basic(account)) => Ok(Offered::Account(account)),
        Ok(Presented::Bearer(token)) => Ok(Offered::Refresh(token)),
        Err(malformed) => Err(refused(asked, malformed.to_string())),
    }
}

fn scopes(form: &Form) -> Result<Vec<Scope>, Failure> {
    Scope::parse_all(form.all("scope")).map_err(|invalid| {
        Failure::bad_request(ErrorCode::NameInvalid, format!("the scope of the token request: {invalid}"))
    })
}

// === access tokens ===

async fn token(asked: &Asked<'_>, route: &TokenRoute, request: TokenRequest) -> Result<Response<Body>, Failure> {
    if !matches!(request.credential, Offered::Nothing) {
        asked.refuse_plain()?;
    }
    let deadline = Instant::now() + ANSWER_WITHIN;
    let now = asked.app.clock.now();
    let mut life = ANONYMOUS_LIFE;
    let (mut grants, mut refreshing) = (Vec::new(), Vec::new());
    for (name, scopes) in placed(asked, route, &request)? {
        let upstream = asked.upstream(&name)?;
        let given = give(asked, upstream, scopes, &request, deadline).await?;
        life = if grants.is_empty() { given.life } else { life.min(given.life) };
        if let Some(credential) = given.refresh {
            refreshing.push(Grant::new(upstream, Vec::new(), Inner::Lent(credential)));
        }
        grants.push(given.grant);
    }
    let pass = Pass::new(Kind::Access, seconds(now), Some(seconds(now + life)), grants);
    let token = seal(asked, &pass, now)?;
    let mut body = json!({
        "token": token,
        "access_token": token,
        "expires_in": life.as_secs().max(1),
        "issued_at": rfc3339(seconds(now)),
    });
    if !refreshing.is_empty() {
        body["refresh_token"] = seal(asked, &refresh_pass(refreshing, now), now)?.into();
    }
    Ok(answered(&body))
}

/// The scopes of a request by upstream and its names; without any, the endpoint's own upstream.
fn placed(
    asked: &Asked<'_>,
    route: &TokenRoute,
    request: &TokenRequest,
) -> Result<Vec<(UpstreamName, Vec<Scope>)>, Failure> {
    let mut groups: Vec<(UpstreamName, Vec<Scope>)> = Vec::new();
    for scope in &request.scopes {
        // Of what is not configured there is nothing to give.
        let Some((upstream, scope)) = route.place(&asked.app.directory, scope.clone()) else { continue };
        let index = groups.iter().position(|(name, _)| *name == upstream).unwrap_or_else(|| {
            groups.push((upstream, Vec::new()));
            groups.len() - 1
        });
        let Some((_, scopes)) = groups.get_mut(index) else { continue };
        match scopes.iter_mut().find(|known| known.resource == scope.resource) {
            Some(known) => known.actions = known.actions.and(scope.actions),
            None => scopes.push(scope),
        }
    }
    if groups.len() > MAX_UPSTREAMS {
        let message = format!("a token is for {MAX_UPSTREAMS} upstreams at most");
        return Err(Failure::bad_request(ErrorCode::Unsupported, message));
    }
    if groups.is_empty() {
        groups.extend(route.upstream.clone().map(|upstream| (upstream, Vec::new())));
    }
    Ok(groups)
}

/// What there is for one upstream.
async fn give(
    asked: &Asked<'_>,
    upstream: &Upstream,
    scopes: Vec<Scope>,
    request: &TokenRequest,
    deadline: Instant,
) -> Result<Given, Failure> {
    let grant = |inner| Grant::new(upstream, scopes.clone(), inner);
    let credential = match &request.credential {
        Offered::Nothing => None,
        Offered::Account(account) => {
            let standing = Standing::of_account(asked, upstream, account).await?;
            if let (Some(Member { name: user, line: Line(line) }), Some(file)) =
                (standing.user, &asked.listener.htpasswd)
            {
                let inner = Inner::Local { file: file.path().to_string_lossy().into_owned(), user, line };
                return Ok(Given { grant: grant(inner), life: ACCOUNT_LIFE, refresh: None });
            }
            if standing.credential.is_none()
                && let Some(message) = not_in_the_file(asked, upstream)
            {
                return Err(refused(asked, message));
            }
            standing.credential
        }
        Offered::Refresh(token) => refresh_credential(asked, upstream, token.expose())?,
    };
    let Some(credential) = credential else {
        return Ok(Given { grant: grant(Inner::Anonymous), life: ANONYMOUS_LIFE, refresh: None });
    };
    let is_account = matches!(credential.secret, Shown::Basic { .. });
    let shown = match &credential.secret {
        Shown::Basic { username, password } => {
            ClientCredential::Basic { username: username.clone(), password: Secret::new(password.expose()) }
        }
        Shown::Token(token) | Shown::Refresh(token) => ClientCredential::Refresh(Secret::new(token.expose())),
    };
    let wanted = GrantRequest {
        credential: shown,
        scopes: scopes.iter().map(ToString::to_string).collect(),
        method_hint: request.method,
        offline: request.offline,
        client_id: request.client_id.clone(),
    };
    match asked.registry(&upstream.name)?.grant(wanted, deadline).await {
        Ok(Granted::Token { token, expires_in, refresh_token, claims: _ }) => {
            let token = token.expose();
            let owner = credential.owner.clone().or_else(|| owner_of(token));
            let lent = Credential { secret: Shown::Token(Hidden::new(token)), owner, unconfirmed: false, ..credential };
            let refresh = refresh_token.map(|token| Credential::refresh(&asked.app.seal, token.expose()));
            Ok(Given { grant: grant(Inner::Lent(lent)), life: expires_in.max(SHORTEST_LIFE), refresh })
        }
        Ok(Granted::Basic) => {
            let confirmed = Credential { unconfirmed: false, ..credential };
            Ok(Given { grant: grant(Inner::Lent(confirmed)), life: ACCOUNT_LIFE, refresh: None })
        }
        Err(error) if error.class() == Class::Unavailable => {
            tracing::info!(upstream = %upstream.name, fault = %error.fault, "a credential cannot be confirmed");
            let unconfirmed = Credential { unconfirmed: true, ..credential };
            Ok(Given { grant: grant(Inner::Lent(unconfirmed)), life: UNCONFIRMED_LIFE, refresh: None })
        }
        Err(error) => match not_in_the_file(asked, upstream) {
            Some(message) if is_account && matches!(error.fault, Fault::Unauthorized { .. }) => {
                Err(refused(asked, message).with_source(error))
            }
            _ => Err(relayed(asked, error)),
        },
    }
}

/// The credential of `upstream` that a refresh token is; none: it is another upstream's.
fn refresh_credential(asked: &Asked<'_>, upstream: &Upstream, token: &str) -> Result<Option<Credential>, Failure> {
    let seal = &asked.app.seal;
    if looks_sealed(token) {
        let pass = seal.open(token, Kind::Refresh, asked.app.clock.now());
        return match pass {
            Ok(pass) => Ok(inside(&pass, upstream)),
            Err(unopened) => Err(refused(asked, format!("{unopened}; log in again"))),
        };
    }
    let belongs = takes_credentials(upstream) && asked.place().belongs_to(upstream);
    Ok(belongs.then(|| Credential::refresh(seal, token)))
}

// === refresh tokens ===

async fn exchange(asked: &Asked<'_>, route: &TokenRoute, form: Form) -> Result<Response<Body>, Failure> {
    asked.refuse_plain()?;
    let Some(name) = &route.upstream else {
        let message = "this listener has no default_upstream whose tokens could be exchanged";
        return Err(Failure::new(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, message));
    };
    let upstream = asked.upstream(name)?;
    if !takes_credentials(upstream) || !asked.place().belongs_to(upstream) {
        let reason = about_relay(asked, upstream);
        return Err(refused(asked, format!("credentials are not taken for upstream {name} here{reason}")));
    }
    let now = asked.app.clock.now();
    let mut fields = form.into_fields();
    for (name, value) in &mut fields {
        if !looks_sealed(value) {
            continue;
        }
        // Only there upstream's words are searched for what was inside.
        if !is_secret(name) {
            return Err(refused(asked, "a token was sent in a field that is not for tokens".to_owned()));
        }
        *value = unsealed(asked, upstream, value, now)?;
    }
    let token = asked.registry(name)?.exchange(fields, Instant::now() + ANSWER_WITHIN).await;
    let token = token.map_err(|error| relayed(asked, error))?;
    let inner = Inner::Lent(Credential::refresh(&asked.app.seal, &token));
    let pass = refresh_pass(vec![Grant::new(upstream, Vec::new(), inner)], now);
    Ok(answered(&json!({ "refresh_token": seal(asked, &pass, now)? })))
}

/// What a token of ocistern's holds for `upstream`.
fn unsealed(asked: &Asked<'_>, upstream: &Upstream, token: &str, now: SystemTime) -> Result<String, Failure> {
    let seal = &asked.app.seal;
    let pass = match seal.open(token, Kind::Refresh, now) {
        Err(Unopened::Foreign) => seal.open(token, Kind::Access, now),
        opened => opened,
    };
    let pass = pass.map_err(|unopened| refused(asked, format!("{unopened}; log in again")))?;
    match inside(&pass, upstream).map(|credential| credential.secret) {
        Some(Shown::Token(token) | Shown::Refresh(token)) => Ok(token.expose().to_owned()),
        Some(Shown::Basic { .. }) | None => {
            Err(refused(asked, format!("the token holds none of upstream {}'s; log in again", upstream.name)))
        }
    }
}

/// A token that is exchanged for others: it ends with the first of those inside that says when it does.
fn refresh_pass(grants: Vec<Grant>, now: SystemTime) -> Pass {
    let life = |grant: &Grant| {
        let Inner::Lent(Credential { secret: Shown::Refresh(token), .. }) = &grant.inner else { return None };
        let claims = seal::claims(token.expose())?;
        let time = |name: &str| claims.get(name)?.as_f64().filter(|time| *time >= 0.0);
        // It was made just now, whatever upstream's clock says of that.
        let begin = time("iat").or_else(|| time("nbf"));
        let begin = begin.unwrap_or_else(|| Duration::from_secs(seconds(now)).as_secs_f64());
        Duration::try_from_secs_f64(time("exp")? - begin).ok()
    };
    let end = grants.iter().filter_map(life).min().map(|life| seconds(now).saturating_add(life.as_secs()));
    Pass::new(Kind::Refresh, seconds(now), end, grants)
}

// === answers ===

fn seal(asked: &Asked<'_>, pass: &Pass, now: SystemTime) -> Result<String, Failure> {
    asked.app.seal.seal(pass, &pass.claims(now)).map_err(Failure::internal)
}

fn answered(body: &serde_json::Value) -> Response<Body> {
    let mut response = respond::json(StatusCode::OK, body.to_string());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A 401 of the token endpoint itself, which is asked with Basic (RFC 9110, section 11.6.1: it names a scheme).
fn refused(asked: &Asked<'_>, message: String) -> Failure {
    let failure = Failure::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    match HeaderValue::try_from(format!("Basic realm=\"{}\"", asked.place().authority())) {
        Ok(value) => failure.with_header(WWW_AUTHENTICATE, value),
        Err(_) => failure,
    }
}

/// What upstream's token endpoint said, with its status.
fn relayed(asked: &Asked<'_>, error: UpstreamError) -> Failure {
    match &error.fault {
        Fault::Unauthorized { .. } => {
            let message =
                format!("upstream {0} refuses this credential: log in again with an account of {0}", error.upstream);
            refused(asked, message).with_source(error)
        }
        Fault::Forbidden { .. } => {
            Failure::new(StatusCode::FORBIDDEN, ErrorCode::Denied, format!("upstream {error}")).with_source(error)
        }
        Fault::Token(TokenFault::Status { status, .. }) if status.is_client_error() => {
            Failure::new(*status, ErrorCode::Unsupported, format!("upstream {error}")).with_source(error)
        }
        _ => explain(error.into(), metrics::Kind::Other),
    }
}

/// A time as RFC 3339 writes it, in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their odd day at the end.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
