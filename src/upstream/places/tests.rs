//! Who is next, by examples and against a model.

use std::pin::Pin;

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::time::advance;

use super::*;

type Asking = Pin<Box<dyn Future<Output = Place>>>;

fn ask(places: &Arc<Places>, priority: Priority, size: Option<u64>) -> Asking {
    let places = Arc::clone(places);
    let mut asking: Asking = Box::pin(async move { places.place(priority, size).await });
    assert!((&mut asking).now_or_never().is_none(), "there is no room");
    asking
}

/// Who has a place now, by its position; they keep it.
fn served(asking: &mut [Option<Asking>], held: &mut Vec<Place>) -> Vec<usize> {
    let mut who = Vec::new();
    for (index, slot) in asking.iter_mut().enumerate() {
        if let Some(place) = slot.as_mut().and_then(FutureExt::now_or_never) {
            *slot = None;
            held.push(place);
            who.push(index);
        }
    }
    who
}

/// Gives places back one by one; the order in which the others got theirs.
fn order(asking: Vec<Asking>, first: Place) -> Vec<usize> {
    let mut asking: Vec<_> = asking.into_iter().map(Some).collect();
    let (mut held, mut order) = (vec![first], Vec::new());
    while let Some(place) = held.pop() {
        drop(place);
        order.extend(served(&mut asking, &mut held));
    }
    order
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_goes_first_and_the_small_before_the_large() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Ahead, None).await;
    let asking = vec![
        ask(&places, Priority::Ahead, Some(1)),
        ask(&places, Priority::Waiting, None),
        ask(&places, Priority::Waiting, Some(100)),
        ask(&places, Priority::Waiting, Some(10)),
        ask(&places, Priority::Waiting, Some(100)),
        ask(&places, Priority::Ahead, Some(0)),
    ];
    assert_eq!(order(asking, first), [3, 2, 4, 1, 5, 0]);
    assert_eq!(places.state.lock().held, 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_not_begun_does_not_come_after_all_that_goes_on() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Waiting, None).await;
    // What is left of layers that are being read, which ask again whenever they have had their turn.
    let mut asking: Vec<_> = (0..2).map(|_| Some(ask(&places, Priority::Waiting, Some(1 << 20)))).collect();
    let mut new = vec![Some(ask(&places, Priority::Waiting, None))];
    let (mut held, mut waited) = (vec![first], Duration::ZERO);
    while new[0].is_some() {
        advance(Duration::from_secs(2)).await;
        waited += Duration::from_secs(2);
        assert!(waited < Duration::from_secs(19), "who wants a head has given up");
        held.clear();
        served(&mut new, &mut held);
        for turn in served(&mut asking, &mut held) {
            asking[turn] = Some(ask(&places, Priority::Waiting, Some(1 << 20)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_not_begun_goes_before_what_is_left_of_the_large() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Waiting, None).await;
    let asking = [Some(64 << 20), None, Some(1 << 20)].map(|size| ask(&places, Priority::Waiting, size));
    assert_eq!(order(asking.into(), first), [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Waiting, None).await;
    let mut asking = vec![ask(&places, Priority::Ahead, None), ask(&places, Priority::Waiting, Some(1000))];
    advance(LONG / 2).await;
    asking.extend((0..6).map(|size| ask(&places, Priority::Waiting, Some(size))));
    advance(LONG / 2).await;
    assert_eq!(order(asking, first), [1, 2, 0, 3, 4, 5, 6, 7], "the oldest; and one place in four");
}

#[tokio::test(start_paused = true)]
async fn many_that_have_waited_long_do_not_hold_up_clients() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Waiting, None).await;
    let mut asking: Vec<_> = (0..100).map(|_| ask(&places, Priority::Ahead, None)).collect();
    advance(LONG * 10).await;
    asking.extend((0..6).map(|_| ask(&places, Priority::Waiting, None)));
    let order = order(asking, first);
    assert!(order.iter().position(|who| *who == 105).unwrap() < 10, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_on_when_it_is_given_back_or_given_up() {
    let places = Places::new(Some(1));
    let first = places.place(Priority::Waiting, None).await;
    assert!(places.try_place().is_none());
    let gone = ask(&places, Priority::Waiting, Some(1));
    let called = ask(&places, Priority::Waiting, Some(2));
    let last = ask(&places, Priority::Ahead, None);
    drop(gone);
    drop(first);
    // It has been called, and has not looked.
    drop(called);
    let place = last.now_or_never().expect("the place is not lost");
    assert!(places.try_place().is_none());
    drop(place);
    assert!(places.try_place().is_some());
    assert_eq!(places.state.lock().held, 0);
}

#[tokio::test(start_paused = true)]
async fn the_limit_changes_for_who_waits() {
    let places = Places::new(None);
    let mut held: Vec<_> = (0..100).map(|_| places.try_place().unwrap()).collect();
    places.set_limit(Some(2));
    let mut asking: Vec<_> = (0..4).map(|_| Some(ask(&places, Priority::Waiting, None))).collect();
    held.truncate(2);
    assert_eq!(served(&mut asking, &mut held), [0_usize; 0]);
    places.set_limit(Some(3));
    assert_eq!(served(&mut asking, &mut held), [0]);
    places.set_limit(None);
    assert_eq!(served(&mut asking, &mut held), [1, 2, 3]);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Priority, Option<u64>),
    /// Of those who ask, or hold, whoever has this number, counted around.
    GiveUp(usize),
    GiveBack(usize),
    Limit(Option<usize>),
    Pass(u64),
    Try,
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![Just(Priority::Waiting), Just(Priority::Ahead)];
    prop_oneof![
        4 => (priority, proptest::option::of(0_u64..4)).prop_map(|(priority, size)| Step::Ask(priority, size)),
        1 => any::<usize>().prop_map(Step::GiveUp),
        3 => any::<usize>().prop_map(Step::GiveBack),
        1 => proptest::option::weighted(0.8, 1_usize..4).prop_map(Step::Limit),
        1 => (1_u64..40).prop_map(Step::Pass),
        1 => Just(Step::Try),
    ]
}

/// The same by the words of the documentation, over a list.
struct Model {
    limit: Option<usize>,
    held: usize,
    /// Number, priority, size, since when.
    queue: Vec<(usize, Priority, u64, Instant)>,
    since_ahead: u32,
}

impl Model {
    fn admit(&mut self) -> Vec<usize> {
        let mut admitted = Vec::new();
        while self.limit.is_none_or(|limit| self.held < limit) && !self.queue.is_empty() {
            let old = |since: Instant| since.elapsed() >= LONG;
            let of = |priority| self.queue.iter().filter(move |waiter| waiter.1 == priority);
            let is_due = self.since_ahead >= SHARE - 1 && of(Priority::Ahead).any(|waiter| old(waiter.3));
            let waited_for = of(Priority::Waiting).count() > 0 && !is_due;
            let class = if waited_for { Priority::Waiting } else { Priority::Ahead };
            let aged = of(class).filter(|waiter| old(waiter.3)).min_by_key(|waiter| waiter.0);
            let next = aged.or_else(|| of(class).min_by_key(|waiter| (waiter.2, waiter.0))).unwrap().0;
            self.since_ahead = if class == Priority::Ahead { 0 } else { self.since_ahead + 1 };
            self.queue.retain(|waiter| waiter.0 != next);
            self.held += 1;
            admitted.push(next);
        }
        admitted.sort_unstable();
        admitted
    }
}

async fn play(steps: Vec<Step>) {
    let places = Places::new(Some(1));
    let mut model = Model { limit: Some(1), held: 0, queue: Vec::new(), since_ahead: 0 };
    let mut asking: Vec<Option<Asking>> = Vec::new();
    let mut held = Vec::new();
    for step in steps {
        match step {
            Step::Ask(priority, size) => {
                let places = Arc::clone(&places);
                let mut new: Asking = Box::pin(async move { places.place(priority, size).await });
                model.queue.push((asking.len(), priority, size.unwrap_or(u64::MAX), Instant::now()));
                // Polled once, so that it is in the queue; a place that it has at once is seen below.
                let at_once = (&mut new).now_or_never();
                asking.push(Some(at_once.map_or(new, |place| Box::pin(std::future::ready(place)))));
            }
            Step::GiveUp(which) if !model.queue.is_empty() => {
                let number = model.queue.remove(which % model.queue.len()).0;
                asking[number] = None;
            }
            Step::GiveBack(which) if !held.is_empty() => {
                model.held -= 1;
                drop(held.swap_remove(which % held.len()));
            }
            Step::Limit(limit) => {
                model.limit = limit;
                places.set_limit(limit);
            }
            Step::Pass(seconds) => advance(Duration::from_secs(seconds)).await,
            Step::Try => {
                let place = places.try_place();
                let room = model.limit.is_none_or(|limit| model.held < limit);
                assert_eq!(place.is_some(), room);
                model.held += usize::from(room);
                held.extend(place);
            }
            Step::GiveUp(_) | Step::GiveBack(_) => {}
        }
        let expected = model.admit();
        assert_eq!(served(&mut asking, &mut held), expected);
        assert_eq!((places.state.lock().held, held.len()), (model.held, model.held));
    }
    drop((asking, held));
    let state = places.state.lock();
    assert_eq!((state.held, state.waiting.by_size.len(), state.ahead.by_size.len()), (0, 0, 0));
}

proptest! {
    #[test]
    fn as_the_model_says(steps in proptest::collection::vec(step(), 0..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps));
    }
}
