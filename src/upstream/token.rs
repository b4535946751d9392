//! What is sent as `Authorization`, kept while it lives and fetched once however many wait for it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::error::Fault;
use super::origin::Origin;
use super::right::Holder;
use crate::oci::Via;

/// Life of a token that does not say (distribution's token specification), and of a Basic credential that was read.
pub(crate) const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// Longest life that is believed.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_hours(24);
/// Clocks that differ by more are not compared: then the token's own span counts.
const CLOCK_SKEW: Duration = Duration::from_mins(5);
/// Tokens kept for one upstream: one per repository in use.
const MAX_TOKENS: usize = 4096;

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    /// Who will be shown it.
    pub(crate) audience: Origin,
    /// Whose it is: a token of one caller never serves another.
    pub(crate) holder: Holder,
    /// Where it comes from; empty for Basic.
    pub(crate) realm: String,
    /// The challenge's service.
    pub(crate) service: String,
    /// The challenge's scope.
    pub(crate) scope: String,
}

/// Something to show, and for how long.
pub(crate) struct Grant {
    /// The header's value; marked sensitive.
    pub(crate) header: HeaderValue,
    /// Whether our account stands behind it.
    pub(crate) via: Via,
    pub(crate) issued: Instant,
    expires: Instant,
}

/// What is good for a time.
pub(crate) trait Timed: 'static {
    /// From when until when.
    fn span(&self) -> (Instant, Instant);

    /// Until 85 % of its life, so that it does not expire on its way.
    fn is_fresh(&self, now: Instant) -> bool {
        let (issued, expires) = self.span();
        now < issued + (expires - issued).mul_f64(0.85)
    }
}

/// Fetches what is kept; shared by all who wait, and driven by whichever of them is left.
pub(crate) type Fetching<V = Grant> = Pin<Box<dyn Future<Output = Result<Arc<V>, Fault>> + Send>>;

/// The grants for one upstream, or what else is kept while it is good.
pub(crate) struct TokenCache<K = TokenKey, V: Timed = Grant>(Mutex<HashMap<K, Slot<V>>>);

struct Slot<V: Timed> {
    grant: Option<Arc<V>>,
    flight: Option<WeakShared<Fetching<V>>>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    iat: Option<f64>,
    nbf: Option<f64>,
}

// === impl Grant ===

impl Grant {
    pub(crate) fn new(header: HeaderValue, via: Via, life: Duration) -> Self {
        let issued = Instant::now();
        Self { header, via, issued, expires: issued + life.min(LONGEST_LIFE) }
    }
}

impl Timed for Grant {
    fn span(&self) -> (Instant, Instant) {
        (self.issued, self.expires)
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("via", &self.via).finish_non_exhaustive()
    }
}

// === impl TokenCache ===

impl<K: Clone + Eq + Hash, V: Timed> TokenCache<K, V> {
    /// The grant for `key`, from the cache, from who fetches it already, or by `fetch`.
    pub(crate) async fn get(&self, key: &K, fetch: impl FnOnce() -> Fetching<V>) -> Result<Arc<V>, Fault> {
        let flight = {
            let mut slots = self.0.lock();
            if slots.len() >= MAX_TOKENS && !slots.contains_key(key) {
                make_room(&mut slots);
            }
            let slot = slots.entry(key.clone()).or_default();
            if let Some(grant) = &slot.grant
                && grant.is_fresh(Instant::now())
            {
                return Ok(Arc::clone(grant));
            }
            slot.flight.as_ref().and_then(WeakShared::upgrade).unwrap_or_else(|| {
                let flight = fetch().shared();
                slot.flight = flight.downgrade();
                flight
            })
        };
        let result = Shared::clone(&flight).await;
        self.land(key, &flight, result)
    }

    /// Forgets `grant`, which was refused; one that has replaced it already stays.
    pub(crate) fn invalidate(&self, key: &K, grant: &Arc<V>) {
        if let Some(slot) = self.0.lock().get_mut(key)
            && slot.grant.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, grant))
        {
            slot.grant = None;
        }
    }

    /// Forgets what was issued longer than `age` ago, whatever its key. False: there was nothing.
    pub(crate) fn forget_older(&self, age: Duration) -> bool {
        let now = Instant::now();
        let mut forgotten = false;
        for slot in self.0.lock().values_mut() {
            if slot.grant.as_ref().is_some_and(|grant| now.duration_since(grant.span().0) > age) {
                slot.grant = None;
                forgotten = true;
            }
        }
        forgotten
    }

    /// Every waiter comes by here; the first one's work is the others' as well.
    fn land(&self, key: &K, flight: &Shared<Fetching<V>>, result: Result<Arc<V>, Fault>) -> Result<Arc<V>, Fault> {
        let mut slots = self.0.lock();
        let Some(slot) = slots.get_mut(key) else { return result };
        let first = slot.flight.as_ref().and_then(WeakShared::upgrade).is_some_and(|kept| kept.ptr_eq(flight));
        if first {
            slot.flight = None;
        }
        match result {
            Ok(grant) => {
                if first {
                    slot.grant = Some(Arc::clone(&grant));
                }
                Ok(grant)
            }
            Err(fault) => match &slot.grant {
                // Refreshing early failed; there is still time.
                Some(grant) if Instant::now() < grant.span().1 => Ok(Arc::clone(grant)),
                _ => {
                    if first {
                        slots.remove(key);
                    }
                    Err(fault)
                }
            },
        }
    }
}

