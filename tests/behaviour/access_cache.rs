//! Who may have what is in the store, asked by every kind of right, with a registry that keeps repositories for their
//! readers.

use std::sync::Arc;
use std::time::Duration;

use crate::common::content::{blob, image, sha256};
use crate::common::direct::{Came, account, apart, target};
use crate::common::upstream::{Accounts, Auth};
use crate::common::{Direct, Gate, Image, Upstream, acts, clock};
use ocistern::cache::{Found, Want};
use ocistern::store::Access;
use ocistern::upstream::Right;
use tokio::task::JoinSet;

const STRANGER: Right = Right::Anonymous;

/// A registry with `open` for everybody and `secret` for ann and bob (not for eve), both with the same kind of image.
async fn registry(refusal: u16) -> (Upstream, Image, Image) {
    let upstream = Upstream::start().await;
    let (open, secret) = (image(1), image(2));
    upstream.image("open", "v1", &open);
    upstream.image("secret", "v1", &secret);
    upstream.registry(|registry| {
        registry.auth = Auth::Accounts;
        let accounts = &mut registry.accounts;
        for user in ["ann", "bob", "eve"] {
            accounts.user(user, &format!("CANARY-{user}"));
        }
        accounts.public.insert("open".to_owned());
        accounts.allow("ann", "secret", "pull");
        accounts.allow("bob", "secret", "pull");
        accounts.refused_with = (refusal != 401).then_some(refusal);
    });
    (upstream, open, secret)
}

fn change(upstream: &Upstream, change: impl FnOnce(&mut Accounts)) {
    upstream.registry(|registry| change(&mut registry.accounts));
}

fn revoke(upstream: &Upstream, user: &str) {
    change(upstream, |accounts| {
        accounts.rights.get_mut("secret").unwrap().remove(user);
    });
}

/// `open` is for ann alone from now on.
fn make_private(upstream: &Upstream) {
    change(upstream, |accounts| {
        accounts.public.clear();
        accounts.allow("ann", "open", "pull");
    });
}

/// Requests of repositories that upstream answered with something.
fn answered(upstream: &Upstream, method: &str, path: &str) -> usize {
    upstream.requests(method, path).into_iter().filter(|entry| entry.status == 200).count()
}

/// Pulls an image whole.
async fn pull(direct: &Direct, right: &Right, repo: &str, image: &Image) {
    direct.get(right, repo, "v1").await.found(&image.digest);
    direct.get(right, repo, &image.digest.to_string()).await.found(&image.digest);
    for part in image.layers.iter().chain([&image.config]) {
        direct.blob(right, repo, &sha256(part)).await.found(&sha256(part));
    }
    direct.settle().await;
}

/// Everything that can be asked of an image, in one order.
async fn ask_all(direct: &Direct, right: &Right, repo: &str, image: &Image) -> Vec<Came> {
    let (digest, layer) = (image.digest.to_string(), sha256(&image.layers[0]));
    let mut came = Vec::new();
    for reference in ["v1", &digest] {
        came.push(direct.get(right, repo, reference).await);
        for want in [Want::Description, Want::Confirmed, Want::Required] {
            came.push(direct.manifest(right, repo, reference, want).await);
        }
    }
    came.push(direct.blob(right, repo, &layer).await);
    for want in [Want::Description, Want::Confirmed, Want::Required] {
        came.push(direct.head_blob(right, repo, &layer, want).await);
    }
    came.push(direct.tags(right, repo).await);
    came.push(direct.referrers(right, repo, &image.digest).await);
    came
}

