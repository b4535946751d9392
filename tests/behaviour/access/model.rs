//! What is right, by the rules alone: who asks, for what, how, in which state of the cache, and the class of the answer.
//!
//! "A cached byte is not a permission", and a registry's own word decides, as long as it can be had. Nothing here knows
//! how the cache comes to its answers.

use std::time::Duration;

/// How long a caller's right is remembered, and how long public is public. A table takes seconds.
pub(crate) const ACCESS_TTL: Duration = Duration::from_mins(20);
pub(crate) const PUBLIC_FOR: Duration = Duration::from_mins(5);
/// Longer than any refusal or failure is remembered, and short against the times above.
pub(crate) const A_MOMENT: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    Nobody,
    /// Pulls and pushes.
    Friend,
    /// Pulls.
    Reader,
    /// Has an account and no right.
    Stranger,
}

/// What of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Repo {
    Public,
    /// The friend's.
    Private,
    /// The friend's, and the reader may read it.
    Readable,
    /// As `Readable`, and it was public before.
    Turned,
    /// Friend and reader might read it, and there is no such repository.
    Missing,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    ByTag,
    ByDigest,
    Head,
    Blob,
    Range,
    Tags,
    Referrers,
    /// Mounts a blob of the repository into one of the caller's own.
    MountFrom,
    /// Mounts a blob that is everybody's into the repository.
    MountInto,
    /// Puts a manifest by another tag.
    Put,
    /// Deletes the manifest.
    Delete,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Show {
    Nothing,
    /// A token that was asked for with these actions.
    Token(Scope),
    /// The same, got after upstream went away.
    Late(Scope),
    Basic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    Pull,
    Push,
}

/// What happened before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Nothing.
    Cold,
    /// The friend has pulled everything; public was `Turned` when everybody pulled it, and that is too long ago.
    Hot,
    /// As `Hot`, and the tag's time is over; it means something else upstream.
    Stale,
    /// As `Hot`, then the rights of the reader, and the friend's to `Private`, were revoked, and the remembered time is
    /// over.
    Revoked,
    // And with upstream away:
    ColdAway,
    HotAway,
    /// Everybody had asked for everything before.
    AskedAway,
    /// And then the remembered time was over.
    LongAway,
    /// Everybody had asked after the rights were revoked.
    RevokedAway,
    /// And then ocistern was started again.
    RestartedAway,
}

/// The class of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// A success, with exactly what was asked for.
    Given,
    /// 200, and nobody refers to it.
    NoReferrers,
    /// 202: nothing was mounted, the bytes have to be sent.
    Upload,
    /// 401 with a challenge.
    Challenged,
    /// 403.
    Denied,
    /// 404.
    NotFound,
    /// 405: ocistern is configured not to push.
    Off,
    /// 502, 503, 504.
    Away,
    /// None of these.
    Wrong(String),
}

/// How ocistern and upstream are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) credentials: Credentials,
    /// The status with which upstream refuses who has shown a token.
    pub(crate) refusal: u16,
    /// `access_stale` is longer than any test.
    pub(crate) prolongs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credentials {
    Auto,
    Client,
    /// An account of ocistern's own; friend and reader are users of the listener's htpasswd file.
    Own,
}

