//! Who may sit at the table, and what a stranger or a lost rank does to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use outlast_digits::{
    Dataset, FRAME_MAX, Gang, GangError, Hello, Kind, Recipe, Trainer, WireError, Wish, receive, send,
};

const LIMIT: Duration = Duration::from_secs(30);

fn hello(attempt: &str, rank: u32) -> Hello {
    Hello::new(attempt, rank, 2, 40, "d1".into())
}

fn listener() -> (TcpListener, (String, u16)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, ("127.0.0.1".to_owned(), port))
}

fn turned_away(answer: Result<Gang, GangError>) -> String {
    match answer {
        Err(GangError::TurnedAway { reason }) => reason,
        other => panic!("not turned away: {other:?}"),
    }
}

#[test]
fn a_zombie_of_another_attempt_is_turned_away_and_the_gang_goes_on() {
    let (listener, master) = listener();
    let root = thread::spawn(move || Gang::host(&listener, &hello("j1/0@1.4", 0), LIMIT));
    let reason = turned_away(Gang::join(&master, &hello("j1/0@1.3", 1), LIMIT));
    assert_eq!(reason, "this is attempt j1/0@1.4, you belong to j1/0@1.3");
    let reason = turned_away(Gang::join(&master, &hello("j1/0@1.4", 2), LIMIT));
    assert_eq!(reason, "there is no seat for rank 2");
    // Strangers: one that speaks another language, one that asks for far too much memory, one that leaves at once.
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff, 0xff, 0xff, 0xff, 1], &[]] {
        let mut stranger = TcpStream::connect(&master as &(String, u16)).expect("rank 0 listens");
        stranger.write_all(words).expect("rank 0 listens");
        stranger.shutdown(std::net::Shutdown::Write).expect("still open");
        let mut answer = Vec::new();
        // Closed or reset: either way nothing is told to it.
        let _ = stranger.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    Gang::join(&master, &hello("j1/0@1.4", 1), LIMIT).expect("the right one is welcome");
    root.join().expect("no panic").expect("all ranks came");
}

#[test]
fn ranks_with_different_states_do_not_start() {
    let (listener, master) = listener();
    let root = thread::spawn(move || Gang::host(&listener, &hello("a", 0), LIMIT));
    let other = Hello::new("a", 1, 2, 50, "d2".into());
    let reason = turned_away(Gang::join(&master, &other, LIMIT));
    assert!(reason.contains("restored another state (step 50, d2) than rank 0 (step 40, d1)"), "{reason}");
    assert!(matches!(root.join().expect("no panic"), Err(GangError::StateDiffers { rank: 1, .. })));
}

#[test]
fn a_wish_of_one_rank_is_every_ranks_wish() {
    let (listener, master) = listener();
    let recipe = Recipe { world_size: 2, ..Recipe::default() };
    let share = |rank| Trainer::new(recipe.clone(), rank, Dataset::embedded()).share();
    let (zero, one) = (share(0), share(1));
    let root = thread::spawn(move || {
        let mut gang = Gang::host(&listener, &hello("a", 0), LIMIT).expect("all ranks come");
        gang.exchange(1, zero, Wish { checkpoint: false, stop: true }).expect("all ranks stay")
    });
    let mut gang = Gang::join(&master, &hello("a", 1), LIMIT).expect("rank 0 is there");
    let told = gang.exchange(1, one, Wish { checkpoint: true, stop: false }).expect("rank 0 stays");
    assert_eq!(told.1, Wish { checkpoint: true, stop: true });
    assert_eq!(told, root.join().expect("no panic"));
}

#[test]
fn a_lost_rank_ends_the_others() {
    let (listener, master) = listener();
    let share = Trainer::new(Recipe { world_size: 2, ..Recipe::default() }, 0, Dataset::embedded()).share();
    let root = thread::spawn(move || {
        let mut gang = Gang::host(&listener, &hello("a", 0), LIMIT).expect("all ranks come");
        gang.exchange(41, share, Wish::default())
    });
    drop(Gang::join(&master, &hello("a", 1), LIMIT).expect("rank 0 is there"));
    let err = root.join().expect("no panic").expect_err("the other one is gone");
    assert!(matches!(err, GangError::Lost { rank: 1, source: WireError::Closed }), "{err:?}");
    assert_eq!(err.to_string(), "lost rank 1; ending, so that the supervisor restarts all ranks");
}

#[test]
fn a_rank_that_never_comes_is_told() {
    let (listener, master) = listener();
    let err = Gang::host(&listener, &hello("a", 0), Duration::from_millis(100)).expect_err("nobody comes");
    assert!(matches!(err, GangError::Absent { present: 1, world_size: 2, .. }), "{err:?}");
    drop(listener);
    let err = Gang::join(&master, &hello("a", 1), Duration::from_millis(100)).expect_err("nobody listens");
    assert!(matches!(err, GangError::Unreachable { .. }), "{err:?}");
}

#[test]
fn messages_have_bounds() {
    let (listener, master) = listener();
    let mut ours = TcpStream::connect(&master as &(String, u16)).expect("it listens");
    let (mut theirs, _) = listener.accept().expect("somebody came");
    let err = send(&mut ours, Kind::Share, &vec![0; FRAME_MAX + 1], LIMIT).expect_err("refused");
    assert!(matches!(err, WireError::TooLong { .. }), "{err:?}");
    send(&mut ours, Kind::Share, &[7; 100], LIMIT).expect("sent");
    let err = receive(&mut theirs, 99, LIMIT).expect_err("refused");
    assert!(matches!(err, WireError::TooLong { size: 100, max: 99 }), "{err:?}");
    let err = receive(&mut ours, 99, Duration::from_millis(50)).expect_err("nothing comes");
    assert!(matches!(err, WireError::TimedOut { .. }), "{err:?}");
}
