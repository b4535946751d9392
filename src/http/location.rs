//! Where an upload goes on: addresses that are ocistern's own.
//!
//! An address says which upload it is and until when it holds, and is signed together with the upstream, the repository,
//! the form of address and the owner, so that it means nothing under another name, to another client or a day later. Nothing of upstream's
//! own address is in it, and no text of a token: SDKs take a new token for every request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::route::Form;
use crate::cache::UploadId;
use crate::oci::{RepoName, UpstreamName};

/// How long an address holds, by a clock that does not jump: longer than a request takes, so that one that broke off can be sent again. The upload
/// that it speaks of ends long before, when nobody goes on with it.
const HOLDS_FOR: Duration = Duration::from_hours(24);
/// First byte of every state, signed with the rest.
const VERSION: u8 = 1;
const ID: usize = 16;
const EXPIRY: usize = 8;
/// A truncated HMAC-SHA256 (RFC 2104, section 5: at least half of it).
const TAG: usize = 16;
const BODY: usize = 1 + ID + EXPIRY;

/// What an address is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// Whose repository.
    pub upstream: &'a UpstreamName,
    /// Its name there.
    pub repo: &'a RepoName,
    /// How the client writes it: what is shown with a request belongs to another upstream in another form. Not the
    /// listener: a client that knows a name for several may take another one for each request.
    pub form: Form,
    /// Who began the upload, where that is known; else the id, which nobody can guess, is what counts.
    pub owner: Option<&'a str>,
}

/// Signs and checks addresses.
pub struct Locations {
    key: [u8; 32],
}

/// The upload that an address speaks of, which it must prove to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Of which upload.
    pub id: UploadId,
    body: [u8; BODY],
    tag: [u8; TAG],
}

// === impl Locations ===

impl Locations {
    /// With the key of `private/`.
    pub const fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The state in the address of an upload, from now on.
    pub fn issue(&self, id: UploadId, bound: Bound<'_>, now: SystemTime) -> String {
        let mut state = Vec::with_capacity(BODY + TAG);
        state.push(VERSION);
        state.extend_from_slice(id.as_bytes());
        state.extend_from_slice(&seconds(now + HOLDS_FOR).to_be_bytes());
        let tag = self.mac(&state, bound).finalize().into_bytes();
        state.extend_from_slice(tag.get(..TAG).unwrap_or_default());
        URL_SAFE_NO_PAD.encode(state)
    }

    /// Whether the address was issued here for what it is bound to, and still holds.
    pub fn holds(&self, claim: &Claim, bound: Bound<'_>, now: SystemTime) -> bool {
        let expiry = claim.body.get(1 + ID..).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        // Compared in constant time.
        self.mac(&claim.body, bound).verify_truncated_left(&claim.tag).is_ok() && seconds(now) < expiry
    }

    fn mac(&self, body: &[u8], bound: Bound<'_>) -> Hmac<Sha256> {
        let mut block = [0; 64];
        // What HMAC does with a short key (RFC 2104, section 2).
        block.iter_mut().zip(self.key).for_each(|(to, from)| *to = from);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(body);
        // Each with its length in front: nothing moves from one field to the next.
        for field in [Some(bound.upstream.as_str()), Some(bound.repo.as_str()), Some(bound.form.as_str()), bound.owner]
        {
            match field {
                Some(text) => {
                    mac.update(&(text.len() as u64).to_be_bytes());
                    mac.update(text.as_bytes());
                }
                None => mac.update(&u64::MAX.to_be_bytes()),
            }
        }
        mac
    }
}

impl std::fmt::Debug for Locations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locations")
    }
}

// === impl Claim ===

