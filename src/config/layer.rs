//! Flags over environment over file over defaults, joined and validated into a [`Config`].
//!
//! Problems are collected, not returned one by one; a value that could not be used is replaced by its default until
//! all are told, and no configuration with a problem leaves this module.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::error::{ConfigError, Fault};
use super::file::{File, LimitsTable, LogTable, PinTable, Scalar, ScrubValue, StoreTable};
use super::place::{At, Document, KeyPath, Problems, Written};
use super::{
    Abandon, Address, Admin, BaseUrl, Capacity, Config, Durability, Flags, Limits, Log, LogFormat, Otlp, Pin, Pinned,
    RangeFill, Scrub, Store, UnverifiedRanges, listeners, parse, passed, pattern, upstreams,
};

const SCRUB: &str = "OCISTERN_STORE__SCRUB";
/// The variables that set what is no scalar of a fixed table.
pub(super) const OTHER_VARIABLES: [&str; 6] =
    ["OCISTERN_CONFIG", "OCISTERN_LISTEN", "OCISTERN_ADMIN_LISTEN", "OCISTERN_UPSTREAM", "OCISTERN_SEALED", SCRUB];
const TEXT: &str = "a text in quotes";
const NUMBER: &str = "a whole number of at least 1";
const BOOL: &str = "true or false";
const DURABILITY: &str = "a durability: write \"strict\" (on the disk before it is visible) or \"fast\"";
const MAX_AGE: &str = "an age limit: write \"off\", or at least \"1h\", such as \"90d\"";
/// A shorter one would remove what has just been fetched.
const SHORTEST_AGE: Duration = Duration::from_hours(1);
const INCOMPLETE_PIN: &str =
    "a pin needs upstream and repository, such as upstream = \"docker.io\", repository = \"library/*\"";
const NEVER_VERIFIED: &str = "\"wait\" is for blobs that are downloaded as a whole, and with this range_fill most never are, so that a part would be waited for in vain: write range_fill = \"always\", or \"serve\" here";
const RECEIVER: &str = "a receiver of traces: write scheme and host, such as \"http://localhost:4318\", or \"off\"";
const SAMPLE: &str = "a part of the traces: write a percentage from \"0%\" to \"100%\"";
const FORMAT: &str = "a log format: write \"auto\", \"human\" or \"json\"";
const FILTER: &str =
    "a log filter: write levels (off, error, warn, info, debug, trace), such as \"info\" or \"info,ocistern=debug\"";
const NOT_ZERO: &str = "a time limit that lets anything through: write more than 0, such as \"10s\"";
const MANIFEST: &str =
    "a size for manifests: write one from \"1KiB\" to \"64MiB\" (a manifest is kept in memory while it is checked)";