impl<K, V: Timed> Default for TokenCache<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V: Timed> Default for Slot<V> {
    fn default() -> Self {
        Self { grant: None, flight: None }
    }
}

impl<K, V: Timed> fmt::Debug for TokenCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenCache")
    }
}

/// Drops what has expired; if that is not enough, everything that is not being fetched.
fn make_room<K: Eq + Hash, V: Timed>(slots: &mut HashMap<K, Slot<V>>) {
    let now = Instant::now();
    let flying = |slot: &Slot<V>| slot.flight.as_ref().is_some_and(|flight| flight.upgrade().is_some());
    slots.retain(|_, slot| flying(slot) || slot.grant.as_ref().is_some_and(|grant| grant.is_fresh(now)));
    if slots.len() >= MAX_TOKENS {
        slots.retain(|_, slot| flying(slot));
    }
}

/// How long a token lives: what it says itself if it is a JWT, else what came with it, else 60 s.
pub(crate) fn life(token: &str, expires_in: Option<f64>, now: SystemTime) -> Duration {
    let stated = expires_in.filter(|seconds| *seconds > 0.0).map(seconds);
    claimed_life(token, now).or(stated).unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE)
}

/// What a token says, if it is a JWT. The signature is not checked.
pub(crate) fn claims(token: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&payload(token)?).ok()
}

fn payload(token: &str) -> Option<Vec<u8>> {
    let payload = token.split('.').nth(1).filter(|_| token.split('.').count() == 3)?;
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&URL_SAFE, lenient).decode(payload).ok()
}

fn claimed_life(token: &str, now: SystemTime) -> Option<Duration> {
    let claims: Claims = serde_json::from_slice(&payload(token)?).ok()?;
    let expiry = claims.exp?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    match claims.iat.or(claims.nbf) {
        // A clock that is wrong by minutes would make every token expired, or eternal.
        Some(begin) if (begin - now).abs() > CLOCK_SKEW.as_secs_f64() => Some(seconds(expiry - begin)),
        Some(_) => Some(seconds(expiry - now)),
        // What seems to have expired on arrival is a matter of clocks.
        None => Some(seconds(expiry - now)).filter(|left| !left.is_zero()),
    }
}

