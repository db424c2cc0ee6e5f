//! The ranks of one attempt, joined through rank 0's address. Rank 0 owns the connections; a rank that belongs to another
//! attempt is turned away, and a rank that is lost ends the process, so that the supervisor restarts the gang.
//!
//! ```text
//!   rank r                       rank 0
//!   Hello{attempt, rank, ..} -->  another attempt, rank taken, ..: TurnedAway{why}, and rank 0 listens on
//!   (waits)                       all ranks here:
//!          <------------------------ Welcome
//!   Share (step n)  ---------->  adds up in the order of the ranks
//!          <------------------------ Total (step n)          and so on; any loss or misfit: both sides end
//! ```

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::model::PARAMETERS;
use crate::trainer::Share;
use crate::wire::{FRAME_MAX, HANDSHAKE_MAX, Kind, WireError, receive, send, strange};

/// Ranks may start far apart, when one has to fetch its checkpoint first.
const GATHER_MAX: Duration = Duration::from_secs(120);
/// A peer may be in a save, which may wait 30 s for an agent that restarts.
const EXCHANGE_MAX: Duration = Duration::from_secs(120);
/// A stranger that says nothing must not keep the others waiting.
const HELLO_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
const PROTOCOL: u32 = 1;

/// Who a rank says that it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    protocol: u32,
    pub attempt: String,
    pub rank: u32,
    pub world_size: u32,
    /// Steps done.
    pub step: u64,
    /// Of the state that all ranks must have in common.
    pub digest: String,
}

impl Hello {
    pub fn new(attempt: &str, rank: u32, world_size: u32, step: u64, digest: String) -> Self {
        Self { protocol: PROTOCOL, attempt: attempt.to_owned(), rank, world_size, step, digest }
    }
}

/// What any rank's supervisor wants; what one wants, all do, at the same step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub checkpoint: bool,
    pub stop: bool,
}

impl Wish {
    fn or(self, other: Self) -> Self {
        Self { checkpoint: self.checkpoint || other.checkpoint, stop: self.stop || other.stop }
    }
}

/// Failed to work together with the other ranks.
#[derive(Debug, thiserror::Error)]
pub enum GangError {
    #[error("cannot listen at {address} for the other ranks")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot reach rank 0 at {address} within {waited_s} s")]
    Unreachable {
        address: String,
        waited_s: u64,
        #[source]
        source: WireError,
    },
    #[error("only {present} of {world_size} ranks came within {waited_s} s")]
    Absent { present: usize, world_size: u32, waited_s: u64 },
    #[error("turned away by rank 0: {reason}")]
    TurnedAway { reason: String },
    #[error(
        "rank {rank} restored another state ({theirs}) than rank 0 ({ours}); all ranks must go on from one checkpoint"
    )]
    StateDiffers { rank: u32, theirs: String, ours: String },
    #[error("lost rank {rank}; ending, so that the supervisor restarts all ranks")]
    Lost {
        rank: u32,
        #[source]
        source: WireError,
    },
}

/// The connections of one rank.
#[derive(Debug)]
pub struct Gang {
    /// Of rank 0: to ranks 1, 2, … in this order. Of another rank: to rank 0.
    peers: Vec<TcpStream>,
    is_root: bool,
}

impl Gang {
    /// Brings the ranks together at `master`; returns when all are there.
    pub fn gather(hello: &Hello, master: &(String, u16)) -> Result<Self, GangError> {
        match (hello.world_size, hello.rank) {
            (1, _) => Ok(Self { peers: Vec::new(), is_root: true }),
            (_, 0) => Self::host(&listen(master)?, hello, GATHER_MAX),
            _ => Self::join(master, hello, GATHER_MAX),
        }
    }

    /// Rank 0's side.
    pub fn host(listener: &TcpListener, hello: &Hello, limit: Duration) -> Result<Self, GangError> {
        let began = Instant::now();
        let mut seats: Vec<Option<TcpStream>> = (1..hello.world_size).map(|_| None).collect();
        while seats.iter().any(Option::is_none) {
            if began.elapsed() >= limit {
                let present = 1 + seats.iter().flatten().count();
                let waited_s = limit.as_secs();
                return Err(GangError::Absent { present, world_size: hello.world_size, waited_s });
            }
            match accept(listener)? {
                Some(stream) => seat(stream, hello, &mut seats)?,
                None => std::thread::sleep(PAUSE),
            }
        }
        let mut gang = Self { peers: seats.into_iter().flatten().collect(), is_root: true };
        gang.tell_all(Kind::Welcome, &[])?;
        Ok(gang)
    }

