//! What stands for tokio-util where schedules are explored: its token, which needs no runtime, and tasks of the explorer's.

pub mod sync {
    //! The token as it is. What it wakes is polled when the explorer likes.
    pub use real::sync::CancellationToken;
}

pub mod task {
    //! Tasks that are waited for.
    use std::future::Future;
    use std::sync::Arc;

    use tokio::sync::watch;

    /// Spawns tasks, and tells when all have ended.
    #[derive(Clone)]
    pub struct TaskTracker(Arc<watch::Sender<usize>>);

    struct Ended(TaskTracker);

    impl TaskTracker {
        /// Without tasks.
        #[expect(clippy::new_without_default, reason = "the form is tokio-util's")]
        pub fn new() -> Self {
            Self(Arc::new(watch::channel(0).0))
        }

        /// Runs it.
        pub fn spawn<F>(&self, task: F)
        where
            F: Future + Send + 'static,
            F::Output: Send,
        {
            self.0.send_modify(|running| *running += 1);
            let ended = Ended(self.clone());
            tokio::spawn(async move {
                task.await;
                drop(ended);
            });
        }

        /// Waits until none runs.
        pub async fn wait(&self) {
            // The sender is held by `self`.
            let _ = self.0.subscribe().wait_for(|running| *running == 0).await;
        }
    }

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.0.send_modify(|running| *running -= 1);
        }
    }
}
