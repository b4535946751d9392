//! Every call of every scenario, failing in every way: crashes, errors and what comes after them.
//!
//! First the calls of a run without faults are counted, then there is a run for each of them. `OCISTERN_SEEDS` is the number of
//! seeds for what a power cut leaves (2 by default: one for each order in which changes of names may reach the disk); with more
//! than these, errors also last for a few calls, and not only for one or for all from there on.

use rustix::io::Errno;

use super::sim::{Fault, Harm, Order, Sim, SimFs, fast_directory};
use super::world::{Crash, Op, World};
use super::*;

/// Fills that are published, with one that is wrong and one that is given up.
const FILL: &[Op] = &[
    Op::Publish(0, true),
    Op::Publish(2, true),
    Op::Publish(1, false),
    Op::Wrong(3),
    Op::Abandon(2),
    Op::Publish(0, false),
    Op::Tick,
];
/// What a pull does, up to the tag.
const PULL: &[Op] = &[
    Op::Access(true),
    Op::Publish(0, true),
    Op::Link(0),
    Op::Publish(1, true),
    Op::Link(1),
    Op::Publish(4, true),
    Op::Link(4),
    Op::Tag(0, 4),
    Op::Tick,
];
/// A push that moves a tag.
const PUSH: &[Op] =
    &[Op::Spool(1), Op::Link(1), Op::Suspect(0), Op::Spool(5), Op::Link(5), Op::End(0), Op::Tag(0, 5), Op::Tick];
/// A push that upstream refuses.
const REFUSED: &[Op] = &[Op::Suspect(0), Op::Suspect(1), Op::Withdraw(0), Op::Withdraw(1), Op::Tick];
/// A tag moves, and moves back, and another appears and goes.
const TAGS: &[Op] =
    &[Op::Publish(5, true), Op::Link(5), Op::Tag(0, 5), Op::Tag(1, 5), Op::Tag(0, 4), Op::Untag(1), Op::Tick];
/// A deletion.
const DELETE: &[Op] =
    &[Op::Suspect(0), Op::ForgetManifest(4), Op::Withdraw(0), Op::Unlink(0), Op::ForgetRepository, Op::Tick];
/// Making room, with a pin and new content between.
const EVICT: &[Op] =
    &[Op::Evict(1), Op::Publish(6, true), Op::Pin(0), Op::Evict(50), Op::Unpin(0), Op::Evict(72), Op::Tick];
/// Removal by name, and of what nothing leads to.
const REMOVE: &[Op] = &[Op::Remove(0), Op::Publish(3, true), Op::Collect, Op::Tick];
/// A damaged file is found, set aside and fetched anew.
const ROT: &[Op] = &[Op::Damage(0), Op::Read(0), Op::Publish(0, true), Op::Damage(1), Op::Verify, Op::Tick];
/// A stop and a start, twice: the second has a clean stop before it.
const RESTART: &[Op] = &[Op::Key, Op::Restart, Op::Read(0), Op::Scan, Op::Restart, Op::Read(1)];
/// A fill that is given up, gone on with, given up again and gone on with after a stop, to the end.
const PARTIAL: &[Op] =
    &[Op::Leave(2, 0), Op::Tick, Op::Leave(2, 1), Op::Restart, Op::Leave(2, 0), Op::GoOn(2), Op::Read(2), Op::Tick];
/// What is left goes: for room, for a blob that others have brought, and with a fill that has all.
const LEFT: &[Op] = &[
    Op::Leave(2, 0),
    Op::Evict(1),
    Op::Leave(2, 1),
    Op::Tick,
    Op::Publish(2, true),
    Op::Evict(71),
    Op::Abandon(2),
    Op::Restart,
    Op::GoOn(2),
    Op::Tick,
];
const NONE: &[Op] = &[];

