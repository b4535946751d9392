//! What fills have left counts as promised, and is the first to go.

use std::sync::Arc;

use super::{Books, Reservation};
use crate::oci::Digest;

// === impl Books ===

impl Books {
    /// So many bytes are there, found at the start; none if they must fit into the capacity and do not.
    pub(in crate::store) fn adopt(self: &Arc<Self>, bytes: u64, must_fit: bool) -> Option<Reservation> {
        let mut state = self.state.lock();
        if must_fit && state.used().saturating_add(bytes) > self.capacity() {
            return None;
        }
        state.reserved += bytes;
        self.show(&state);
        // Parked once it can be found: else whoever makes room would look for it in vain until then.
        Some(Reservation { books: self.clone(), digest: None, bytes, unallocated: 0, parked: false })
    }

    /// How many bytes fills have left with which nobody goes on.
    pub(in crate::store) fn parked(&self) -> u64 {
        self.state.lock().parked
    }

    /// So many bytes are there, and are to go; they count until they have.
    pub(in crate::store) fn count(self: &Arc<Self>, bytes: u64) -> Reservation {
        let mut state = self.state.lock();
        state.reserved += bytes;
        self.show(&state);
        Reservation { books: self.clone(), digest: None, bytes, unallocated: 0, parked: false }
    }
}

// === impl Reservation ===

impl Reservation {
    /// Nobody goes on with the fill for now. Its file has taken so many bytes of the file system; the rest is given back.
    pub(in crate::store) fn park(&mut self, bytes: u64) {
        self.keep_only(bytes);
        let mut state = self.books.state.lock();
        if !std::mem::replace(&mut self.parked, true) {
            state.parked += self.bytes;
        }
        if let Some(digest) = self.digest.take() {
            state.end(&digest);
        }
    }

    /// Its file is nobody's any more, but still there: it counts, and making room does not count on it.
    pub(in crate::store) fn leave(&mut self) {
        let mut state = self.books.state.lock();
        if std::mem::take(&mut self.parked) {
            state.parked -= self.bytes;
        }
        if let Some(digest) = self.digest.take() {
            state.end(&digest);
        }
    }

    /// Somebody goes on with the fill of `digest`.
    pub(in crate::store) fn take_up(&mut self, digest: &Digest) {
        let mut state = self.books.state.lock();
        if std::mem::take(&mut self.parked) {
            state.parked -= self.bytes;
        }
        if self.digest.is_none() {
            self.digest = Some(*digest);
            state.begin(digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SPACE, books, digest};
    use super::super::{Answer, Round, Want};

    #[test]
    fn what_is_left_counts_until_it_goes_and_is_no_room_while_it_is_taken_up() {
        let books = books(100);
        let mut left = books.reserve(Some(&digest(1)), 60, SPACE).unwrap();
        assert!(books.is_busy(&digest(1)));
        left.park(30);
        assert!(!books.is_busy(&digest(1)));
        assert_eq!((books.used_bytes(), books.state.lock().parked), (30, 30));
        let mut adopted = books.adopt(70, true).unwrap();
        assert_eq!(books.state.lock().parked, 30, "nobody finds it yet");
        adopted.park(70);
        assert!(books.adopt(1, true).is_none(), "there is no room for more");
        assert_eq!(books.adopt(1, false).map(|left| left.bytes()), Some(1), "whoever only looks takes nothing away");
        assert_eq!(books.state.lock().parked, 100);
        left.take_up(&digest(1));
        assert!(books.is_busy(&digest(1)));
        assert_eq!((books.used_bytes(), books.state.lock().parked), (100, 70));
        drop(adopted);
        drop(left);
        assert_eq!((books.used_bytes(), books.state.lock().parked), (0, 0));
        assert!(!books.is_busy(&digest(1)));
    }

    #[test]
    fn it_goes_before_any_blob_and_not_in_vain() {
        let books = books(100);
        books.used_first(&digest(1), 40);
        let mut left = books.adopt(30, true).unwrap();
        left.park(30);
        let mut much = books.wait(Want::Promise { digest: None, bytes: 110 });
        let mut some = books.wait(Want::Promise { digest: None, bytes: 50 });
        assert!(books.begins_evicting());
        assert!(matches!(books.round(SPACE, true), Round::Forget(20)), "the blob stays for now");
        assert!(matches!(much.answer.try_recv(), Ok(Answer::Nothing)), "all would not be enough");
        drop(left);
        assert!(matches!(books.round(SPACE, true), Round::Done));
        assert!(matches!(some.answer.try_recv(), Ok(Answer::Promised(_))));
    }
}