#[tokio::test]
async fn what_a_friend_pulled_is_not_for_strangers_and_they_cannot_tell_that_it_is_there() {
    for refusal in [401, 403, 404] {
        let (upstream, open, secret) = registry(refusal).await;
        // A repository of which nothing is in the store, and nothing upstream either.
        let cold = Direct::start(&upstream, "").await;
        let warm = Direct::start(&upstream, "").await;
        pull(&warm, &account("ann"), "secret", &secret).await;
        for direct in [&cold, &warm] {
            // An upstream that never answered a HEAD is asked by GET whether it means its 403.
            direct.manifest(&STRANGER, "open", "v1", Want::Required).await.found(&open.digest);
        }
        // The last one has no account.
        for right in [STRANGER, account("eve"), account("mallory")] {
            let mut seen = Vec::new();
            for direct in [&cold, &warm] {
                upstream.forget();
                let came = ask_all(direct, &right, "secret", &secret).await;
                assert!(
                    came.iter().all(|came| matches!(came, Came::Refused(_) | Came::Missing(_)))
                        // The answer to "who refers to it" of a registry that hides is: nobody.
                        || refusal == 404,
                    "{refusal} {right:?}: {came:?}"
                );
                let of_secret = came.iter().any(|came| {
                    matches!(came, Came::Content(digest, _)
                    if *digest == secret.digest || *digest == sha256(&secret.layers[0]))
                });
                assert!(!of_secret, "{refusal} {right:?}: {came:?}");
                seen.push((came, upstream.count("*", "/v2/*")));
            }
            assert_eq!(seen[0], seen[1], "{refusal} {right:?}: cold and warm differ");
        }
        // And it is still there for whom it is for.
        pull(&warm, &account("bob"), "secret", &secret).await;
    }
}

#[tokio::test]
async fn a_friend_is_asked_about_once_and_served_from_the_store() {
    let (upstream, _, secret) = registry(401).await;
    let direct = Direct::start(&upstream, "access_ttl = \"10s\"").await;
    let (ann, bob, layer) = (account("ann"), account("bob"), sha256(&secret.layers[0]));
    pull(&direct, &ann, "secret", &secret).await;

    upstream.forget();
    direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
    assert_eq!((answered(&upstream, "*", "/v2/*"), upstream.count("GET", "/v2/*")), (1, 0), "one HEAD");
    upstream.forget();
    for part in secret.layers.iter().chain([&secret.config]) {
        direct.blob(&bob, "secret", &sha256(part)).await.assert_hit(&sha256(part));
        direct.head_blob(&bob, "secret", &sha256(part), Want::Description).await.assert_hit(&sha256(part));
    }
    direct.get(&bob, "secret", &secret.digest.to_string()).await.assert_hit(&secret.digest);
    direct.get(&bob, "secret", "v1").await.assert_hit(&secret.digest);
    direct.get(&ann, "secret", "v1").await.assert_hit(&secret.digest);
    assert_eq!(upstream.log().len(), 0, "it is remembered");

    let _warp = clock::warp();
    tokio::time::sleep(Duration::from_secs(11)).await;
    direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
    direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
    assert_eq!(answered(&upstream, "HEAD", "/v2/*"), 1, "for ten seconds");
}

#[tokio::test]
async fn a_herd_of_one_principal_asks_once_and_two_principals_twice() {
    let (upstream, _, secret) = registry(401).await;
    let mut direct = Direct::start(&upstream, "").await;
    let layer = sha256(&secret.layers[0]);
    pull(&direct, &account("ann"), "secret", &secret).await;
    for (users, heads) in [(&["bob"][..], 1), (&["ann", "bob"][..], 2)] {
        // What was remembered of rights is gone.
        direct = direct.restart().await;
        upstream.forget();
        let gate = Gate::new();
        upstream.script("HEAD", "/v2/secret/*", .., acts::where_status(200, acts::hold_head(&gate)));
        let shared = Arc::new(direct);
        let mut herd = JoinSet::new();
        for n in 0..32 {
            let (direct, user) = (shared.clone(), account(users[n % users.len()]));
            herd.spawn(async move { direct.blob(&user, "secret", &layer).await });
        }
        gate.reached(heads).await;
        gate.open();
        while let Some(came) = herd.join_next().await {
            came.unwrap().assert_hit(&layer);
        }
        assert_eq!(answered(&upstream, "HEAD", "/v2/*"), heads, "{users:?}");
        upstream.unscript();
        direct = Arc::into_inner(shared).unwrap();
    }
}

