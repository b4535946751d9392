//! A file system of our own that can lose its power: ext4 on a loop file, or a small tmpfs, in a mount namespace that
//! ends with this process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::ioctl::{Setter, ioctl, opcode};

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

/// Runs this program again with the same arguments in a mount namespace of its own: whether that passed. None: this is
/// that run.
pub fn enter_namespace() -> Option<bool> {
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe().unwrap());
    let status = command.args(std::env::args_os().skip(1)).env(INSIDE, "1").status().expect("unshare runs");
    Some(status.success())
}

impl Volume {
    /// A new ext4 of so many bytes, whose content is a file in `directory`.
    pub fn ext4(directory: &Path, bytes: u64) -> Result<Self, String> {
        let (image, at) = (directory.join("volume.ext4"), directory.join("volume"));
        let file = File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
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

    /// The power comes back: mounted anew, which replays the journal.
    pub fn power_on(&self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.at))?;
        self.mount()
    }

    fn mount(&self) -> Result<(), String> {
        let Some(image) = &self.image else { return Ok(()) };
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.at))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let done = command.env("PATH", path).output().map_err(|e| format!("{command:?}: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)))
}