/// A value from a flag or variable that may hold several.
pub(super) struct Word {
    /// Name of the flag or variable.
    pub(super) from: &'static str,
    /// The value.
    pub(super) value: String,
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Everything together. `system` is the file that is read where no other is.
pub(super) fn load(flags: &Flags, env: Env<'_>, system: &Path) -> Result<Config, ConfigError> {
    // An empty variable is an unset one: that is how a container's preset is taken back.
    let env: Env<'_> = &|name| env(name).filter(|value| !value.is_empty());
    let document = find(flags, env, system)?;
    let mut problems = Problems::default();
    let mut file = File::read(&document, &mut problems)?;
    if let Some(directory) = document.path.as_deref().and_then(Path::parent) {
        file.rebase(directory);
    }
    overlay(&mut file, flags, env, &mut problems);
    let credentials = passed::directory(env);
    file.files().into_iter().for_each(|slot| passed::resolve(slot, &credentials));
    let listen = words("--listen", &flags.listen, "OCISTERN_LISTEN", env);
    let upstream = words("--upstream", &flags.upstream, "OCISTERN_UPSTREAM", env);
    let sealed = flags.sealed
        || env("OCISTERN_SEALED").is_some_and(|value| {
            let at = At::Name("OCISTERN_SEALED".to_owned());
            problems.check(at, boolean(&Scalar::Text(value))).unwrap_or(true)
        });
    let root = flags.root.clone().unwrap_or_else(|| default_root(env));
    let keep_root = flags.root.is_some();
    let (mut config, tables) = build(&file, &listen, &upstream, sealed, &mut problems);
    if keep_root || file.root.is_none() {
        config.root = root;
    }
    problems.into_result(&document)?;
    config.source.clone_from(&document.path);
    config.written = Written { document, listeners: tables }.into();
    // Commands find the daemon by what it says of these, from wherever they are called.
    config.root = absolute(config.root);
    config.admin.socket = config.admin.socket.map(absolute);
    Ok(config)
}

/// Root and socket by flags and environment, and whether they name the root; all else is the default.
pub(super) fn without_file(flags: &Flags, env: Env<'_>) -> Result<(Config, bool), ConfigError> {
    let env: Env<'_> = &|name| env(name).filter(|value| !value.is_empty());
    let place = |key: &str| env(&variable(key)).map(PathBuf::from);
    let root = flags.root.clone().or_else(|| place("root"));
    let is_named = root.is_some();
    let mut config = from_text("")?;
    config.root = absolute(root.unwrap_or_else(|| default_root(env)));
    config.admin.socket = place("admin.socket").map(absolute);
    Ok((config, is_named))
}

/// The path from the top; as it is where nobody knows what it is relative to.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// A file's text alone, without flags and environment.
pub(super) fn from_text(text: &str) -> Result<Config, ConfigError> {
    let document = Document::new(None, text);
    let mut problems = Problems::default();
    let mut file = File::read(&document, &mut problems)?;
    let credentials = passed::directory(&|_| None);
    file.files().into_iter().for_each(|slot| passed::resolve(slot, &credentials));
    let (mut config, tables) = build(&file, &[], &[], false, &mut problems);
    if file.root.is_none() {
        config.root = default_root(&|_| None);
    }
    problems.into_result(&document)?;
    config.written = Written { document, listeners: tables }.into();
    Ok(config)
}

/// The configuration file: a named one must exist, the usual ones may.
fn find(flags: &Flags, env: Env<'_>, system: &Path) -> Result<Document, ConfigError> {
    let read = |path: &Path| std::fs::read_to_string(path).map(|text| Document::new(Some(path), &text));
    let failed = |path: &Path, source| ConfigError::Read { path: path.to_owned(), source };
    if let Some(path) = flags.config.clone().or_else(|| env("OCISTERN_CONFIG").map(PathBuf::from)) {
        return read(&path).map_err(|error| failed(&path, error));
    }
    let home = base_directory(env, "XDG_CONFIG_HOME", ".config").map(|base| base.join("ocistern/config.toml"));
    for path in home.iter().map(PathBuf::as_path).chain([system]) {
        match read(path) {
            Ok(document) => return Ok(document),
            // `/dev/null` is the home of some system users.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(failed(path, error)),
        }
    }
    Ok(Document::default())
}

/// A directory of the XDG base directory specification, which ignores relative ones.
fn base_directory(env: Env<'_>, variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: &PathBuf| path.is_absolute();
    env(variable)
        .map(PathBuf::from)
        .filter(absolute)
        .or_else(|| env("HOME").map(PathBuf::from).filter(absolute).map(|home| home.join(below_home)))
}

/// Where the store is if nobody said: what systemd's `CacheDirectory=` made, else the user's cache directory, else,
/// without a home, the system's.
fn default_root(env: Env<'_>) -> PathBuf {
    let systemd = env("CACHE_DIRECTORY")
        .and_then(|list| list.split(':').next().map(PathBuf::from))
        .filter(|path| path.is_absolute());
    systemd
        .or_else(|| base_directory(env, "XDG_CACHE_HOME", ".cache").map(|base| base.join("ocistern")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/ocistern"))
}

/// Puts scalars of the environment, then those of flags, over the file's.
fn overlay(file: &mut File, flags: &Flags, env: Env<'_>, problems: &mut Problems) {
    for (key, slot) in file.scalars() {
        let name = variable(key);
        if let Some(value) = env(&name) {
            *slot = Some(Scalar::Text(value));
            problems.override_by(KeyPath::dotted(key), &name);
        }
    }
    // Not a scalar in the file, but its being off is.
    if let Some(value) = env(SCRUB) {
        file.store.scrub = Some(ScrubValue::Scalar(Scalar::Text(value)));
        problems.override_by(KeyPath::dotted("store.scrub"), SCRUB);
    }
    let admin = flags.admin_listen.clone().map(|value| ("--admin-listen", value));
    let admin = admin.or_else(|| env("OCISTERN_ADMIN_LISTEN").map(|value| ("OCISTERN_ADMIN_LISTEN", value)));
    if let Some((name, value)) = admin {
        file.admin.address = Some(Scalar::Text(value));
        problems.override_by(KeyPath::dotted("admin.address"), name);
    }
}

/// The variable that sets a key of a fixed table.
pub(super) fn variable(key: &str) -> String {
    format!("OCISTERN_{}", key.to_uppercase().replace('.', "__"))
}

/// The values of a flag that can be repeated; without it, of a variable with commas.
fn words(flag: &'static str, values: &[String], name: &'static str, env: Env<'_>) -> Vec<Word> {
    if !values.is_empty() {
        return values.iter().map(|value| Word { from: flag, value: value.clone() }).collect();
    }
    let list = env(name).unwrap_or_default();
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| Word { from: name, value: part.to_owned() }).collect()
}

/// The configuration, and of which table each of its listeners is.
fn build(
    file: &File,
    listen: &[Word],
    upstream: &[Word],
    sealed: bool,
    problems: &mut Problems,
) -> (Config, Vec<Option<usize>>) {
    let (upstreams, default) = upstreams::build(file, upstream, sealed, problems);
    let (listeners, tables) = listeners::build(file, listen, &upstreams, default.as_ref(), problems);
    upstreams::refuse_own_addresses(file, upstream, &upstreams, &listeners, problems);
    let root = value(problems, &KeyPath::dotted("root"), file.root.as_ref(), path);
    let admin = admin(file, problems);
    if let Some(address) = admin.address
        && let Some(listener) = listeners.iter().find(|listener| listener.address.overlaps(&Address::Tcp(address)))
    {
        let taken = Fault::SharedAddress { address: address.to_string(), other: listener.address.to_string() };
        problems.add(KeyPath::dotted("admin.address"), taken);
    }
    let config = Config {
        root: root.unwrap_or_default(),
        listeners,
        admin,
        store: store(&file.store, problems),
        pins: pins(&file.pin, &upstreams, problems),
        upstreams: upstreams.into_iter().map(|(name, upstream)| (name, upstream.into())).collect(),
        limits: limits(&file.limits, problems),
        log: log(&file.log, problems),
        source: None,
        written: Arc::default(),
    };
    (config, tables)
}

fn admin(file: &File, problems: &mut Problems) -> Admin {
    let table = &file.admin;
    let at = KeyPath::dotted("admin");
    let address = value(problems, &at.key("address"), table.address.as_ref(), |s| parse::admin_address(s.text(TEXT)?));
    Admin {
        address: address.unwrap_or(Some(super::DEFAULT_ADMIN)),
        token_file: value(problems, &at.key("token_file"), table.token_file.as_ref(), path),
        socket: value(problems, &at.key("socket"), table.socket.as_ref(), path),
    }
}

fn store(table: &StoreTable, problems: &mut Problems) -> Store {
    let at = KeyPath::dotted("store");
    let durability = |scalar: &Scalar| match scalar.to_string().as_str() {
        "strict" => Ok(Durability::Strict),
        "fast" => Ok(Durability::Fast),
        other => Err(Fault::value(other, DURABILITY)),
    };
    let manifest = |scalar: &Scalar| {
        let text = scalar.to_string();
        let bytes = parse::size(&text)?;
        if (1 << 10..=64 << 20).contains(&bytes) { Ok(bytes) } else { Err(Fault::value(&text, MANIFEST)) }
    };
    let age = |scalar: &Scalar| {
        let text = scalar.to_string();
        let age = if text == "off" { None } else { Some(parse::duration(&text)?) };
        if age.is_none_or(|age| age >= SHORTEST_AGE) { Ok(age) } else { Err(Fault::value(&text, MAX_AGE)) }
    };
    let default = Store::default();
    let range_fill = |scalar: &Scalar| RangeFill::parse(&scalar.to_string());
    let range_fill = value(problems, &at.key("range_fill"), table.range_fill.as_ref(), range_fill).unwrap_or_default();
    let unverified = |scalar: &Scalar| UnverifiedRanges::parse(&scalar.to_string());
    let unverified_ranges =
        value(problems, &at.key("unverified_ranges"), table.unverified_ranges.as_ref(), unverified).unwrap_or_default();
    if unverified_ranges == UnverifiedRanges::Wait && range_fill != RangeFill::Always {
        problems.add(at.key("unverified_ranges"), Fault::Unfit(NEVER_VERIFIED));
    }
    let abandon = |scalar: &Scalar| Abandon::parse(&scalar.to_string());
    Store {
        capacity: value(problems, &at.key("capacity"), table.capacity.as_ref(), |s| parse::capacity(&s.to_string()))
            .unwrap_or(Capacity::Default),
        durability: value(problems, &at.key("durability"), table.durability.as_ref(), durability)
            .unwrap_or(default.durability),
        max_age: value(problems, &at.key("max_age"), table.max_age.as_ref(), age).flatten(),
        max_manifest: value(problems, &at.key("max_manifest"), table.max_manifest.as_ref(), manifest)
            .unwrap_or(default.max_manifest),
        scrub: Scrub::read(table.scrub.as_ref(), &at.key("scrub"), problems),
        range_fill,
        unverified_ranges,
        abandon: value(problems, &at.key("abandon"), table.abandon.as_ref(), abandon).unwrap_or_default(),
    }
}

fn pins(tables: &[PinTable], upstreams: &upstreams::Named, problems: &mut Problems) -> Vec<Pin> {
    let mut pins = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let at = KeyPath::dotted("pin").index(index);
        let known = |scalar: &Scalar| upstreams::existing(scalar.text(TEXT)?, upstreams);
        for (key, scalar) in [("upstream", &table.upstream), ("repository", &table.repository)] {
            if scalar.is_none() {
                problems.add(at.key(key), Fault::Missing(INCOMPLETE_PIN));
            }
        }
        let upstream = value(problems, &at.key("upstream"), table.upstream.as_ref(), known);
        let library = upstream.as_ref().and_then(|name| upstreams.get(name)).is_some_and(|upstream| upstream.library);
        let repository = |scalar: &Scalar| pattern::repository(scalar.text(TEXT)?, library);
        let repository = value(problems, &at.key("repository"), table.repository.as_ref(), repository);
        let tags = value(problems, &at.key("tag"), table.tag.as_ref(), |scalar| pattern::tag(&scalar.to_string()));
        if let (Some(upstream), Some(repository)) = (upstream, repository) {
            let pinned = Pinned::Tags(tags.unwrap_or_else(|| "*".to_owned()));
            pins.push(Pin { upstream, repository, pinned });
        }
    }
    pins
}

fn limits(table: &LimitsTable, problems: &mut Problems) -> Limits {
    let at = KeyPath::dotted("limits");
    let default = Limits::default();
    let mut number = |key: &str, scalar: &Option<Scalar>, default: usize| {
        let parse = |scalar: &Scalar| {
            let text = scalar.to_string();
            text.parse().ok().filter(|&n| n > 0).ok_or_else(|| Fault::value(&text, NUMBER))
        };
        value(problems, &at.key(key), scalar.as_ref(), parse).unwrap_or(default)
    };
    let connections = number("connections", &table.connections, default.connections);
    let connections_per_address =
        number("connections_per_address", &table.connections_per_address, default.connections_per_address);
    let mut time = |key: &str, scalar: &Option<Scalar>, zero: bool, default: Duration| {
        let parse = |scalar: &Scalar| {
            let text = scalar.to_string();
            let time = parse::duration(&text)?;
            if time.is_zero() && !zero { Err(Fault::value(&text, NOT_ZERO)) } else { Ok(time) }
        };
        value(problems, &at.key(key), scalar.as_ref(), parse).unwrap_or(default)
    };
    Limits {
        connections,
        connections_per_address,
        first_byte: time("first_byte", &table.first_byte, false, default.first_byte),
        header: time("header", &table.header, false, default.header),
        idle: time("idle", &table.idle, false, default.idle),
        min_rate_window: time("min_rate_window", &table.min_rate_window, false, default.min_rate_window),
        drain: time("drain", &table.drain, true, default.drain),
        min_rate: value(problems, &at.key("min_rate"), table.min_rate.as_ref(), |s| parse::rate(&s.to_string()))
            .unwrap_or(default.min_rate),
        max_rate: default.max_rate.merge(&at, table.max_rate.as_ref(), table.schedule.as_ref(), problems),
    }
}

fn log(table: &LogTable, problems: &mut Problems) -> Log {
    let at = KeyPath::dotted("log");
    let format = |scalar: &Scalar| match scalar.to_string().as_str() {
        "auto" => Ok(LogFormat::Auto),
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        other => Err(Fault::value(other, FORMAT)),
    };
    let filter = |scalar: &Scalar| {
        let text = scalar.text(TEXT)?;
        let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
        // A word that is no level would be taken for a part of the program, and the log of all others be off.
        let is_clear = |part: &str| part.contains(['=', '[', ':']) || part.parse::<LevelFilter>().is_ok();
        let mut parts = text.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
        if parsed.is_ok() && parts.peek().is_some() && parts.all(is_clear) {
            Ok(text.to_owned())
        } else {
            Err(Fault::value(text, FILTER))
        }
    };
    let receiver = |scalar: &Scalar| match scalar.text(TEXT)? {
        "off" => Ok(None),
        text => text.parse::<BaseUrl>().map(Some).map_err(|fault| match fault {
            // Its text speaks of registries.
            Fault::Userinfo => fault,
            _ => Fault::value(text, RECEIVER),
        }),
    };
    let percent = |scalar: &Scalar| parse::percent(&scalar.to_string(), SAMPLE);
    let percent = value(problems, &at.key("otlp_sample"), table.otlp_sample.as_ref(), percent).unwrap_or(100);
    let receiver = value(problems, &at.key("otlp"), table.otlp.as_ref(), receiver).flatten();
    let default = Log::default();
    Log {
        otlp: receiver.map(|receiver| Otlp { receiver, percent }),
        format: value(problems, &at.key("format"), table.format.as_ref(), format).unwrap_or(default.format),
        filter: value(problems, &at.key("filter"), table.filter.as_ref(), filter).unwrap_or(default.filter),
    }
}

/// The value of a key, if it is there and fits; a problem, if it does not fit.
pub(super) fn value<T>(
    problems: &mut Problems,
    at: &KeyPath,
    scalar: Option<&Scalar>,
    parse: impl Fn(&Scalar) -> Result<T, Fault>,
) -> Option<T> {
    let result = parse(scalar?);
    problems.check(at.clone(), result)
}

/// A text as it is.
pub(super) fn text(scalar: &Scalar) -> Result<String, Fault> {
    scalar.text(TEXT).map(ToOwned::to_owned)
}

/// A path.
pub(super) fn path(scalar: &Scalar) -> Result<PathBuf, Fault> {
    parse::path(scalar.text(TEXT)?)
}

/// True or false; in text, as the environment has it, also 1 and 0.
pub(super) fn boolean(scalar: &Scalar) -> Result<bool, Fault> {
    match scalar {
        Scalar::Bool(value) => Ok(*value),
        Scalar::Text(text) => match text.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(Fault::value(other, BOOL)),
        },
        Scalar::Integer(number) => Err(Fault::Type { got: number.to_string(), want: BOOL }),
    }
}
