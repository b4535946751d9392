//! Every play under many schedules. `OCISTERN_SCHEDULES` is how many of each kind for each play (100 by default): drawn step
//! by step, evenly over what may happen, and by priorities that change a few times (PCT).
//!
//! A failure leaves its schedule in a file and names it; `OCISTERN_REPLAY=<file> cargo test … <test>` runs it again.

use std::env;
use std::path::Path;
use std::sync::Arc;

use ocistern_schedules::config::{Abandon, RangeFill};
use ocistern_schedules::plays::cast::{Answers, Away, Events, Play, Reader};
use ocistern_schedules::plays::{Met, flights, progress};
use shuttle::scheduler::{
    PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler,
    UrwRandomScheduler,
};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Runs a play under drawn schedules. False: it was one that failed before.
fn explore(play: impl Fn() + Send + Sync + Clone + 'static) -> bool {
    if let Some(file) = env::var_os("OCISTERN_REPLAY") {
        let file = Path::new(&file);
        run(ReplayScheduler::new_from_file(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())), play);
        return false;
    }
    let schedules =
        env::var("OCISTERN_SCHEDULES").map_or(100, |text| text.parse().expect("OCISTERN_SCHEDULES: a number"));
    run(RandomScheduler::new(schedules), play.clone());
    run(UrwRandomScheduler::new(schedules), play.clone());
    run(PctScheduler::new(5, schedules), play);
    true
}

fn run(scheduler: impl Scheduler + 'static, play: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(500_000);
    config.failure_persistence = FailurePersistence::File(Some(env!("CARGO_TARGET_TMPDIR").into()));
    Runner::new(scheduler, config).run(play);
}

/// Explores flights, or progress.
fn explore_ending<E: Copy + Send + Sync + 'static>(play: fn(E, &Arc<Met>), ending: E) {
    let met = Arc::new(Met::default());
    let counted = Arc::clone(&met);
    assert!(!explore(move || play(ending, &counted)) || met.count() > 0, "no schedule came to what it is there for");
}

/// Explores fills; `expected` is what some of the schedules must have come to.
fn explore_fills(
    play: impl Fn(&Arc<Events>) -> Play + Send + Sync + Clone + 'static,
    expected: &[fn(&Events) -> &Met],
) {
    let met = Arc::new(Events::default());
    let counted = Arc::clone(&met);
    let is_exploration = explore(move || {
        let play = play(&counted);
        Play { met: Arc::clone(&counted), ..play }.run();
    });
    for event in expected {
        assert!(!is_exploration || event(&met).count() > 0, "no schedule came to what it is there for: {met:?}");
    }
}

#[test]
fn a_schedule_can_be_repeated() {
    let play = || {
        let faulty = Play { faults: 6, ..Play::drawn(&Arc::default()).restless() };
        faulty.run();
    };
    if env::var_os("OCISTERN_REPLAY").is_some() {
        explore(play);
    } else {
        run(UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new(10)), play);
    }
}

// === flights ===

#[test]
fn who_asks_the_same_shares_the_answer() {
    explore_ending(flights::play, flights::Ending::Landed);
}

#[test]
fn flights_that_are_stopped_answer_nobody_and_hold_nobody() {
    explore_ending(flights::play, flights::Ending::Stopped);
}

#[test]
fn nobody_joins_a_flight_that_was_doubted_before() {
    explore_ending(flights::play, flights::Ending::Doubted);
}

// === progress ===

#[test]
fn a_file_that_becomes_whole_is_read_to_its_end() {
    explore_ending(progress::play, progress::Ending::Verified);
}

#[test]
fn a_file_that_turns_out_wrong_is_never_given_whole() {
    explore_ending(progress::play, progress::Ending::Wrong);
}

#[test]
fn a_file_that_was_cut_is_read_as_far_as_it_goes() {
    explore_ending(progress::play, progress::Ending::Cut);
}

#[test]
fn a_writer_that_vanishes_holds_nobody() {
    explore_ending(progress::play, progress::Ending::Vanished);
}

// === fills ===

#[test]
fn parts_and_wholes_come_once() {
    explore_fills(Play::drawn, &[|met| &met.side_by_side]);
}

#[test]
fn only_what_is_wanted_comes_and_once() {
    explore_fills(|met| Play { range_fill: RangeFill::Never, ..Play::drawn(met) }, &[|met| &met.side_by_side]);
}

#[test]
fn equal_and_overlapping_parts_are_one() {
    let parts = [3 * MIB..3 * MIB + 64 * KIB, 3 * MIB..3 * MIB + 64 * KIB, 3 * MIB + 32 * KIB..4 * MIB];
    let readers: Vec<_> = parts.map(Reader::of).to_vec();
    let play = Play { range_fill: RangeFill::Never, most_asked: Some(2), ..Play::of(24 * MIB, readers) };
    explore_fills(move |_| play.clone(), &[]);
}