/// Its name, what is there before, and what is done.
type Scenario = (&'static str, &'static [&'static [Op]], &'static [Op]);

const SCENARIOS: &[Scenario] = &[
    ("fill", &[NONE], FILL),
    ("pull", &[NONE], PULL),
    ("push", &[PULL], PUSH),
    ("refused push", &[PULL], REFUSED),
    ("tags", &[PULL], TAGS),
    ("delete", &[PULL, PUSH], DELETE),
    ("evict", &[PULL, FILL], EVICT),
    ("remove", &[PULL, PUSH], REMOVE),
    ("rot", &[PULL], ROT),
    ("restart", &[PULL], RESTART),
    ("partial", &[NONE], PARTIAL),
    ("left", &[NONE], LEFT),
];

fn seeds() -> u64 {
    std::env::var("OCISTERN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// A figure, for who runs it with `--nocapture`.
#[expect(clippy::print_stderr, reason = "this is its output")]
pub(super) fn say(figure: &str) {
    eprintln!("{figure}");
}

fn prepared(before: &[&[Op]], durability: Durability) -> World {
    let mut world = World::new(durability);
    for op in before.iter().copied().flatten() {
        world.apply(*op);
    }
    world
}

/// How many calls a fault of this kind could meet, and more.
fn calls(before: &[&[Op]], subject: &[Op], durability: Durability, harm: Harm) -> u64 {
    let mut world = prepared(before, durability);
    world.sim.arm(Fault { harm, at: u64::MAX, times: 0 }, 0);
    for op in subject {
        world.apply(*op);
    }
    let seen = world.sim.heal();
    world.audit("without faults");
    seen
}

/// One run. Which one it was is said after what has failed.
fn run(name: &str, case: &str, test: impl FnOnce()) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    assert!(outcome.is_ok(), "what is said above is of {name}: {case}");
}

/// Ends every run of a scenario in a crash.
fn crash_at_every_call(harm: Harm, durability: Durability) {
    let mut cases = 0;
    for (name, before, subject) in SCENARIOS {
        for k in 1..=calls(before, subject, durability, harm) {
            let crashes: Vec<Crash> = match harm {
                Harm::Kill => vec![Crash::Kill],
                _ => (0..seeds())
                    .map(|seed| Crash::Cut(if seed % 2 == 0 { Order::Any } else { Order::Journal }, 1000 * k + seed))
                    .collect(),
            };
            for crash in crashes {
                run(name, &format!("{harm:?} at call {k}, {crash:?}, {durability:?}"), || {
                    let mut world = prepared(before, durability);
                    world.sim.arm(Fault { harm, at: k, times: 1 }, k);
                    for op in *subject {
                        world.apply(*op);
                    }
                    world.crash(crash);
                    world.works();
                });
                cases += 1;
            }
        }
    }
    say(&format!("{harm:?}, {durability:?}: {cases} cases"));
    assert!(cases > 500);
}

/// Something fails at every call, for a while; then everything works again, and a power cut finds what it must.
fn fail_at_every_call(harm: Harm, times: &[u64]) {
    let mut cases = 0;
    for (name, before, subject) in SCENARIOS {
        for k in 1..=calls(before, subject, Durability::Strict, harm) {
            for times in times.iter().filter(|times| matches!(**times, 1 | u64::MAX) || seeds() > 2) {
                run(name, &format!("{harm:?} at call {k}, {times} times"), || {
                    let mut world = prepared(before, Durability::Strict);
                    world.sim.arm(Fault { harm, at: k, times: *times }, k);
                    for op in *subject {
                        world.apply(*op);
                    }
                    world.audit("after errors");
                    world.works();
                    world.crash(Crash::Cut(if k % 2 == 0 { Order::Any } else { Order::Journal }, k));
                });
                cases += 1;
            }
        }
    }
    say(&format!("{harm:?}: {cases} cases"));
    assert!(cases > 50);
}

#[test]
fn a_power_cut_at_every_call_with_strict_durability() {
    crash_at_every_call(Harm::Cut, Durability::Strict);
}

#[test]
fn a_power_cut_at_every_call_with_fast_durability() {
    crash_at_every_call(Harm::Cut, Durability::Fast);
}

#[test]
fn a_kill_at_every_call() {
    crash_at_every_call(Harm::Kill, Durability::Strict);
    crash_at_every_call(Harm::Kill, Durability::Fast);
}

#[test]
fn no_space_at_every_call() {
    fail_at_every_call(Harm::Fail(Errno::NOSPC), &[1, 4, u64::MAX]);
}

#[test]
fn an_input_output_error_at_every_call() {
    fail_at_every_call(Harm::Fail(Errno::IO), &[1, 3, u64::MAX]);
}

#[test]
fn no_descriptor_at_every_call() {
    fail_at_every_call(Harm::Fail(Errno::MFILE), &[1, u64::MAX]);
}

#[test]
fn a_file_system_that_becomes_read_only_at_every_call() {
    fail_at_every_call(Harm::Fail(Errno::ROFS), &[u64::MAX]);
}

#[test]
fn a_short_write_at_every_call() {
    fail_at_every_call(Harm::Short, &[1, u64::MAX]);
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_met_an_error_is_made_again() {
    let root = fast_directory();
    let sim = Sim::new(root.path());
    let open = || {
        let disk = Disk::over(Box::new(SimFs(sim.clone())), root.path().canonicalize().unwrap());
        let metrics = Metrics::new().unwrap();
        let options = options(root.path(), 1 << 30);
        (Store::open_on(Arc::new(disk), options, metrics.clone(), |_| Box::new(InMemory)).unwrap(), metrics)
    };
    let (store, _) = open();
    put(&store, b"content").await;
    store.close().await;
    drop(store);
    let (store, metrics) = open();
    sim.arm(Fault { harm: Harm::Fail(Errno::MFILE), at: 1, times: u64::MAX }, 0);
    let stop = CancellationToken::new();
    let look = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(metrics.store_blobs.get(), 0, "no descriptor was free");
        sim.heal();
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(metrics.store_blobs.get(), 1, "the next scan finds it, without another start");
        stop.cancel();
    };
    tokio::join!(store.recover(&stop), look);
}
