//! Sockets that accept: TCP, Unix, and those that systemd opened.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketType};
use tokio::net::{TcpListener, UnixListener};

use super::inherited;
use super::stream::Plain;
use crate::config::{Address, Listener};
use crate::http::access::Peer;

/// Bytes that the kernel holds for a client before it says that a socket takes no more. Without a limit it would take
/// megabytes at once and then, from a slow client, nothing for minutes, which looks like a client that does not read.
const UNSENT: u32 = 256 * 1024;
/// Who may connect to a Unix listener: its owner and group.
const UNIX_MODE: u32 = 0o660;

/// A socket that accepts connections.
#[derive(Debug)]
pub(super) enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; the file is removed at the end, if this process made it.
    Unix { listener: UnixListener, _file: Option<SocketFile> },
}

/// The file of a Unix socket; dropping it removes it, if it is still the same.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Sockets that systemd opened before the start (`LISTEN_FDS`), in the order of its `.socket` units.
#[derive(Debug, Default)]
pub struct Inherited(Vec<InheritedSocket>);

#[derive(Debug)]
enum InheritedSocket {
    Tcp(std::net::TcpListener),
    Unix(unix::UnixListener),
}

/// A listener that is served.
#[derive(Debug)]
pub(super) struct Opened {
    /// Where it stands among the configured ones.
    pub(super) place: usize,
    pub(super) settings: Listener,
    /// One, or as many as systemd passed for it.
    pub(super) sockets: Vec<Socket>,
}

/// What a socket is for, as far as whoever chose its address needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Registry clients.
    Listener,
    /// The admin interface over TCP.
    Admin,
    /// The admin interface on its Unix socket.
    AdminSocket,
}

/// A socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {what}{}", advice(.what, .source, *.purpose))]
pub struct ListenError {
    what: String,
    purpose: Purpose,
    source: io::Error,
}

/// The error and what to do about it, where that is known.
fn advice(what: &str, error: &io::Error, purpose: Purpose) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            let tool = if what.starts_with("unix:") { "ss -lxp" } else { "ss -ltnp" };
            let choose = match purpose {
                Purpose::Listener => "--listen",
                Purpose::Admin => "--admin-listen",
                Purpose::AdminSocket => "admin.socket",
            };
            return format!(": {error}; `{tool}` names the process; stop it or choose another with {choose}");
        }
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE or a systemd socket, and a Unix socket a directory that \
             this user can write to"
        }
        io::ErrorKind::NotFound => "its directory is missing, make it",
        _ => return String::new(),
    };
    format!(": {error}; {advice}")
}

// === impl Purpose ===

impl Purpose {
    /// The key of the configuration that has the address.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "listener.address",
            Self::Admin => "admin.address",
            Self::AdminSocket => "admin.socket",
        }
    }
}

// === impl Socket ===

impl Socket {
    /// Opens a TCP socket.
    pub(super) async fn tcp(address: SocketAddr, purpose: Purpose) -> Result<Self, ListenError> {
        let error = |source| ListenError::new(address, purpose, source);
        TcpListener::bind(address).await.map(Self::Tcp).map_err(error)
    }

    /// Opens a Unix socket with these permissions; a file left over by a process that is gone is replaced.
    pub(super) fn unix(path: &Path, mode: u32, purpose: Purpose) -> Result<Self, ListenError> {
        let error = |source| ListenError::unix(path, purpose, source);
        remove_stale(path).map_err(error)?;
        let listener = UnixListener::bind(path).map_err(error)?;
        let file = SocketFile::new(path).map_err(error)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(error)?;
        Ok(Self::Unix { listener, _file: Some(file) })
    }

    async fn open(address: &Address) -> Result<Self, ListenError> {
        match address {
            Address::Tcp(address) => Self::tcp(*address, Purpose::Listener).await,
            Address::Unix(path) => Self::unix(path, UNIX_MODE, Purpose::Listener),
        }
    }

    /// The TCP address, with the port that was chosen.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<(Plain, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Neither is worth losing the connection for.
                let _ = stream.set_nodelay(true);
                let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
                Ok((Plain::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
                Ok((Plain::Unix(stream), Peer::Unix(user)))
            }
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("a TCP socket"),
            },
            Self::Unix { listener, .. } => match listener.local_addr() {
                Ok(address) => write!(f, "unix:{}", address.as_pathname().unwrap_or(Path::new("(unnamed)")).display()),
                Err(_) => f.write_str("a Unix socket"),
            },
        }
    }
}