/// As containerd does.
#[test]
fn open_ranges_that_are_left_after_a_chunk_come_once() {
    let readers: Vec<_> = (0..6).map(|n| Reader::of(n * 4 * MIB..24 * MIB).leaving(4 * MIB)).collect();
    let play = Play::of(24 * MIB, readers);
    explore_fills(move |_| play.clone(), &[|met| &met.left, |met| &met.side_by_side]);
}

/// What brings the beginning stalls until all others have what they want.
#[test]
fn who_waits_ahead_waits_for_nobody() {
    let parts = [5 * MIB..5 * MIB + 100, 9 * MIB + 5..12 * MIB, 20 * MIB..24 * MIB];
    let ahead = parts.into_iter().zip([0, 20, 40]).map(|(part, late)| Reader::of(part).later(late));
    let readers: Vec<_> = [Reader::whole()].into_iter().chain(ahead).collect();
    let play = Play { stalls_at: Some(2 * MIB), ..Play::of(24 * MIB, readers) };
    explore_fills(move |_| play.clone(), &[|met| &met.side_by_side]);
}

#[test]
fn who_leaves_at_any_moment_leaves_the_others_whole() {
    explore_fills(|met| Play::drawn(met).restless(), &[|met| &met.left]);
}

#[test]
fn what_was_put_aside_is_gone_on_with() {
    explore_fills(
        |met| Play { abandon: Abandon::Park, range_fill: RangeFill::Never, ..Play::drawn(met).restless().spread() },
        &[|met| &met.parked, |met| &met.taken_up],
    );
}

/// Often it is put aside in the moment in which somebody comes.
#[test]
fn who_comes_when_it_is_put_aside_looks_again() {
    let reader =
        |n: u32| Reader::of(u64::from(n) * 64 * KIB..u64::from(n) * 64 * KIB + 100).later(n * 24).proving(n % 4 * 3);
    let readers: Vec<_> = (0..12).map(reader).collect();
    let play = Play { abandon: Abandon::Park, range_fill: RangeFill::Never, ..Play::of(2 * MIB, readers) };
    explore_fills(move |_| play.clone(), &[|met| &met.parked, |met| &met.taken_up, |met| &met.looked_again]);
}

#[test]
fn few_requests_are_enough() {
    explore_fills(|met| Play { blob_connections: 2, ..Play::drawn(met) }, &[|met| &met.side_by_side]);
}

#[test]
fn one_request_is_enough() {
    explore_fills(|met| Play { blob_connections: 1, range_fill: RangeFill::Never, ..Play::drawn(met).restless() }, &[]);
}

#[test]
fn few_places_that_others_want_too_are_enough() {
    explore_fills(
        |met| Play { max_connections: Some(2), rivals: 3, range_fill: RangeFill::Never, ..Play::drawn(met).restless() },
        &[|met| &met.side_by_side],
    );
}

#[test]
fn one_place_is_enough() {
    explore_fills(|met| Play { max_connections: Some(1), rivals: 2, ..Play::drawn(met) }, &[]);
}

#[test]
fn an_upstream_that_breaks_off_holds_nobody() {
    explore_fills(|met| Play { faults: 12, ..Play::drawn(met).restless() }, &[|met| &met.left]);
}

#[test]
fn an_upstream_that_is_away_for_long_is_gone_on_with() {
    explore_fills(
        |met| Play { away: Some(Away { after: 6 * MIB, questions: 40 }), ..Play::drawn(met) },
        &[|met| &met.failed, |met| &met.taken_up, |met| &met.looked_again],
    );
}

#[test]
fn an_upstream_that_gives_no_parts_holds_nobody() {
    explore_fills(|met| Play { parts: Answers::Whole, ..Play::drawn(met).restless() }, &[]);
}

#[test]
fn an_upstream_of_two_minds_holds_nobody() {
    explore_fills(|met| Play { parts: Answers::Either, faults: 4, ..Play::drawn(met) }, &[]);
}

#[test]
fn a_file_that_takes_no_more_holds_nobody() {
    explore_fills(|met| Play { room: 6 * MIB, ..Play::drawn(met).restless() }, &[|met| &met.cut]);
}

/// Where only what is wanted is fetched, nothing that comes later would tell.
#[test]
fn a_file_that_does_not_take_the_last_that_is_wanted_holds_nobody() {
    let play = Play::of(24 * MIB, vec![Reader::of(5 * MIB..5 * MIB + 100 * KIB)]);
    let play = Play { room: 60 * KIB, range_fill: RangeFill::Never, ..play };
    explore_fills(move |_| play.clone(), &[|met| &met.cut]);
}