    /// The other ranks' side.
    pub fn join(master: &(String, u16), hello: &Hello, limit: Duration) -> Result<Self, GangError> {
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let source = match knock(master, hello, left) {
                Ok((Kind::Welcome, stream, _)) => return Ok(Self { peers: vec![stream], is_root: false }),
                Ok((Kind::TurnedAway, _, reason)) => {
                    return Err(GangError::TurnedAway {
                        reason: String::from_utf8_lossy(&reason).into_owned(),
                    });
                }
                Ok((kind, ..)) => strange(format!("{kind:?} as an answer to a greeting")),
                Err(source) => source,
            };
            if began.elapsed() >= limit {
                let address = format!("{}:{}", master.0, master.1);
                return Err(GangError::Unreachable { address, waited_s: limit.as_secs(), source });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Adds up all ranks' parts of `step`, in the order of the ranks; everybody gets the same sum and the same wish.
    pub fn exchange(&mut self, step: u64, share: Share, wish: Wish) -> Result<(Share, Wish), GangError> {
        if !self.is_root {
            let lost = |source| GangError::Lost { rank: 0, source };
            let stream = &mut self.peers[0];
            send(stream, Kind::Share, &encode(step, &share, wish), EXCHANGE_MAX).map_err(lost)?;
            return receive_sum(stream, Kind::Total, step).map_err(lost);
        }
        let (mut total, mut wishes) = (share, wish);
        for (rank, stream) in (1..).zip(&mut self.peers) {
            let part = receive_sum(stream, Kind::Share, step);
            let (share, wish) = part.map_err(|source| GangError::Lost { rank, source })?;
            total.add(&share);
            wishes = wishes.or(wish);
        }
        self.tell_all(Kind::Total, &encode(step, &total, wishes))?;
        Ok((total, wishes))
    }

    fn tell_all(&mut self, kind: Kind, payload: &[u8]) -> Result<(), GangError> {
        (1..).zip(&mut self.peers).try_for_each(|(rank, stream)| {
            send(stream, kind, payload, EXCHANGE_MAX).map_err(|source| GangError::Lost { rank, source })
        })
    }
}

/// The port was held for us until a moment ago, so "in use" may pass.
fn listen((host, port): &(String, u16)) -> Result<TcpListener, GangError> {
    let began = Instant::now();
    loop {
        match TcpListener::bind((host.as_str(), *port)) {
            Ok(listener) => return Ok(listener),
            Err(err) if err.kind() == ErrorKind::AddrInUse && began.elapsed() < HELLO_MAX => {
                std::thread::sleep(PAUSE);
            }
            Err(source) => return Err(GangError::Listen { address: format!("{host}:{port}"), source }),
        }
    }
}

fn accept(listener: &TcpListener) -> Result<Option<TcpStream>, GangError> {
    let accepted = listener.set_nonblocking(true).and_then(|()| listener.accept());
    let opened = accepted.and_then(|(stream, _)| {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    match opened {
        Ok(stream) => Ok(Some(stream)),
        // Nobody there, or gone again before we looked.
        Err(err)
            if matches!(
                err.kind(),
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(source) => {
            let address =
                listener.local_addr().map_or_else(|_| "?".to_owned(), |address| address.to_string());
            Err(GangError::Listen { address, source })
        }
    }
}

/// Gives a newcomer its seat, or turns it away. Only a rank of this very attempt with another state is our own end.
fn seat(mut stream: TcpStream, ours: &Hello, seats: &mut [Option<TcpStream>]) -> Result<(), GangError> {
    // A stranger who stammers is dropped without an answer.
    let Ok((Kind::Hello, greeting)) = receive(&mut stream, HANDSHAKE_MAX, HELLO_MAX) else { return Ok(()) };
    let theirs = serde_json::from_slice::<Hello>(&greeting);
    let refusal = match &theirs {
        Ok(theirs) => refusal(ours, theirs, seats),
        Err(err) => Some(format!("the greeting cannot be read: {err}")),
    };
    let (Ok(theirs), None) = (theirs, refusal.as_deref()) else {
        let reason = refusal.unwrap_or_default();
        eprintln!("digits: turned a visitor away: {reason}");
        // Whether it hears why is its own affair.
        let _ = send(&mut stream, Kind::TurnedAway, reason.as_bytes(), HELLO_MAX);
        return Ok(());
    };
    if (theirs.step, &theirs.digest) != (ours.step, &ours.digest) {
        let text = |hello: &Hello| format!("step {}, {:.8}", hello.step, hello.digest);
        let differs = GangError::StateDiffers { rank: theirs.rank, theirs: text(&theirs), ours: text(ours) };
        let _ = send(&mut stream, Kind::TurnedAway, differs.to_string().as_bytes(), HELLO_MAX);
        return Err(differs);
    }
    seats[theirs.rank as usize - 1] = Some(stream);
    Ok(())
}

fn refusal(ours: &Hello, theirs: &Hello, seats: &[Option<TcpStream>]) -> Option<String> {
    let rank = theirs.rank;
    if theirs.protocol != ours.protocol {
        return Some(format!("this is protocol {}, you speak {}", ours.protocol, theirs.protocol));
    }
    if theirs.attempt != ours.attempt {
        return Some(format!("this is attempt {}, you belong to {:.100}", ours.attempt, theirs.attempt));
    }
    if theirs.world_size != ours.world_size {
        return Some(format!("we are {} ranks, you know of {}", ours.world_size, theirs.world_size));
    }
    match (rank as usize).checked_sub(1).and_then(|seat| seats.get(seat)) {
        None => Some(format!("there is no seat for rank {rank}")),
        Some(Some(_)) => Some(format!("rank {rank} is here already")),
        Some(None) => None,
    }
}

/// Greets rank 0 and waits until all ranks are there.
fn knock(
    (host, port): &(String, u16),
    hello: &Hello,
    left: Duration,
) -> Result<(Kind, TcpStream, Vec<u8>), WireError> {
    let address = (host.as_str(), *port).to_socket_addrs().map_err(WireError::Io)?.next();
    let address = address.ok_or_else(|| strange(format!("{host} has no address")))?;
    let patience = left.clamp(Duration::from_millis(100), HELLO_MAX);
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(WireError::Io)?;
    stream.set_nodelay(true).map_err(WireError::Io)?;
    let greeting = serde_json::to_vec(hello).map_err(|err| strange(err.to_string()))?;
    send(&mut stream, Kind::Hello, &greeting, HELLO_MAX)?;
    let (kind, payload) = receive(&mut stream, HANDSHAKE_MAX, left.max(patience))?;
    Ok((kind, stream, payload))
}

/// Step u64, wishes u8, rows u32, loss f64, then the gradient as f32: all bits as they are.
fn encode(step: u64, share: &Share, wish: Wish) -> Vec<u8> {
    let Share { rows, loss, gradient } = share;
    let mut bytes = Vec::with_capacity(HEAD + gradient.len() * 4);
    bytes.extend(step.to_le_bytes());
    bytes.push(u8::from(wish.checkpoint) | u8::from(wish.stop) << 1);
    bytes.extend(rows.to_le_bytes());
    bytes.extend(loss.to_le_bytes());
    gradient.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

const HEAD: usize = 8 + 1 + 4 + 8;

fn decode(bytes: &[u8]) -> Option<(u64, Share, Wish)> {
    let (step, rest) = bytes.split_first_chunk()?;
    let (&[flags], rest) = rest.split_first_chunk()?;
    let (rows, rest) = rest.split_first_chunk()?;
    let (loss, rest) = rest.split_first_chunk()?;
    let (values, odd) = rest.as_chunks();
    if values.len() != PARAMETERS || !odd.is_empty() || flags > 3 {
        return None;
    }
    let gradient = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
    let share = Share { rows: u32::from_le_bytes(*rows), loss: f64::from_le_bytes(*loss), gradient };
    Some((u64::from_le_bytes(*step), share, Wish { checkpoint: flags & 1 != 0, stop: flags & 2 != 0 }))
}

fn receive_sum(stream: &mut TcpStream, wanted: Kind, step: u64) -> Result<(Share, Wish), WireError> {
    let (kind, payload) = receive(stream, FRAME_MAX, EXCHANGE_MAX)?;
    if kind != wanted {
        return Err(strange(format!("{kind:?} where {wanted:?} is due")));
    }
    let (theirs, share, wish) = decode(&payload).ok_or_else(|| strange("its parts do not fit"))?;
    if theirs != step {
        return Err(strange(format!("step {theirs} where step {step} is due")));
    }
    Ok((share, wish))
}