/// Whether a daemon could listen there now. TCP: it is tried, for a moment. Of a Unix socket nothing is touched: who listens
/// there already is found by connecting, and what is left over is replaced at the start.
pub async fn can_listen(address: &Address) -> Result<(), ListenError> {
    match address {
        Address::Tcp(address) => Socket::tcp(*address, Purpose::Listener).await.map(drop),
        Address::Unix(path) => {
            let error = |source| ListenError::unix(path, Purpose::Listener, source);
            match tokio::net::UnixStream::connect(path).await {
                Ok(_) => Err(error(io::ErrorKind::AddrInUse.into())),
                Err(source) if source.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                    let metadata = tokio::fs::metadata(directory.unwrap_or(Path::new("."))).await.map_err(error)?;
                    if metadata.is_dir() { Ok(()) } else { Err(error(io::ErrorKind::NotADirectory.into())) }
                }
                Err(source) => Err(error(source)),
            }
        }
    }
}

struct Display<'a>(&'a Path);

impl fmt::Display for Display<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

/// Removes the file of a Unix socket that nobody answers at. Other files, and sockets with a process behind them,
/// stay: binding fails on them.
fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    match unix::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(io::Error::from(io::ErrorKind::AddrInUse)),
    }
}

/// The configured listeners that are served, in their order, with their sockets. Sockets of systemd take the place of all TCP
/// addresses, and of the Unix sockets with their path.
pub(super) async fn open(listeners: &[Listener], inherited: Inherited) -> Result<Vec<Opened>, ListenError> {
    let sockets = inherited.0.into_iter().map(InheritedSocket::into_socket).collect::<Result<Vec<_>, _>>()?;
    let addresses = sockets.iter().map(Socket::configured_as).collect::<Result<Vec<_>, _>>()?;
    let places = inherited::places(&addresses, listeners);
    let left_out = inherited::left_out(&places, listeners);
    let mut passed: BTreeMap<usize, Vec<Socket>> = BTreeMap::new();
    for (place, socket) in places.into_iter().zip(sockets) {
        passed.entry(place).or_default().push(socket);
    }
    let mut opened = Vec::new();
    for (place, settings) in listeners.iter().enumerate() {
        let sockets = if let Some(sockets) = passed.remove(&place) {
            for socket in &sockets {
                tracing::info!(%socket, settings_of = %settings.address, "systemd passed a socket");
            }
            sockets
        } else if left_out.contains(&place) {
            if !settings.optional {
                tracing::warn!(
                    address = %settings.address,
                    "this listener is not served: sockets of systemd take the place of all TCP addresses; write it as \
                     ListenStream= in ocistern.socket"
                );
            }
            continue;
        } else {
            match Socket::open(&settings.address).await {
                Ok(socket) => vec![socket],
                Err(error) if settings.optional && error.is_missing_address() => {
                    tracing::debug!("{error}");
                    continue;
                }
                Err(error) => return Err(error),
            }
        };
        opened.push(Opened { place, settings: settings.clone(), sockets });
    }
    Ok(opened)
}

impl Socket {
    /// The address as the configuration would have it.
    fn configured_as(&self) -> Result<Address, ListenError> {
        let error = |source| ListenError::new("a socket of systemd", Purpose::Listener, source);
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp).map_err(error),
            Self::Unix { listener, .. } => {
                let address = listener.local_addr().map_err(error)?;
                Ok(Address::Unix(address.as_pathname().map(Path::to_owned).unwrap_or_default()))
            }
        }
    }
}

// === impl SocketFile ===

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have put its own there meanwhile.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

// === impl Inherited ===

impl Inherited {
    /// Takes the sockets that systemd passed, if any. Call it before any thread is started: it clears the variables.
    pub fn from_env() -> Result<Self, ListenError> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            sockets.push(InheritedSocket::take(&mut passed, index)?);
        }
        Ok(Self(sockets))
    }
}

impl From<Vec<std::net::TcpListener>> for Inherited {
    /// Sockets that are open for another reason, in this order.
    fn from(sockets: Vec<std::net::TcpListener>) -> Self {
        Self(sockets.into_iter().map(InheritedSocket::Tcp).collect())
    }
}

impl InheritedSocket {
    fn take(passed: &mut ListenFd, index: usize) -> Result<Self, ListenError> {
        let error = |source| ListenError::new(format_args!("socket {index} of systemd"), Purpose::Listener, source);
        if let Ok(Some(listener)) = passed.take_unix_listener(index) {
            return Ok(Self::Unix(listener));
        }
        // `ListenStream=5000` is an IPv6 socket for both families, which the crate's own method does not know.
        let (v6, stream) = (i32::from(AddressFamily::INET6.as_raw()), SocketType::STREAM.as_raw());
        if let Ok(Some(listener)) = passed.take_custom(index, v6, stream.cast_signed(), "IPv6 socket") {
            return Ok(Self::Tcp(listener));
        }
        let listener = passed.take_tcp_listener(index).map_err(error)?;
        let missing = || error(io::Error::new(io::ErrorKind::InvalidInput, "it was taken before"));
        listener.map(Self::Tcp).ok_or_else(missing)
    }

    fn into_socket(self) -> Result<Socket, ListenError> {
        let error = |source| ListenError::new("a socket of systemd", Purpose::Listener, source);
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true).map_err(error)?;
                TcpListener::from_std(listener).map(Socket::Tcp).map_err(error)
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true).map_err(error)?;
                UnixListener::from_std(listener).map(|listener| Socket::Unix { listener, _file: None }).map_err(error)
            }
        }
    }
}

