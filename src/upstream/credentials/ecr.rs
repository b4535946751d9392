//! An AWS account at its container registry: name and password for twelve hours by `GetAuthorizationToken`.
//!
//! Amazon ECR API Reference, `GetAuthorizationToken`; requests are signed with Signature Version 4.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::aws::{self, Keys};
use super::cloud::{self, Kept, Question, YOUNG};
use super::{Credential, CredentialFault, Secret};
use crate::config::{AwsKeys, BaseUrl};
use crate::upstream::error::{Fault, RealmFault, TokenFault};
use crate::upstream::exchange::sensitive;
use crate::upstream::origin::{Origin, Url};
use crate::upstream::token::{DEFAULT_LIFE, TokenCache};
use crate::upstream::wire::Wire;

/// The service's name in signatures.
const SERVICE: &str = "ecr";
/// What is asked.
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
/// Of AWS's JSON protocol.
const JSON: &str = "application/x-amz-json-1.1";
/// All registries of the account.
const BODY: &str = "{}";
/// Says what is asked.
const X_AMZ_TARGET: &str = "x-amz-target";

/// An account's access to its registry.
pub(super) struct Ecr {
    account: Arc<Account>,
    passwords: TokenCache<(), Kept>,
}

struct Account {
    region: String,
    endpoint: BaseUrl,
    keys: AwsKeys,
    /// Reaches the endpoint.
    wire: Wire,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAnswer {
    authorization_data: Vec<Authorization>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    /// `name:password`, in base64.
    authorization_token: String,
    /// Seconds since 1970.
    expires_at: Option<f64>,
}

// === impl Ecr ===

impl Ecr {
    pub(super) fn new(region: &str, endpoint: &BaseUrl, keys: &AwsKeys, wire: Wire) -> Self {
        let account = Account { region: region.to_owned(), endpoint: endpoint.clone(), keys: keys.clone(), wire };
        Self { account: Arc::new(account), passwords: TokenCache::default() }
    }

    /// Name and password.
    pub(super) async fn read(&self) -> Result<Credential, Fault> {
        let fetch = || {
            let account = Arc::clone(&self.account);
            Box::pin(async move { cloud::in_time(&account.endpoint.authority(), account.password()).await }) as _
        };
        let kept = self.passwords.get(&(), fetch).await?;
        Ok(kept.credential.clone())
    }

    pub(super) fn forget(&self) -> bool {
        self.passwords.forget_older(YOUNG)
    }
}

impl fmt::Debug for Ecr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ecr").field("region", &self.account.region).finish_non_exhaustive()
    }
}

// === impl Account ===

impl Account {
    async fn password(&self) -> Result<Kept, Fault> {
        let variable = |name: &str| std::env::var(name).ok();
        let keys = aws::read(&self.keys, variable).await.map_err(Fault::Credential)?;
        let url = Url::new(Origin::of_upstream(&self.endpoint), &format!("{}/", self.endpoint.prefix))
            .map_err(|fault| Fault::Token(TokenFault::Realm(RealmFault::Url(fault))))?;
        let now = self.wire.now();
        let headers = signed(&url, &keys, &self.region, now).map_err(Fault::Credential)?;
        let body = Bytes::from_static(BODY.as_bytes());
        let secrets = [Some(keys.secret.expose()), keys.session.as_ref().map(Secret::expose)];
        let secrets: Vec<&str> = secrets.into_iter().flatten().collect();
        let question = Question { url: &url, headers, body, secrets: &secrets };
        let answer: TokenAnswer = cloud::ask(&self.wire, question).await?;
        understand(answer, now).ok_or_else(|| cloud::malformed(&self.endpoint.authority()))
    }
}

/// The question's headers, signature and all.
fn signed(url: &Url, keys: &Keys, region: &str, now: SystemTime) -> Result<HeaderMap, CredentialFault> {
    let session = keys.session.as_ref().map(|token| token.expose().to_owned());
    let identity =
        Credentials::new(keys.id.as_str(), keys.secret.expose(), session, None, env!("CARGO_PKG_NAME")).into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| CredentialFault::Unusable)?
        .into();
    let ours = [(CONTENT_TYPE.as_str(), JSON), (X_AMZ_TARGET, TARGET)];
    let uri = format!("{}{}", url.origin, url.target);
    let request = SignableRequest::new("POST", uri, ours.into_iter(), SignableBody::Bytes(BODY.as_bytes()));
    let request = request.map_err(|_| CredentialFault::Unusable)?;
    let (instructions, _) = sign(request, &parameters).map_err(|_| CredentialFault::Unusable)?.into_parts();
    let ours = ours.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut headers = HeaderMap::from_iter(ours);
    for header in instructions.into_parts().0 {
        let value = sensitive(header.value()).map_err(|_: Fault| CredentialFault::Unusable)?;
        headers.insert(HeaderName::from_static(header.name()), value);
    }
    Ok(headers)
}