#[tokio::test]
async fn a_right_that_is_revoked_ends_in_time_and_the_refusal_is_remembered() {
    let (upstream, _, secret) = registry(403).await;
    let direct = Direct::start(&upstream, "access_ttl = \"10s\"").await;
    let (bob, layer) = (account("bob"), sha256(&secret.layers[0]));
    pull(&direct, &bob, "secret", &secret).await;
    revoke(&upstream, "bob");
    let _warp = clock::warp();
    direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
    tokio::time::sleep(Duration::from_secs(11)).await;
    for came in ask_all(&direct, &bob, "secret", &secret).await {
        came.assert_refused();
    }
    upstream.forget();
    change(&upstream, |accounts| accounts.allow("bob", "secret", "pull"));
    direct.blob(&bob, "secret", &layer).await.assert_refused();
    assert_eq!(upstream.count("*", "/v2/secret/blobs/*"), 0, "no is remembered");
    tokio::time::sleep(Duration::from_secs(6)).await;
    direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
}

#[tokio::test]
async fn public_content_is_asked_about_again_after_a_while_and_not_before() {
    let (upstream, open, _) = registry(401).await;
    let direct = Direct::start(&upstream, "public_for = \"10s\"\ntags = \"1h\"").await;
    let layer = sha256(&open.layers[0]);
    pull(&direct, &STRANGER, "open", &open).await;
    upstream.forget();
    pull(&direct, &STRANGER, "open", &open).await;
    pull(&direct, &account("eve"), "open", &open).await;
    assert_eq!(upstream.log().len(), 0);
    let _warp = clock::warp();
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut herd = JoinSet::new();
    let direct = Arc::new(direct);
    for _ in 0..16 {
        let direct = direct.clone();
        herd.spawn(async move { direct.blob(&STRANGER, "open", &layer).await });
    }
    while let Some(came) = herd.join_next().await {
        came.unwrap().assert_hit(&layer);
    }
    assert_eq!(upstream.count("HEAD", "/v2/open/*"), 1, "all of them by one question");
    pull(&direct, &STRANGER, "open", &open).await;
    assert_eq!(upstream.count("*", "/v2/open/*"), 1, "and it is fresh again");
}

/// A repository that upstream no longer shows to everybody, and refuses so.
async fn made_private(refusal: u16, tags: &str) {
    let (upstream, open, _) = registry(refusal).await;
    let keys = format!("public_for = \"10s\"\ntags = \"{tags}\"");
    let direct = Direct::start(&upstream, &keys).await;
    pull(&direct, &STRANGER, "open", &open).await;
    direct.head_blob(&STRANGER, "open", &sha256(&open.config), Want::Required).await;
    make_private(&upstream);
    clock::pass(Duration::from_secs(11)).await;
    // By the clock of the wall: upstream, which is there, answers before a question is given up.
    for came in ask_all(&direct, &STRANGER, "open", &open).await {
        let nobody = refusal == 404 && matches!(came, Came::Content(..));
        assert!(matches!(came, Came::Refused(_) | Came::Missing(_)) || nobody, "{refusal} {tags}: {came:?}");
    }
    // Not as stale either.
    let _warp = clock::warp();
    upstream.down();
    for came in ask_all(&direct, &STRANGER, "open", &open).await {
        assert!(!matches!(came, Came::Content(..)) || refusal == 404, "{refusal} {tags}: {came:?}");
    }
    upstream.up();
    pull_patiently(&direct, &account("ann"), "open", &open).await;
}

#[tokio::test]
async fn what_is_made_private_is_not_public_for_longer_than_said() {
    made_private(401, "5m").await;
}

#[tokio::test]
async fn nor_where_it_is_forbidden() {
    made_private(403, "immutable").await;
}

#[tokio::test]
async fn nor_where_it_is_hidden() {
    made_private(404, "always").await;
}

#[tokio::test]
async fn nor_where_upstream_is_always_asked() {
    made_private(401, "always").await;
}

