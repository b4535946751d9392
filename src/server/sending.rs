//! The stream of a plain connection that has the kernel send files: bytes that stand for a part of a file
//! ([`crate::sendfile`]) are sent with sendfile(2), all others are written.

use std::fs::File;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::{JoinHandle, coop, spawn_blocking};

use super::stream::Plain;
use crate::sendfile::{Outlet, Place};

/// Most slices that go into one call.
const SLICES: usize = 16;
/// What is copied at once where the file system does not let the kernel send its files.
const COPY: usize = 64 * 1024;
/// What is fetched at once of what has left the memory.
const FETCH: usize = 128 * 1024;

/// A plain socket and the parts of files that are on their way to it.
#[derive(Debug)]
pub(super) struct Sending {
    inner: Plain,
    outlet: Outlet,
    /// Brings what is sent next back into memory.
    fetching: Option<JoinHandle<()>>,
}

// === impl Sending ===

impl Sending {
    pub(super) const fn new(inner: Plain, outlet: Outlet) -> Self {
        Self { inner, outlet, fetching: None }
    }

    /// Sends what the first slice stands for. Never more than the slice: what follows is found in the next call.
    fn poll_send(&mut self, cx: &mut Context<'_>, place: &Place, mut length: usize) -> Poll<io::Result<usize>> {
        // A slow client takes its time for what was in memory when it was handed over, and reading the disk would keep
        // the worker from the others.
        if self.fetching.is_some() || place.is_stale() {
            ready!(self.inner.poll_write_ready(cx))?;
            length = length.min(FETCH);
            if self.fetching.is_none() && !place.is_resident(length) {
                let (file, offset) = (Arc::clone(place.file()), place.offset);
                // Made here: each of the pool's many threads would keep memory for further ones.
                let buffer = Vec::with_capacity(length);
                self.fetching = Some(spawn_blocking(move || fetch(&file, offset, buffer)));
            }
            // Then it is sent, whether it has stayed or not, lest it be fetched for ever.
            if let Some(fetching) = &mut self.fetching {
                drop(ready!(Pin::new(fetching).poll(cx)));
                self.fetching = None;
            }
        }
        let sent = ready!(self.poll_try(cx, || {
            let mut offset = place.offset;
            match rustix::fs::sendfile(&self.inner, place.file(), Some(&mut offset), length) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => copy(&self.inner, place, length),
                Err(error) => Err(error.into()),
                Ok(sent) => Ok(sent),
            }
        }));
        Poll::Ready(match sent {
            // The file is shorter than what was promised.
            Ok(0) => {
                place.unreadable();
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                place.unreadable();
                Err(error)
            }
            sent => sent,
        })
    }

    /// Writes slices that are followed by a part of a file, so that both travel in the same segments.
    fn poll_lead(&self, cx: &mut Context<'_>, lead: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        self.poll_try(cx, || {
            let sent = rustix::net::sendmsg(&self.inner, lead, &mut rustix::net::SendAncillaryBuffer::default(), flags);
            Ok(sent?)
        })
    }

    fn poll_try<R>(&self, cx: &mut Context<'_>, mut call: impl FnMut() -> io::Result<R>) -> Poll<io::Result<R>> {
        // A client that is as fast as the kernel must not keep the worker to itself.
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            ready!(self.inner.poll_write_ready(cx))?;
            match self.inner.try_io(Interest::WRITABLE, &mut call) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => {
                    budget.made_progress();
                    return Poll::Ready(result);
                }
            }
        }
    }
}

/// Reads a part of a file for the kernel to have it in memory. Errors are left to who sends it.
fn fetch(file: &File, offset: u64, mut buffer: Vec<u8>) {
    let _ = rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), offset);
}

/// As sendfile(2), through user space. The pages are in memory, so reading them does not block.
fn copy(socket: &impl AsFd, place: &Place, length: usize) -> io::Result<usize> {
    let length = length.min(COPY);
    let mut buffer = Vec::with_capacity(length);
    let read = rustix::io::pread(place.file(), rustix::buffer::spare_capacity(&mut buffer), place.offset)?;
    if read == 0 {
        return Ok(0);
    }
    // There may be more room than was asked for, and what follows may not be sent yet.
    buffer.truncate(length);
    Ok(rustix::net::send(socket, &buffer, SendFlags::NOSIGNAL)?)
}

impl AsyncRead for Sending {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Sending {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let empty = bufs.iter().take_while(|slice| slice.is_empty()).count();
        // What is not looked at is not written either: it may be a part.
        let bufs = bufs.get(empty..bufs.len().min(empty + SLICES)).unwrap_or_default();
        let found = bufs.iter().enumerate().find_map(|(n, slice)| Some((n, this.outlet.find(slice)?)));
        match found {
            None => Pin::new(&mut this.inner).poll_write_vectored(cx, bufs),
            Some((0, place)) => this.poll_send(cx, &place, bufs.first().map_or(0, |slice| slice.len())),
            Some((n, _)) => this.poll_lead(cx, bufs.get(..n).unwrap_or_default()),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream, UnixStream};
    use tokio::runtime::Builder;

    use super::*;

    async fn pair(outlet: &Outlet) -> (Sending, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (Sending::new(Plain::Tcp(server), outlet.clone()), client)
    }

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    /// Writes all slices, as a connection does.
    async fn write_all(stream: &mut Sending, slices: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let written = stream.write_vectored(left).await?;
            IoSlice::advance_slices(&mut left, written);
        }
        stream.flush().await
    }

