//! What a client needs: files with their contents, the command by which it takes notice, and what else there is to know.

use std::path::{Path, PathBuf};

use super::SetupError;
use super::disk::{Basis, Disk};
use super::instance::Instance;
use crate::cli::clients::Whose;

/// The clients that can be pointed at ocistern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Client {
    /// dockerd
    Docker,
    /// containerd, with what is built on it: Kubernetes, nerdctl, ctr
    Containerd,
    /// podman, buildah, skopeo, CRI-O
    Podman,
    /// buildkitd, docker buildx
    Buildkit,
    /// k3s
    K3s,
    /// kaniko; prints flags and variables
    Kaniko,
    /// ORAS; prints how its commands are written
    Oras,
}

/// What a plan is made from.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// Where the client's files are.
    pub(super) disk: &'a Disk,
    /// Whose they are.
    pub(super) whose: &'a Whose,
    /// What they are to say.
    pub(super) instance: &'a Instance,
}

/// What there is to do for a client.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Files, in the order in which they are written.
    pub(super) files: Vec<Wanted>,
    /// What is to be given to a client that has no file for it: ready to be copied.
    pub(super) text: Option<String>,
    /// Commands by which the client takes notice of changed files.
    pub(super) then: Vec<String>,
    /// What cannot be done here, or is good to know.
    pub(super) notes: Vec<String>,
    /// Files that are left alone because of this.
    pub(super) failures: Vec<SetupError>,
    /// Registries that are left out, with why. All files can be read: what else there is from an earlier time is not needed.
    pub(super) unwritten: Vec<SetupError>,
    /// What to do about them.
    pub(super) advice: &'static str,
    /// Rules that hold for registries among others, and would not if these had one of ocistern's: nothing is written for them.
    pub(super) left_out: Vec<Covering>,
    /// Such rules whose mirrors are written behind ocistern.
    pub(super) taken_over: Vec<Covering>,
}

/// A rule that holds for several registries.
#[derive(Debug)]
pub(super) struct Covering {
    /// The file that it is in.
    path: PathBuf,
    /// Where, and what it says.
    what: Unmergeable,
    /// For which registries ocistern would write a rule.
    hosts: Vec<String>,
}

/// A file as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its path, as the client knows it.
    pub(super) path: PathBuf,
    /// What is in it now; none: it is not there.
    pub(super) now: Option<String>,
    /// What should be in it.
    pub(super) text: String,
    /// What that was made from.
    pub(super) basis: Basis,
}

// === impl Client ===

impl Client {
    /// All of them, in the order in which they are written and told.
    pub(super) const ALL: [Self; 7] =
        [Self::Docker, Self::Containerd, Self::Podman, Self::Buildkit, Self::K3s, Self::Kaniko, Self::Oras];

    /// As the command line has it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Buildkit => "buildkit",
            Self::K3s => "k3s",
            Self::Kaniko => "kaniko",
            Self::Oras => "oras",
        }
    }

    /// Programs by which it is known to be installed. kaniko lives in containers of its own.
    pub(super) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["dockerd"],
            Self::Containerd => &["containerd"],
            Self::Podman => &["podman", "buildah", "skopeo", "crio"],
            Self::Buildkit => &["buildkitd"],
            Self::K3s => &["k3s"],
            Self::Kaniko => &[],
            Self::Oras => &["oras"],
        }
    }

    /// Where all files of its are that `setup` writes.
    pub(super) fn directories(self, disk: &Disk, whose: &Whose) -> Vec<PathBuf> {
        match self {
            Self::Docker => vec![whose.docker()],
            Self::Containerd => super::containerd::directories(disk, whose),
            Self::Podman => vec![whose.containers()],
            Self::Buildkit => vec![whose.buildkit()],
            Self::K3s => whose.k3s().into_iter().collect(),
            Self::Kaniko | Self::Oras => Vec::new(),
        }
    }

    /// What there is to do for it.
    pub(super) fn plan(self, site: &Site<'_>) -> Result<Plan, SetupError> {
        let mut plan = match self {
            Self::Docker => super::docker::plan(site),
            Self::Containerd => super::containerd::plan(site),
            Self::Podman => super::containers::plan(site),
            Self::Buildkit => super::buildkit::plan(site),
            Self::K3s => super::k3s::plan(site),
            Self::Kaniko => super::kaniko::plan(site),
            Self::Oras => super::oras::plan(site),
        }?;
        plan.finish();
        plan.notes.extend(site.instance.endpoint().and_then(|endpoint| endpoint.doubt.clone()));
        Ok(plan)
    }
}