/// As [`pull`], as soon as upstream is asked again.
async fn pull_patiently(direct: &Direct, right: &Right, repo: &str, image: &Image) {
    crate::common::eventually("upstream is asked again", || async {
        matches!(direct.get(right, repo, "v1").await, Came::Content(..))
    })
    .await;
    pull(direct, right, repo, image).await;
}

#[tokio::test]
async fn with_upstream_down_the_last_verdict_stands_also_after_a_restart() {
    let (upstream, open, secret) = registry(401).await;
    let mut direct = Direct::start(&upstream, "public_for = \"0s\"").await;
    pull(&direct, &STRANGER, "open", &open).await;
    // Before and after it is known that it is private.
    pull(&direct, &account("ann"), "secret", &secret).await;
    direct.get(&STRANGER, "secret", "v1").await.assert_refused();
    pull(&direct, &account("bob"), "secret", &secret).await;
    upstream.down();
    for _ in 0..2 {
        pull(&direct, &STRANGER, "open", &open).await;
        pull(&direct, &account("eve"), "open", &open).await;
        for right in [STRANGER, account("eve")] {
            for came in ask_all(&direct, &right, "secret", &secret).await {
                assert!(matches!(came, Came::Refused(_) | Came::Away), "{right:?}: {came:?}");
            }
        }
        direct = direct.restart().await;
    }
}

