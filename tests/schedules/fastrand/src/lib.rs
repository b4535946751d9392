//! What stands for fastrand where schedules are explored: chance is the explorer's, so that a schedule can be repeated.

use shuttle::rand::{Rng as _, thread_rng};

/// A number from 0 to 1.
pub fn f64() -> f64 {
    thread_rng().r#gen()
}