    #[tokio::test]
    async fn parts_and_bytes_arrive_in_their_order() {
        let content: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
        let (outlet, file) = (Outlet::default(), file(&content));
        let part = outlet.part(&file, 0..3_000_000, || ()).unwrap();
        let (first, second) = (part.bytes(1_000..1_500_000).unwrap(), part.bytes(0..10).unwrap());
        let expected = [b"head", &content[1_000..1_500_000], b"between", &content[..10], b"end"].concat();
        let (mut server, mut client) = pair(&outlet).await;
        let sending =
            async move { write_all(&mut server, &[b"", b"head", &first, b"between", b"", &second, b"end"]).await };
        let mut got = Vec::new();
        let (sent, received) = tokio::join!(sending, client.read_to_end(&mut got));
        sent.unwrap();
        received.unwrap();
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    }

    #[tokio::test]
    async fn no_part_is_read_for_want_of_a_look() {
        let (outlet, content) = (Outlet::default(), vec![3; 100_000]);
        let part = outlet.part(&file(&content), 0..100_000, || ()).unwrap();
        let bytes = part.bytes(0..100_000).unwrap();
        let (mut server, _client) = pair(&outlet).await;
        let mut slices = vec![IoSlice::new(b"a"); 63];
        slices.push(IoSlice::new(&bytes));
        let mut written = 0;
        while written < 63 {
            let count = server.write_vectored(&slices[written..]).await.unwrap();
            assert!(written + count <= 63, "the part was written with what is before it");
            written += count;
        }
    }

    #[tokio::test]
    async fn unix_sockets_send_files_too() {
        let (outlet, content) = (Outlet::default(), vec![3; 200_000]);
        let part = outlet.part(&file(&content), 0..200_000, || ()).unwrap();
        let bytes = part.bytes(0..200_000).unwrap();
        let (server, mut client) = UnixStream::pair().unwrap();
        let mut server = Sending::new(Plain::Unix(server), outlet);
        let sending = async move { write_all(&mut server, &[&bytes]).await };
        let mut got = Vec::new();
        let (sent, _) = tokio::join!(sending, client.read_to_end(&mut got));
        sent.unwrap();
        assert!(got == content);
    }

    #[tokio::test]
    async fn a_file_that_was_cut_breaks_the_connection() {
        let (outlet, file) = (Outlet::default(), file(&vec![1; 100_000]));
        let told = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&told);
        let part = outlet.part(&file, 0..100_000, move || tell.store(true, Ordering::Relaxed)).unwrap();
        let bytes = part.bytes(0..100_000).unwrap();
        file.set_len(50_000).unwrap();
        let (mut server, mut client) = pair(&outlet).await;
        // The address of the bytes is all that is used of them: reading them would be a SIGBUS.
        let sending = async {
            let error = write_all(&mut server, &[&bytes]).await.unwrap_err();
            drop(server);
            error
        };
        let mut got = Vec::new();
        let (error, _) = tokio::join!(sending, client.read_to_end(&mut got));
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(got.len() <= 50_000, "{}", got.len());
        assert!(told.load(Ordering::Relaxed), "and the reader of the file learns of it");
    }

    #[test]
    fn what_has_left_the_memory_is_fetched_by_another_thread() {
        let mut runtime = Builder::new_current_thread();
        runtime.enable_all().start_paused(true).max_blocking_threads(1);
        runtime.build().unwrap().block_on(fetched_by_another_thread());
    }

    async fn fetched_by_another_thread() {
        let content: Vec<u8> = (0..=250).cycle().take(300_000).collect();
        let (outlet, file) = (Outlet::default(), file(&content));
        file.sync_all().unwrap();
        let part = outlet.part(&file, 0..300_000, || ()).unwrap();
        let bytes = part.bytes(0..300_000).unwrap();
        let (mut server, mut client) = pair(&outlet).await;
        server.write_all(b"head").await.unwrap();
        // A slow client has let time pass, and other files have taken the memory.
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if part.bytes(0..300_000).is_some() {
            return; // On a file system that has nothing but memory.
        }
        // The other thread cannot be done before the look at it.
        let (gate, gated) = std::sync::mpsc::channel::<()>();
        let occupied = spawn_blocking(move || gated.recv());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut server).poll_write(&mut cx, &bytes).is_pending(), "the worker read the disk");
        drop(gate);
        occupied.await.unwrap().unwrap_err();
        let sending = async move { write_all(&mut server, &[&bytes]).await };
        let mut got = Vec::new();
        let (sent, _) = tokio::join!(sending, client.read_to_end(&mut got));
        sent.unwrap();
        assert!(got == [b"head", &content[..]].concat(), "{} bytes", got.len());
    }

    #[tokio::test]
    async fn what_cannot_be_sent_by_the_kernel_is_copied() {
        let content: Vec<u8> = (0..=250).cycle().take(100_000).collect();
        let (outlet, file) = (Outlet::default(), file(&content));
        let part = outlet.part(&file, 0..100_000, || ()).unwrap();
        let bytes = part.bytes(500..90_000).unwrap();
        let place = outlet.find(&bytes).unwrap();
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let copied = copy(&ours, &place, bytes.len()).unwrap();
        drop(ours);
        let mut got = Vec::new();
        io::Read::read_to_end(&mut theirs, &mut got).unwrap();
        assert_eq!(got, content[500..500 + copied]);
        assert!(copied > 0 && copied <= COPY);
    }
}