#[tokio::test]
async fn a_right_is_prolonged_while_upstream_is_down_only_as_the_operator_says() {
    let _warp = clock::warp();
    for (stale, served) in [("0s", false), ("30s", true)] {
        let (upstream, _, secret) = registry(401).await;
        let keys = format!("access_ttl = \"10s\"\naccess_stale = \"{stale}\"\ntags = \"1h\"");
        let direct = Direct::start(&upstream, &keys).await;
        let (bob, layer) = (account("bob"), sha256(&secret.layers[0]));
        pull(&direct, &bob, "secret", &secret).await;
        upstream.down();
        direct.blob(&bob, "secret", &layer).await.assert_hit(&layer);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let came = ask_all(&direct, &bob, "secret", &secret).await;
        for (index, came) in came.iter().enumerate() {
            // Required is required, and lists that a caller got are not kept.
            let kept = ![3, 7, 11, 12, 13].contains(&index);
            let right = if served && kept { matches!(came, Came::Content(..)) } else { *came == Came::Away };
            assert!(right, "{stale}, {index}: {came:?}");
        }
        let (ann, eve) = (account("ann"), account("eve"));
        for other in [STRANGER, ann, eve] {
            assert_eq!(direct.blob(&other, "secret", &layer).await, Came::Away, "{stale}: {other:?} was never asked");
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(direct.blob(&bob, "secret", &layer).await, Came::Away, "{stale}: too long ago");
        if served {
            upstream.up();
            pull_patiently(&direct, &bob, "secret", &secret).await;
            revoke(&upstream, "bob");
            tokio::time::sleep(Duration::from_secs(11)).await;
            direct.blob(&bob, "secret", &layer).await.assert_refused();
        }
    }
}

#[tokio::test]
async fn a_clients_answer_is_no_verdict_and_becomes_everybodys_by_one_question() {
    let (upstream, open, secret) = registry(401).await;
    let direct = Direct::start(&upstream, "tags = \"1h\"").await;
    for (repo, image) in [("open", &open), ("secret", &secret)] {
        pull(&direct, &account("ann"), repo, image).await;
        let access = direct.store.access(&"up".parse().unwrap(), &repo.parse().unwrap()).await.unwrap();
        assert_eq!(access, None, "{repo}: nobody has asked without a credential");
    }
    upstream.forget();
    let layer = sha256(&open.layers[0]);
    direct.blob(&STRANGER, "open", &layer).await.assert_hit(&layer);
    direct.blob(&STRANGER, "open", &layer).await.assert_hit(&layer);
    assert_eq!((answered(&upstream, "HEAD", "/v2/open/blobs/*"), upstream.count("GET", "/v2/*")), (1, 0));
    let access = direct.store.access(&"up".parse().unwrap(), &"open".parse().unwrap()).await.unwrap();
    assert_eq!(access.unwrap().access, Access::Public);
    upstream.forget();
    let config = sha256(&open.config);
    direct.blob(&STRANGER, "open", &config).await.assert_hit(&config);
    direct.blob(&STRANGER, "open", &config).await.assert_hit(&config);
    direct.get(&STRANGER, "open", "v1").await.assert_hit(&open.digest);
    direct.get(&STRANGER, "open", "v1").await.assert_hit(&open.digest);
    assert_eq!(
        answered(&upstream, "HEAD", "/v2/open/*"),
        2,
        "each thing that only a caller's credential had brought, once"
    );
    direct.blob(&STRANGER, "secret", &sha256(&secret.config)).await.assert_refused();
}

#[tokio::test]
async fn always_client_means_that_nothing_is_public() {
    let upstream = Upstream::start().await;
    let open = image(1);
    upstream.image("open", "v1", &open);
    let direct = Direct::start(&upstream, "credentials = { from = \"client\" }").await;
    pull(&direct, &account("ann"), "open", &open).await;
    upstream.forget();
    for came in ask_all(&direct, &STRANGER, "open", &open).await {
        came.assert_refused();
    }
    assert_eq!(upstream.log().len(), 0, "nobody needs to be asked");
    upstream.down();
    direct.get(&STRANGER, "open", "v1").await.assert_refused();
}

#[tokio::test]
async fn ocisterns_own_account_is_for_whom_the_listener_lets_through_as_that() {
    let (upstream, open, secret) = registry(401).await;
    let secrets = tempfile::tempdir().unwrap();
    let password = secrets.path().join("password");
    std::fs::write(&password, "CANARY-ann").unwrap();
    let keys = format!(
        "credentials = {{ from = \"static\", username = \"ann\", password_file = '{}' }}\ntags = \"1h\"",
        password.display()
    );
    let direct = Direct::start(&upstream, &keys).await;
    pull(&direct, &Right::Shared, "secret", &secret).await;
    pull(&direct, &Right::Shared, "open", &open).await;
    upstream.forget();
    pull(&direct, &Right::Shared, "secret", &secret).await;
    assert_eq!(upstream.log().len(), 0, "the listener has decided");
    for right in [STRANGER, account("eve")] {
        for came in ask_all(&direct, &right, "secret", &secret).await {
            came.assert_refused();
        }
    }
    let layer = sha256(&secret.layers[0]);
    direct.blob(&account("bob"), "secret", &layer).await.assert_hit(&layer);
    upstream.forget();
    pull(&direct, &Right::Shared, "secret", &secret).await;
    assert_eq!(upstream.log().len(), 0, "a caller's proof has not taken the account's place");
    upstream.down();
    assert!(!matches!(direct.tags(&STRANGER, "secret").await, Came::Content(..)), "the account's list is not theirs");
}

#[tokio::test]
async fn a_fill_is_joined_by_those_to_whom_upstream_says_yes() {
    let (upstream, _, _) = registry(401).await;
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let bytes = blob(7, 300_000);
    let digest = upstream.blob("secret", &bytes);
    let gate = Gate::new();
    upstream.script("GET", "/v2/secret/blobs/*", .., acts::where_status(200, acts::hold_at(100_000, &gate)));
    let ask = |user: Right| {
        let direct = direct.clone();
        async move { direct.blob(&user, "secret", &digest).await }
    };
    let mut readers = JoinSet::new();
    readers.spawn(ask(account("ann")));
    gate.reached(1).await;
    for _ in 0..4 {
        readers.spawn(ask(account("bob")));
    }
    upstream.until("HEAD", "/v2/secret/blobs/*", 1).await;
    for stranger in [STRANGER, account("eve")] {
        ask(stranger).await.assert_refused();
    }
    gate.open();
    while let Some(came) = readers.join_next().await {
        came.unwrap().found(&digest);
    }
    assert_eq!(upstream.requests("GET", "/v2/secret/blobs/*").iter().filter(|entry| entry.status == 200).count(), 1);
    direct.settle().await;
    upstream.forget();
    assert_eq!(direct.blob(&account("bob"), "secret", &digest).await, Came::Content(digest, Found::Hit));
    assert_eq!(upstream.log().len(), 0, "joining was proof enough");
}

#[tokio::test]
async fn a_long_fill_is_not_joined_by_a_right_that_has_ended_since() {
    let _warp = clock::warp();
    for (reader, repo) in [(account("bob"), "secret"), (STRANGER, "open")] {
        let (upstream, ..) = registry(403).await;
        let direct = Arc::new(Direct::start(&upstream, "public_for = \"10s\"\naccess_ttl = \"10s\"").await);
        let bytes = blob(11, 300_000);
        let digest = upstream.blob(repo, &bytes);
        let gate = Gate::new();
        let path = format!("/v2/{repo}/blobs/*");
        upstream.script("GET", &path, .., acts::where_status(200, acts::hold_at(100_000, &gate)));
        let ask = || {
            let (direct, reader) = (direct.clone(), reader.clone());
            async move { direct.blob(&reader, repo, &digest).await }
        };
        let first = apart(ask());
        gate.reached(1).await;
        let second = apart(ask());
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(upstream.count("HEAD", &path), 0, "the question that began it is fresh proof");
        if repo == "open" {
            make_private(&upstream);
        } else {
            revoke(&upstream, "bob");
        }
        ask().await.assert_refused();
        gate.open();
        first.done().await.found(&digest);
        second.done().await.found(&digest);
    }
}

#[tokio::test]
async fn a_refusal_of_who_began_a_fill_answers_nobody_else() {
    for refusal in [401, 403, 404] {
        let (upstream, _, _) = registry(refusal).await;
        let direct = Arc::new(Direct::start(&upstream, "").await);
        let bytes = blob(8, 300_000);
        let digest = upstream.blob("secret", &bytes);
        // Of the token that eve has already, so that her first question for the blob is the refused one.
        direct.tags(&account("eve"), "secret").await;
        let gate = Gate::new();
        upstream.script("GET", "/v2/secret/blobs/*", 0..1, acts::hold_head(&gate));
        let eve = apart({
            let direct = direct.clone();
            async move { direct.blob(&account("eve"), "secret", &digest).await }
        });
        gate.reached(1).await;
        let ann = apart({
            let direct = direct.clone();
            async move { direct.blob(&account("ann"), "secret", &digest).await }
        });
        upstream.until("HEAD", "/v2/secret/blobs/*", 1).await;
        gate.open();
        let eve = eve.done().await;
        assert!(matches!(eve, Came::Refused(_) | Came::Missing(_)), "{refusal}: {eve:?}");
        ann.done().await.found(&digest);
    }
}

#[tokio::test]
async fn a_fill_goes_on_by_the_right_of_another_reader() {
    let (upstream, _, _) = registry(403).await;
    let direct = Arc::new(Direct::start(&upstream, "").await);
    let bytes = blob(9, 300_000);
    let digest = upstream.blob("secret", &bytes);
    let gate = Gate::new();
    let broken = acts::both(acts::hold_at(100_000, &gate), acts::cut_at(200_000, crate::common::upstream::Cut::Fin));
    upstream.script("GET", "/v2/secret/blobs/*", .., acts::where_status(200, broken));
    let ask = |user: &str| {
        let (direct, user) = (direct.clone(), account(user));
        apart(async move { direct.blob(&user, "secret", &digest).await })
    };
    let ann = ask("ann");
    gate.reached(1).await;
    let bob = ask("bob");
    crate::common::eventually("bob may join", || async {
        upstream.requests("HEAD", "/v2/secret/blobs/*").iter().any(|entry| entry.status == 200)
    })
    .await;
    direct.get(&account("bob"), "secret", "v1").await;
    revoke(&upstream, "ann");
    gate.open();
    bob.done().await.found(&digest);
    ann.done().await.found(&digest);
}

#[tokio::test]
async fn lists_are_by_right_and_what_a_caller_got_is_not_kept() {
    let (upstream, open, secret) = registry(401).await;
    let direct = Direct::start(&upstream, "").await;
    let list = |body: &'static str| sha256(body.as_bytes());
    let (of_open, of_secret) = (list(r#"{"name":"open","tags":["v1"]}"#), list(r#"{"name":"secret","tags":["v1"]}"#));
    direct.tags(&STRANGER, "open").await.found(&of_open);
    direct.tags(&account("ann"), "secret").await.found(&of_secret);
    direct.referrers(&account("ann"), "secret", &secret.digest).await;
    direct.referrers(&STRANGER, "open", &open.digest).await;
    let (up, repo) = ("up".parse().unwrap(), "secret".parse().unwrap());
    assert_eq!(direct.store.list(&up, &repo, &ocistern::store::ListKind::Tags, "").await.unwrap(), None);
    direct.tags(&STRANGER, "secret").await.assert_refused();
    upstream.down();
    assert_eq!(direct.tags(&STRANGER, "open").await, Came::Content(of_open, Found::Stale));
    assert_eq!(direct.tags(&account("eve"), "open").await, Came::Content(of_open, Found::Stale));
    assert_eq!(direct.tags(&account("ann"), "secret").await, Came::Away);
    upstream.up();
    make_private(&upstream);
    crate::common::eventually("it is refused", || async {
        matches!(direct.tags(&STRANGER, "open").await, Came::Refused(_))
    })
    .await;
    upstream.down();
    assert!(!matches!(direct.tags(&STRANGER, "open").await, Came::Content(..)), "not as stale either");
}

#[tokio::test]
async fn a_confirmed_description_is_upstreams_and_not_the_stores() {
    let (upstream, open, _) = registry(401).await;
    let direct = Direct::start(&upstream, "tags = \"immutable\"").await;
    let layer = sha256(&open.layers[0]);
    pull(&direct, &STRANGER, "open", &open).await;
    let digest = open.digest.to_string();
    for want in [Want::Confirmed, Want::Required] {
        upstream.forget();
        assert_eq!(direct.manifest(&STRANGER, "open", "v1", want).await, Came::Content(open.digest, Found::Passed));
        assert_eq!(direct.manifest(&STRANGER, "open", &digest, want).await, Came::Content(open.digest, Found::Passed));
        assert_eq!(direct.head_blob(&STRANGER, "open", &layer, want).await, Came::Content(layer, Found::Passed));
        assert_eq!(upstream.count("HEAD", "/v2/open/*"), 3);
    }
    // What upstream has lost since.
    upstream.registry(|registry| drop(registry.repos.get_mut("open").unwrap().blobs.remove(&layer)));
    direct.head_blob(&STRANGER, "open", &layer, Want::Description).await.assert_hit(&layer);
    for want in [Want::Confirmed, Want::Required] {
        let came = direct.head_blob(&STRANGER, "open", &layer, want).await;
        assert!(matches!(came, Came::Missing(_)), "{came:?}");
    }
    upstream.down();
    let config = sha256(&open.config);
    direct.head_blob(&STRANGER, "open", &config, Want::Confirmed).await.assert_hit(&config);
    assert_eq!(direct.head_blob(&STRANGER, "open", &config, Want::Required).await, Came::Away);
    direct.manifest(&STRANGER, "open", "v1", Want::Confirmed).await.found(&open.digest);
    assert_eq!(direct.manifest(&STRANGER, "open", "v1", Want::Required).await, Came::Away);
}

#[tokio::test]
async fn a_confirmed_description_is_upstreams_where_its_head_is_unusable() {
    let (upstream, open, _) = registry(401).await;
    upstream.script("HEAD", "/v2/open/manifests/*", .., acts::fail(405, "UNSUPPORTED"));
    let direct = Direct::start(&upstream, "").await;
    let digest = open.digest.to_string();
    direct.manifest(&STRANGER, "open", "v1", Want::Confirmed).await.found(&open.digest);
    direct.get(&STRANGER, "open", &digest).await.found(&open.digest);
    // Removed there by somebody else: who is about to push is not told that it is there.
    upstream.registry(|registry| registry.repos.get_mut("open").unwrap().manifests.clear());
    for want in [Want::Confirmed, Want::Required] {
        let came = direct.manifest(&STRANGER, "open", &digest, want).await;
        assert!(matches!(came, Came::Missing(_)), "{want:?}: {came:?}");
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_holds_known_content_two_seconds_and_then_no_more() {
    let (upstream, open, _) = registry(401).await;
    let direct = Direct::start(&upstream, "public_for = \"0s\"").await;
    let layer = sha256(&open.layers[0]);
    pull(&direct, &STRANGER, "open", &open).await;
    let gate = Gate::new();
    upstream.script("*", "*", .., acts::hold_head(&gate));
    let _warp = clock::warp();
    let begun = tokio::time::Instant::now();
    direct.blob(&STRANGER, "open", &layer).await.assert_hit(&layer);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let begun = tokio::time::Instant::now();
    direct.blob(&STRANGER, "open", &layer).await.assert_hit(&layer);
    assert!(begun.elapsed() < Duration::from_secs(1), "it is remembered that it hangs: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stranger_who_is_told_that_there_is_nothing_takes_nothing_away() {
    let (upstream, _, secret) = registry(404).await;
    let direct = Direct::start(&upstream, "tags = \"1h\"\naccess_ttl = \"1h\"").await;
    let ann = account("ann");
    pull(&direct, &ann, "secret", &secret).await;
    for came in ask_all(&direct, &STRANGER, "secret", &secret).await {
        assert!(!matches!(came, Came::Content(digest, _) if digest == secret.digest), "{came:?}");
    }
    upstream.forget();
    direct.get(&ann, "secret", "v1").await.assert_hit(&secret.digest);
    assert_eq!(upstream.log().len(), 0, "the tag is still known");
}

#[tokio::test]
async fn a_web_page_for_everybody_makes_nothing_public() {
    let (upstream, _, secret) = registry(401).await;
    let direct = Direct::start(&upstream, "").await;
    let layer = sha256(&secret.layers[0]);
    pull(&direct, &account("ann"), "secret", &secret).await;
    upstream.script("*", "/v2/*", .., acts::login_page());
    for came in ask_all(&direct, &STRANGER, "secret", &secret).await {
        let kept = matches!(&came, Came::Content(digest, _) if *digest == secret.digest || *digest == layer);
        assert!(!kept || matches!(came, Came::Content(_, Found::Passed)), "{came:?}");
    }
    assert!(!matches!(direct.blob(&STRANGER, "secret", &layer).await, Came::Content(..)));
    upstream.unscript();
    direct.blob(&STRANGER, "secret", &layer).await.assert_refused();
}

#[tokio::test]
async fn what_is_stored_under_another_name_is_not_a_permission() {
    let (upstream, open, secret) = registry(401).await;
    // The same layer in both, and one that only `secret` has.
    let (shared, own) = (open.layers[0].clone(), secret.layers[0].clone());
    upstream.blob("secret", &shared);
    let direct = Direct::start(&upstream, "").await;
    pull(&direct, &account("ann"), "secret", &secret).await;
    direct.blob(&account("ann"), "secret", &sha256(&shared)).await.found(&sha256(&shared));
    direct.settle().await;
    // Under the open name everybody may ask, and upstream says which of them are there.
    direct.blob(&STRANGER, "open", &sha256(&shared)).await.assert_hit(&sha256(&shared));
    let came = direct.blob(&STRANGER, "open", &sha256(&own)).await;
    assert!(matches!(came, Came::Missing(_)), "{came:?}");
    direct.blob(&STRANGER, "secret", &sha256(&shared)).await.assert_refused();
    assert_ne!(target(&STRANGER, "open"), target(&account("ann"), "open"), "rights are told apart");
}
