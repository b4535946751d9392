//! Limits of an upstream and its mirrors, which change while it runs.

use super::*;
use crate::config::Config;

fn upstreams(config: &Config) -> Upstreams {
    Upstreams::new(config, Metrics::new().unwrap(), system()).unwrap()
}

fn limited(connections: &str) -> Config {
    Config::from_toml(&format!(
        "builtin_upstreams = false\n\
         [[listener]]\ndefault_upstream = \"\"\n\
         [upstream.\"a.example\"]\nmirrors = [\"https://b.example\"]\n{connections}"
    ))
    .unwrap()
}

/// How many places are free.
fn free(registry: &Registry) -> usize {
    let places: Vec<_> = std::iter::from_fn(|| registry.try_place()).take(100).collect();
    places.len()
}

#[tokio::test]
async fn places_are_shared_with_mirrors_and_change_while_they_run() {
    let upstreams = upstreams(&limited("max_connections = 3"));
    let registry = upstreams.get(&"a.example".parse().unwrap()).unwrap();
    let mirror = &registry.mirrors()[0];
    let go_on_by = |config: &Config| upstreams.take_over(upstreams.prepare(config).unwrap(), config);
    let place = registry.errand(None).place(Priority::Waiting, Some(1)).await;
    assert_eq!((free(&registry), free(mirror)), (2, 2));
    go_on_by(&limited("max_connections = 5"));
    assert_eq!((free(&registry), free(mirror)), (4, 4));
    drop(place);
    go_on_by(&limited(""));
    assert_eq!((free(&registry), free(mirror)), (100, 100));
}

#[tokio::test]
async fn an_upstream_that_is_asked_as_before_goes_on_and_another_one_begins_anew_within_the_same_limits() {
    let upstreams = upstreams(&limited("max_connections = 3"));
    let name: UpstreamName = "a.example".parse().unwrap();
    let go_on_by = |config: &Config| upstreams.take_over(upstreams.prepare(config).unwrap(), config);
    let first = upstreams.get(&name).unwrap();
    go_on_by(&limited("max_connections = 3\ntags = \"1h\"\npush = \"off\"\nmax_rate = \"1MiB\""));
    assert!(Arc::ptr_eq(&first, &upstreams.get(&name).unwrap()), "its connections and tokens are of use still");
    go_on_by(&limited("max_connections = 3\nstall = \"5s\""));
    let second = upstreams.get(&name).unwrap();
    assert!(!Arc::ptr_eq(&first, &second), "what it asks by has changed");
    let place = first.errand(None).place(Priority::Waiting, Some(1)).await;
    assert_eq!(free(&second), 2, "what still runs by the one before counts");
    drop(place);
    assert!(upstreams.metrics.expose().contains("ocistern_upstream_up{endpoint=\"b.example\""));
    let none = Config::from_toml("builtin_upstreams = false\n[[listener]]\ndefault_upstream = \"\"").unwrap();
    go_on_by(&none);
    assert!(upstreams.get(&name).is_none());
    let told = upstreams.metrics.expose();
    assert!(!told.contains("ocistern_upstream_up{"), "what is gone is neither well nor away: {told}");
    let broken = limited("ca = \"/nonexistent\"");
    assert!(upstreams.prepare(&broken).is_err(), "and nothing has changed");
}

/// What metrics say of ocistern itself.
fn told(upstreams: &Upstreams) -> String {
    let text = upstreams.metrics.expose();
    let ours: Vec<_> = text.lines().filter(|line| line.starts_with("ocistern_")).collect();
    ours.join("\n")
}

/// Sets the gauge of `registry` as five failed connections do.
fn take_away(registry: &Registry) {
    for _ in 0..5 {
        registry.breaker().permit().unwrap().failed();
    }
}