/// Negative, infinite and absurd numbers included.
fn seconds(number: f64) -> Duration {
    Duration::try_from_secs_f64(number.max(0.0)).unwrap_or(LONGEST_LIFE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use tokio::sync::Notify;
    use tokio::time::advance;

    use super::*;
    use crate::clock::twin::wall;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn key(scope: &str) -> TokenKey {
        TokenKey {
            audience: Origin { https: true, host: "reg.example".into(), port: 443 },
            holder: Holder::Everybody,
            realm: String::new(),
            service: String::new(),
            scope: scope.into(),
        }
    }

    fn grant(seconds: u64) -> Arc<Grant> {
        Arc::new(Grant::new(HeaderValue::from_static("Bearer x"), Via::Anonymous, Duration::from_secs(seconds)))
    }

    fn ready(result: Result<Arc<Grant>, Fault>) -> Fetching {
        Box::pin(std::future::ready(result))
    }

    #[test]
    fn lives() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let life = |token: &str, stated| life(token, stated, now).as_secs();
        assert_eq!(life("opaque", None), 60);
        assert_eq!(life("opaque", Some(300.0)), 300);
        assert_eq!(life("opaque", Some(0.0)), 60, "0 is what some registries say for unknown");
        assert_eq!(life("opaque", Some(-1.0)), 60);
        assert_eq!(life("opaque", Some(1e300)), LONGEST_LIFE.as_secs());
        assert_eq!(life(&jwt(r#"{"exp":1004500}"#), None), 4500);
        assert_eq!(life(&jwt(r#"{"exp":1004500,"iat":1000000}"#), Some(60.0)), 4500, "the token knows best");
        assert_eq!(life(&jwt(r#"{"exp":1000100.5,"nbf":999990}"#), None), 100);
        assert_eq!(life(&jwt(r#"{"exp":5001200,"iat":5000000}"#), None), 1200, "our clock is wrong");
        assert_eq!(life(&jwt(r#"{"exp":999990,"iat":999900}"#), None), 0, "expired: for this request only");
        assert_eq!(life(&jwt(r#"{"exp":999990}"#), Some(300.0)), 300, "our clock is wrong, as it seems");
        assert_eq!(life(&jwt(r#"{"sub":"x"}"#), Some(120.0)), 120);
        assert_eq!(life("a.b.c", Some(120.0)), 120, "three parts are no JWT yet");
    }

    #[tokio::test(start_paused = true)]
    async fn one_fetch_for_all_who_wait_and_refreshed_early() {
        let cache: TokenCache = TokenCache::default();
        let fetched = AtomicUsize::new(0);
        let release = Arc::new(Notify::new());
        let fetch = || {
            fetched.fetch_add(1, Ordering::Relaxed);
            let release = Arc::clone(&release);
            Box::pin(async move {
                release.notified().await;
                Ok(grant(100))
            }) as Fetching
        };
        let key = key("a");
        let waiters = futures_util::future::join_all((0..100).map(|_| cache.get(&key, fetch)));
        let (grants, ()) = tokio::join!(waiters, async { release.notify_one() });
        assert_eq!(grants.iter().filter(|grant| grant.is_ok()).count(), 100);
        advance(Duration::from_secs(84)).await;
        cache.get(&key, fetch).await.unwrap();
        assert_eq!(fetched.load(Ordering::Relaxed), 1);
        advance(Duration::from_secs(2)).await;
        release.notify_one();
        cache.get(&key, fetch).await.unwrap();
        assert_eq!(fetched.load(Ordering::Relaxed), 2, "before it expires");
    }

    #[tokio::test(start_paused = true)]
    async fn the_fetch_survives_a_waiter_that_gives_up() {
        let cache: TokenCache = TokenCache::default();
        let release = Arc::new(Notify::new());
        let fetch = || {
            let release = Arc::clone(&release);
            Box::pin(async move {
                release.notified().await;
                Ok(grant(100))
            }) as Fetching
        };
        let key = key("a");
        let impatient = tokio::time::timeout(Duration::from_secs(1), cache.get(&key, fetch));
        let patient = cache.get(&key, || panic!("a second fetch"));
        let (impatient, patient, ()) = tokio::join!(impatient, patient, async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            release.notify_one();
        });
        assert!(impatient.is_err() && patient.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_fetched_again_once() {
        let cache: TokenCache = TokenCache::default();
        let key = key("a");
        let old = cache.get(&key, || ready(Ok(grant(100)))).await.unwrap();
        cache.invalidate(&key, &old);
        let new = cache.get(&key, || ready(Ok(grant(100)))).await.unwrap();
        cache.invalidate(&key, &old);
        let kept = cache.get(&key, || panic!("the new one is not the refused one")).await.unwrap();
        assert!(Arc::ptr_eq(&new, &kept));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_can_be_forgotten_at_once() {
        let cache: TokenCache = TokenCache::default();
        cache.get(&key("a"), || ready(Ok(grant(1000)))).await.unwrap();
        assert!(!cache.forget_older(Duration::from_mins(1)), "it is new");
        advance(Duration::from_secs(61)).await;
        let new = cache.get(&key("b"), || ready(Ok(grant(1000)))).await.unwrap();
        assert!(cache.forget_older(Duration::from_mins(1)));
        assert!(cache.get(&key("a"), || ready(Err(Fault::Sealed))).await.is_err());
        let kept = cache.get(&key("b"), || panic!("it is new")).await.unwrap();
        assert!(Arc::ptr_eq(&new, &kept));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_refresh_is_no_failure_while_the_old_one_lives() {
        let cache: TokenCache = TokenCache::default();
        let key = key("a");
        let failing = || ready(Err(Fault::Sealed));
        cache.get(&key, || ready(Ok(grant(100)))).await.unwrap();
        advance(Duration::from_secs(90)).await;
        assert!(cache.get(&key, failing).await.is_ok());
        advance(Duration::from_secs(11)).await;
        assert!(cache.get(&key, failing).await.is_err());
        assert!(cache.get(&key, || ready(Ok(grant(100)))).await.is_ok(), "failures are not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_tokens_is_bounded() {
        let cache: TokenCache = TokenCache::default();
        for number in 0..MAX_TOKENS * 2 {
            cache.get(&key(&number.to_string()), || ready(Ok(grant(100)))).await.unwrap();
        }
        assert!(cache.0.lock().len() <= MAX_TOKENS);
    }

    proptest! {
        #[test]
        fn any_token_has_some_life(token in "\\PC{0,60}", claims in "\\PC{0,40}", stated in any::<f64>()) {
            let now = wall();
            prop_assert!(life(&token, Some(stated), now) <= LONGEST_LIFE);
            prop_assert!(life(&jwt(&claims), Some(stated), now) <= LONGEST_LIFE);
            let exp = jwt(&format!("{{\"exp\":{stated:e},\"iat\":{:e}}}", -stated));
            prop_assert!(life(&exp, None, now) <= LONGEST_LIFE);
        }
    }
}
