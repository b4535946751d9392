//! Single flight: however many requests ask the same, the work is done once, by a task that belongs to none of them.
//!
//! The work runs on its own tracked task, so a client that leaves never cancels it for the others. Its result is
//! published through a watch channel; a task that ends without a result (a panic, a stop) is seen by the waiters as a
//! closed channel, which is an error and never an empty success.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry;

/// The running flights of one kind of question.
pub(super) struct Flights<K, V> {
    /// Held for look-ups only, never over an await.
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

/// A running flight, as a waiter holds it.
pub(super) struct Flight<V> {
    result: watch::Receiver<Option<V>>,
}

/// The role of a request in a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It started the flight.
    Leader,
    /// It joined.
    Follower,
}

/// Removes the flight from the table when its task ends, however it ends.
struct Landing<K: Eq + Hash, V> {
    running: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
    flight: Flight<V>,
}

// === impl Flights ===

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// No flights yet.
    pub(super) fn new() -> Self {
        Self { running: Arc::default() }
    }

    /// Joins the flight of `key`, or starts one that does `work` on a task of `tasks` until `stop`.
    pub(super) fn join<F>(
        &self,
        key: &K,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        work: impl FnOnce() -> F,
    ) -> (Flight<V>, Role)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(key) {
            return (flight.clone(), Role::Follower);
        }
        let (sender, result) = watch::channel(None);
        let flight = Flight { result };
        running.insert(key.clone(), flight.clone());
        drop(running);
        let landing = Landing { running: Arc::clone(&self.running), key: key.clone(), flight: flight.clone() };
        let stop = stop.clone();
        // Beneath the request that it begins with; those that join have no part in it.
        let work = telemetry::carried(work());
        tasks.spawn(async move {
            // The result is published before the flight leaves the table: a request that comes in between joins and
            // finds it, instead of starting again.
            if let Some(value) = stop.run_until_cancelled(work).await {
                sender.send_replace(Some(value));
            }
            drop(landing);
        });
        (flight, Role::Leader)
    }

    /// Lets nobody join any more whose answer is doubted; those who wait get it all the same.
    pub(super) fn detach(&self, is_doubted: impl Fn(&K) -> bool) {
        self.running.lock().retain(|key, _| !is_doubted(key));
    }
}

// === impl Flight ===

impl<V: Clone> Flight<V> {
    /// The result; none if the task ended without one.
    pub(super) async fn result(mut self) -> Option<V> {
        self.result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

impl<V> Clone for Flight<V> {
    fn clone(&self) -> Self {
        Self { result: self.result.clone() }
    }
}

// === impl Landing ===

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        // There may be another one in its place.
        if running.get(&self.key).is_some_and(|flight| flight.result.same_channel(&self.flight.result)) {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn many_waiters_one_piece_of_work() {
        let (flights, tasks, stop) = (Flights::<u8, usize>::new(), TaskTracker::new(), CancellationToken::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let mut waiters = Vec::new();
        for _ in 0..100 {
            let (runs, mut gate) = (Arc::clone(&runs), gate.clone());
            let (flight, _) = flights.join(&1, &tasks, &stop, || async move {
                gate.wait_for(|open| *open).await.ok();
                runs.fetch_add(1, Ordering::Relaxed) + 41
            });
            waiters.push(flight);
        }
        waiters.truncate(50);
        open.send_replace(true);
        for waiter in waiters {
            assert_eq!(waiter.result().await, Some(41), "every waiter has the one result");
        }
        tasks.close();
        tasks.wait().await;
        assert_eq!(runs.load(Ordering::Relaxed), 1, "the work was done once");
        assert!(flights.running.lock().is_empty(), "the flight has left the table");
    }

    #[tokio::test]
    async fn a_doubted_flight_answers_those_who_wait_and_nobody_else() {
        let (flights, tasks, stop) = (Flights::<u8, u8>::new(), TaskTracker::new(), CancellationToken::new());
        let (open, gate) = watch::channel(0);
        let fly = |number: u8| {
            let mut gate = gate.clone();
            flights.join(&1, &tasks, &stop, || async move {
                gate.wait_for(|open| *open >= number).await.ok();
                number
            })
        };
        let (first, _) = fly(1);
        flights.detach(|key| *key == 2);
        assert_eq!(fly(9).1, Role::Follower, "it is not concerned");
        flights.detach(|key| *key == 1);
        let (second, role) = fly(2);
        assert_eq!(role, Role::Leader);
        open.send_replace(1);
        assert_eq!(first.result().await, Some(1));
        tokio::task::yield_now().await;
        let (third, role) = fly(3);
        assert_eq!(role, Role::Follower, "the first one's end does not take the second one away");
        open.send_replace(2);
        assert_eq!((second.result().await, third.result().await), (Some(2), Some(2)));
        tasks.close();
        tasks.wait().await;
        assert!(flights.running.lock().is_empty());
    }

    #[tokio::test]
    async fn a_vanished_task_is_no_result() {
        let (flights, tasks, stop) = (Flights::<u8, ()>::new(), TaskTracker::new(), CancellationToken::new());
        let (flight, role) = flights.join(&1, &tasks, &stop, std::future::pending);
        assert_eq!(role, Role::Leader);
        stop.cancel();
        assert_eq!(flight.result().await, None);
        tasks.close();
        tasks.wait().await;
        assert!(flights.running.lock().is_empty());
    }
}
