//! A file system of our own that can lose its power: ext4 on a loop file, or a small tmpfs, in a mount namespace that
//! ends with this process.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::ioctl::{Setter, ioctl, opcode};
use tokio::time::Instant;

/// `EXT4_IOC_SHUTDOWN`.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not in the journal yet is lost.
const NO_LOG_FLUSH: u32 = 2;
/// Set in the process that runs in the namespace.
const INSIDE: &str = "OCISTERN_TORTURE_INSIDE";

/// A mounted file system, unmounted when it is dropped.
pub struct Volume {
    image: Option<PathBuf>,
    at: PathBuf,
}

/// A disk of which reads or writes fail on demand: a file behind nbdkit's error filter, seen as a file by nbdfuse.
pub struct BadBlocks {
    mounted: PathBuf,
    fail_reads: PathBuf,
    fail_writes: PathBuf,
    server: Child,
    client: Child,
}

/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Goes on in a mount namespace of its own: there this program is run again with the same arguments, in the same process.
pub fn enter_namespace() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    Err(format!("unshare: {}", command.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec()))
}

impl Volume {
    /// A new ext4 of so many bytes, whose content is a file in `directory`.
    pub fn ext4(directory: &Path, bytes: u64) -> Result<Self, String> {
        let image = directory.join("volume.ext4");
        sized(&image, bytes)?;
        Self::ext4_on(directory, image)
    }

    /// A new ext4 on what is such a file already.
    pub fn ext4_on(directory: &Path, image: PathBuf) -> Result<Self, String> {
        let at = directory.join("volume");
        std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"]).arg(&image))?;
        let volume = Self { image: Some(image), at };
        volume.mount()?;
        Ok(volume)
    }

    /// A new tmpfs of so many bytes and inodes.
    pub fn tmpfs(directory: &Path, bytes: u64, inodes: u64) -> Result<Self, String> {
        let at = directory.join("volume");
        std::fs::create_dir_all(&at).map_err(|e| e.to_string())?;
        let options = format!("size={bytes},nr_inodes={inodes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "torture"]).arg(&at))?;
        Ok(Self { image: None, at })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The power goes: nothing more reaches the disk, and what is not in the journal is lost.
    #[expect(unsafe_code, reason = "this ioctl has no safe wrapper; it reads one u32, which it is given")]
    pub fn cut(&self) -> Result<(), String> {
        let directory = File::open(&self.at).map_err(|e| e.to_string())?;
        // SAFETY: the opcode belongs to an ioctl that takes a pointer to a u32 and only reads it.
        let outcome = unsafe { ioctl(&directory, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) };
        outcome.map_err(|e| format!("EXT4_IOC_SHUTDOWN: {e}"))
    }

    /// It becomes read-only in the middle of its work, as ext4 makes it after an error.
    pub fn abort(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.at))
    }

    /// The power comes back: mounted anew, which replays the journal.
    pub fn power_on(&self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    /// The same after the disk has failed: where it cannot be mounted it is repaired first, as its operator would do;
    /// whether it was.
    pub fn power_on_or_repair(&self) -> Result<bool, String> {
        self.unmount()?;
        let Err(error) = self.mount() else { return Ok(false) };
        let Some(image) = &self.image else { return Err(error) };
        // e2fsck(8): 1, errors corrected; 2, and the system should be rebooted, which is for a mounted one.
        let mut fsck = Command::new("e2fsck");
        let fsck = fsck.args(["-fy"]).arg(image).env("PATH", path()).output().map_err(|e| format!("e2fsck: {e}"))?;
        if !matches!(fsck.status.code(), Some(0..=2)) {
            return Err(format!("{error}; e2fsck: {}: {}", fsck.status, String::from_utf8_lossy(&fsck.stdout)));
        }
        self.mount()?;
        Ok(true)
    }

    fn unmount(&self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.at))
    }

    fn mount(&self) -> Result<(), String> {
        let Some(image) = &self.image else { return Ok(()) };
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.at))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}

impl BadBlocks {
    /// A disk of so many bytes, of which so many per cent of the reads or writes fail when they are told to.
    pub async fn new(directory: &Path, bytes: u64, rate: u8) -> Result<Self, String> {
        let (image, socket) = (directory.join("disk"), directory.join("nbd"));
        let (mounted, fail_reads, fail_writes) =
            (directory.join("fuse"), directory.join("fail-reads"), directory.join("fail-writes"));
        sized(&image, bytes)?;
        std::fs::create_dir_all(&mounted).map_err(|e| e.to_string())?;
        let mut server = Command::new("nbdkit");
        server.args(["-f", "--filter=error", "-U"]).arg(&socket).arg("file").arg(&image);
        for (call, trigger) in [("pread", &fail_reads), ("pwrite", &fail_writes)] {
            server.arg(format!("error-{call}=EIO")).arg(format!("error-{call}-rate={rate}%"));
            server.arg(format!("error-{call}-file={}", trigger.display()));
        }
        let mut server = server.stderr(Stdio::null()).spawn().map_err(|e| format!("nbdkit: {e}"))?;
        // That its name is there does not mean that it listens, and who is refused does not come again.
        if let Err(error) = until("nbdkit listens", || UnixStream::connect(&socket).is_ok()).await {
            let _ = (server.kill(), server.wait());
            return Err(error);
        }
        let mut client = Command::new("nbdfuse");
        client.arg(mounted.join("disk")).arg(format!("nbd+unix:///?socket={}", socket.display()));
        // Each error would be a line.
        let client = client.stderr(Stdio::null()).spawn().map_err(|e| format!("nbdfuse: {e}"))?;
        let mut disk = Self { mounted, fail_reads, fail_writes, server, client };
        let path = disk.path();
        let shows = || path.metadata().is_ok_and(|disk| disk.len() == bytes);
        if let Err(error) = until("nbdfuse shows the disk", shows).await {
            let [server, client] = [&mut disk.server, &mut disk.client].map(|child| match child.try_wait() {
                Ok(Some(ended)) => format!("ended with {ended}"),
                Ok(None) => "runs".to_owned(),
                Err(error) => error.to_string(),
            });
            return Err(format!("{error}; nbdkit {server}, nbdfuse {client}"));
        }
        Ok(disk)
    }

    /// The disk, as a file.
    pub fn path(&self) -> PathBuf {
        self.mounted.join("disk")
    }

    /// Lets reads fail, or no more.
    pub fn fail_reads(&self, fail: bool) {
        trigger(&self.fail_reads, fail);
    }

    /// Lets writes fail, or no more.
    pub fn fail_writes(&self, fail: bool) {
        trigger(&self.fail_writes, fail);
    }
}

impl Drop for BadBlocks {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.mounted));
        for child in [&mut self.client, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn trigger(file: &Path, on: bool) {
    let _ = if on { std::fs::write(file, "") } else { std::fs::remove_file(file) };
}

async fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > PATIENCE {
            return Err(format!("waited in vain: {what}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A new file of so many bytes, none of them written.
fn sized(path: &Path, bytes: u64) -> Result<(), String> {
    let file = File::create(path).map_err(|e| e.to_string())?;
    file.set_len(bytes).map_err(|e| e.to_string())
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<(), String> {
    let done = command.env("PATH", path()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)))
}

/// Where the commands are, those of the administrator too.
fn path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}
