//! Who is next, by examples and against a model.

use std::pin::Pin;

use futures_util::FutureExt;
use proptest::prelude::*;
use tokio::time::advance;

use super::*;

type Asking = Pin<Box<dyn Future<Output = Place>>>;

fn party(number: u8) -> Party {
    Party::at([192, 0, 2, number].into())
}

/// What one client alone wants.
fn errand_of(places: &Arc<Places>, number: u8) -> Errand {
    places.errand(Some(party(number)))
}

/// Asks for a place where there is none.
fn ask_with(errand: &Errand, priority: Priority, size: Option<u64>) -> Asking {
    let errand = errand.clone();
    let mut asking: Asking = Box::pin(async move { errand.place(priority, size).await });
    assert!((&mut asking).now_or_never().is_none(), "there is no room");
    asking
}

/// The same for one client, always the same.
fn ask(places: &Arc<Places>, priority: Priority, size: Option<u64>) -> Asking {
    ask_with(&errand_of(places, 1), priority, size)
}

/// A place for that client, which is free.
fn hold(places: &Arc<Places>, priority: Priority) -> Place {
    errand_of(places, 1).place(priority, None).now_or_never().expect("there is room")
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
    let first = hold(&places, Priority::Ahead);
    let asking = vec![
        ask(&places, Priority::Ahead, Some(1)),
        ask(&places, Priority::Waiting, None),
        ask(&places, Priority::Waiting, Some(100)),
        ask(&places, Priority::Waiting, Some(10)),
        ask(&places, Priority::Waiting, Some(100)),
        ask(&places, Priority::Ahead, Some(0)),
    ];
    assert_eq!(order(asking, first), [3, 2, 4, 1, 5, 0]);
    assert_eq!(places.state.lock().held.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_not_begun_does_not_come_after_all_that_goes_on() {
    let places = Places::new(Some(1));
    let first = hold(&places, Priority::Waiting);
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
    let first = hold(&places, Priority::Waiting);
    let asking = [Some(64 << 20), None, Some(1 << 20)].map(|size| ask(&places, Priority::Waiting, size));
    assert_eq!(order(asking.into(), first), [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let places = Places::new(Some(1));
    let first = hold(&places, Priority::Waiting);
    let mut asking = vec![ask(&places, Priority::Ahead, None), ask(&places, Priority::Waiting, Some(1000))];
    advance(LONG / 2).await;
    asking.extend((0..6).map(|size| ask(&places, Priority::Waiting, Some(size))));
    advance(LONG / 2).await;
    assert_eq!(order(asking, first), [1, 2, 0, 3, 4, 5, 6, 7], "the oldest; and one place in four");
}

#[tokio::test(start_paused = true)]
async fn many_that_have_waited_long_do_not_hold_up_clients() {
    let places = Places::new(Some(1));
    let first = hold(&places, Priority::Waiting);
    let mut asking: Vec<_> = (0..100).map(|_| ask(&places, Priority::Ahead, None)).collect();
    advance(LONG * 10).await;
    asking.extend((0..6).map(|_| ask(&places, Priority::Waiting, None)));
    let order = order(asking, first);
    assert!(order.iter().position(|who| *who == 105).unwrap() < 10, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_on_when_it_is_given_back_or_given_up() {
    let places = Places::new(Some(1));
    let first = hold(&places, Priority::Waiting);
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
    assert_eq!(places.state.lock().held.len(), 0);
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

/// So many places, all of which one client holds that waits for a hundred more.
fn flooded(limit: usize) -> (Arc<Places>, Vec<Option<Asking>>, Vec<Place>) {
    let places = Places::new(Some(limit));
    let held: Vec<_> = (0..limit).map(|_| hold(&places, Priority::Waiting)).collect();
    let asking = (0..100).map(|_| Some(ask(&places, Priority::Waiting, Some(1)))).collect();
    (places, asking, held)
}

#[tokio::test(start_paused = true)]
async fn the_next_free_place_is_not_for_who_asks_for_a_hundred() {
    for (limit, late) in [(1, false), (1, true), (2, false), (2, true), (16, true)] {
        let (places, mut flood, mut held) = flooded(limit);
        if late {
            // All of it has waited long, and goes before nobody for that.
            advance(LONG * 3).await;
        }
        let mut other = [Some(ask_with(&errand_of(&places, 2), Priority::Waiting, Some(u64::MAX)))];
        drop(held.remove(0));
        assert_eq!(served(&mut other, &mut held), [0], "{limit} places");
        assert_eq!(served(&mut flood, &mut held), [0_usize; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_one_thing_after_the_other_waits_for_one_of_the_others_each_time() {
    for limit in [1, 2] {
        let (places, mut flood, mut held) = flooded(limit);
        advance(LONG * 3).await;
        let mut turns = Vec::new();
        let mut other = Vec::new();
        for _ in 0..20 {
            other.push(Some(ask_with(&errand_of(&places, 2), Priority::Waiting, None)));
            // Until it has its place, which it gives back before it asks for the next one.
            while other.iter().any(Option::is_some) {
                drop(held.remove(0));
                turns.push(served(&mut other, &mut held).len());
                served(&mut flood, &mut held);
            }
            let last = held.len() - 1;
            drop(held.remove(last));
            served(&mut flood, &mut held);
        }
        assert!(turns.len() <= 24, "it is next nearly each time: {turns:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn places_are_shared_out_evenly() {
    let places = Places::new(Some(6));
    let mut held: Vec<_> = (0..6).map(|_| hold(&places, Priority::Waiting)).collect();
    let mut asking: Vec<_> = [(1, 50), (2, 30), (3, 10)]
        .into_iter()
        .flat_map(|(number, count)| std::iter::repeat_n(number, count))
        .map(|number| Some(ask_with(&errand_of(&places, number), Priority::Waiting, None)))
        .collect();
    for _ in 0..12 {
        drop(held.remove(0));
        served(&mut asking, &mut held);
    }
    let state = places.state.lock();
    let holds = |number| state.accounts[&Some(party(number))].held;
    assert_eq!([1, 2, 3].map(holds), [2, 2, 2]);
}

/// As of a client that reads a blob for hours, and wants another one, where others come all the time that want one each.
#[tokio::test(start_paused = true)]
async fn who_holds_a_place_for_hours_gets_another_one_in_time() {
    let places = Places::new(Some(2));
    let _long = hold(&places, Priority::Waiting);
    let mut held = vec![hold(&places, Priority::Waiting)];
    let mut second = [Some(ask(&places, Priority::Waiting, None))];
    let other = |number| Some(ask_with(&errand_of(&places, number), Priority::Waiting, None));
    let (mut others, mut waited) = (vec![other(2), other(3)], 0);
    while second[0].is_some() {
        assert!(waited < 19, "who wants a head has given up");
        advance(Duration::from_secs(1)).await;
        waited += 1;
        others.push(other(3 + waited));
        held.clear();
        let given = served(&mut others, &mut held).len() + served(&mut second, &mut held).len();
        assert_eq!(given, 1);
    }
    assert!(waited > 10, "it has its share");
}

#[tokio::test(start_paused = true)]
async fn what_several_want_goes_when_the_best_placed_of_them_is_next() {
    let (places, mut flood, mut held) = flooded(2);
    let errand = places.errand(None);
    let _flooding = errand.join(party(1));
    let mut shared = [Some(ask_with(&errand, Priority::Waiting, Some(1000)))];
    let joined = errand.join(party(2));
    let mut own = [Some(ask_with(&errand_of(&places, 3), Priority::Waiting, Some(1)))];
    drop(held.remove(0));
    assert_eq!(served(&mut shared, &mut held), [0], "it has joined before the third has come");
    assert_eq!(served(&mut own, &mut held), [0_usize; 0]);
    let holds = |number| places.state.lock().accounts.get(&Some(party(number))).map_or(0, |account| account.held);
    assert_eq!([1, 2].map(holds), [1, 1], "it is on the account of whose turn it was");
    drop(joined);
    assert_eq!([1, 2].map(holds), [1, 1], "and stays there");
    drop(held.remove(0));
    assert_eq!(served(&mut own, &mut held), [0]);
    assert_eq!(served(&mut flood, &mut held), [0_usize; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_along_what_it_was_put_forward_for() {
    let (places, mut flood, mut held) = flooded(2);
    let errand = places.errand(None);
    let _flooding = errand.join(party(1));
    let mut shared = [Some(ask_with(&errand, Priority::Waiting, Some(1000)))];
    let (joined, twice) = (errand.join(party(2)), errand.join(party(2)));
    assert_eq!(twice.party(), party(2));
    drop(joined);
    let is_second = |place: &Places| place.state.lock().accounts.contains_key(&Some(party(2)));
    assert!(is_second(&places), "it has joined twice");
    drop(twice);
    assert!(!is_second(&places));
    drop(held.remove(0));
    assert_eq!(served(&mut flood, &mut held), [0], "it is the last of the first again, as the largest");
    assert_eq!(served(&mut shared, &mut held), [0_usize; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_any_more_comes_after_what_somebody_wants() {
    let (places, mut flood, mut held) = flooded(2);
    let errand = places.errand(None);
    let reader = errand.join(party(2));
    let mut left = [Some(ask_with(&errand, Priority::Waiting, None))];
    drop(reader);
    drop(held.remove(0));
    assert_eq!(served(&mut left, &mut held), [0_usize; 0], "nobody's, although it holds nothing");
    assert_eq!(served(&mut flood, &mut held), [0]);
    // Until somebody comes again.
    let _reader = errand.join(party(3));
    drop(held.remove(0));
    assert_eq!(served(&mut left, &mut held), [0]);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize, Priority, Option<u64>),
    /// Of those who ask, or hold, or have joined, whoever has this number, counted around.
    GiveUp(usize),
    GiveBack(usize),
    Join(usize, u8),
    Leave(usize),
    Limit(Option<usize>),
    Pass(u64),
    Try,
}

/// Errands, and who alone wants each of them; none: whoever joins.
const ERRANDS: [Option<u8>; 5] = [None, None, None, Some(1), Some(2)];

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![3 => Just(Priority::Waiting), 1 => Just(Priority::Ahead)];
    let ask = (0..ERRANDS.len(), priority, proptest::option::of(0_u64..4));
    prop_oneof![
        4 => ask.prop_map(|(errand, priority, size)| Step::Ask(errand, priority, size)),
        1 => any::<usize>().prop_map(Step::GiveUp),
        3 => any::<usize>().prop_map(Step::GiveBack),
        2 => (0_usize..3, 1_u8..4).prop_map(|(errand, party)| Step::Join(errand, party)),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => proptest::option::weighted(0.8, 1_usize..4).prop_map(Step::Limit),
        1 => (1_u64..15).prop_map(Step::Pass),
        1 => Just(Step::Try),
    ]
}

/// The same by the words of the documentation, over lists.
#[derive(Default)]
struct Model {
    limit: Option<usize>,
    /// On whose account.
    held: Vec<Option<u8>>,
    queue: Vec<Asked>,
    /// By errand and party, in no order.
    joined: Vec<(usize, u8)>,
    /// Of those who hold or wait: when they came, or last got or gave back a place.
    turns: BTreeMap<Option<u8>, u64>,
    events: u64,
    since_ahead: u32,
    since_turn: BTreeMap<bool, u32>,
}

#[derive(Debug, Clone)]
struct Asked {
    index: usize,
    errand: usize,
    priority: Priority,
    size: u64,
    since: Instant,
}

impl Model {
    fn owners(&self, asked: &Asked) -> Vec<Option<u8>> {
        let joined = self.joined.iter().filter(|(errand, _)| *errand == asked.errand);
        let owners: BTreeSet<_> = joined.map(|(_, party)| Some(*party)).collect();
        if owners.is_empty() { vec![ERRANDS[asked.errand]] } else { owners.into_iter().collect() }
    }

    /// What waits on this account, with this priority.
    fn waiting(&self, owner: Option<u8>, priority: Priority) -> Vec<&Asked> {
        let is_of = |asked: &&Asked| {
            let counts_as = if owner.is_none() { Priority::Ahead } else { asked.priority };
            counts_as == priority && self.owners(asked).contains(&owner)
        };
        self.queue.iter().filter(is_of).collect()
    }

    /// Who is known.
    fn settle(&mut self) {
        self.events += 1;
        let waiting = self.queue.iter().flat_map(|asked| self.owners(asked));
        let known: BTreeSet<_> = waiting.chain(self.held.iter().copied()).collect();
        self.turns.retain(|owner, _| known.contains(owner));
        for owner in known {
            self.turns.entry(owner).or_insert(self.events);
        }
    }

    fn turn_of(&mut self, owner: Option<u8>) {
        self.settle();
        if let Some(turn) = self.turns.get_mut(&owner) {
            *turn = self.events;
        }
    }

    fn next(&mut self, priority: Priority) -> Option<(usize, Option<u8>)> {
        let old = |asked: &&Asked| asked.since.elapsed() >= LONG;
        let oldest = |owner| self.waiting(owner, priority).into_iter().filter(old).map(|asked| asked.index).min();
        let holds = |owner| self.held.iter().filter(|held| **held == owner).count();
        let waiting: Vec<_> =
            self.turns.keys().copied().filter(|owner| !self.waiting(*owner, priority).is_empty()).collect();
        let fewest = waiting.iter().copied().min_by_key(|owner| (holds(*owner), self.turns[owner]))?;
        let overdue =
            waiting.iter().copied().filter(|owner| oldest(*owner).is_some()).min_by_key(|owner| self.turns[owner]);
        let since = self.since_turn.get(&(priority == Priority::Ahead)).copied().unwrap_or(0);
        let owner = overdue.filter(|_| since >= SHARE - 1).unwrap_or(fewest);
        let is_in_turn = overdue.is_none_or(|overdue| overdue == owner);
        let smallest = || self.waiting(owner, priority).into_iter().min_by_key(|asked| (asked.size, asked.index));
        let next = oldest(owner).or_else(|| smallest().map(|asked| asked.index))?;
        self.since_turn.insert(priority == Priority::Ahead, if is_in_turn { 0 } else { since + 1 });
        Some((next, owner))
    }

    /// Those who get a place now. Their places are behind those that are held, in the order in which they have asked.
    fn admit(&mut self) -> Vec<usize> {
        let before = self.held.len();
        let mut admitted = Vec::new();
        while self.limit.is_none_or(|limit| self.held.len() < limit) && !self.queue.is_empty() {
            let old = |owner: &Option<u8>| {
                self.waiting(*owner, Priority::Ahead).iter().any(|asked| asked.since.elapsed() >= LONG)
            };
            let is_due = self.since_ahead >= SHARE - 1 && self.turns.keys().any(old);
            let waited_for = if is_due { None } else { self.next(Priority::Waiting) };
            self.since_ahead = if waited_for.is_some() { self.since_ahead + 1 } else { 0 };
            let (next, owner) = waited_for.or_else(|| self.next(Priority::Ahead)).unwrap();
            self.queue.retain(|asked| asked.index != next);
            self.held.push(owner);
            self.turn_of(owner);
            admitted.push((next, owner));
        }
        admitted.sort_unstable();
        self.held.truncate(before);
        self.held.extend(admitted.iter().map(|(_, owner)| owner));
        admitted.into_iter().map(|(index, _)| index).collect()
    }
}

async fn play(steps: Vec<Step>) {
    let places = Places::new(Some(1));
    let errands = ERRANDS.map(|of| places.errand(of.map(party)));
    let mut model = Model { limit: Some(1), ..Model::default() };
    let mut asking: Vec<Option<Asking>> = Vec::new();
    let (mut held, mut joined) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Ask(number, priority, size) => {
                let errand = errands[number].clone();
                let mut new: Asking = Box::pin(async move { errand.place(priority, size).await });
                let (index, size) = (asking.len(), size.unwrap_or(u64::MAX));
                model.queue.push(Asked { index, errand: number, priority, size, since: Instant::now() });
                // Polled once, so that it is in the queue; a place that it has at once is seen below.
                let at_once = (&mut new).now_or_never();
                asking.push(Some(at_once.map_or(new, |place| Box::pin(std::future::ready(place)))));
            }
            Step::GiveUp(which) if !model.queue.is_empty() => {
                let index = model.queue.remove(which % model.queue.len()).index;
                asking[index] = None;
            }
            Step::GiveBack(which) if !held.is_empty() => {
                let which = which % held.len();
                let owner = model.held.swap_remove(which);
                model.turn_of(owner);
                drop(held.swap_remove(which));
            }
            Step::Join(errand, number) => {
                joined.push(errands[errand].join(party(number)));
                model.joined.push((errand, number));
            }
            Step::Leave(which) if !joined.is_empty() => {
                let which = which % joined.len();
                model.joined.swap_remove(which);
                drop(joined.swap_remove(which));
            }
            Step::Limit(limit) => {
                model.limit = limit;
                places.set_limit(limit);
            }
            Step::Pass(seconds) => advance(Duration::from_secs(seconds)).await,
            Step::Try => {
                let place = places.try_place();
                let room = model.limit.is_none_or(|limit| model.held.len() < limit);
                assert_eq!(place.is_some(), room);
                if room {
                    model.held.push(None);
                    model.turn_of(None);
                }
                held.extend(place);
            }
            Step::GiveUp(_) | Step::GiveBack(_) | Step::Leave(_) => {}
        }
        model.settle();
        let expected = model.admit();
        assert_eq!(served(&mut asking, &mut held), expected);
        assert_eq!((places.state.lock().held.len(), held.len()), (model.held.len(), model.held.len()));
    }
    drop((asking, held, joined));
    assert_nothing_is_left(&places);
}

#[track_caller]
fn assert_nothing_is_left(places: &Places) {
    let State { held, waiters, errands, accounts, .. } = &*places.state.lock();
    assert!(held.is_empty() && waiters.is_empty() && errands.is_empty() && accounts.is_empty(), "{accounts:?}");
}

/// Each place that is given back goes at once to one of those who hold the fewest, as long as somebody waits.
fn share_out(limit: usize, asked: &[(usize, u64)], given_back: &[usize]) {
    let places = Places::new(Some(limit));
    let errands = ERRANDS.map(|of| places.errand(of.map(party)));
    let _joined = [(0, 1), (1, 1), (1, 3), (2, 2)].map(|(errand, number)| errands[errand].join(party(number)));
    let mut held: Vec<_> = (0..limit).map(|_| hold(&places, Priority::Waiting)).collect();
    let ask = |(errand, size): &(usize, u64)| Some(ask_with(&errands[*errand], Priority::Waiting, Some(*size)));
    let mut asking: Vec<_> = asked.iter().map(ask).collect();
    for which in given_back {
        let place = held.swap_remove(which % limit);
        let (fewest, before) = {
            let mut state = places.state.lock();
            let owner = state.held[&place.number];
            state.accounts.get_mut(&owner).unwrap().held -= 1;
            let waiting = state.accounts.values().filter(|account| !account.queues.waiting.is_empty());
            let fewest = waiting.map(|account| account.held).min();
            state.accounts.get_mut(&owner).unwrap().held += 1;
            (fewest, state.held.keys().copied().collect::<BTreeSet<_>>())
        };
        drop(place);
        let given = served(&mut asking, &mut held);
        let Some(fewest) = fewest else {
            assert_eq!(given, [0_usize; 0], "nobody has asked");
            return assert_eq!(held.len(), limit - 1);
        };
        assert_eq!((given.len(), held.len()), (1, limit));
        let state = places.state.lock();
        let (_, owner) = state.held.iter().find(|(number, _)| !before.contains(number)).unwrap();
        assert_eq!(state.accounts[owner].held, fewest + 1, "one that holds more went first");
    }
}

proptest! {
    #[test]
    fn as_the_model_says(steps in proptest::collection::vec(step(), 0..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(steps));
    }

    #[test]
    fn nobody_is_passed_over_by_one_that_holds_more(
        limit in 1_usize..6,
        asked in proptest::collection::vec((0..ERRANDS.len(), 0_u64..4), 0..60),
        given_back in proptest::collection::vec(any::<usize>(), 0..80),
    ) {
        share_out(limit, &asked, &given_back);
    }
}