pub(crate) const REPOS: [Repo; 5] = [Repo::Public, Repo::Private, Repo::Readable, Repo::Turned, Repo::Missing];
pub(crate) const VERBS: [Verb; 9] = [
    Verb::ByTag,
    Verb::ByDigest,
    Verb::Head,
    Verb::Blob,
    Verb::Range,
    Verb::Tags,
    Verb::Referrers,
    Verb::MountFrom,
    Verb::MountInto,
];
/// What changes the repository: each of these in one of its own.
pub(crate) const WRITES: [Verb; 2] = [Verb::Put, Verb::Delete];
pub(crate) const WRITES_IN: [State; 5] = [State::Cold, State::Hot, State::Stale, State::HotAway, State::Revoked];
/// Who writes, or tries to.
pub(crate) const WRITERS: [(Who, Show); 9] = [
    (Who::Nobody, Show::Nothing),
    (Who::Nobody, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Basic),
    (Who::Reader, Show::Token(Scope::Push)),
    (Who::Reader, Show::Basic),
    (Who::Friend, Show::Token(Scope::Pull)),
    (Who::Friend, Show::Token(Scope::Push)),
    (Who::Friend, Show::Basic),
];
pub(crate) const SHOWN: [(Who, Show); 12] = [
    (Who::Nobody, Show::Nothing),
    (Who::Stranger, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Token(Scope::Pull)),
    (Who::Nobody, Show::Token(Scope::Pull)),
    (Who::Friend, Show::Token(Scope::Pull)),
    (Who::Nobody, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Token(Scope::Push)),
    (Who::Reader, Show::Token(Scope::Push)),
    (Who::Friend, Show::Token(Scope::Push)),
    (Who::Stranger, Show::Basic),
    (Who::Reader, Show::Basic),
    (Who::Friend, Show::Basic),
];
/// Besides, while upstream is away.
pub(crate) const LATE: [(Who, Show); 5] = [
    (Who::Nobody, Show::Late(Scope::Pull)),
    (Who::Stranger, Show::Late(Scope::Pull)),
    (Who::Reader, Show::Late(Scope::Pull)),
    (Who::Friend, Show::Late(Scope::Pull)),
    (Who::Friend, Show::Late(Scope::Push)),
];

/// Of both, where the others would be the same again.
pub(crate) const SOME: [(Who, Show); 8] = [
    (Who::Nobody, Show::Nothing),
    (Who::Nobody, Show::Token(Scope::Pull)),
    (Who::Stranger, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Token(Scope::Pull)),
    (Who::Reader, Show::Basic),
    (Who::Friend, Show::Token(Scope::Pull)),
    (Who::Friend, Show::Token(Scope::Push)),
    (Who::Friend, Show::Late(Scope::Pull)),
];

// === impl Model ===

impl Model {
    /// What is right.
    pub(crate) fn expected(self, state: State, who: Who, show: Show, repo: Repo, verb: Verb) -> Class {
        // A token is for what it was asked for, whoever shows it.
        if verb.writes() && show.scope() == Some(Scope::Pull) {
            return Class::Challenged;
        }
        if self.credentials == Credentials::Own {
            return Self::expected_of_own(state, who, repo, verb);
        }
        // "client": always challenged.
        if self.credentials == Credentials::Client && who == Who::Nobody {
            return Class::Challenged;
        }
        if state.is_away() {
            self.expected_away(state, who, show, repo, verb)
        } else {
            self.said(state, who, repo, verb)
        }
    }

    /// Upstream's own word, which decides whenever it can be had and is not remembered: what is stored changes nothing.
    /// (What is remembered never says anything else here: rights end by a time that is over.)
    pub(crate) fn said(self, state: State, who: Who, repo: Repo, verb: Verb) -> Class {
        let gives = match verb {
            // Into a repository of the caller's own; where upstream does not give the blob, the bytes have to be sent
            // (distribution-spec, "Mounting a blob").
            Verb::MountFrom if who == Who::Nobody => false,
            Verb::MountFrom if state.may_pull(who, repo) && repo != Repo::Missing => true,
            Verb::MountFrom => return Class::Upload,
            Verb::MountInto | Verb::Put | Verb::Delete => state.may_push(who, repo),
            _ => state.may_pull(who, repo),
        };
        match verb {
            // Of a subject that there is not, the list is empty (distribution-spec, "Listing Referrers"); a 404 means that
            // there is no such API, and no such tag in its place.
            Verb::Referrers if gives && repo == Repo::Missing => Class::NoReferrers,
            Verb::Referrers if !gives && self.refusal == 404 => Class::NoReferrers,
            _ if gives && repo == Repo::Missing => Class::NotFound,
            _ if gives => Class::Given,
            _ => self.refused(who),
        }
    }

    /// 401 and 403 are no, and 404 is no for this. Whom a credential might help is challenged.
    pub(crate) fn refused(self, who: Who) -> Class {
        match self.refusal {
            404 => Class::NotFound,
            403 if who != Who::Nobody => Class::Denied,
            _ => Class::Challenged,
        }
    }