/// None: the answer is not what it should be.
fn understand(answer: TokenAnswer, now: SystemTime) -> Option<Kept> {
    let first = answer.authorization_data.into_iter().next()?;
    let pair = STANDARD.decode(first.authorization_token).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    let (username, password) =
        pair.split_once(':').filter(|(name, password)| !name.is_empty() && !password.is_empty())?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let left = first.expires_at.map(|expires| Duration::try_from_secs_f64(expires - now).unwrap_or_default());
    // What seems to have expired on arrival is a matter of clocks.
    let life = left.filter(|left| !left.is_zero()).unwrap_or(DEFAULT_LIFE);
    let credential = Credential::Password { username: username.to_owned(), password: Secret::new(password) };
    Some(Kept::new(credential, life))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::token::Timed;

    /// The signatures are botocore's for the same keys, time and requests.
    #[test]
    fn requests_are_signed_as_aws_does_it() {
        let now = UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let keys = |session: Option<&str>| Keys {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session: session.map(Secret::new),
        };
        let aws = Origin { https: true, host: "api.ecr.eu-central-1.amazonaws.com".into(), port: 443 };
        let local = Origin { https: false, host: "127.0.0.1".into(), port: 5000 };
        for (origin, session, signature) in [
            (&aws, None, "031e39492bcbe1d7f9c1c8fa7687048556c0d844708d921d6d5d8ead66b5c432"),
            (&local, None, "9963d24cb8c9f44d089e98cd4595fbf2ce12df83e494655149d90657f85b0f50"),
            (&aws, Some("SESSION/+="), "967627cf0b3dd8d503a2dcab943458b2530a0b75df0ca3966e26e1c3e0d84b85"),
        ] {
            let url = Url::new(origin.clone(), "/").unwrap();
            let headers = signed(&url, &keys(session), "eu-central-1", now).unwrap();
            let authorization = headers["authorization"].to_str().unwrap();
            assert!(authorization.ends_with(&format!("Signature={signature}")), "{origin}: {authorization}");
            assert!(authorization.contains("Credential=AKIAIOSFODNN7EXAMPLE/20260102/eu-central-1/ecr/aws4_request"));
            assert!(headers["authorization"].is_sensitive());
            assert_eq!(headers["x-amz-date"], "20260102T030405Z");
            assert_eq!(headers["x-amz-target"], TARGET);
            assert_eq!(headers.get("x-amz-security-token").map(|value| value.to_str().unwrap()), session);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_and_their_time() {
        let now = UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let of = |json: &str| understand(serde_json::from_str(json).unwrap(), now);
        let token = STANDARD.encode("AWS:a:b");
        let life = |expires: &str| {
            let json = format!(r#"{{"authorizationData":[{{"authorizationToken":"{token}"{expires}}}]}}"#);
            let kept = of(&json).unwrap();
            let expected = Credential::Password { username: "AWS".into(), password: Secret::new("a:b") };
            assert_eq!(kept.credential, expected);
            let (issued, expires) = kept.span();
            (expires - issued).as_secs()
        };
        assert_eq!(life(""), 60);
        assert_eq!(life(&format!(r#","expiresAt":{}.5,"proxyEndpoint":"https://x""#, 1_767_323_045 + 43_200)), 43_200);
        assert_eq!(life(&format!(r#","expiresAt":{}"#, 1_767_323_045 - 5)), 60, "a clock is wrong");
        assert_eq!(life(r#","expiresAt":1e300"#), 60, "absurd");
        for bad in ["AWS", "AWS:", ":x"] {
            let json = format!(r#"{{"authorizationData":[{{"authorizationToken":"{}"}}]}}"#, STANDARD.encode(bad));
            assert!(of(&json).is_none(), "{bad}");
        }
        assert!(of(r#"{"authorizationData":[]}"#).is_none());
        assert!(of(r#"{"authorizationData":[{"authorizationToken":"%"}]}"#).is_none());
    }
}
