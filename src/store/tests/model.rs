//! Any operations in any order, with damage, errors, crashes and restarts between them, against the model of `world`.
//!
//! `PROPTEST_CASES` runs more of them; what fails is shrunk to the shortest list that does.

use proptest::test_runner::Config;
use rustix::io::Errno;

use super::sim::{Fault, Harm, Order};
use super::world::{CONTENTS, Crash, IMAGES, Op, PARTS, TAGS, World};
use super::*;

/// Cases of a usual run.
const CASES: u32 = 150;

/// One step of a case.
#[derive(Debug, Clone, Copy)]
enum Step {
    Do(Op),
    /// The same, while something goes wrong.
    Harmed(Op, Fault, u64),
    /// It dies in the middle of this.
    Dies(Op, u64, Crash),
}

fn content() -> impl Strategy<Value = usize> {
    0..CONTENTS
}

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::Journal), Just(Order::Any)]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![1 => Just(Crash::Kill), 2 => (order(), 0..1000_u64).prop_map(|(order, seed)| Crash::Cut(order, seed))]
}

fn op() -> impl Strategy<Value = Op> {
    let tag = 0..TAGS - 1;
    prop_oneof![
        4 => (content(), any::<bool>()).prop_map(|(n, announced)| Op::Publish(n, announced)),
        2 => content().prop_map(Op::Spool),
        1 => content().prop_map(Op::Wrong),
        1 => content().prop_map(Op::Abandon),
        2 => (0..PARTS.len()).prop_map(|set| Op::Leave(2, set)),
        1 => Just(Op::GoOn(2)),
        3 => content().prop_map(Op::Link),
        1 => content().prop_map(Op::Unlink),
        4 => (tag.clone(), IMAGES..CONTENTS).prop_map(|(t, n)| Op::Tag(t, n)),
        1 => tag.clone().prop_map(Op::Untag),
        2 => tag.clone().prop_map(Op::Suspect),
        1 => tag.clone().prop_map(Op::End),
        1 => tag.clone().prop_map(Op::Withdraw),
        1 => (IMAGES..CONTENTS).prop_map(Op::ForgetManifest),
        1 => Just(Op::ForgetRepository),
        1 => any::<bool>().prop_map(Op::Access),
        1 => Just(Op::Key),
        1 => tag.clone().prop_map(Op::Pin),
        1 => tag.clone().prop_map(Op::Unpin),
        2 => (1..80_u64).prop_map(Op::Evict),
        1 => tag.prop_map(Op::Remove),
        1 => Just(Op::Collect),
        1 => Just(Op::Verify),
        3 => content().prop_map(Op::Read),
        1 => content().prop_map(Op::Damage),
        2 => Just(Op::Tick),
        1 => Just(Op::Scan),
        1 => Just(Op::Restart),
        1 => Just(Op::LoseIndex),
        2 => crash().prop_map(Op::Crash),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    let harm = prop_oneof![
        Just(Harm::Fail(Errno::IO)),
        Just(Harm::Fail(Errno::NOSPC)),
        Just(Harm::Fail(Errno::MFILE)),
        Just(Harm::Fail(Errno::ROFS)),
        Just(Harm::Short),
    ];
    let times = prop_oneof![Just(1), Just(3), Just(u64::MAX)];
    (harm, 1..30_u64, times).prop_map(|(harm, at, times)| Fault { harm, at, times })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => op().prop_map(Step::Do),
        1 => (op(), fault(), any::<u64>()).prop_map(|(op, fault, seed)| Step::Harmed(op, fault, seed)),
        1 => (op(), 1..30_u64, crash()).prop_map(|(op, at, crash)| Step::Dies(op, at, crash)),
    ]
}

fn run(durability: Durability, steps: &[Step]) {
    let mut world = World::new(durability);
    for step in steps {
        match *step {
            Step::Do(op) => world.apply(op),
            Step::Harmed(op, fault, seed) => {
                world.sim.arm(fault, seed);
                world.apply(op);
                world.audit("after an error");
            }
            Step::Dies(op, at, crash) => {
                let harm = if crash == Crash::Kill { Harm::Kill } else { Harm::Cut };
                world.sim.arm(Fault { harm, at, times: 1 }, at);
                world.apply(op);
                world.crash(crash);
            }
        }
    }
    world.audit("at the end");
    world.works();
}

fn cases() -> Config {
    // A default that the environment changes.
    let config = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { CASES };
    Config { cases, max_shrink_iters: 2_000, failure_persistence: None, ..config }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn strict_keeps_what_it_promises(steps in proptest::collection::vec(step(), 1..30)) {
        run(Durability::Strict, &steps);
    }

    #[test]
    fn fast_keeps_what_it_promises(steps in proptest::collection::vec(step(), 1..30)) {
        run(Durability::Fast, &steps);
    }
}

#[test]
fn what_is_written_after_a_start_that_could_not_be_put_down_is_synced_after_a_kill() {
    // The last run's clean end could neither be replaced nor removed: the run after this one would have gone on from it.
    let fault = Fault { harm: Harm::Fail(Errno::ROFS), at: 11, times: 3 };
    run(
        Durability::Fast,
        &[
            Step::Harmed(Op::Restart, fault, 0),
            Step::Do(Op::Tag(0, 4)),
            Step::Do(Op::LoseIndex),
            Step::Dies(Op::Publish(0, false), 1, Crash::Cut(Order::Journal, 4)),
        ],
    );
}