// === impl ListenError ===

impl ListenError {
    /// Whether somebody listens there already.
    pub fn is_taken(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }

    /// Whether this user may not listen there.
    pub fn is_forbidden(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether the machine has no such address, or not the whole family.
    pub fn is_missing_address(&self) -> bool {
        let no_family = Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        self.source.kind() == io::ErrorKind::AddrNotAvailable || self.source.raw_os_error() == no_family
    }

    pub(super) fn unix(path: &Path, purpose: Purpose, source: io::Error) -> Self {
        Self::new(Display(path), purpose, source)
    }

    /// Whether it is that the file system has no room for a socket.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    fn new(what: impl fmt::Display, purpose: Purpose, source: io::Error) -> Self {
        Self { what: format!("{what} ({})", purpose.as_str()), purpose, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: Address) -> Listener {
        Listener {
            address,
            default_upstream: None,
            public_url: None,
            hostnames: BTreeMap::default(),
            tls: None,
            htpasswd: None,
            allow_plain_credentials: false,
            optional: false,
        }
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_what_to_do() {
        let first = Socket::tcp("127.0.0.1:0".parse().unwrap(), Purpose::Listener).await.unwrap();
        let address = first.address().unwrap();
        for (purpose, key, flag) in [
            (Purpose::Listener, "(listener.address)", "--listen"),
            (Purpose::Admin, "(admin.address)", "--admin-listen"),
        ] {
            let message = Socket::tcp(address, purpose).await.unwrap_err().to_string();
            let start = format!("cannot listen on {address} {key}: Address already in use");
            assert!(message.starts_with(&start) && message.ends_with(&format!("another with {flag}")), "{message}");
        }
    }

    #[tokio::test]
    async fn whether_one_can_listen_is_found_without_leaving_anything() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let unix = Address::Unix(path.clone());
        can_listen(&unix).await.unwrap();
        assert!(!path.exists());
        let live = Socket::unix(&path, 0o600, Purpose::Listener).unwrap();
        assert!(can_listen(&unix).await.unwrap_err().is_taken());
        drop(live);
        drop(unix::UnixListener::bind(&path).unwrap());
        can_listen(&unix).await.unwrap();
        assert!(path.exists(), "what is left over stays");
        let nowhere = can_listen(&Address::Unix(directory.path().join("none/s"))).await.unwrap_err().to_string();
        assert!(nowhere.contains("its directory is missing"), "{nowhere}");
        let tcp = Socket::tcp("127.0.0.1:0".parse().unwrap(), Purpose::Listener).await.unwrap();
        let address = Address::Tcp(tcp.address().unwrap());
        assert!(can_listen(&address).await.unwrap_err().is_taken());
        drop(tcp);
        can_listen(&address).await.unwrap();
        let elsewhere = can_listen(&Address::Tcp("192.0.2.1:9".parse().unwrap())).await.unwrap_err();
        assert!(elsewhere.is_missing_address() && !elsewhere.is_taken());
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_a_live_one_and_a_file_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(unix::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file");
        let live = Socket::unix(&path, 0o600, Purpose::AdminSocket).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Socket::unix(&path, 0o600, Purpose::AdminSocket).unwrap_err().to_string();
        assert!(error.contains("`ss -lxp` names the process"), "{error}");
        drop(live);
        assert!(!path.exists(), "a socket takes its file along");
        std::fs::write(&path, "precious").unwrap();
        assert!(Socket::unix(&path, 0o600, Purpose::AdminSocket).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_file_that_another_process_put_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let ours = Socket::unix(&path, 0o600, Purpose::AdminSocket).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = unix::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn sockets_of_systemd_take_the_place_of_configured_ones() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, theirs) = (directory.path().join("ours"), directory.path().join("theirs"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let unix = unix::UnixListener::bind(&theirs).unwrap();
        let mut first = listener(Address::Tcp("192.0.2.1:1".parse().unwrap()));
        first.public_url = Some("https://first".to_owned());
        let mut second = listener(Address::Unix(theirs));
        second.public_url = Some("https://second".to_owned());
        let third = listener(Address::Unix(ours.clone()));
        let inherited = Inherited(vec![InheritedSocket::Tcp(tcp), InheritedSocket::Unix(unix)]);
        let opened = open(&[first, second, third], inherited).await.unwrap();
        let urls: Vec<_> =
            opened.iter().map(|open| (open.place, open.settings.public_url.as_deref(), open.sockets.len())).collect();
        assert_eq!(urls, [(0, Some("https://first"), 1), (1, Some("https://second"), 1), (2, None, 1)]);
        assert_eq!(opened.first().unwrap().sockets.first().unwrap().address(), Some(address));
        assert!(ours.exists(), "a configured Unix listener is opened besides");
    }
}