// === impl Plan ===

impl Plan {
    /// Writes nothing for a registry, because of what a file says.
    pub(super) fn leave_out(&mut self, path: &Path, what: Unmergeable, host: &str) {
        note(&mut self.left_out, path, what, host);
    }

    /// Tells that what a file says for a registry among others stands behind ocistern now.
    pub(super) fn take_over(&mut self, path: &Path, what: &str, host: &str) {
        note(&mut self.taken_over, path, Unmergeable::new(what), host);
    }

    /// Tells each of these rules once.
    fn finish(&mut self) {
        let taken_over = std::mem::take(&mut self.taken_over).into_iter().map(|Covering { path, what, hosts }| {
            let (path, what, hosts) = (path.display(), what.why, hosts.join(", "));
            format!("what {path} says by {what} for {hosts} is taken over behind ocistern: run this command again when it changes")
        });
        self.notes.extend(taken_over);
        let advice = self.advice;
        let left_out = std::mem::take(&mut self.left_out).into_iter();
        self.unwritten.extend(left_out.map(|Covering { path, what, hosts }| SetupError::LeftOut {
            path,
            what,
            hosts: hosts.join(", "),
            advice,
        }));
    }

    /// Adds a file that is ocistern's alone, such as a copy of a certificate.
    pub(super) fn own(&mut self, disk: &Disk, path: PathBuf, text: String) {
        match disk.find(&path) {
            Ok(found) => self.files.push(Wanted { path, now: found.now, text, basis: Basis::Alone }),
            Err(error) => self.failures.push(error),
        }
    }

    /// Adds a file into which something is merged: `merge` is given what is there without ocistern's own earlier lines, and
    /// returns what should be there.
    pub(super) fn merged(
        &mut self,
        disk: &Disk,
        path: PathBuf,
        merge: impl FnOnce(Option<&str>) -> Result<String, Unmergeable>,
    ) {
        let found = match disk.find(&path) {
            Ok(found) => found,
            Err(error) => return self.failures.push(error),
        };
        match merge(found.base.as_deref()) {
            Ok(text) => self.files.push(Wanted { path, now: found.now, text, basis: Basis::Merged }),
            Err(why) => self.failures.push(SetupError::Unmergeable { path, why }),
        }
    }
}

/// Adds a registry to what is said of a rule.
fn note(all: &mut Vec<Covering>, path: &Path, what: Unmergeable, host: &str) {
    match all.iter_mut().find(|there| there.path == path && there.what == what) {
        Some(there) if there.hosts.iter().any(|known| known == host) => {}
        Some(there) => there.hosts.push(host.to_owned()),
        None => all.push(Covering { path: path.to_owned(), what, hosts: vec![host.to_owned()] }),
    }
}

/// Why nothing can be merged into a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unmergeable {
    /// Line and column, from 1, where there is one.
    pub(super) place: Option<(usize, usize)>,
    /// What is in the way, and what to do.
    pub(super) why: String,
}

// === impl Unmergeable ===

impl Unmergeable {
    /// At no particular place.
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { place: None, why: why.into() }
    }

    /// At this place.
    pub(super) fn at(line: usize, column: usize, why: impl Into<String>) -> Self {
        Self { place: Some((line, column)), why: why.into() }
    }
}