#[tokio::test]
async fn what_is_only_prepared_is_not_told_and_what_is_away_stays_so() {
    let ca = tempfile::NamedTempFile::new().unwrap();
    let authority =
        rcgen::CertifiedIssuer::self_signed(rcgen::CertificateParams::default(), rcgen::KeyPair::generate().unwrap());
    std::fs::write(ca.path(), authority.unwrap().pem()).unwrap();
    let own_ca = limited(&format!("ca = '{}'", ca.path().display()));
    let with_others = |keys: &str| {
        let text = format!(
            "builtin_upstreams = false\n[[listener]]\ndefault_upstream = \"\"\n\
             [upstream.\"a.example\"]\nmirrors = [\"https://b.example\"]\nca = '{}'\n\
             [upstream.\"new.example\"]\nmirrors = [\"https://newer.example\"]\n{keys}",
            ca.path().display()
        );
        Config::from_toml(&text).unwrap()
    };
    let upstreams = upstreams(&own_ca);
    let name: UpstreamName = "a.example".parse().unwrap();
    let first = upstreams.get(&name).unwrap();
    take_away(&first);
    let before = told(&upstreams);
    assert!(before.contains("ocistern_upstream_up{endpoint=\"a.example\",upstream=\"a.example\"} 0"), "{before}");
    upstreams.prepare(&with_others("[upstream.\"z.example\"]\nca = \"/nonexistent\"")).unwrap_err();
    assert_eq!(told(&upstreams), before, "a reload that is refused");
    let with_others = with_others("");
    drop(upstreams.prepare(&with_others).unwrap());
    assert_eq!(told(&upstreams), before, "one that is refused later, by something else");

    upstreams.take_over(upstreams.prepare(&with_others).unwrap(), &with_others);
    let now = told(&upstreams);
    for series in [
        "ocistern_upstream_up{endpoint=\"a.example\",upstream=\"a.example\"} 1",
        "ocistern_upstream_up{endpoint=\"newer.example\",upstream=\"new.example\"} 1",
        "ocistern_upstream_received_bytes_total{upstream=\"new.example\"} 0",
        "ocistern_fill_resumes_total{upstream=\"new.example\"} 0",
    ] {
        assert!(now.contains(series), "{series}: {now}");
    }
    take_away(&upstreams.get(&name).unwrap());
    let away = told(&upstreams);
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(2)).await;
    first.breaker().permit().unwrap().reached();
    assert_eq!(told(&upstreams), away, "what still runs by the one before says nothing of the one that holds");
}

#[tokio::test]
async fn blobs_keep_to_the_rate_and_what_is_small_only_counts() {
    let server = Server::start(|_, _| reply(200, &[], "hello")).await;
    let registry = registry(settings(server.address));
    assert!(registry.fetch(blob(Method::GET)).await.unwrap().body.is_paced());
    assert!(!registry.fetch(manifest()).await.unwrap().body.is_paced());
}

/// Docker Hub, as it counts: GETs of manifests, a hundred in six hours, and 429 beyond.
#[tokio::test]
async fn what_is_fetched_ahead_leaves_the_clients_their_share() {
    const WINDOW: Duration = Duration::from_hours(6);
    let counted = Arc::new(Mutex::new(0_usize));
    let pulls = Arc::clone(&counted);
    let server = Server::start(move |seen, _| {
        let mut counted = pulls.lock();
        if seen.method == Method::GET {
            *counted += 1;
        }
        let left = format!("{};w=21600", 100_usize.saturating_sub(*counted));
        let fields = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", left.as_str())];
        if *counted > 100 { reply(429, &fields, "") } else { reply(200, &fields, "{}") }
    })
    .await;
    let registry = registry(settings(server.address));
    let mut ahead = 0;
    while registry.spare(20).is_ok() {
        registry.fetch(manifest()).await.unwrap();
        ahead += 1;
    }
    assert_eq!(ahead, 80);
    // Asked as often as it may be without a pull, it stays so.
    registry.fetch(Ask { method: Method::HEAD, ..manifest() }).await.unwrap();
    assert!(registry.spare(20).is_err_and(|spent| spent.again_in <= WINDOW));
    for _ in 0..20 {
        registry.fetch(manifest()).await.unwrap();
    }
    let error = registry.fetch(manifest()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::RateLimited { .. }), "{error}");
    assert!(registry.spare(0).is_err(), "nor does it ask ahead after a refusal");
    *counted.lock() = 0;
    tokio::time::pause();
    tokio::time::advance(WINDOW).await;
    tokio::time::resume();
    assert_eq!(registry.spare(20), Ok(()), "a new window");
    registry.fetch(manifest()).await.unwrap();
}