    /// While upstream cannot be asked, its last word stands: on what is public for good, on a caller's right as long as it
    /// is remembered. Nothing is pushed.
    pub(crate) fn expected_away(self, state: State, who: Who, show: Show, repo: Repo, verb: Verb) -> Class {
        if verb.writes() {
            return Class::Away;
        }
        let last = self.last_word(state, repo);
        let public = last == Some(true);
        let may_have = match verb {
            // Lists are kept as fetched anonymously.
            Verb::Tags | Verb::Referrers => public,
            // Who may be about to push is told by upstream alone what is there.
            Verb::Head if show.scope() == Some(Scope::Push) => false,
            _ => public || self.is_remembered(state, who, repo),
        };
        let held = state != State::ColdAway && repo != Repo::Missing;
        match last {
            _ if held && may_have => Class::Given,
            // It is private, and a credential might help: that says nothing about what is there.
            Some(false) if who == Who::Nobody => Class::Challenged,
            _ => Class::Away,
        }
    }

    /// What upstream said last when it was asked without a credential: public or private; none: it was not, or it said
    /// nothing about that.
    pub(crate) fn last_word(self, state: State, repo: Repo) -> Option<bool> {
        if self.credentials == Credentials::Client {
            return None;
        }
        match (state, repo) {
            // Only before it was made private.
            (State::HotAway, Repo::Turned) => Some(true),
            (State::ColdAway | State::HotAway, _) => None,
            (_, Repo::Public) => Some(true),
            // A 404 is a word about a thing, not about the repository.
            _ if self.refusal == 404 => None,
            // It is written down, but after a start nobody has a right, so a challenge would only tell that something of
            // the repository is kept.
            (State::RestartedAway, _) => None,
            _ => Some(false),
        }
    }

    /// Whether upstream's yes to a caller's credential counts.
    pub(crate) fn is_remembered(self, state: State, who: Who, repo: Repo) -> bool {
        let asked = match state {
            // It is in memory, and the memory is gone.
            State::ColdAway | State::RestartedAway => false,
            State::HotAway => who == Who::Friend,
            State::LongAway => self.prolongs,
            _ => true,
        };
        asked && who != Who::Nobody && repo != Repo::Missing && state.may_pull(who, repo)
    }

    /// ocistern's own account pulls, the listener's htpasswd decides who may, and nothing is pushed.
    pub(crate) fn expected_of_own(state: State, who: Who, repo: Repo, verb: Verb) -> Class {
        let held = !matches!(state, State::Cold | State::ColdAway) && repo != Repo::Missing;
        match (verb, repo) {
            _ if verb.writes() => Class::Off,
            _ if matches!(who, Who::Nobody | Who::Stranger) => Class::Challenged,
            // An empty list is a list, and kept.
            (Verb::Referrers, Repo::Missing) if !matches!(state, State::ColdAway | State::HotAway) => {
                Class::NoReferrers
            }
            _ if state.is_away() && held => Class::Given,
            _ if state.is_away() => Class::Away,
            (_, Repo::Missing) => Class::NotFound,
            _ => Class::Given,
        }
    }
}

impl State {
    pub(crate) fn is_away(self) -> bool {
        !matches!(self, Self::Cold | Self::Hot | Self::Stale | Self::Revoked)
    }

    pub(crate) fn may_pull(self, who: Who, repo: Repo) -> bool {
        let revoked = matches!(self, Self::Revoked | Self::RevokedAway);
        match (who, repo) {
            (Who::Friend, Repo::Private) | (Who::Reader, Repo::Readable | Repo::Turned | Repo::Missing) => !revoked,
            (_, Repo::Public) | (Who::Friend, _) => true,
            _ => false,
        }
    }

    pub(crate) fn may_push(self, who: Who, repo: Repo) -> bool {
        who == Who::Friend && repo != Repo::Missing && self.may_pull(who, repo)
    }
}

impl Verb {
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::MountFrom | Self::MountInto) || WRITES.contains(&self)
    }
}

impl Show {
    pub(crate) fn scope(self) -> Option<Scope> {
        match self {
            Self::Token(scope) | Self::Late(scope) => Some(scope),
            Self::Nothing | Self::Basic => None,
        }
    }
}