impl Claim {
    /// What a state says, not yet believed; none where it is nothing of ours.
    pub fn read(state: &str) -> Option<Self> {
        let bytes: [u8; BODY + TAG] = URL_SAFE_NO_PAD.decode(state).ok()?.try_into().ok()?;
        let (body, tag) = bytes.split_first_chunk::<BODY>()?;
        let (version, rest) = body.split_first()?;
        let id = rest.first_chunk::<ID>().filter(|_| *version == VERSION)?;
        Some(Self { id: UploadId::new(*id), body: *body, tag: *tag.first_chunk()? })
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct World {
        upstream: UpstreamName,
        repo: RepoName,
        now: SystemTime,
    }

    fn world() -> World {
        World {
            upstream: "up".parse().unwrap(),
            repo: "org/app".parse().unwrap(),
            now: UNIX_EPOCH + Duration::from_secs(1_900_000_000),
        }
    }

    impl World {
        fn bound<'a>(&'a self, owner: Option<&'a str>) -> Bound<'a> {
            Bound { upstream: &self.upstream, repo: &self.repo, form: Form::Default, owner }
        }
    }

    const ID_1: UploadId = UploadId::new([7; 16]);

    #[test]
    fn holds_for_what_it_was_issued_for_and_nothing_else() {
        let (world, locations) = (world(), Locations::new([1; 32]));
        for owner in [None, Some("alice"), Some("")] {
            let state = locations.issue(ID_1, world.bound(owner), world.now);
            assert!(state.len() < 64 && !state.contains(['/', '+', '=']), "{state}");
            let claim = Claim::read(&state).unwrap();
            assert_eq!(claim.id, ID_1);
            assert!(locations.holds(&claim, world.bound(owner), world.now));
            let last = world.now + HOLDS_FOR - Duration::from_secs(1);
            assert!(locations.holds(&claim, world.bound(owner), last));
            assert!(!locations.holds(&claim, world.bound(owner), world.now + HOLDS_FOR), "expired");
            for other in [None, Some("alice"), Some("bob"), Some("")].into_iter().filter(|other| *other != owner) {
                assert!(!locations.holds(&claim, world.bound(other), world.now), "{owner:?} is not {other:?}");
            }
            let elsewhere = Bound { repo: &"org/app2".parse().unwrap(), ..world.bound(owner) };
            assert!(!locations.holds(&claim, elsewhere, world.now));
            let elsewhere = Bound { form: Form::Prefix, ..world.bound(owner) };
            assert!(!locations.holds(&claim, elsewhere, world.now));
            let elsewhere = Bound { upstream: &"up2".parse().unwrap(), ..world.bound(owner) };
            assert!(!locations.holds(&claim, elsewhere, world.now));
            assert!(!Locations::new([2; 32]).holds(&claim, world.bound(owner), world.now), "another key");
        }
    }

    #[test]
    fn fields_do_not_flow_into_each_other() {
        let locations = Locations::new([1; 32]);
        let world = world();
        let (one, two) = (("ab".parse().unwrap(), "c".parse().unwrap()), ("a".parse().unwrap(), "bc".parse().unwrap()));
        let [one, two] = [&one, &two].map(|(upstream, repo)| Bound { upstream, repo, ..world.bound(None) });
        let claim = Claim::read(&locations.issue(ID_1, one, world.now)).unwrap();
        assert!(locations.holds(&claim, one, world.now) && !locations.holds(&claim, two, world.now));
    }

    #[test]
    fn every_altered_bit_is_seen() {
        let (world, locations) = (world(), Locations::new([1; 32]));
        let state = locations.issue(ID_1, world.bound(Some("alice")), world.now);
        let bytes = URL_SAFE_NO_PAD.decode(&state).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let claim = Claim::read(&URL_SAFE_NO_PAD.encode(&altered));
            assert!(
                !claim.is_some_and(|claim| locations.holds(&claim, world.bound(Some("alice")), world.now)),
                "{bit}"
            );
        }
        for text in ["", "x", &state[1..], &format!("{state}A"), &format!("{state}="), &state.to_lowercase()] {
            let claim = Claim::read(text);
            assert!(
                !claim.is_some_and(|claim| locations.holds(&claim, world.bound(Some("alice")), world.now)),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}") {
            let _ = Claim::read(&text);
        }
    }
}
